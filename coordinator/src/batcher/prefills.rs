//! Third phase: what is left of the step's rows goes to prefill, first to sequences already in the group, then to new ones.

use foggara_proto::step::{Chunk, SequenceId, StepPlan};

use super::Batcher;
use super::admission::Admission;
use super::sequence::Phase;

impl Batcher {
    /// Returns the number of prefill rows in this step.
    pub(super) fn plan_prefills(&mut self, plan: &mut StepPlan, decoding: usize) -> usize {
        let mut budget = (self.limits.step_rows as usize).saturating_sub(decoding);
        if decoding > 0 {
            budget = budget.min(self.limits.prefill_rows_beside_decodes as usize);
        }
        let at_first = budget;
        for place in 0..self.running.len() {
            let id = self.running[place];
            budget -= self.plan_chunk(plan, id, budget);
        }
        while budget > 0 && self.enter_next(plan) {
            let id = *self.running.last().expect("it has just entered");
            budget -= self.plan_chunk(plan, id, budget);
        }
        at_first - budget
    }

    /// Gives a sequence as many prefill rows as it needs and `budget` has. Returns how many.
    fn plan_chunk(&mut self, plan: &mut StepPlan, id: SequenceId, budget: usize) -> usize {
        let number = self.last_number + 1;
        let Some(sequence) = self.sequences.get_mut(&id) else { return 0 };
        let rows = sequence.prefill_left().min(budget);
        if rows == 0 || sequence.phase != Phase::Running {
            return 0;
        }
        sequence.planned += rows;
        if sequence.prefill_left() == 0 {
            sequence.prefilled_by = Some(number);
        }
        plan.chunks.push(Chunk { sequence: id, tokens: u32::try_from(rows).expect("bounded by step_rows") });
        rows
    }

    /// Lets the head of the queue in, if there is a place and room. Nobody overtakes it, but for choices that wait for the
    /// first of them.
    fn enter_next(&mut self, plan: &mut StepPlan) -> bool {
        if self.running.len() >= self.limits.sequences as usize {
            return false;
        }
        for place in 0..self.waiting.len() {
            let id = self.waiting[place];
            let Some(sequence) = self.sequences.get(&id) else { unreachable!("waiting sequences are known") };
            match self.admission(sequence) {
                Admission::NotYet => {}
                Admission::NoRoom => return false,
                Admission::Enters(entry) => {
                    self.waiting.remove(place);
                    self.enter(plan, id, entry);
                    return true;
                }
            }
        }
        false
    }
}
