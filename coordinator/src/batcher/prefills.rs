//! Third phase: what is left of the step's rows goes to prefill, first to sequences already in the group, then to new ones.
//! How much that is, and in which order, is `budget`'s and `queue`'s to say.

use foggara_proto::step::{Chunk, SequenceId, StepPlan};

use super::Batcher;
use super::admission::HeldUp;
use super::budget::StepBudget;
use super::sequence::Sequence;

impl Batcher {
    /// Returns the number of prefill rows in this step.
    pub(super) fn plan_prefills(&mut self, plan: &mut StepPlan) -> usize {
        let mut budget = self.step_budget();
        let reading = self.reading_order(&budget);
        for (id, most) in &reading {
            self.plan_chunk(plan, *id, &mut budget, *most);
        }
        let oldest = reading.first().map(|(id, _)| *id);
        let left =
            |this: &Self| oldest.and_then(|id| this.sequences.get(&id)).map_or(0, Sequence::prefill_left);
        // Nobody overtakes who is next; those who wait for the first of their choices are not in line.
        self.held_up = loop {
            let next = match self.next_entry() {
                Ok(next) => next,
                Err(held_up) => break held_up,
            };
            if !self.may_begin(&budget, &next, left(self)) {
                break Some(HeldUp::Prompts);
            }
            self.enter(plan, next.id, next.entry);
            self.plan_chunk(plan, next.id, &mut budget, usize::MAX);
        };
        if let Some(id) = oldest {
            // What was kept for others who could not use it.
            self.plan_chunk(plan, id, &mut budget, usize::MAX);
        }
        self.close_budget(plan, &budget);
        plan.chunks.iter().map(|chunk| chunk.tokens as usize).sum()
    }

    /// Gives a sequence as many prefill rows as it needs and `budget` has, `most` at most.
    fn plan_chunk(&mut self, plan: &mut StepPlan, id: SequenceId, budget: &mut StepBudget, most: usize) {
        let rows = self.chunk_rows(budget, id, most);
        let number = self.last_number + 1;
        let Some(sequence) = self.sequences.get_mut(&id).filter(|_| rows > 0) else { return };
        sequence.planned += rows;
        if sequence.prefill_left() == 0 {
            sequence.prefilled_by = Some(number);
        }
        let rows = u32::try_from(rows).expect("bounded by step_rows");
        match plan.chunks.iter_mut().find(|chunk| chunk.sequence == id) {
            Some(chunk) => chunk.tokens += rows,
            None => plan.chunks.push(Chunk { sequence: id, tokens: rows }),
        }
    }
}
