//! What a report changes.

use foggara_proto::sequence::SequenceEvent;
use foggara_proto::step::{SequenceId, StepReport};

use super::Batcher;
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
        let expected = self.in_flight.front().copied();
        if expected != Some(report.number) {
            return Err(ReportError::OutOfOrder { got: report.number, expected });
        }
        self.in_flight.pop_front();
        let mut news = Vec::with_capacity(report.outputs.len());
        for output in report.outputs {
            let Some(sequence) = self.sequences.get_mut(&output.sequence) else { continue };
            if sequence.phase == Phase::Ended {
                continue;
            }
            sequence.tokens.extend(output.token.as_ref().map(|token| token.token));
            if output.end.is_some() {
                if matches!(sequence.phase, Phase::Preempted { .. }) {
                    self.sequences.remove(&output.sequence);
                } else {
                    sequence.phase = Phase::Ended;
                }
            }
            let tokens = output.token.into_iter().collect();
            news.push((output.sequence, SequenceEvent { prompt: output.prompt, tokens, end: output.end }));
        }
        self.requeue_preempted(report.number);
        Ok(news)
    }

    /// Lets preempted sequences whose last step was `number` wait again, the earliest at the very front.
    fn requeue_preempted(&mut self, number: u64) {
        let done: Vec<SequenceId> = self
            .sequences
            .iter()
            .filter(|(_, s)| matches!(s.phase, Phase::Preempted { until } if until <= number))
            .map(|(id, _)| *id)
            .collect();
        for id in done.into_iter().rev() {
            self.wait_again(id);
        }
    }
}
