//! What a driver records of each plan and report.

use std::collections::HashMap;
use std::hint::black_box;
use std::time::Instant;

use foggara_coordinator::batcher::{Batcher, Limits};
use foggara_coordinator::driver::{ExpertLoads, Recorder, Recordings};
use foggara_coordinator::metrics::Metrics;
use foggara_coordinator::timeline::{Began, End, Held, PhaseKind};
use foggara_coordinator::traces::{DrivenRecording, Timelines};
use foggara_proto::sequence::{SequenceEnd, SequenceParams, SequenceRequest, TokenOutput};
use foggara_proto::step::{
    Chunk, ExpertCount, RankUse, SequenceId, SequenceOutput, StepPlan, StepReport, StepTiming,
};
use foggara_proto::wire::worker as wire;
use prost::Message;

use super::{Pace, Part, REMEMBERED, nanos};
use crate::args::RecordingArgs;

const MODEL: &str = "mixtral-8x7b";
const EPOCH: u64 = 7;

pub(super) fn parts(args: &RecordingArgs, pace: &Pace) -> Vec<Part> {
    let part = |what, nanos| Part { place: "the driver", what, nanos };
    let mut driver = Driver::new(pace);
    let requests = driver.request() * pace.sequences as f64 / args.answer as f64;
    vec![
        part("plans and reports", driver.step()),
        part("each sequence's tokens", driver.tokens()),
        part("experts and ranks, twice a second", pace.of_told(driver.told(args))),
        part("what reports carry for it", carried(&report(pace)) + pace.of_told(carried(&told(args)))),
        part("requests, from coming to ending", requests),
    ]
}

/// Recordings by sequence, as a driver has them.
struct Sequences(HashMap<SequenceId, DrivenRecording>);

impl Recordings for Sequences {
    fn recording(&mut self, id: SequenceId) -> Option<&mut DrivenRecording> {
        self.0.get_mut(&id)
    }
}

/// A driver in the midst of its work.
struct Driver {
    metrics: Metrics,
    timelines: Timelines,
    batcher: Batcher,
    recorder: Recorder,
    sequences: Sequences,
    plan: StepPlan,
    report: StepReport,
}

fn request(id: &str) -> SequenceRequest {
    let params = SequenceParams { max_tokens: 128, ..SequenceParams::default() };
    SequenceRequest::new(id, vec![1; 128], 128, params)
}

fn began(timelines: &Timelines) -> Began<'static> {
    let phase = PhaseKind::Queue;
    let now = timelines.now();
    Began {
        now,
        group: 1,
        driver_epoch: EPOCH,
        model: MODEL,
        ahead: 3,
        running: 9,
        phase,
        held: Held::default(),
    }
}

/// A step in which every sequence has got a token.
fn report(pace: &Pace) -> StepReport {
    let token = TokenOutput { token: 9, logprob: None, top: Vec::new() };
    let output =
        |sequence| SequenceOutput { sequence, prompt: Vec::new(), tokens: vec![token.clone()], end: None };
    let rows = u32::try_from(pace.sequences).unwrap_or(u32::MAX);
    StepReport {
        driver_epoch: EPOCH,
        outputs: (0..pace.sequences as u64).map(output).collect(),
        timing: StepTiming { rows, wait_us: 9, compute_us: 30_000, collective_us: 4_000, sample_us: 500 },
        ..StepReport::default()
    }
}

/// What comes twice a second beside that.
fn told(args: &RecordingArgs) -> StepReport {
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let rank = |rank| RankUse { rank: number(rank), steps: 15, compute_us: 400_000, ..RankUse::default() };
    let of_layer = |layer| {
        (0..args.experts).map(move |expert| ExpertCount {
            layer: number(layer),
            expert: number(expert),
            tokens: 120,
        })
    };
    StepReport {
        experts: (0..args.layers).flat_map(of_layer).collect(),
        ranks: (0..args.ranks).map(rank).collect(),
        ..StepReport::default()
    }
}

