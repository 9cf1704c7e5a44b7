//! One driver: sequences in, plans to the leader, reports back, events out.

mod adapters;
mod commands;
mod known;
mod recording;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use foggara_proto::step::{Attached, SequenceId, StepReport};
use foggara_proto::wire::worker as wire;
use futures::{Stream, StreamExt};
use tokio::sync::mpsc;
use tonic::Status;

use adapters::AdapterCounts;

use super::answer::Answer;
use super::listeners::{Alone, Listeners};
use super::round_trip::RoundTrip;
use super::{DriverCommand, Drivers, limits};
use crate::batcher::Batcher;
use crate::metrics::DriverMetrics;
use crate::router::GenerateError;
use crate::timeline::End;
use crate::traces::DrivenRecording;

pub use recording::{Recorder, Recordings};

/// Commands taken in between two looks at what to plan: a burst becomes one batch.
const COMMAND_BATCH: usize = 64;

/// A sequence that is driven.
struct Sequence {
    answer: Answer,
    listeners: Listeners,
    /// When it came, until it has entered the group.
    waiting_since: Option<Instant>,
    /// How long it may.
    deadline_ms: u64,
    recording: DrivenRecording,
}

/// Whom and how to drive.
pub(super) struct Assignment {
    pub(super) group: u64,
    pub(super) model: String,
    pub(super) driver_epoch: u64,
    /// Sequences that may wait.
    pub(super) queue: usize,
    /// How long the leader goes on when plans are late.
    pub(super) lease_ms: u32,
    /// Tokens that may be drafted of a sequence in a step.
    pub(super) speculate: u32,
    /// How long a sequence goes on that nobody listens to.
    pub(super) grace: Duration,
}

/// Why a driver ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stopped {
    pub(super) reason: String,
    /// What it knew of the group was wrong.
    pub(super) fault: bool,
}

impl Stopped {
    fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), fault: false }
    }

    fn fault(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), fault: true }
    }
}

/// An attached driver.
pub(super) struct Drive {
    assignment: Assignment,
    batcher: Batcher,
    sequences: HashMap<SequenceId, Sequence>,
    ids: HashMap<String, SequenceId>,
    alone: Alone,
    adapters: AdapterCounts,
    plans: mpsc::Sender<wire::DriverMessage>,
    metrics: DriverMetrics,
    drivers: Drivers,
    /// The origin of the batcher's time.
    origin: Instant,
    round_trip: RoundTrip,
    recorder: Recorder,
    /// For the retry hint: when the last sequence ended, and how long one takes to.
    finished: Option<Instant>,
    interval: Duration,
}

impl Drive {
    /// A driver that begins with what `attached` says the leader has.
    pub(super) fn new(
        assignment: Assignment,
        attached: Attached,
        plans: mpsc::Sender<wire::DriverMessage>,
        metrics: DriverMetrics,
        drivers: Drivers,
    ) -> Self {
        let limits = limits(&attached.limits, &assignment);
        let mut drive = Self {
            batcher: Batcher::new(assignment.driver_epoch, limits),
            recorder: Recorder::new(assignment.driver_epoch),
            assignment,
            sequences: HashMap::new(),
            ids: HashMap::new(),
            alone: Alone::default(),
            adapters: AdapterCounts::default(),
            plans,
            metrics,
            drivers,
            origin: Instant::now(),
            round_trip: RoundTrip::default(),
            finished: None,
            interval: Duration::from_millis(100),
        };
        for held in attached.sequences {
            drive.adopt(held);
        }
        drive
    }

    /// Drives until the connection or the lease ends; says why it did.
    pub(super) async fn run(
        mut self,
        commands: &mut mpsc::Receiver<DriverCommand>,
        reports: &mut (impl Stream<Item = Result<wire::LeaderMessage, Status>> + Unpin),
    ) -> Stopped {
        let mut batch = Vec::new();
        self.show();
        self.plan().await;
        let stopped = loop {
            let wake = self.next_wake();
            tokio::select! {
                // Reports first: what they free is what commands wait for.
                biased;
                message = reports.next() => match message {
                    Some(Ok(wire::LeaderMessage { message: Some(wire::leader_message::Message::Report(report)) })) => {
                        if let Err(reason) = self.report(report) {
                            break Stopped::fault(reason);
                        }
                    }
                    Some(Ok(_)) => break Stopped::new("the leader sent something else than a report"),
                    None => break Stopped::new("the leader closed the connection"),
                    Some(Err(status)) => break Stopped::new(status.message()),
                },
                count = commands.recv_many(&mut batch, COMMAND_BATCH) => {
                    if count == 0 {
                        break Stopped::new("the lease has ended");
                    }
                    self.tell_time();
                    batch.drain(..).for_each(|command| self.take(command));
                }
                () = tokio::time::sleep_until(wake.unwrap_or_else(Instant::now).into()), if wake.is_some() => {}
            }
            self.tell_time();
            self.expire();
            self.plan().await;
            self.show();
            if self.batcher.is_idle()
                && let Err(reason) = self.batcher.audit()
            {
                break Stopped::fault(format!("KV blocks do not add up: {reason}"));
            }
        };
        self.leave();
        stopped
    }

