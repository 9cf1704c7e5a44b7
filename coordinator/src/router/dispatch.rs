//! The [`Generator`] over the replicated state and the drivers: picks a group, hands the sequence to its driver (here or on
//! another coordinator), and carries on elsewhere when that driver or its group is lost.
//!
//! A sequence that starts over is given the tokens it has so far and the same seed, so what follows is what would have
//! followed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use foggara_proto::auth::ClusterToken;
use foggara_proto::sequence::{SequenceEnd, SequenceEvent, SequenceRequest};
use foggara_proto::trace::TraceContext;
use foggara_proto::wire::cluster as wire;
use foggara_proto::wire::cluster::peer_client::PeerClient;
use futures::StreamExt;
use tonic::Code;

use super::agreement::{self, Agreement};
use super::listening::Listening;
use super::places::{Open, Places};
use super::policy::{GroupView, PolicyKind};
use super::pump::pumped;
use super::{GenerateError, Generator, SequenceStream};
use crate::cluster::state::Group;
use crate::cluster::state::adapters::Presence;
use crate::cluster::transport::GrpcTransport;
use crate::cluster::{ClusterHandle, ClusterState};
use crate::driver::Drivers;
use crate::timeline::{Micros, Placement};

/// How long a sequence looks for a group that takes it before it gives up.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long it looks for the next driver of the group that has it, where nothing is lost and nothing computed twice, before any
/// other group will do.
const LOYALTY: Duration = Duration::from_secs(5);
/// A driver that lives answers at once whether it takes a sequence.
const SUBMIT_TIMEOUT: Duration = Duration::from_secs(2);
/// Between two looks when the state has not changed.
const RETRY: Duration = Duration::from_millis(50);
/// Metadata of a missed deadline: how long it was.
const DEADLINE: &str = "deadline-ms";
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// Routes sequences to groups.
#[derive(Clone)]
pub struct Dispatcher {
    pub(super) cluster: ClusterHandle,
    pub(super) drivers: Drivers,
    pub(super) transport: Arc<GrpcTransport>,
    pub(super) token: ClusterToken,
    /// Sequences of this front door.
    places: Places,
}

/// A group that can take a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) group: u64,
    pub(super) coordinator: u64,
    pub(super) driver_epoch: u64,
}

impl Target {
    /// Whether the lease is still the group's.
    fn is_current(&self, state: &ClusterState) -> bool {
        let lease = state.groups.get(&self.group).and_then(|group| group.driver);
        lease.is_some_and(|lease| lease.epoch == self.driver_epoch)
    }
}

/// That a sequence was handed to the driver of `target`.
fn placement(target: &Target, at: Micros) -> Placement {
    let Target { group, coordinator, driver_epoch } = *target;
    Placement { at, group, coordinator, driver_epoch, choice: 0 }
}

/// The ready groups of `deployment`.
fn ready<'a>(
    state: &'a ClusterState,
    deployment: &'a str,
) -> impl Iterator<Item = (&'a u64, &'a Group)> + Clone {
    state.groups.iter().filter(move |(_, group)| group.deployment == deployment && group.is_ready())
}

/// Whether a group can compute a request, as far as its adapter goes. One that was removed is still where the request runs.
fn has_adapter(state: &ClusterState, id: u64, group: &Group, request: &SequenceRequest) -> bool {
    match request.params.adapter {
        None => true,
        Some(adapter) if state.adapter(adapter).is_none() => request.at == Some(id),
        Some(adapter) => state.presence(id, group, adapter) == Presence::Ready,
    }
}

/// What a request's client called its model, unless that was an adapter that is there no more.
fn asked_for(state: &ClusterState, deployment: &str, request: &SequenceRequest) -> Option<String> {
    match request.params.adapter {
        None => Some(deployment.to_owned()),
        Some(adapter) => state.adapter(adapter).map(|(name, _)| name.clone()),
    }
}

/// Why no group can load the request's adapter; `None`: one has it, or may get it.
fn adapter_failed(state: &ClusterState, deployment: &str, request: &SequenceRequest) -> Option<String> {
    let adapter = request.params.adapter?;
    let failed = |(id, group): (&u64, &Group)| match state.presence(*id, group, adapter) {
        Presence::Failed(rank, reason) => {
            Some(format!("its adapter could not be loaded: rank {rank}: {reason}"))
        }
        Presence::Ready | Presence::Loading => None,
    };
    let reasons: Option<Vec<String>> = ready(state, deployment).map(failed).collect();
    reasons?.into_iter().next()
}

