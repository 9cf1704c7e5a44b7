//! Requests that are about to be handed to a group, as front doors said. Pure.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// How long that takes at most: by then a driver has it, or it was refused.
const KEPT: Duration = Duration::from_secs(3);

/// The claims that are still good.
#[derive(Debug, Default)]
pub(super) struct Claims {
    by_id: HashMap<String, (u64, Instant)>,
    /// Oldest first; some have been replaced.
    order: VecDeque<(Instant, String)>,
}

impl Claims {
    /// The request goes to `group`, unless it was said to go to another one of `groups`. Returns where it goes.
    pub(super) fn claim(&mut self, request_id: &str, group: u64, groups: &[u64], now: Instant) -> u64 {
        self.forget(now);
        if let Some((claimed, _)) = self.by_id.get(request_id).filter(|(claimed, _)| groups.contains(claimed))
        {
            return *claimed;
        }
        self.by_id.insert(request_id.to_owned(), (group, now));
        self.order.push_back((now, request_id.to_owned()));
        group
    }

    /// Forgets what is too old.
    pub(super) fn forget(&mut self, now: Instant) {
        while let Some((since, _)) = self.order.front() {
            if now.saturating_duration_since(*since) <= KEPT {
                return;
            }
            let Some((since, request_id)) = self.order.pop_front() else { return };
            if self.by_id.get(&request_id).is_some_and(|(_, of)| *of == since) {
                self.by_id.remove(&request_id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_claim_counts_for_a_while() {
        let (mut claims, now) = (Claims::default(), Instant::now());
        assert_eq!(claims.claim("a", 4, &[4, 5], now), 4);
        assert_eq!(claims.claim("a", 5, &[4, 5], now + KEPT), 4);
        assert_eq!(claims.claim("b", 5, &[4, 5], now), 5, "another request");
        assert_eq!(claims.claim("a", 5, &[5, 6], now + Duration::from_secs(1)), 5, "its group has gone");
        let later = now + KEPT + Duration::from_millis(1);
        assert_eq!(claims.claim("b", 4, &[4, 5], later), 4, "too long ago");
        assert_eq!(claims.claim("a", 4, &[4, 5], later), 5, "the newer claim is still good");
        claims.forget(later + KEPT + Duration::from_millis(1));
        assert!(claims.by_id.is_empty() && claims.order.is_empty());
    }
}
