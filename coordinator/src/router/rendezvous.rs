//! The group of a key: everybody who knows the same groups picks the same one, and when a group comes or goes, few keys move.
//! (Rendezvous hashing: Thaler and Ravishankar, "A name-based mapping scheme for rendezvous", 1996.)

/// The one of `groups` that is the key's; `None` without groups.
pub(super) fn home(key: &str, groups: impl Iterator<Item = u64>) -> Option<u64> {
    let weight = |group: &u64| {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&group.to_le_bytes()).update(key.as_bytes());
        *hasher.finalize().as_bytes()
    };
    groups.max_by_key(weight)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_keys_move_when_a_group_goes() {
        let keys: Vec<String> = (0..400).map(|i| format!("key {i}")).collect();
        let mut counts = [0; 4];
        for key in &keys {
            let with = home(key, 0..4).expect("there are groups");
            assert_eq!(home(key, (0..4).rev()), Some(with), "in any order");
            counts[usize::try_from(with).expect("small")] += 1;
            let without = home(key, (0..4).filter(|group| *group != 2));
            assert!(without == Some(with) || with == 2, "{key} has moved");
        }
        assert!(counts.iter().all(|count| (60..140).contains(count)), "{counts:?}");
        assert_eq!(home("key", std::iter::empty()), None);
    }
}