/// The ready, driven groups of `deployment` that can take a request, and how a policy sees them.
fn candidates(
    state: &ClusterState,
    deployment: &str,
    request: &SequenceRequest,
    load: impl Fn(u64) -> usize,
) -> Vec<(Target, GroupView)> {
    let able = ready(state, deployment).filter(|(id, group)| has_adapter(state, **id, group, request));
    let candidate = |(id, group): (&u64, &Group)| {
        let lease = group.driver?;
        let target = Target { group: *id, coordinator: lease.coordinator, driver_epoch: lease.epoch };
        let view = GroupView {
            group: *id,
            driver_epoch: lease.epoch,
            load: load(*id),
            blocks: group.kv_blocks as usize * group.shape.dp as usize,
            block_size: group.block_size as usize,
        };
        Some((target, view))
    };
    able.filter_map(candidate).collect()
}

/// What is being waited for.
fn waiting_for(state: &ClusterState, deployment: &str, request: &SequenceRequest) -> String {
    let groups: Vec<_> = state.groups.values().filter(|group| group.deployment == deployment).collect();
    if groups.is_empty() {
        let idle = state.workers.values().filter(|worker| worker.group.is_none()).count();
        return format!("no group is formed; {idle} idle workers");
    }
    let (mut there, count) = (ready(state, deployment), ready(state, deployment).count());
    if count > 0 && !there.any(|(id, group)| has_adapter(state, *id, group, request)) {
        return format!("its adapter is being loaded by {count} groups");
    }
    format!("{} groups, {count} ready", groups.len())
}

impl Dispatcher {
    /// A dispatcher of this coordinator.
    pub fn new(
        cluster: ClusterHandle,
        drivers: Drivers,
        transport: Arc<GrpcTransport>,
        token: ClusterToken,
        policy: PolicyKind,
    ) -> Self {
        Self { cluster, drivers, transport, token, places: Places::new(policy) }
    }

    /// The group that a sequence goes to as things stand; at first the one that has it or its like already. It has looked for
    /// one for so long. `None`: there is none for now.
    async fn choose(
        &self,
        state: &ClusterState,
        deployment: &str,
        request: &SequenceRequest,
        looking: Duration,
        open: &mut Open,
    ) -> Option<(Target, GroupView)> {
        open.left();
        let groups = candidates(state, deployment, request, |group| self.places.load(group));
        let views: Vec<GroupView> = groups.iter().map(|(_, view)| *view).collect();
        let choice = self.places.choose(request, &views, looking < LOYALTY)?;
        let (wanted, _) = groups[choice.place];
        open.leans(wanted.group);
        if choice.known || !request.named || groups.len() < 2 {
            return Some(groups[choice.place]);
        }
        let targets: Vec<Target> = groups.iter().map(|(target, _)| *target).collect();
        let group = match self.agree(&request.request_id, &targets, wanted.group).await {
            Agreement::Group(group) => group,
            Agreement::Open(_) if looking < agreement::PATIENCE => return None,
            Agreement::Open(claimed) => claimed.unwrap_or(wanted.group),
        };
        groups.into_iter().find(|(target, _)| target.group == group)
    }

    /// Hands the sequence to the driver of `target`; `None` if it is not there.
    async fn submit(
        &self,
        target: Target,
        listener: u64,
        request: SequenceRequest,
    ) -> Option<SequenceStream> {
        if target.coordinator == self.cluster.id() {
            return self.drivers.submit(target.group, target.driver_epoch, listener, request);
        }
        let channel = self.transport.channel(target.coordinator)?;
        let mut client = PeerClient::with_interceptor(channel, self.token.shown())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let request = wire::SubmitRequest::new(target.group, target.driver_epoch, listener, request);
        let events = match tokio::time::timeout(SUBMIT_TIMEOUT, client.submit(request)).await {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return Some(futures::stream::iter([Err(from_status(&status))]).boxed()),
            Err(_) => return None,
        };
        let event = |event: Result<wire::SequenceEvent, tonic::Status>| match event {
            Ok(event) => SequenceEvent::try_from(event).map_err(|e| GenerateError::Internal(e.to_string())),
            Err(status) => Err(from_status(&status)),
        };
        Some(pumped(events.map(event)))
    }
}

/// An error as another coordinator tells it.
pub fn to_status(error: &GenerateError) -> tonic::Status {
    let code = match error {
        GenerateError::UnknownModel(_) => Code::NotFound,
        GenerateError::Invalid { .. } => Code::InvalidArgument,
        GenerateError::QueueFull { .. } => Code::ResourceExhausted,
        GenerateError::DeadlineExceeded { .. } => Code::DeadlineExceeded,
        GenerateError::Unavailable { .. } => Code::Unavailable,
        GenerateError::Duplicate(_) => Code::AlreadyExists,
        GenerateError::Internal(_) => Code::Internal,
    };
    let mut status = tonic::Status::new(code, error.to_string());
    if let GenerateError::Invalid { field, reason } = error {
        status = tonic::Status::new(code, reason.clone());
        status.metadata_mut().insert("field", tonic::metadata::MetadataValue::from_static(field));
    }
    if let GenerateError::DeadlineExceeded { deadline_ms } = error {
        status.metadata_mut().insert(DEADLINE, (*deadline_ms).into());
    }
    if let GenerateError::Duplicate(request_id) = error {
        status = tonic::Status::new(code, request_id.clone());
    }
    if let GenerateError::QueueFull { limit, retry_after, model } = error {
        let metadata = status.metadata_mut();
        metadata.insert("retry-after", retry_after.as_secs().max(1).into());
        metadata.insert("queue-limit", limit.to_string().parse().expect("digits are ASCII"));
        if let Ok(model) = model.parse() {
            metadata.insert("queue-model", model);
        }
    }
    status
}

