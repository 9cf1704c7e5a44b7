//! One driver: sequences in, plans to the leader, reports back, events out.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use foggara_proto::sequence::SequenceRequest;
use foggara_proto::step::{GroupLimits, SequenceId, StepReport};
use foggara_proto::wire::worker as wire;
use tokio::sync::mpsc;
use tonic::Streaming;

use super::{DriverCommand, Events, limits, lost};
use crate::batcher::{Batcher, Refusal};
use crate::metrics::DriverMetrics;
use crate::router::GenerateError;

/// Commands taken in between two looks at what to plan: a burst becomes one batch.
const COMMAND_BATCH: usize = 64;

/// A sequence that someone listens to.
struct Listener {
    request_id: String,
    events: Events,
}

/// An attached driver.
pub(super) struct Drive {
    model: String,
    queue: usize,
    batcher: Batcher,
    listeners: HashMap<SequenceId, Listener>,
    ids: HashMap<String, SequenceId>,
    next_id: SequenceId,
    plans: mpsc::Sender<wire::DriverMessage>,
    metrics: DriverMetrics,
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
    ) -> Self {
        Self {
            model,
            queue,
            batcher: Batcher::new(driver_epoch, limits(group, queue)),
            listeners: HashMap::new(),
            ids: HashMap::new(),
            next_id: 1,
            plans,
            metrics,
            finished: None,
            interval: Duration::from_millis(100),
        }
    }

    /// Drives until the connection or the lease ends; says why it did.
    pub(super) async fn run(
        mut self,
        commands: &mut mpsc::Receiver<DriverCommand>,
        reports: &mut Streaming<wire::LeaderMessage>,
    ) -> String {
        let mut batch = Vec::new();
        let reason = loop {
            tokio::select! {
                // Reports first: what they free is what commands wait for.
                biased;
                message = reports.message() => match message {
                    Ok(Some(wire::LeaderMessage { message: Some(wire::leader_message::Message::Report(report)) })) => {
                        if let Err(reason) = self.report(report) {
                            break reason;
                        }
                    }
                    Ok(Some(_)) => break "the leader sent something else than a report".into(),
                    Ok(None) => break "the leader closed the connection".into(),
                    Err(status) => break status.message().to_owned(),
                },
                count = commands.recv_many(&mut batch, COMMAND_BATCH) => {
                    if count == 0 {
                        break "the lease has ended".into();
                    }
                    batch.drain(..).for_each(|command| self.take(command));
                }
            }
            while let Some(plan) = self.batcher.plan() {
                let plan = wire::driver_message::Message::Plan(plan.into());
                if self.plans.send(wire::DriverMessage { message: Some(plan) }).await.is_err() {
                    break;
                }
            }
            self.metrics.occupancy(self.batcher.occupancy());
        };
        for listener in self.listeners.into_values() {
            listener.events.send(Err(lost())).ok();
        }
        reason
    }

    fn take(&mut self, command: DriverCommand) {
        match command {
            DriverCommand::Submit { request, events } => {
                if let Err(error) = self.submit(request, &events) {
                    events.send(Err(error)).ok();
                }
            }
            DriverCommand::Cancel { request_id } => {
                if let Some(id) = self.ids.remove(&request_id) {
                    self.listeners.remove(&id);
                    self.batcher.cancel(id);
                }
            }
        }
    }

    fn submit(&mut self, request: SequenceRequest, events: &Events) -> Result<(), GenerateError> {
        if events.is_closed() {
            return Ok(());
        }
        if self.ids.contains_key(&request.request_id) {
            return Err(GenerateError::Duplicate(request.request_id));
        }
        let id = self.next_id;
        let SequenceRequest { request_id, tokens, prompt_len, params } = request;
        self.batcher.submit(id, tokens, prompt_len, params).map_err(|refusal| match refusal {
            Refusal::QueueFull { limit } => GenerateError::QueueFull {
                model: self.model.clone(),
                limit,
                retry_after: (self.interval * 8).clamp(Duration::from_secs(1), Duration::from_secs(60)),
            },
            Refusal::TooLong { .. } => {
                GenerateError::Invalid { field: "max_tokens", reason: refusal.to_string() }
            }
        })?;
        self.next_id += 1;
        self.ids.insert(request_id.clone(), id);
        self.listeners.insert(id, Listener { request_id, events: events.clone() });
        Ok(())
    }

    fn report(&mut self, report: wire::StepReport) -> Result<(), String> {
        let report = StepReport::try_from(report).map_err(|e| e.to_string())?;
        self.metrics.step(&report.timing);
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
        debug_assert!(self.queue > 0);
    }
}
