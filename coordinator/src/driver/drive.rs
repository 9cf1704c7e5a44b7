//! One driver: sequences in, plans to the leader, reports back, events out.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use foggara_proto::sequence::SequenceRequest;
use foggara_proto::step::{GroupLimits, Join, SequenceId, StepReport};
use foggara_proto::wire::worker as wire;
use futures::{Stream, StreamExt};
use tokio::sync::mpsc;
use tonic::Status;

use super::round_trip::RoundTrip;
use super::{DriverCommand, Events, ExpertLoads, limits, lost};
use crate::batcher::{Batcher, Refusal};
use crate::metrics::DriverMetrics;
use crate::router::GenerateError;

/// Commands taken in between two looks at what to plan: a burst becomes one batch.
const COMMAND_BATCH: usize = 64;

/// A sequence that someone listens to.
struct Listener {
    request_id: String,
    events: Events,
    /// When it came, until it has entered the group.
    waiting_since: Option<Instant>,
    /// How long it may.
    deadline_ms: u64,
}

/// An attached driver.
pub(super) struct Drive {
    model: String,
    driver_epoch: u64,
    batcher: Batcher,
    listeners: HashMap<SequenceId, Listener>,
    ids: HashMap<String, SequenceId>,
    plans: mpsc::Sender<wire::DriverMessage>,
    metrics: DriverMetrics,
    experts: ExpertLoads,
    /// The origin of the batcher's time.
    origin: Instant,
    round_trip: RoundTrip,
    /// For the retry hint: when the last sequence ended, and how long one takes to.
    finished: Option<Instant>,
    interval: Duration,
}

impl Drive {
    pub(super) fn new(
        model: String,
        driver_epoch: u64,
        group: &GroupLimits,
        queue: usize,
        plans: mpsc::Sender<wire::DriverMessage>,
        metrics: DriverMetrics,
        experts: ExpertLoads,
    ) -> Self {
        Self {
            model,
            driver_epoch,
            batcher: Batcher::new(driver_epoch, limits(group, queue)),
            listeners: HashMap::new(),
            ids: HashMap::new(),
            plans,
            metrics,
            experts,
            origin: Instant::now(),
            round_trip: RoundTrip::default(),
            finished: None,
            interval: Duration::from_millis(100),
        }
    }

