//! What front doors want of a driver.

use std::time::{Duration, Instant};

use foggara_proto::sequence::SequenceRequest;
use foggara_proto::step::{Join, SequenceId};

use super::{Drive, Sequence};
use crate::batcher::Refusal;
use crate::driver::answer::Answer;
use crate::driver::{DriverCommand, Events};
use crate::router::GenerateError;
use crate::timeline::{End, PhaseKind};

impl Drive {
    pub(super) fn take(&mut self, command: DriverCommand) {
        match command {
            DriverCommand::Submit { id, listener, request, events } => {
                if let Err(error) = self.submit(id, listener, *request, &events) {
                    events.send(Err(error)).ok();
                }
            }
            DriverCommand::Lost { request_id, listener } => {
                if let Some(id) = self.left_alone(&request_id, listener) {
                    self.alone.since(Instant::now(), id);
                    self.listener(id, false);
                }
            }
            DriverCommand::Timelines { request_ids, seen } => {
                // Whoever asked may have gone.
                seen.send(self.timelines(&request_ids)).ok();
            }
            DriverCommand::Cancel { request_id, listener } => {
                if let Some(id) = self.left_alone(&request_id, listener)
                    && let Some(mut sequence) = self.cancel(id)
                {
                    sequence.recording.ended(End::Cancelled);
                    // A stop string may have ended it, and its client may not have heard of that: it can be found.
                    self.keep(sequence.answer, None);
                }
            }
        }
    }

    /// Somebody does not listen to a sequence any more. Returns it if now nobody does.
    fn left_alone(&mut self, request_id: &str, listener: u64) -> Option<SequenceId> {
        let id = *self.ids.get(request_id)?;
        let sequence = self.sequences.get_mut(&id)?;
        sequence.listeners.leave(listener);
        sequence.listeners.is_empty().then_some(id)
    }

    pub(super) fn cancel(&mut self, id: SequenceId) -> Option<Sequence> {
        self.batcher.cancel(id);
        self.forget(id)
    }

    /// Sequences that enter the group with the next plan have waited long enough.
    pub(super) fn entered(&mut self, joins: &[Join]) {
        for join in joins {
            let Some(sequence) = self.sequences.get_mut(&join.sequence) else { continue };
            if let Some(since) = sequence.waiting_since.take() {
                self.metrics.queued(since.elapsed());
                self.adapters.entered(sequence.answer.request().params.adapter);
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
        self.know(id, Answer::new(request.clone()), Some(Instant::now()), deadline_ms, PhaseKind::Queue);
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
            if let Some(mut sequence) = self.cancel(id) {
                sequence.recording.ended(End::Cancelled);
            }
            return Ok(false);
        };
        sequence.listeners.add(listener, events.clone(), request, sequence.answer.len(), Some(beyond));
        self.alone.no_more(id);
        self.listener(id, true);
        Ok(true)
    }
}
