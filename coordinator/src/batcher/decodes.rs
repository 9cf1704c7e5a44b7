//! Second phase: every sequence that decodes gets a row, and a block when it comes to a block's end.

use foggara_proto::step::{Grant, StepPlan};

use super::Batcher;

impl Batcher {
    /// Returns the number of rows that decode in this step.
    pub(super) fn plan_decodes(&mut self, plan: &mut StepPlan) -> usize {
        let mut rows = 0;
        let mut place = 0;
        // Preemption takes from what is behind `place`, so places before it never move.
        while place < self.running.len() {
            let id = self.running[place];
            let Some(sequence) = self.sequences.get(&id) else { unreachable!("running sequences are known") };
            if !sequence.decodes() {
                place += 1;
                continue;
            }
            let missing = self.blocks_for(sequence.planned + 1).saturating_sub(sequence.blocks.len());
            let pool = sequence.pool;
            let granted = loop {
                if let Some(blocks) = self.pools[pool].take(missing) {
                    break Some(blocks);
                }
                if !self.preempt_cheapest_after(place, pool) {
                    break None;
                }
            };
            let Some(blocks) = granted else {
                // Nobody behind it to take from: it makes room itself.
                self.preempt(place);
                continue;
            };
            let sequence = self.sequences.get_mut(&id).expect("looked up above");
            sequence.planned += 1;
            self.work.add_decode(sequence.planned);
            if !blocks.is_empty() {
                sequence.blocks.extend_from_slice(&blocks);
                plan.grants.push(Grant { sequence: id, blocks });
            }
            rows += 1;
            place += 1;
        }
        rows
    }
}
