//! Those who listen to one sequence.

use std::time::Instant;

use foggara_proto::sequence::{SequenceEvent, SequenceRequest};

use super::Events;
use crate::router::GenerateError;

/// A stream.
#[derive(Debug)]
struct Listener {
    id: u64,
    events: Events,
    /// Generated tokens that it has.
    has: usize,
    /// Whether it wants to know about the prompt.
    prompt: bool,
}

/// Front doors' streams of one sequence.
#[derive(Debug, Default)]
pub(super) struct Listeners {
    present: Vec<Listener>,
    /// Broke off without a word: their front doors may have died.
    gone: Vec<u64>,
}

impl Listeners {
    /// One more. It is told at once what it lacks of the answer so far, which has `known` tokens.
    pub(super) fn add(
        &mut self,
        id: u64,
        events: Events,
        request: &SequenceRequest,
        known: usize,
        lacking: Option<SequenceEvent>,
    ) {
        if let Some(lacking) = lacking.filter(|event| *event != SequenceEvent::default()) {
            // If it has gone already, the next token tells.
            events.send(Ok(lacking)).ok();
        }
        let has = known.max(request.tokens.len() - request.prompt_len);
        self.present.push(Listener { id, events, has, prompt: request.params.prompt_logprobs });
    }

    /// Whether nobody listens.
    pub(super) fn is_empty(&self) -> bool {
        self.present.is_empty()
    }

    /// Tells everybody what is new to them of `event`, before which `known` tokens had been generated. Whoever has gone is noticed.
    pub(super) fn tell(&mut self, known: usize, event: &SequenceEvent) {
        let gone = &mut self.gone;
        self.present.retain_mut(|listener| {
            let mut event = event.clone();
            let has = listener.has.saturating_sub(known).min(event.tokens.len());
            event.tokens.drain(..has);
            listener.has = listener.has.max(known + has + event.tokens.len());
            if !listener.prompt {
                event.prompt.clear();
            }
            if event == SequenceEvent::default() {
                return true;
            }
            let present = listener.events.send(Ok(event)).is_ok();
            if !present {
                gone.push(listener.id);
            }
            present
        });
    }

    /// Tells everybody that it is over.
    pub(super) fn fail(self, error: &GenerateError) {
        for listener in self.present {
            listener.events.send(Err(error.clone())).ok();
        }
    }

    /// A stream has broken off.
    pub(super) fn lose(&mut self, id: u64) {
        if let Some(place) = self.present.iter().position(|listener| listener.id == id) {
            self.present.swap_remove(place);
            self.gone.push(id);
        }
    }

    /// A front door says that it listens no more. Whether it ever did.
    pub(super) fn leave(&mut self, id: u64) -> bool {
        self.lose(id);
        self.gone.contains(&id)
    }
}

/// Sequences that nobody listens to, and since when.
#[derive(Debug, Default)]
pub(super) struct Alone(std::collections::BTreeSet<(Instant, u64)>);

impl Alone {
    pub(super) fn since(&mut self, now: Instant, sequence: u64) {
        if !self.0.iter().any(|(_, other)| *other == sequence) {
            self.0.insert((now, sequence));
        }
    }

    pub(super) fn no_more(&mut self, sequence: u64) {
        self.0.retain(|(_, other)| *other != sequence);
    }

    /// The one that has been alone longest.
    pub(super) fn first(&self) -> Option<(Instant, u64)> {
        self.0.first().copied()
    }
}
