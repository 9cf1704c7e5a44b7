//! First phase: sequences that leave, and their blocks.

use foggara_proto::step::SequenceId;

use super::Batcher;
use super::kv::cost;
use super::sequence::Phase;

impl Batcher {
    /// Takes out everything that ended or was cancelled. Its blocks can be taken from this plan on, which is also the plan
    /// that tells the leader.
    pub(super) fn collect_ended(&mut self) {
        let sequences = &mut self.sequences;
        let (pools, dropping, plan) = (&mut self.pools, &mut self.dropping, self.last_number + 1);
        self.running.retain(|id| {
            if sequences.get(id).is_some_and(|sequence| sequence.phase != Phase::Ended) {
                return true;
            }
            if let Some(sequence) = sequences.remove(id) {
                pools[sequence.pool].release(&sequence.blocks, plan);
            }
            dropping.push(*id);
            false
        });
    }

    /// Preempts the decoding sequence of `pool` that is cheapest to compute again, of those that entered after the one at
    /// `place`: who came first is never held up by who came later, so somebody always gets on. Of equals the last to enter.
    /// Returns whether there was one.
    pub(super) fn preempt_cheapest_after(&mut self, place: usize, pool: usize) -> bool {
        let behind = self.running.iter().enumerate().skip(place + 1);
        let victims = behind
            .filter_map(|(place, id)| Some((self.preemption_cost(*id, pool)?, std::cmp::Reverse(place))));
        let Some((_, std::cmp::Reverse(victim))) = victims.min() else { return false };
        self.preempt(victim);
        true
    }

    /// What it costs to compute again what a sequence would lose; `None` if it does not decode in `pool`, or would free nothing.
    fn preemption_cost(&self, id: SequenceId, pool: usize) -> Option<u64> {
        let sequence = self.sequences.get(&id).filter(|s| s.pool == pool && s.decodes())?;
        // What others hold too is still there when it comes back.
        let shared = sequence.blocks.iter().take_while(|block| self.pools[pool].holders(**block) > 1).count();
        let kept = shared * self.block_size();
        (shared < sequence.blocks.len()).then(|| cost::recompute(kept, sequence.planned))
    }

    /// Drops the running sequence at `place` so that it waits again.
    pub(super) fn preempt(&mut self, place: usize) {
        let id = self.running.remove(place);
        // The plan being made names the drop: until then the leader may go on with it, plan or none.
        let until = self.last_number + 1;
        if let Some(sequence) = self.sequences.get_mut(&id) {
            let blocks = std::mem::take(&mut sequence.blocks);
            self.pools[sequence.pool].release(&blocks, self.last_number + 1);
            sequence.phase = Phase::Preempted { until };
            self.preemptions += 1;
            self.preempted.push(id);
        }
        self.dropping.push(id);
    }

    /// Puts a preempted sequence, all of whose tokens are known now, at the head of the queue.
    pub(super) fn wait_again(&mut self, id: SequenceId) {
        let block_size = self.block_size();
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        sequence.phase = Phase::Waiting;
        sequence.joined_at = 0;
        sequence.planned = 0;
        sequence.prefilled_by = None;
        sequence.joined_with = sequence.tokens.len();
        sequence.chain.extend(&sequence.tokens, block_size);
        // It decoded already, so its prompt's log-probabilities have been told.
        sequence.params.prompt_logprobs = false;
        self.queue.put_back(id, &mut sequence.ticket, self.now_ms);
    }

    /// What the plan being made must name.
    pub(super) fn take_drops(&mut self) -> Vec<SequenceId> {
        std::mem::take(&mut self.dropping)
    }
}
