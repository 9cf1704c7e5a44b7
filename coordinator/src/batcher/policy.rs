//! Where the batcher's policy meets what happens: arrivals, deadlines, and what reports teach.

use foggara_proto::step::{SequenceId, StepReport};

use super::queue::{Arrival, Ticket};
use super::{Batcher, Refusal};

impl Batcher {
    /// Tells what time it is at the driver, in milliseconds from an origin of its choice. Arrivals are at this time.
    pub fn advance(&mut self, now_ms: u64) {
        self.now_ms = self.now_ms.max(now_ms);
    }

    /// A place in the queue for a sequence that has just arrived.
    pub(super) fn line_up(&mut self, id: SequenceId, arrival: Arrival) -> Result<Ticket, Refusal> {
        // What a free slot takes in the very next plan is not waiting.
        let slots = (self.limits.sequences as usize).saturating_sub(self.running.len());
        if !self.queue.admits(&arrival, slots) {
            return Err(Refusal::QueueFull { limit: self.limits.queue });
        }
        Ok(self.queue.push(id, &arrival))
    }

    /// Forgets a sequence that has waited past its deadline, and returns it; `None` when there are no more.
    pub fn expire(&mut self) -> Option<SequenceId> {
        let id = self.queue.expired(self.now_ms)?;
        self.cancel(id);
        Some(id)
    }

    /// When [`expire`](Self::expire) has something to do, if nothing else happens.
    pub fn next_deadline(&self) -> Option<u64> {
        self.queue.next_deadline()
    }

    /// Sets how long a plan and its report travel, together.
    pub fn set_round_trip(&mut self, micros: u32) {
        self.ahead.set_round_trip(micros);
    }

    /// Learns from the report of the oldest plan in flight: what such a step costs, and who was given tokens.
    pub(super) fn learn(&mut self, report: &StepReport) {
        self.count_sampled(report);
        if report.unplanned {
            return;
        }
        let timing = &report.timing;
        let drafted = report.drafted.min(timing.rows) as usize;
        let work = self.ahead.reported().done(timing.rows as usize - drafted).with_drafts(drafted);
        if timing.rows as usize == work.rows {
            self.cost.observe(work, f64::from(timing.compute_us) + f64::from(timing.sample_us));
        }
    }

    fn count_sampled(&mut self, report: &StepReport) {
        for output in &report.outputs {
            if let Some(sequence) = self.sequences.get(&output.sequence) {
                output.tokens.iter().for_each(|_| self.queue.sampled(&sequence.ticket));
            }
        }
    }
}