/// The reverse of [`to_status`]. What cannot be told apart is "unavailable": it is tried again.
fn from_status(status: &tonic::Status) -> GenerateError {
    let text = |key: &str| {
        status.metadata().get(key).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
    };
    match status.code() {
        Code::ResourceExhausted => GenerateError::QueueFull {
            model: text("queue-model"),
            limit: text("queue-limit").parse().unwrap_or_default(),
            retry_after: Duration::from_secs(text("retry-after").parse().unwrap_or(1)),
        },
        Code::InvalidArgument => {
            GenerateError::Invalid { field: known_field(&text("field")), reason: status.message().to_owned() }
        }
        // Without the number it is the transport's own deadline.
        Code::DeadlineExceeded if status.metadata().contains_key(DEADLINE) => {
            GenerateError::DeadlineExceeded { deadline_ms: text(DEADLINE).parse().unwrap_or_default() }
        }
        Code::AlreadyExists => GenerateError::Duplicate(status.message().to_owned()),
        _ => GenerateError::Unavailable { model: String::new(), reason: status.message().to_owned() },
    }
}

/// The fields that a driver may find fault with.
fn known_field(name: &str) -> &'static str {
    ["max_tokens", "prompt"].into_iter().find(|known| *known == name).unwrap_or("request")
}

/// What a sequence has so far, for the day it must start over.
struct Progress {
    request: SequenceRequest,
    /// Prompt log-probabilities already delivered.
    prompt_told: usize,
    /// When it came.
    came: Instant,
    /// Whether a driver has worked on it: then it does not fail for what only a newcomer may be refused for.
    accepted: bool,
}

impl Progress {
    /// Whether to look for another driver rather than to give up.
    fn retries(&self, error: &GenerateError) -> bool {
        match error {
            GenerateError::Unavailable { .. } => true,
            // The former attempt has not been cleared away yet, or everybody comes from a lost group at once.
            GenerateError::Duplicate(_) | GenerateError::QueueFull { .. } => self.accepted,
            GenerateError::UnknownModel(_)
            | GenerateError::Invalid { .. }
            | GenerateError::DeadlineExceeded { .. }
            | GenerateError::Internal(_) => false,
        }
    }

    /// An error as the client is told: a driver knows no more of a deadline than what was left of it.
    fn told(&self, error: GenerateError) -> GenerateError {
        match (error, self.request.deadline_ms) {
            (GenerateError::DeadlineExceeded { .. }, Some(deadline_ms)) => {
                GenerateError::DeadlineExceeded { deadline_ms }
            }
            (error, _) => error,
        }
    }

    /// Keeps what is new of an event that came after `skip` known prompt entries. The end comes with the last token, so that
    /// what a client gets to see depends on the tokens alone.
    fn take(&mut self, mut event: SequenceEvent, skip: &mut usize) -> SequenceEvent {
        let known = (*skip).min(event.prompt.len());
        event.prompt.drain(..known);
        *skip -= known;
        self.prompt_told += event.prompt.len();
        self.request.tokens.extend(event.tokens.iter().map(|token| token.token));
        event.end = event.end.or_else(|| self.ended().filter(|_| !event.tokens.is_empty()));
        event
    }

    /// The request that goes on from here.
    fn resume(&self) -> SequenceRequest {
        let mut request = self.request.clone();
        let whole = self.prompt_told >= request.prompt_len;
        request.params.prompt_logprobs &= !whole;
        let waited = u64::try_from(self.came.elapsed().as_millis()).unwrap_or(u64::MAX);
        request.deadline_ms = request.deadline_ms.map(|deadline| deadline.saturating_sub(waited));
        request
    }

    /// The deadline it has missed, if it has not begun by it.
    fn missed(&self) -> Option<GenerateError> {
        let begun = self.prompt_told > 0 || self.request.tokens.len() > self.request.prompt_len;
        let deadline_ms = self.request.deadline_ms.filter(|_| !begun)?;
        (self.came.elapsed() > Duration::from_millis(deadline_ms))
            .then_some(GenerateError::DeadlineExceeded { deadline_ms })
    }

