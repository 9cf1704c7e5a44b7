//! A sequence as one driver sees it.

use foggara_proto::sequence::{SequenceEnd, SequenceRequest};
use foggara_proto::trace::TraceContext;

use super::held::Held;
use super::{Bounded, Gaps, Micros, SlowToken, Step};

/// Where a sequence is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PhaseKind {
    /// It waits to enter the group.
    Queue,
    /// The same, after others needed its memory.
    Preempted,
    /// Its tokens are read, until the first one that is sampled after them.
    Prefill,
    /// It generates.
    Decode,
}

impl PhaseKind {
    /// For people and programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Preempted => "preempted",
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }
}

/// A time that it spends somewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Phase {
    /// Where.
    pub kind: PhaseKind,
    /// Since when.
    pub from: Micros,
    /// Until when; `None`: it is there.
    pub to: Option<Micros>,
}

/// Tokens of it that were read in one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// When the step's report came.
    pub at: Micros,
    /// How many.
    pub rows: u32,
    /// The step.
    pub step: Step,
}

/// Somebody began or ceased to listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListenerChange {
    /// When.
    pub at: Micros,
    /// Began.
    pub came: bool,
}

/// How a sequence's time with a driver ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// By itself.
    Whole(SequenceEnd),
    /// Nobody wants it any more: a stop string, or the client has gone.
    Cancelled,
    /// It had waited too long.
    Deadline,
    /// Nobody came to listen.
    Alone,
    /// The driver lost its group or its lease.
    DriverLost,
}

impl End {
    /// For people and programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Whole(SequenceEnd::StopToken) => "stop",
            Self::Whole(SequenceEnd::Length) => "length",
            Self::Cancelled => "cancelled",
            Self::Deadline => "deadline",
            Self::Alone => "nobody listened",
            Self::DriverLost => "driver lost",
        }
    }
}

/// What a driver's part begins with.
#[derive(Debug, Clone, Copy)]
pub struct Began<'a> {
    /// When.
    pub now: Micros,
    /// The group.
    pub group: u64,
    /// The driver's lease.
    pub driver_epoch: u64,
    /// The deployment.
    pub model: &'a str,
    /// Sequences that wait in the group's queue before it.
    pub ahead: usize,
    /// Sequences in the group.
    pub running: usize,
    /// Where it is.
    pub phase: PhaseKind,
    /// What others had been held up by until now.
    pub held: Held,
}

/// A driver's part of a timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Driven {
    /// The request.
    pub request_id: String,
    /// Of several choices which, from 0.
    pub choice: u64,
    /// The group.
    pub group: u64,
    /// The driver's lease.
    pub driver_epoch: u64,
    /// The deployment.
    pub model: String,
    /// When this driver first knew of it.
    pub began: Micros,
    /// Taken over from an earlier driver, while it ran.
    pub adopted: bool,
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Generated tokens that it came with.
    pub known_tokens: u64,
    /// Sequences that waited before it when it came.
    pub ahead: u64,
    /// Sequences in the group when it came.
    pub running: u64,
    /// Of the prompt, found in the cache when it first entered.
    pub cached_tokens: u64,
    /// Where it has been.
    pub phases: Bounded<Phase>,
    /// Time in each kind of phase, microseconds, those left out of `phases` included, without the one that goes on.
    totals: [u64; 4],
    /// Where it is, if it has not ended.
    now_in: Option<(PhaseKind, Micros)>,
    /// What held it up in the queue.
    pub held: Held,
    held_before: Held,
    /// What was read.
    pub chunks: Bounded<Chunk>,
    /// Rows of the chunks that are only counted.
    pub more_rows: u64,
    /// When its first token under this driver came.
    pub first_token: Option<Micros>,
    last_token: Option<Micros>,
    /// It was preempted since its last token.
    interrupted: bool,
    /// Generated under this driver.
    pub tokens: u64,
    /// The times between them.
    pub gaps: Gaps,
    /// How often others needed its memory.
    pub preemptions: u64,
    /// Who listened.
    pub listeners: Bounded<ListenerChange>,
    /// When it ended, and how.
    pub end: Option<(Micros, End)>,
    /// The span that it is part of.
    pub trace: Option<TraceContext>,
}