impl Driver {
    fn new(pace: &Pace) -> Self {
        let (metrics, timelines) = (Metrics::new(), Timelines::default());
        let mut batcher = Batcher::new(
            EPOCH,
            Limits {
                kv_blocks: 65_536,
                pools: 1,
                block_size: 16,
                step_rows: 2048,
                sequences: 1024,
                queue: 512,
                lease_ms: 2000,
                drafts: 0,
            },
        );
        let mut sequences = HashMap::new();
        for id in 0..pace.sequences as u64 {
            let request = request(&format!("request-{id}"));
            sequences.insert(id, timelines.driven(&request, 0, began(&timelines)));
            batcher.submit(id, request, None).ok();
        }
        while batcher.plan().is_some() {}
        let chunks = vec![Chunk { sequence: 0, tokens: 16 }];
        Self {
            metrics,
            timelines,
            batcher,
            recorder: Recorder::new(EPOCH),
            sequences: Sequences(sequences),
            plan: StepPlan { driver_epoch: EPOCH, chunks, ..StepPlan::default() },
            report: report(pace),
        }
    }

    /// A step's plan and report, but for its tokens.
    fn step(&mut self) -> f64 {
        let (mut metrics, began) = (self.metrics.driver(1, EPOCH, MODEL), Instant::now());
        nanos(|| {
            self.plan.number += 1;
            self.report.number = self.plan.number;
            let now = self.timelines.now();
            self.recorder.plan(now, &self.plan, self.batcher.held_up(), &mut self.sequences);
            metrics.step(black_box(&self.report));
            metrics.experts(&[]);
            let now = self.timelines.now();
            black_box(self.recorder.report(now, &self.report, &mut self.sequences));
            black_box(self.batcher.waits_since());
            metrics.occupancy(self.batcher.occupancy(), Some(began));
        })
    }

    fn tokens(&mut self) -> f64 {
        let now = self.timelines.now();
        self.plan.number += 1;
        self.report.number = self.plan.number;
        self.recorder.plan(now, &self.plan, None, &mut self.sequences);
        let step = self.recorder.report(now, &self.report, &mut self.sequences);
        let mut now = now;
        let count = self.sequences.0.len() as u64;
        nanos(|| {
            now += 30_000;
            for id in 0..count {
                // It is looked up for more than this, but for this, too.
                if let Some(recording) = self.sequences.recording(black_box(id)) {
                    recording.tell(|driven| driven.tokens(now, 1, step));
                }
            }
        })
    }

    fn told(&mut self, args: &RecordingArgs) -> f64 {
        let mut metrics = self.metrics.driver(1, EPOCH, MODEL);
        let (loads, told) = (ExpertLoads::default(), told(args));
        nanos(|| {
            metrics.step(black_box(&told));
            let counts = loads.add(MODEL, told.experts.clone());
            metrics.experts(&counts);
        })
    }

    /// A request, when as many are remembered as ever are.
    fn request(&mut self) -> f64 {
        let metrics = self.metrics.driver(1, EPOCH, MODEL);
        let (mut number, timelines) = (0u64, self.timelines.clone());
        let mut one = || {
            number += 1;
            let mut recording = timelines.driven(&request(&format!("r-{number}")), 0, began(&timelines));
            metrics.queued(std::time::Duration::from_millis(3));
            let now = timelines.now();
            recording.tell(|driven| driven.entered(now, 0, Held::default()));
            recording.tell(|driven| driven.listener(now, true));
            recording.ended(End::Whole(SequenceEnd::Length));
        };
        (0..REMEMBERED).for_each(|_| one());
        nanos(one)
    }
}

/// The numbers of a report that are there to be recorded, written and read.
fn carried(report: &StepReport) -> f64 {
    let report = StepReport { outputs: Vec::new(), ..report.clone() };
    nanos(|| {
        let bytes = wire::StepReport::from(black_box(&report).clone()).encode_to_vec();
        let read = wire::StepReport::decode(&bytes[..]).map(StepReport::try_from);
        drop(black_box(read));
    })
}
