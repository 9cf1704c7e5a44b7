//! Which sequences a driver knows: taken over, known by their request ids, forgotten.

use std::sync::Arc;
use std::time::Instant;

use foggara_proto::sequence::SequenceRequest;
use foggara_proto::step::{HeldSequence, SequenceId};

use super::{Drive, Sequence};
use crate::driver::answer::Answer;
use crate::driver::listeners::Listeners;
use crate::driver::{Live, lost};
use crate::timeline::PhaseKind;

impl Drive {
    /// Takes over a sequence that the leader holds. Until its front door comes, or another one in its place, it goes on alone.
    pub(super) fn adopt(&mut self, held: HeldSequence) {
        let id = held.sequence;
        let (tokens, params) = (held.tokens.clone(), held.params.clone());
        let request = SequenceRequest::from_envelope(&held.envelope, tokens, held.prompt_len, params);
        let request = match request {
            Ok(request) if !held.reading_prompt && !self.ids.contains_key(&request.request_id) => request,
            // It begins again when its front door asks for it again.
            _ => return self.batcher.discard(id),
        };
        let (answer, decodes) = (Answer::held(&held, request.clone()), held.decodes);
        if held.end.is_some() {
            self.batcher.discard(id);
            return self.keep(answer, Some(self.assignment.group));
        }
        if let Err(reason) = self.batcher.adopt(held, request) {
            tracing::warn!(sequence = id, %reason, "a sequence cannot be taken over");
            return self.batcher.discard(id);
        }
        self.metrics.adopted();
        let phase = if decodes { PhaseKind::Decode } else { PhaseKind::Prefill };
        self.know(id, answer, None, 0, phase);
        self.alone.since(Instant::now(), id);
    }

    /// From now on the sequence is known by its request id.
    pub(super) fn know(
        &mut self,
        id: SequenceId,
        answer: Answer,
        waiting_since: Option<Instant>,
        deadline_ms: u64,
        phase: PhaseKind,
    ) {
        let recording = self.record(&answer, phase);
        let request = answer.request();
        self.adapters.came(request.params.adapter, waiting_since.is_some());
        self.ids.insert(request.request_id.clone(), id);
        let (model, group) = (self.assignment.model.clone(), self.assignment.group);
        let live = Live { model, group, request: Arc::clone(request) };
        self.drivers.0.live.insert(request.request_id.clone(), live);
        let listeners = Listeners::default();
        self.sequences.insert(id, Sequence { answer, listeners, waiting_since, deadline_ms, recording });
    }

    /// The sequence is not driven any more.
    pub(super) fn forget(&mut self, id: SequenceId) -> Option<Sequence> {
        let sequence = self.sequences.remove(&id)?;
        let request = sequence.answer.request();
        self.adapters.left(request.params.adapter, sequence.waiting_since.is_some());
        let request_id = &request.request_id;
        self.ids.remove(request_id);
        self.drivers.0.live.remove_if(request_id, |_, live| live.group == self.assignment.group);
        self.alone.no_more(id);
        Some(sequence)
    }

    /// The end of this driver: whoever waits looks for the next one, and what nobody may be listening to can be found for a while.
    pub(super) fn leave(mut self) {
        let ids: Vec<SequenceId> = self.sequences.keys().copied().collect();
        for id in ids {
            let Some(sequence) = self.forget(id) else { continue };
            sequence.listeners.fail(&lost());
            self.keep(sequence.answer, None);
        }
    }

    /// Keeps an answer for a while: a whole one with the group that it is of, and what may be asked for again.
    pub(super) fn keep(&self, answer: Answer, group: Option<u64>) {
        if answer.end().is_some() || !answer.request().envelope.is_empty() {
            self.drivers.0.kept.keep(&self.assignment.model, group, answer, Instant::now());
        }
    }
}