impl Driven {
    /// Of a sequence that the driver has just come to know, of which `known` tokens have been generated.
    pub fn new(request: &SequenceRequest, known: usize, began: Began<'_>) -> Self {
        let Began { now, phase, .. } = began;
        let root = request.sibling_of.as_ref().unwrap_or(&request.request_id);
        let choice = request.request_id.strip_prefix(root.as_str()).and_then(|rest| rest.strip_prefix('#'));
        let mut driven = Self {
            request_id: root.clone(),
            choice: choice.and_then(|number| number.parse().ok()).unwrap_or(0),
            group: began.group,
            driver_epoch: began.driver_epoch,
            model: began.model.to_owned(),
            began: now,
            adopted: phase != PhaseKind::Queue,
            prompt_tokens: request.prompt_len as u64,
            known_tokens: known as u64,
            ahead: began.ahead as u64,
            running: began.running as u64,
            cached_tokens: 0,
            phases: Bounded::default(),
            totals: [0; 4],
            now_in: None,
            held: Held::default(),
            held_before: began.held,
            chunks: Bounded::default(),
            more_rows: 0,
            first_token: None,
            last_token: None,
            interrupted: false,
            tokens: 0,
            gaps: Gaps::default(),
            preemptions: 0,
            listeners: Bounded::default(),
            end: None,
            trace: request.trace.clone(),
        };
        driven.turn(now, Some(phase));
        driven
    }

    /// From now on it is somewhere else; `None`: nowhere.
    fn turn(&mut self, now: Micros, next: Option<PhaseKind>) {
        if let Some((kind, from)) = self.now_in.take() {
            self.totals[kind as usize] += now.saturating_sub(from);
            // What was only counted when it began is not the last one of the list.
            if let Some(last) = self.phases.first.last_mut().filter(|last| last.to.is_none()) {
                last.to = Some(now);
            }
        }
        if let Some(kind) = next {
            self.now_in = Some((kind, now));
            self.phases.push(Phase { kind, from: now, to: None });
        }
    }

    /// Microseconds that it has been in phases of a kind, up to `now`.
    pub fn total_us(&self, kind: PhaseKind, now: Micros) -> u64 {
        let current = self.now_in.filter(|(current, _)| *current == kind);
        self.totals[kind as usize] + current.map_or(0, |(_, from)| now.saturating_sub(from))
    }

    /// It enters the group; whoever waited had been held up by `held` in all.
    pub fn entered(&mut self, now: Micros, cached: usize, held: Held) {
        if self.preemptions == 0 {
            self.cached_tokens = (cached as u64).min(self.prompt_tokens);
        }
        self.held.add(&held.since(&self.held_before));
        self.turn(now, Some(PhaseKind::Prefill));
    }

    /// Tokens of it have been read.
    pub fn read(&mut self, now: Micros, rows: u32, step: Step) {
        if self.chunks.push(Chunk { at: now, rows, step }) {
            self.more_rows += u64::from(rows);
        }
    }

    /// Tokens have come of a step.
    pub fn tokens(&mut self, now: Micros, count: usize, step: Step) {
        if count == 0 {
            return;
        }
        // Tokens of steps that were on their way when it was preempted: it waits all the same.
        let on_its_way = self.now_in.is_some_and(|(kind, _)| kind == PhaseKind::Preempted);
        if self.now_in.is_some_and(|(kind, _)| kind == PhaseKind::Prefill) {
            self.turn(now, Some(PhaseKind::Decode));
        }
        if let Some(before) = self.last_token {
            let (index, gap_us) = (self.known_tokens + self.tokens, now.saturating_sub(before));
            let preempted = self.interrupted && !on_its_way;
            self.gaps.push(SlowToken { index, at: now, gap_us, preempted, step });
        }
        self.gaps.together(count as u64 - 1);
        self.first_token.get_or_insert(now);
        self.last_token = Some(now);
        self.interrupted &= on_its_way;
        self.tokens += count as u64;
    }

    /// Others need its memory: it waits again. `held`: what whoever waits had been held up by.
    pub fn preempted(&mut self, now: Micros, held: Held) {
        self.preemptions += 1;
        self.interrupted = true;
        self.held_before = held;
        self.turn(now, Some(PhaseKind::Preempted));
    }

    /// Somebody begins to listen, or has ceased to.
    pub fn listener(&mut self, now: Micros, came: bool) {
        self.listeners.push(ListenerChange { at: now, came });
    }

    /// It has ended here. Only the first end counts.
    pub fn ended(&mut self, now: Micros, end: End) {
        if self.end.is_none() {
            self.turn(now, None);
            self.end = Some((now, end));
        }
    }
}
