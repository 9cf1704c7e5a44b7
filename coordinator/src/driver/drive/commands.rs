//! What front doors want of a driver.

use std::time::{Duration, Instant};

use foggara_proto::sequence::SequenceRequest;
use foggara_proto::step::{Join, SequenceId};

use super::{Drive, Sequence};
use crate::batcher::Refusal;
use crate::driver::answer::Answer;
use crate::driver::listeners::Listeners;
use crate::driver::{DriverCommand, Events};
use crate::router::GenerateError;

impl Drive {
    pub(super) fn take(&mut self, command: DriverCommand) {
        match command {
            DriverCommand::Submit { id, listener, request, events } => {
                if let Err(error) = self.submit(id, listener, *request, &events) {
                    events.send(Err(error)).ok();
                }
            }
            DriverCommand::Lost { request_id, listener } => {
                self.with_listeners(&request_id, |listeners| {
                    listeners.lose(listener);
                    false
                });
            }
            DriverCommand::Cancel { request_id, listener } => {
                self.with_listeners(&request_id, |listeners| listeners.leave(listener));
            }
        }
    }

    /// Changes who listens to a sequence. `change` says whether it may end if nobody does any more.
    pub(super) fn with_listeners(&mut self, request_id: &str, change: impl FnOnce(&mut Listeners) -> bool) {
        let Some(id) = self.ids.get(request_id).copied() else { return };
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        let may_end = change(&mut sequence.listeners);
        if !sequence.listeners.is_empty() {
            return;
        }
        if may_end {
            self.cancel(id);
        } else {
            self.alone.since(Instant::now(), id);
        }
    }

    pub(super) fn cancel(&mut self, id: SequenceId) -> Option<Sequence> {
        self.batcher.cancel(id);
        self.forget(id)
    }

    /// Sequences that enter the group with the next plan have waited long enough.
    pub(super) fn entered(&mut self, joins: &[Join]) {
        for join in joins {
            let waited = self.sequences.get_mut(&join.sequence).and_then(|s| s.waiting_since.take());
            if let Some(since) = waited {
                self.metrics.queued(since.elapsed());
            }
        }
    }

    pub(super) fn submit(
        &mut self,
        id: SequenceId,
        listener: u64,
        request: SequenceRequest,
        events: &Events,
    ) -> Result<(), GenerateError> {
        if events.is_closed() {
            return Ok(());
        }
        if self.attach(listener, &request, events)? {
            return Ok(());
        }
        let deadline_ms = request.deadline_ms.unwrap_or_default();
        let first = request.sibling_of.as_ref().and_then(|first| self.ids.get(first)).copied();
        self.batcher.submit(id, request.clone(), first).map_err(|refusal| match refusal {
            Refusal::QueueFull { limit } => GenerateError::QueueFull {
                model: self.assignment.model.clone(),
                limit,
                retry_after: (self.interval * 8).clamp(Duration::from_secs(1), Duration::from_secs(60)),
            },
            Refusal::TooLong { .. } => {
                GenerateError::Invalid { field: "max_tokens", reason: refusal.to_string() }
            }
        })?;
        self.know(id, Answer::new(request.clone()), Some(Instant::now()), deadline_ms);
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.listeners.add(listener, events.clone(), &request, sequence.answer.len(), None);
        }
        Ok(())
    }

    /// Has a front door listen to a sequence that is known already. Returns whether there is one.
    pub(super) fn attach(
        &mut self,
        listener: u64,
        request: &SequenceRequest,
        events: &Events,
    ) -> Result<bool, GenerateError> {
        let Some(id) = self.ids.get(&request.request_id).copied() else { return Ok(false) };
        let Some(sequence) = self.sequences.get_mut(&id) else { return Ok(false) };
        let duplicate = || GenerateError::Duplicate(request.request_id.clone());
        if !sequence.answer.is_of(request) {
            return Err(duplicate());
        }
        let Some(beyond) = sequence.answer.beyond(request) else {
            // It lacks what another driver had. Unless somebody else needs this one, it is begun again.
            if !sequence.listeners.is_empty() {
                return Err(duplicate());
            }
            self.cancel(id);
            return Ok(false);
        };
        sequence.listeners.add(listener, events.clone(), request, sequence.answer.len(), Some(beyond));
        self.alone.no_more(id);
        Ok(true)
    }
}
