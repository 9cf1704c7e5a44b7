//! The recorder of timelines: the clock, the last requests, and what sends them on as traces.
//!
//! Whoever records owns its part until it is over: a driver's is in its own hands, so a step takes no lock for it. A front door's is
//! behind a lock of its own, since it is looked at while the request runs.

mod clock;
mod otlp;
mod recent;
mod spans;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use foggara_proto::sequence::SequenceRequest;
use foggara_proto::trace::TraceContext;

use crate::timeline::{Began, Driven, End, Front, Micros, Placement};
use clock::Clock;
use recent::Recent;

pub use otlp::{Exporter, ExporterError};
pub use recent::{KEPT_REQUESTS, Parts};

/// Records timelines. Clones record into the same.
#[derive(Clone, Default)]
pub struct Timelines(Arc<Shared>);

#[derive(Default)]
struct Shared {
    clock: Clock,
    recent: Mutex<Recent>,
    exporter: OnceLock<(u64, Exporter)>,
}

/// A request has arrived.
#[derive(Debug, Clone, Default)]
pub struct Arrival {
    /// When.
    pub at: Micros,
    /// The span of the request, if it belongs to a trace.
    pub trace: Option<TraceContext>,
    /// The client's span; 0: none.
    pub parent_span: u64,
}

impl Arrival {
    /// The same for another request that came with this one: a span of its own beside this one's.
    pub fn another(&self) -> Self {
        let trace = self.trace.clone().map(|trace| TraceContext { span_id: new_span_id(), ..trace });
        Self { trace, ..self.clone() }
    }
}

impl Timelines {
    /// From now on timelines that ended are exported, as those of coordinator `id`.
    pub fn export(&self, id: u64, exporter: Exporter) {
        self.0.exporter.set((id, exporter)).ok();
    }

    /// Sends what has ended and not been sent yet. Takes seconds at most.
    pub fn flush(&self) {
        if let Some((_, exporter)) = self.0.exporter.get() {
            exporter.shutdown();
        }
    }

    /// Now.
    pub fn now(&self) -> Micros {
        self.0.clock.now()
    }

    /// A request arrives now, with what its client says of a trace. Without that it begins a trace if traces are exported.
    pub fn arrival(&self, traceparent: &str, tracestate: &str) -> Arrival {
        let parent = TraceContext::parse(traceparent, tracestate);
        let parent_span = parent.as_ref().map_or(0, |parent| parent.span_id);
        let exporter = self.0.exporter.get().map(|(_, exporter)| exporter);
        let trace = match (parent, exporter) {
            (None, None) => None,
            (Some(parent), None) => Some(TraceContext { span_id: new_span_id(), ..parent }),
            (parent, Some(exporter)) => {
                let trace_id = parent.as_ref().map_or_else(|| uuid::Uuid::new_v4().as_u128(), |p| p.trace_id);
                let sampled = exporter.samples(trace_id, parent.as_ref());
                let state = parent.map(|parent| parent.state).unwrap_or_default();
                Some(TraceContext { trace_id, span_id: new_span_id(), sampled, state })
            }
        };
        Arrival { at: self.now(), trace, parent_span }
    }

    /// A front door begins with a request.
    pub fn front(&self, front: Front) -> FrontRecording {
        let front = Arc::new(Mutex::new(front));
        self.recent().front(&front);
        FrontRecording(Some((front, self.clone())))
    }

    /// A sequence of `request` went to a driver; which choice it is of is found out here.
    pub fn placed(&self, request: &SequenceRequest, placement: Placement) {
        let root = request.sibling_of.as_ref().unwrap_or(&request.request_id);
        let choice = request.request_id.rsplit_once('#').filter(|_| request.sibling_of.is_some());
        let choice = choice.and_then(|(_, number)| number.parse().ok()).unwrap_or(0);
        let front = self.recent().latest_front(root);
        if let Some(front) = front {
            lock(&front).placed(Placement { choice, ..placement });
        }
    }

