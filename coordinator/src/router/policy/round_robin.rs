//! One group after the other, in the order of their ids.

use std::collections::BTreeMap;

use super::{Asked, GroupView, Policy};

/// Models differ in their groups, so each set of groups has its own turn.
#[derive(Debug, Default)]
pub(super) struct RoundRobin {
    /// The group that was last chosen of those that begin with the key: groups of different models are different.
    last: BTreeMap<u64, u64>,
}

/// Sets of groups that are remembered.
const MOST_SETS: usize = 1024;

impl Policy for RoundRobin {
    fn choose(&mut self, _: &Asked<'_>, groups: &[GroupView]) -> usize {
        let Some(first) = groups.iter().map(|group| group.group).min() else { return 0 };
        let last = self.last.get(&first).copied();
        let key =
            |place: &usize| (last.is_some_and(|last| groups[*place].group <= last), groups[*place].group);
        let place = (0..groups.len()).min_by_key(key).unwrap_or(0);
        if self.last.len() >= MOST_SETS {
            self.last.clear();
        }
        self.last.insert(first, groups[place].group);
        place
    }
}
