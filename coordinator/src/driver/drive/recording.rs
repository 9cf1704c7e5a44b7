//! What a driver tells the timelines of its sequences. Everything here is bounded by what a plan or a report names.

use std::collections::{HashMap, VecDeque};

use foggara_proto::step::{Chunk, SequenceId, StepPlan, StepReport};

use super::{Drive, Sequence};
use crate::batcher::HeldUp;
use crate::driver::answer::Answer;
use crate::timeline::{Began, Driven, Held, HeldTimes, Micros, PhaseKind, Step};
use crate::traces::DrivenRecording;

/// Where the recordings of a driver's sequences are.
pub trait Recordings {
    /// That of a sequence, if it is known.
    fn recording(&mut self, id: SequenceId) -> Option<&mut DrivenRecording>;
}

impl Recordings for HashMap<SequenceId, Sequence> {
    fn recording(&mut self, id: SequenceId) -> Option<&mut DrivenRecording> {
        self.get_mut(&id).map(|sequence| &mut sequence.recording)
    }
}

/// What timelines need to know of a plan on its way.
struct Planned {
    number: u64,
    chunks: Vec<Chunk>,
}

/// Tells recordings what plans and reports say of their sequences.
pub struct Recorder {
    driver_epoch: u64,
    /// The plans on their way, oldest first.
    planned: VecDeque<Planned>,
    /// What those that wait wait for.
    held: HeldTimes,
}

impl Recorder {
    /// For the driver that holds this lease.
    pub fn new(driver_epoch: u64) -> Self {
        Self { driver_epoch, planned: VecDeque::new(), held: HeldTimes::default() }
    }

    fn held(&self, now: Micros) -> Held {
        self.held.at(now)
    }

    /// A plan is about to be sent: who enters, who is preempted, and what those that still wait wait for.
    pub fn plan(
        &mut self,
        now: Micros,
        plan: &StepPlan,
        held_up: Option<HeldUp>,
        recordings: &mut impl Recordings,
    ) {
        self.held.turn(now, held_up);
        let held = self.held.at(now);
        for join in &plan.joins {
            tell(recordings, join.sequence, |driven| driven.entered(now, join.cached, held));
        }
        // Those that ended or were cancelled are not known any more.
        for id in &plan.drops {
            tell(recordings, *id, |driven| driven.preempted(now, held));
        }
        self.planned.push_back(Planned { number: plan.number, chunks: plan.chunks.clone() });
    }

    /// A report has come: what was read in its step. Returns the step.
    pub fn report(&mut self, now: Micros, report: &StepReport, recordings: &mut impl Recordings) -> Step {
        let timing = &report.timing;
        let mut step = Step {
            number: report.number,
            rows: timing.rows,
            prefill_rows: 0,
            wait_us: timing.wait_us,
            compute_us: timing.compute_us,
            collective_us: timing.collective_us,
            sample_us: timing.sample_us,
            unplanned: report.unplanned,
        };
        let of_ours = report.driver_epoch == self.driver_epoch && !report.unplanned;
        // One that is out of order is a fault, and the end of this driver.
        let is_next = self.planned.front().is_some_and(|planned| of_ours && planned.number == report.number);
        let planned = if is_next { self.planned.pop_front() } else { None };
        let Some(planned) = planned else { return step };
        step.prefill_rows = planned.chunks.iter().map(|chunk| chunk.tokens).sum();
        for chunk in &planned.chunks {
            tell(recordings, chunk.sequence, |driven| driven.read(now, chunk.tokens, step));
        }
        step
    }
}

fn tell(recordings: &mut impl Recordings, id: SequenceId, tell: impl FnOnce(&mut Driven)) {
    if let Some(recording) = recordings.recording(id) {
        recording.tell(tell);
    }
}

impl Drive {
    /// Begins with a sequence that is in `phase`.
    pub(super) fn record(&self, answer: &Answer, phase: PhaseKind) -> DrivenRecording {
        let timelines = self.drivers.timelines();
        let (now, occupancy) = (timelines.now(), self.batcher.occupancy());
        let began = Began {
            now,
            group: self.assignment.group,
            driver_epoch: self.assignment.driver_epoch,
            model: &self.assignment.model,
            // It may be among those itself, and is the last of them.
            ahead: occupancy.waiting.saturating_sub(usize::from(phase == PhaseKind::Queue)),
            running: occupancy.running,
            phase,
            held: self.recorder.held(now),
        };
        timelines.driven(answer.request(), answer.len(), began)
    }

    /// Somebody listens to a sequence from now on, or the last one has gone.
    pub(super) fn listener(&mut self, id: SequenceId, came: bool) {
        let now = self.drivers.timelines().now();
        tell(&mut self.sequences, id, |driven| driven.listener(now, came));
    }

    /// What is recorded so far of these requests, those of them that are driven here.
    pub(super) fn timelines(&self, request_ids: &[String]) -> Vec<Driven> {
        let driven = self.sequences.values().filter_map(|sequence| sequence.recording.driven());
        driven.filter(|driven| request_ids.contains(&driven.request_id)).cloned().collect()
    }
}
