//! The group with the least to do for a sequence to come to its first token.
//!
//! That is estimated in rows: the tokens of the prompt that are not in the group's cache, and [`LOAD_ROWS`] for each sequence
//! that is there already. So a cached beginning attracts, and a queue repels, in the same unit: whoever shares a long
//! prompt goes where it is, until enough others are there that computing it once more elsewhere is sooner done.

use std::collections::BTreeMap;

use crate::router::prefix_index::PrefixIndex;
use crate::router::rendezvous;

use super::{Asked, GroupView, Policy};

/// Rows that a sequence in progress is worth: about what it still holds up others for.
const LOAD_ROWS: i64 = 32;
/// Rows that the group of a session is ahead of others.
const SESSION_ROWS: i64 = 256;
/// Groups that are remembered; past it, everything is forgotten.
const MOST_GROUPS: usize = 1024;

/// Knows what this front door sent where.
#[derive(Debug, Default)]
pub(super) struct PrefixAware {
    known: BTreeMap<u64, Known>,
}

/// What is known of the cache of one group.
#[derive(Debug)]
struct Known {
    driver_epoch: u64,
    index: PrefixIndex,
}

impl Policy for PrefixAware {
    fn choose(&mut self, asked: &Asked<'_>, groups: &[GroupView]) -> usize {
        let home = asked.session.and_then(|s| rendezvous::home(s, groups.iter().map(|g| g.group)));
        // Groups of one model have blocks of one size, nearly always.
        let mut chains = BTreeMap::new();
        let mut rows = |group: &GroupView| {
            let chain = chains.entry(group.block_size).or_insert_with(|| asked.chain(group.block_size));
            let known = self.known.get(&group.group).filter(|known| known.driver_epoch == group.driver_epoch);
            let found = known.map_or(0, |known| known.index.matched(chain.hashes())) * group.block_size;
            let signed = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
            let load = signed(group.load).saturating_mul(LOAD_ROWS);
            let bonus = if home == Some(group.group) { SESSION_ROWS } else { 0 };
            signed(asked.tokens.len() - found).saturating_add(load).saturating_sub(bonus)
        };
        let costs: Vec<i64> = groups.iter().map(&mut rows).collect();
        (0..groups.len()).min_by_key(|place| (costs[*place], groups[*place].load)).unwrap_or(0)
    }

    fn placed(&mut self, asked: &Asked<'_>, group: &GroupView) {
        if !self.known.contains_key(&group.group) && self.known.len() >= MOST_GROUPS {
            self.known.clear();
        }
        let fresh = || Known { driver_epoch: group.driver_epoch, index: PrefixIndex::new(group.blocks) };
        let known = self.known.entry(group.group).or_insert_with(fresh);
        if known.driver_epoch != group.driver_epoch {
            *known = fresh();
        }
        known.index.insert(asked.chain(group.block_size).hashes());
    }
}
