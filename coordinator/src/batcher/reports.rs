//! What a report changes.

use foggara_proto::sequence::SequenceEvent;
use foggara_proto::step::{SequenceId, StepReport};

use super::Batcher;
use super::kv::Name;
use super::sequence::Phase;

/// A report that does not follow the plans.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    /// It came out of order, or for a plan never sent.
    #[error("report {got} came while {expected:?} was expected")]
    OutOfOrder {
        /// Its number.
        got: u64,
        /// The oldest plan in flight.
        expected: Option<u64>,
    },
}

impl Batcher {
    /// Takes in the report of the oldest plan in flight. Returns the news of each sequence that is still wanted; reports of
    /// another driver epoch have none.
    pub fn report(&mut self, report: StepReport) -> Result<Vec<(SequenceId, SequenceEvent)>, ReportError> {
        if report.driver_epoch != self.driver_epoch {
            return Ok(Vec::new());
        }
        let positions = if report.unplanned { self.went_on(&report)? } else { self.planned_step(&report)? };
        self.learn(&report);
        let (mut news, mut ended) = (Vec::with_capacity(report.outputs.len()), Vec::new());
        for output in report.outputs {
            let Some(sequence) = self.sequences.get_mut(&output.sequence) else { continue };
            if sequence.phase == Phase::Ended {
                continue;
            }
            sequence.tokens.extend(output.tokens.iter().map(|token| token.token));
            if output.end.is_some() {
                ended.push(output.sequence);
            }
            let event = SequenceEvent {
                prompt: output.prompt,
                tokens: output.tokens,
                end: output.end,
                cached_tokens: sequence.found.take(),
            };
            news.push((output.sequence, event));
        }
        for (id, position) in positions {
            self.name_blocks(id, position);
        }
        for id in ended {
            match self.sequences.get_mut(&id) {
                Some(sequence) if sequence.phase == Phase::Running => sequence.phase = Phase::Ended,
                _ => drop(self.sequences.remove(&id)),
            }
        }
        if !report.unplanned {
            self.requeue_preempted(report.number);
        }
        Ok(news)
    }

    /// The oldest plan in flight is done: where its sequences stand.
    fn planned_step(&mut self, report: &StepReport) -> Result<Vec<(SequenceId, usize)>, ReportError> {
        let expected = self.in_flight.front().map(|step| step.number);
        if expected != Some(report.number) {
            return Err(ReportError::OutOfOrder { got: report.number, expected });
        }
        // Before it leaves the flight, so that its own positions are put right too.
        self.fell_behind(&report.skipped);
        self.went_further(report);
        self.last_reported = report.number;
        Ok(self.in_flight.pop_front().map(|step| step.positions).unwrap_or_default())
    }

    /// A step that is done has computed the positions of a sequence up to `position`: its full blocks can be called by their
    /// content. (A sequence that was skipped because it had ended is known to have, and one that was preempted holds nothing.)
    pub(super) fn name_blocks(&mut self, id: SequenceId, position: usize) {
        let block_size = self.block_size();
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        if sequence.phase != Phase::Running {
            return;
        }
        let full = position / block_size;
        if full <= sequence.named {
            return;
        }
        sequence.chain.extend(&sequence.tokens, block_size);
        for index in sequence.named..full {
            let (hash, parent) = (sequence.chain.hashes()[index], sequence.chain.parent(index));
            let name = Name { hash, parent, position: index * block_size };
            self.pools[sequence.pool].name(sequence.blocks[index], name);
        }
        sequence.named = full;
    }

    /// Lets preempted sequences whose last step was `number` wait again, the earliest at the very front.
    fn requeue_preempted(&mut self, number: u64) {
        let mut done = Vec::new();
        self.preempted.retain(|id| match self.sequences.get(id).map(|sequence| sequence.phase) {
            Some(Phase::Preempted { until }) if until <= number => {
                done.push(*id);
                false
            }
            phase => matches!(phase, Some(Phase::Preempted { .. })),
        });
        done.sort_unstable();
        for id in done.into_iter().rev() {
            self.wait_again(id);
        }
    }
}