    /// A driver begins with a sequence of which `known` tokens have been generated.
    pub fn driven(&self, request: &SequenceRequest, known: usize, began: Began<'_>) -> DrivenRecording {
        let driven = Box::new(Driven::new(request, known, began));
        DrivenRecording { driven: Some(driven), timelines: self.clone() }
    }

    /// What is kept of a request; drivers have more of it while it runs.
    pub fn find(&self, request_id: &str) -> Option<Parts> {
        self.recent().find(request_id)
    }

    /// The last requests of this front door, or the slowest.
    pub fn list(&self, slowest: bool, limit: usize) -> Vec<Front> {
        self.recent().list(slowest, limit, self.now())
    }

    /// When the oldest request came that is kept; `None`: there is none.
    pub fn oldest(&self) -> Option<Micros> {
        self.recent().oldest()
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        lock(&self.0.recent)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Random; not 0, which is no span.
fn new_span_id() -> u64 {
    uuid::Uuid::new_v4().as_u64_pair().0.max(1)
}

/// A front door's part while it is recorded. The default records nothing.
#[derive(Clone, Default)]
pub struct FrontRecording(Option<(Arc<Mutex<Front>>, Timelines)>);

impl FrontRecording {
    /// Tokens have come.
    pub fn tokens(&self, count: usize) {
        self.update(|front, now| front.tokens(now, count));
    }

    /// The client takes no more, until [`took`](Self::took).
    pub fn told(&self) -> Micros {
        self.0.as_ref().map_or(0, |(_, timelines)| timelines.now())
    }

    /// The client, told something at `told`, takes more.
    pub fn took(&self, told: Micros) {
        self.update(|front, now| front.client(now.saturating_sub(told)));
    }

    /// How many tokens of the prompt were in the cache.
    pub fn cached(&self, tokens: usize) {
        self.update(|front, _| front.cached_tokens = front.cached_tokens.max(tokens as u64));
    }

    /// It has ended, `how` says in what way.
    pub fn ended(&self, how: &str) {
        let Some((front, timelines)) = &self.0 else { return };
        self.update(|front, now| {
            front.end.get_or_insert_with(|| (now, how.to_owned()));
        });
        if let Some((id, exporter)) = timelines.0.exporter.get() {
            exporter.send(spans::front(&lock(front), *id));
        }
    }

    /// The trace's id for the log; empty: it belongs to none.
    pub fn trace_id(&self) -> Option<String> {
        let (front, _) = self.0.as_ref()?;
        lock(front).trace.as_ref().map(TraceContext::trace_id_text)
    }

    fn update(&self, update: impl FnOnce(&mut Front, Micros)) {
        if let Some((front, timelines)) = &self.0 {
            update(&mut lock(front), timelines.now());
        }
    }
}

/// A driver's part while it is recorded. It is kept when this is dropped; then the driver has lost the sequence, unless an end
/// was told.
pub struct DrivenRecording {
    driven: Option<Box<Driven>>,
    timelines: Timelines,
}

impl DrivenRecording {
    /// To tell what happens.
    pub fn tell(&mut self, tell: impl FnOnce(&mut Driven)) {
        if let Some(driven) = &mut self.driven {
            tell(driven);
        }
    }

    /// It has ended.
    pub fn ended(&mut self, end: End) {
        let now = self.timelines.now();
        self.tell(|driven| driven.ended(now, end));
    }

    /// As it is now.
    pub fn driven(&self) -> Option<&Driven> {
        self.driven.as_deref()
    }
}

impl Drop for DrivenRecording {
    fn drop(&mut self) {
        let Some(mut driven) = self.driven.take() else { return };
        driven.ended(self.timelines.now(), End::DriverLost);
        if let Some((id, exporter)) = self.timelines.0.exporter.get() {
            exporter.send(spans::driven(&driven, *id));
        }
        self.timelines.recent().driven(*driven);
    }
}
