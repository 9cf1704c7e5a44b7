//! The groups driven here as they are now, for those who look live.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use foggara_proto::shape::MAX_RANKS;
use foggara_proto::step::{RankUse, StepReport};

use super::adapters::AdapterUse;
use crate::batcher::Occupancy;

/// One group, since its driver attached.
#[derive(Debug, Clone, Default)]
pub struct Driven {
    /// Its id.
    pub group: u64,
    /// The driver's lease.
    pub epoch: u64,
    /// The deployment it serves.
    pub model: String,
    /// How full it is.
    pub occupancy: Occupancy,
    /// Sequences of each adapter, by its number; none of those that have none.
    pub adapters: BTreeMap<u64, AdapterUse>,
    /// Since when the sequence has waited that has waited longest.
    pub waits_since: Option<Instant>,
    /// Steps reported.
    pub steps: u64,
    /// Tokens that went through the model.
    pub rows: u64,
    /// Tokens generated.
    pub generated: u64,
    /// What each rank has told, by rank.
    pub ranks: BTreeMap<u32, RankUse>,
}

/// All of them, by group.
#[derive(Clone, Default)]
pub struct DrivenGroups(Arc<Mutex<BTreeMap<u64, Driven>>>);

impl DrivenGroups {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Driven>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// As they are now.
    pub fn all(&self) -> Vec<Driven> {
        self.lock().values().cloned().collect()
    }

    /// Since when whoever has waited longest has, by model.
    pub(super) fn waits_since(&self) -> BTreeMap<String, Option<Instant>> {
        let mut by_model: BTreeMap<String, Option<Instant>> = BTreeMap::new();
        for driven in self.lock().values() {
            let oldest = by_model.entry(driven.model.clone()).or_default();
            *oldest = oldest.iter().copied().chain(driven.waits_since).min();
        }
        by_model
    }

    /// Shows a group for as long as the handle lives.
    pub(super) fn show(&self, group: u64, epoch: u64, model: &str) -> Shown {
        let driven = Driven { group, epoch, model: model.to_owned(), ..Driven::default() };
        self.lock().insert(group, driven);
        Shown { groups: self.clone(), group, epoch }
    }
}

/// One driver's handle.
pub(super) struct Shown {
    groups: DrivenGroups,
    group: u64,
    epoch: u64,
}

impl Shown {
    /// A newer driver of the same group may have begun to show it.
    fn change(&self, change: impl FnOnce(&mut Driven)) {
        if let Some(driven) = self.groups.lock().get_mut(&self.group).filter(|d| d.epoch == self.epoch) {
            change(driven);
        }
    }

    pub(super) fn step(&self, report: &StepReport) {
        self.change(|driven| {
            driven.steps += 1;
            driven.rows += u64::from(report.timing.rows);
            driven.generated += report.outputs.iter().map(|output| output.tokens.len() as u64).sum::<u64>();
            for told in report.ranks.iter().filter(|told| told.rank < MAX_RANKS) {
                let sum = driven
                    .ranks
                    .entry(told.rank)
                    .or_insert(RankUse { rank: told.rank, ..RankUse::default() });
                sum.add(told);
            }
        });
    }

    pub(super) fn adapter(&self, id: u64, used: AdapterUse) {
        self.change(|driven| {
            match used == AdapterUse::default() {
                true => driven.adapters.remove(&id),
                false => driven.adapters.insert(id, used),
            };
        });
    }

    pub(super) fn occupancy(&self, now: Occupancy, waits_since: Option<Instant>) {
        self.change(|driven| (driven.occupancy, driven.waits_since) = (now, waits_since));
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        let mut groups = self.groups.lock();
        if groups.get(&self.group).is_some_and(|driven| driven.epoch == self.epoch) {
            groups.remove(&self.group);
        }
    }
}

#[cfg(test)]
mod tests {
    use foggara_proto::sequence::TokenOutput;
    use foggara_proto::step::{SequenceOutput, StepTiming};

    use super::*;

    #[test]
    fn a_group_is_shown_while_its_newest_driver_lives() {
        let groups = DrivenGroups::default();
        let old = groups.show(7, 1, "m");
        let output = |tokens| SequenceOutput { sequence: 1, prompt: vec![], tokens, end: None };
        let token = TokenOutput { token: 3, logprob: None, top: vec![] };
        let told = |rank, steps| RankUse { rank, steps, ..RankUse::default() };
        let report = StepReport {
            outputs: vec![output(vec![token]), output(vec![])],
            timing: StepTiming { rows: 5, ..StepTiming::default() },
            ranks: vec![told(0, 2), told(1, 2), told(u32::MAX, 9)],
            ..StepReport::default()
        };
        old.step(&report);
        old.step(&report);
        old.occupancy(Occupancy { running: 3, ..Occupancy::default() }, None);
        let shown = &groups.all()[0];
        assert_eq!((shown.group, shown.steps, shown.rows, shown.generated), (7, 2, 10, 2));
        assert_eq!((shown.occupancy.running, shown.ranks.len(), shown.ranks[&1].steps), (3, 2, 4));
        let newer = groups.show(7, 2, "m");
        old.step(&report);
        drop(old);
        assert_eq!(groups.all().iter().map(|d| (d.epoch, d.steps)).collect::<Vec<_>>(), [(2, 0)]);
        drop(newer);
        assert!(groups.all().is_empty());
    }
}