    /// Whether the sequence had in truth ended when its last event was lost.
    fn ended(&self) -> Option<SequenceEnd> {
        let generated = &self.request.tokens[self.request.prompt_len..];
        if generated.last().is_some_and(|token| self.request.params.stop_token_ids.contains(token)) {
            return Some(SequenceEnd::StopToken);
        }
        let told = !self.request.params.prompt_logprobs || self.prompt_told >= self.request.prompt_len;
        let full = generated.len() >= self.request.params.max_tokens as usize && !generated.is_empty();
        (full && told).then_some(SequenceEnd::Length)
    }
}

impl Generator for Dispatcher {
    fn generate(&self, deployment: &str, request: SequenceRequest) -> SequenceStream {
        let this = self.clone();
        let model = deployment.to_owned();
        let name = asked_for(&this.cluster.state(), &model, &request).unwrap_or_else(|| model.clone());
        let open = this.places.open(&request);
        let listening = Listening::new(this.clone(), request.request_id.clone());
        let mut progress = Progress { request, prompt_told: 0, came: Instant::now(), accepted: false };
        Box::pin(async_stream::stream! {
            let (mut open, mut listening, mut cached_told) = (open, listening, false);
            let mut watch = this.cluster.watch();
            // Since when nobody works on it.
            let mut looking = Instant::now();
            this.places.first_placed(&progress.request).await;
            loop {
                let state = watch.borrow_and_update().clone();
                if !state.deployments.contains_key(&model) {
                    yield Err(GenerateError::UnknownModel(name));
                    return;
                }
                // Where it runs it may go on without being known any more.
                let runs = progress.request.at.is_some_and(|group| state.groups.contains_key(&group));
                if !runs && asked_for(&state, &model, &progress.request).is_none() {
                    yield Err(GenerateError::UnknownModel(name));
                    return;
                }
                if let Some(reason) = adapter_failed(&state, &model, &progress.request) {
                    yield Err(GenerateError::Unavailable { model: name, reason });
                    return;
                }
                let chosen = this.choose(&state, &model, &progress.request, looking.elapsed(), &mut open).await;
                let submitted = match chosen {
                    Some((target, view)) => {
                        let listener = listening.begin(target.group);
                        let at = this.drivers.timelines().now();
                        let events = this.submit(target, listener, progress.resume()).await;
                        events.map(|events| (target, view, events, at))
                    }
                    None => None,
                };
                if let Some((target, view, mut events, at)) = submitted {
                    open.placed(&progress.request, &view);
                    this.drivers.timelines().placed(&progress.request, placement(&target, at));
                    let mut skip = progress.prompt_told;
                    loop {
                        let event = tokio::select! {
                            biased;
                            event = events.next() => event,
                            // The lease has moved, which the connection to its former holder may never tell.
                            _ = watch.wait_for(|state| !target.is_current(state)) => None,
                        };
                        match event {
                            Some(Ok(event)) => {
                                looking = Instant::now();
                                progress.accepted = true;
                                progress.request.at = Some(target.group);
                                let mut event = progress.take(event, &mut skip);
                                // What a later driver finds is what was computed for this very stream.
                                if event.cached_tokens.is_some() && std::mem::replace(&mut cached_told, true) {
                                    event.cached_tokens = None;
                                }
                                let last = event.end.is_some();
                                if last {
                                    listening.done();
                                    open.ended(&progress.request, &view);
                                }
                                yield Ok(event);
                                if last {
                                    return;
                                }
                            }
                            Some(Err(error)) if !progress.retries(&error) => {
                                listening.done();
                                yield Err(progress.told(error));
                                return;
                            }
                            ended => {
                                progress.accepted = true;
                                let reason = ended.and_then(Result::err).map_or("the lease has moved".into(), |e| e.to_string());
                                let request_id = &progress.request.request_id;
                                let trace_id = progress.request.trace.as_ref().map(TraceContext::trace_id_text);
                                tracing::info!(request_id, trace_id, group = target.group, reason, "looking for another driver");
                                break;
                            }
                        }
                    }
                    open.left();
                    if let Some(end) = progress.ended() {
                        yield Ok(SequenceEvent { end: Some(end), ..SequenceEvent::default() });
                        return;
                    }
                }
                if let Some(missed) = progress.missed() {
                    yield Err(missed);
                    return;
                }
                if looking.elapsed() > PATIENCE || watch.has_changed().is_err() {
                    let reason = waiting_for(&state, &model, &progress.request);
                    yield Err(GenerateError::Unavailable { model: name, reason });
                    return;
                }
                // The next driver shows in the state; the same one may only need a moment.
                tokio::time::timeout(RETRY, watch.changed()).await.ok();
            }
        })
    }
}

#[cfg(test)]
#[path = "dispatch_tests.rs"]
mod tests;
