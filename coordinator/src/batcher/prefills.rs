//! Third phase: what is left of the step's rows goes to prefill, first to sequences already in the group, then to new ones.

use foggara_proto::step::{Chunk, Grant, Join, SequenceId, StepPlan};

use super::Batcher;
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
        let Some(sequence) = self.sequences.get_mut(&id) else { return 0 };
        let rows = sequence.prefill_left().min(budget);
        if rows == 0 || sequence.phase != Phase::Running {
            return 0;
        }
        sequence.planned += rows;
        plan.chunks.push(Chunk { sequence: id, tokens: u32::try_from(rows).expect("bounded by step_rows") });
        rows
    }

    /// The pool that whoever enters next joins: the one with the most free blocks, then with the fewest running.
    fn roomiest_pool(&self) -> usize {
        let key = |pool: &usize| (std::cmp::Reverse(self.pools.free(*pool)), self.running_in(*pool));
        self.pools.indices().min_by_key(key).unwrap_or(0)
    }

    /// Lets the head of the queue in, if there is a place and memory for the whole of its prompt. Nobody overtakes it.
    fn enter_next(&mut self, plan: &mut StepPlan) -> bool {
        let Some(&id) = self.waiting.front() else { return false };
        if self.running.len() >= self.limits.sequences as usize {
            return false;
        }
        let Some(sequence) = self.sequences.get(&id) else { unreachable!("waiting sequences are known") };
        let needed = self.blocks_for(sequence.tokens.len());
        let pool = self.roomiest_pool();
        // A block in reserve for each that decodes there: who enters should not be preempted in the next step.
        if self.pools.free(pool) < needed + self.running_in(pool) {
            return false;
        }
        let blocks = self.pools.take(pool, needed).expect("counted above");
        self.waiting.pop_front();
        self.running.push(id);
        let sequence = self.sequences.get_mut(&id).expect("looked up above");
        sequence.phase = Phase::Running;
        sequence.pool = pool;
        sequence.blocks.clone_from(&blocks);
        plan.joins.push(Join {
            sequence: id,
            tokens: sequence.tokens.clone(),
            prompt_len: sequence.prompt_len,
            params: sequence.params.clone(),
        });
        plan.grants.push(Grant { sequence: id, blocks });
        true
    }
}
