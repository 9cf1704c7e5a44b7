//! The group with the fewest sequences; of equals the first.

use super::{Asked, GroupView, Policy};

#[derive(Debug)]
pub(super) struct LeastLoaded;

impl Policy for LeastLoaded {
    fn choose(&mut self, _: &Asked<'_>, groups: &[GroupView]) -> usize {
        (0..groups.len()).min_by_key(|place| groups[*place].load).unwrap_or(0)
    }
}
