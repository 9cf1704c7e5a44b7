//! Who drives what.

use std::collections::BTreeMap;

use super::changes::{Step, Surroundings};
use crate::cluster::state::{ClusterState, Command, Group};

/// Leases for ready groups that nobody alive drives. The Raft leader is spared: its loss should not be two losses.
pub(super) fn leases(state: &ClusterState, around: &Surroundings) -> Vec<Step> {
    let alive =
        |group: &&Group| group.driver.is_some_and(|lease| around.coordinators.contains(&lease.coordinator));
    let mut load: BTreeMap<u64, usize> = around.coordinators.iter().map(|id| (*id, 0)).collect();
    load.retain(|id, _| state.members.contains_key(id));
    for lease in state.groups.values().filter(|group| alive(group)).filter_map(|group| group.driver) {
        *load.entry(lease.coordinator).or_default() += 1;
    }
    let mut steps = Vec::new();
    for (id, group) in state.groups.iter().filter(|(_, group)| group.is_ready()) {
        if alive(&group) {
            continue;
        }
        let best =
            load.iter().min_by_key(|(id, count)| (**id == around.leader, **count, **id)).map(|(id, _)| *id);
        if let Some(coordinator) = best {
            *load.entry(coordinator).or_default() += 1;
            let replaces = group.driver.map_or(0, |lease| lease.epoch);
            steps.push(Step::Do(Command::AssignDriver { group: *id, coordinator, replaces }));
        }
    }
    steps
}