    /// Shows how full the group is, and since when somebody waits.
    fn show(&mut self) {
        let since = self.batcher.waits_since().map(|ms| self.origin + Duration::from_millis(ms));
        self.metrics.occupancy(self.batcher.occupancy(), since);
        for (id, used) in self.adapters.changed() {
            self.metrics.adapter(id, used);
        }
    }

    async fn plan(&mut self) {
        while let Some(plan) = self.batcher.plan() {
            self.entered(&plan.joins);
            let now = self.drivers.timelines().now();
            self.recorder.plan(now, &plan, self.batcher.held_up(), &mut self.sequences);
            self.round_trip.sent(Instant::now());
            let plan = wire::driver_message::Message::Plan(plan.into());
            // If nobody takes it, the reports end too.
            self.plans.send(wire::DriverMessage { message: Some(plan) }).await.ok();
        }
    }

    fn tell_time(&mut self) {
        self.batcher.advance(u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX));
    }

    /// When something is to be done though nothing happens.
    fn next_wake(&self) -> Option<Instant> {
        let deadline = self.batcher.next_deadline().map(|ms| self.origin + Duration::from_millis(ms));
        let alone = self.alone.first().map(|(since, _)| since + self.assignment.grace);
        deadline.into_iter().chain(alone).min()
    }

    /// Refuses whoever has waited past its deadline, and ends what nobody has listened to for too long.
    fn expire(&mut self) {
        while let Some(id) = self.batcher.expire() {
            if let Some(mut sequence) = self.forget(id) {
                sequence.recording.ended(End::Deadline);
                let deadline_ms = sequence.deadline_ms;
                sequence.listeners.fail(&GenerateError::DeadlineExceeded { deadline_ms });
            }
        }
        let now = Instant::now();
        while let Some((since, id)) = self.alone.first() {
            if now.saturating_duration_since(since) < self.assignment.grace {
                return;
            }
            if let Some(mut sequence) = self.cancel(id) {
                sequence.recording.ended(End::Alone);
                let request_id = &sequence.answer.request().request_id;
                tracing::info!(request_id, "nobody came for it");
            }
        }
    }

    fn report(&mut self, report: wire::StepReport) -> Result<(), String> {
        let mut report = StepReport::try_from(report).map_err(|e| e.to_string())?;
        self.metrics.step(&report);
        let counts = self.drivers.experts().add(&self.assignment.model, std::mem::take(&mut report.experts));
        self.metrics.experts(&counts);
        if report.driver_epoch == self.assignment.driver_epoch && !report.unplanned {
            let round_trip = self.round_trip.reported(Instant::now(), &report.timing);
            self.batcher.set_round_trip(u32::try_from(round_trip.as_micros()).unwrap_or(u32::MAX));
        }
        let now = self.drivers.timelines().now();
        let step = self.recorder.report(now, &report, &mut self.sequences);
        for (id, event) in self.batcher.report(report).map_err(|e| e.to_string())? {
            let Some(sequence) = self.sequences.get_mut(&id) else { continue };
            sequence.recording.tell(|driven| driven.tokens(now, event.tokens.len(), step));
            let known = sequence.answer.len();
            sequence.answer.take(&event);
            let listened = !sequence.listeners.is_empty();
            sequence.listeners.tell(known, &event);
            let left = listened && sequence.listeners.is_empty();
            if let Some(end) = event.end {
                if let Some(mut sequence) = self.forget(id) {
                    sequence.recording.ended(End::Whole(end));
                    let group = Some(self.assignment.group);
                    self.keep(sequence.answer, group);
                }
                self.note_end();
            } else if left {
                sequence.recording.tell(|driven| driven.listener(now, false));
                self.alone.since(Instant::now(), id);
            }
        }
        Ok(())
    }

    /// Keeps a running mean of the time between two ends.
    fn note_end(&mut self) {
        let now = Instant::now();
        if let Some(before) = self.finished.replace(now) {
            self.interval = (self.interval * 7 + now.duration_since(before)) / 8;
        }
    }
}
