//! First phase: sequences that leave, and their blocks.

use foggara_proto::step::SequenceId;

use super::Batcher;
use super::sequence::Phase;

impl Batcher {
    /// Takes out everything that ended or was cancelled. Its blocks are free from this plan on, which is also the plan that
    /// tells the leader.
    pub(super) fn collect_ended(&mut self) {
        let sequences = &mut self.sequences;
        let (pools, dropping) = (&mut self.pools, &mut self.dropping);
        self.running.retain(|id| {
            if sequences.get(id).is_some_and(|sequence| sequence.phase != Phase::Ended) {
                return true;
            }
            if let Some(sequence) = sequences.remove(id) {
                pools.give_back(sequence.pool, sequence.blocks);
            }
            dropping.push(*id);
            false
        });
    }

    /// Drops the running sequence at `place` so that it waits again.
    pub(super) fn preempt(&mut self, place: usize) {
        let id = self.running.remove(place);
        let until = self.last_number;
        let in_flight = !self.in_flight.is_empty();
        if let Some(sequence) = self.sequences.get_mut(&id) {
            self.pools.give_back(sequence.pool, std::mem::take(&mut sequence.blocks));
            sequence.phase = Phase::Preempted { until };
            self.preemptions += 1;
            if !in_flight {
                self.wait_again(id);
            }
        }
        self.dropping.push(id);
    }

    /// Puts a preempted sequence, all of whose tokens are known now, at the head of the queue.
    pub(super) fn wait_again(&mut self, id: SequenceId) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        sequence.phase = Phase::Waiting;
        sequence.planned = 0;
        sequence.joined_with = sequence.tokens.len();
        // It decoded already, so its prompt's log-probabilities have been told.
        sequence.params.prompt_logprobs = false;
        self.waiting.push_front(id);
    }

    /// What the plan being made must name.
    pub(super) fn take_drops(&mut self) -> Vec<SequenceId> {
        std::mem::take(&mut self.dropping)
    }
}