    /// Drives until the connection or the lease ends; says why it did.
    pub(super) async fn run(
        mut self,
        commands: &mut mpsc::Receiver<DriverCommand>,
        reports: &mut (impl Stream<Item = Result<wire::LeaderMessage, Status>> + Unpin),
    ) -> String {
        let mut batch = Vec::new();
        self.metrics.occupancy(self.batcher.occupancy());
        let reason = loop {
            let deadline = self.batcher.next_deadline().map(|ms| self.origin + Duration::from_millis(ms));
            tokio::select! {
                // Reports first: what they free is what commands wait for.
                biased;
                message = reports.next() => match message {
                    Some(Ok(wire::LeaderMessage { message: Some(wire::leader_message::Message::Report(report)) })) => {
                        if let Err(reason) = self.report(report) {
                            break reason;
                        }
                    }
                    Some(Ok(_)) => break "the leader sent something else than a report".into(),
                    None => break "the leader closed the connection".into(),
                    Some(Err(status)) => break status.message().to_owned(),
                },
                count = commands.recv_many(&mut batch, COMMAND_BATCH) => {
                    if count == 0 {
                        break "the lease has ended".into();
                    }
                    self.tell_time();
                    batch.drain(..).for_each(|command| self.take(command));
                }
                () = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now).into()), if deadline.is_some() => {}
            }
            self.tell_time();
            self.expire();
            while let Some(plan) = self.batcher.plan() {
                self.entered(&plan.joins);
                self.round_trip.sent(Instant::now());
                let plan = wire::driver_message::Message::Plan(plan.into());
                // If nobody takes it, the reports end too.
                self.plans.send(wire::DriverMessage { message: Some(plan) }).await.ok();
            }
            self.metrics.occupancy(self.batcher.occupancy());
            if self.batcher.is_idle()
                && let Err(reason) = self.batcher.audit()
            {
                // The next lease begins with empty pools.
                break format!("KV blocks do not add up: {reason}");
            }
        };
        for listener in self.listeners.into_values() {
            listener.events.send(Err(lost())).ok();
        }
        reason
    }

    fn take(&mut self, command: DriverCommand) {
        match command {
            DriverCommand::Submit { id, request, events } => {
                if let Err(error) = self.submit(id, *request, &events) {
                    events.send(Err(error)).ok();
                }
            }
            DriverCommand::Cancel { id } => {
                if let Some(listener) = self.listeners.remove(&id) {
                    self.ids.remove(&listener.request_id);
                    self.batcher.cancel(id);
                }
            }
        }
    }

    fn tell_time(&mut self) {
        self.batcher.advance(u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX));
    }

    /// Refuses whoever has waited past its deadline.
    fn expire(&mut self) {
        while let Some(id) = self.batcher.expire() {
            if let Some(listener) = self.listeners.remove(&id) {
                self.ids.remove(&listener.request_id);
                let deadline_ms = listener.deadline_ms;
                listener.events.send(Err(GenerateError::DeadlineExceeded { deadline_ms })).ok();
            }
        }
    }

    /// Sequences that enter the group with the next plan have waited long enough.
    fn entered(&mut self, joins: &[Join]) {
        for join in joins {
            let waited =
                self.listeners.get_mut(&join.sequence).and_then(|listener| listener.waiting_since.take());
            if let Some(since) = waited {
                self.metrics.queued(since.elapsed());
            }
        }
    }

    fn submit(
        &mut self,
        id: SequenceId,
        request: SequenceRequest,
        events: &Events,
    ) -> Result<(), GenerateError> {
        if events.is_closed() {
            return Ok(());
        }
        if self.ids.contains_key(&request.request_id) {
            return Err(GenerateError::Duplicate(request.request_id));
        }
        let (request_id, deadline_ms) = (request.request_id.clone(), request.deadline_ms.unwrap_or_default());
        let first = request.sibling_of.as_ref().and_then(|first| self.ids.get(first)).copied();
        self.batcher.submit(id, request, first).map_err(|refusal| match refusal {
            Refusal::QueueFull { limit } => GenerateError::QueueFull {
                model: self.model.clone(),
                limit,
                retry_after: (self.interval * 8).clamp(Duration::from_secs(1), Duration::from_secs(60)),
            },
            Refusal::TooLong { .. } => {
                GenerateError::Invalid { field: "max_tokens", reason: refusal.to_string() }
            }
        })?;
        self.ids.insert(request_id.clone(), id);
        let waiting_since = Some(Instant::now());
        let listener = Listener { request_id, events: events.clone(), waiting_since, deadline_ms };
        self.listeners.insert(id, listener);
        Ok(())
    }

    fn report(&mut self, report: wire::StepReport) -> Result<(), String> {
        let mut report = StepReport::try_from(report).map_err(|e| e.to_string())?;
        self.metrics.step(&report);
        let counts = self.experts.add(&self.model, std::mem::take(&mut report.experts));
        self.metrics.experts(&counts);
        if report.driver_epoch == self.driver_epoch {
            let round_trip = self.round_trip.reported(Instant::now(), &report.timing);
            self.batcher.set_round_trip(u32::try_from(round_trip.as_micros()).unwrap_or(u32::MAX));
        }
        for (id, event) in self.batcher.report(report).map_err(|e| e.to_string())? {
            let ended = event.end.is_some();
            let Some(listener) = self.listeners.get(&id) else { continue };
            let gone = listener.events.send(Ok(event)).is_err();
            if ended || gone {
                if let Some(listener) = self.listeners.remove(&id) {
                    self.ids.remove(&listener.request_id);
                }
                if gone && !ended {
                    self.batcher.cancel(id);
                }
                self.note_end();
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
