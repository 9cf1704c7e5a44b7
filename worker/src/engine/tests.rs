//! Leader and followers as they run in a worker: plans in, reports out, and how a group ends.

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

use foggara_kernels::cuda::Device;
use foggara_models::testing::{GOLDEN_DENSE, GOLDEN_WITH_EXPERTS};
use foggara_models::{Checkpoint, Cut, Quantize, Shape};
use foggara_proto::sequence::SequenceParams;
use foggara_proto::step::{
    Chunk, Drafts, Grant, HeldSequence, Join, RankUse, SequenceId, StepPlan, StepReport,
};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;
use crate::decoder::CacheConfig;
use crate::testing::{BLOCK_SIZE, BLOCKS, Kind, golden, group, group_on, tokens};

/// Runs a whole group; `drive` plays the coordinator. Returns how each rank ended.
fn run(
    model: &Checkpoint,
    tp: usize,
    kind: Kind,
    drive: impl FnOnce(&Sender<EngineEvent>) + Send,
) -> Vec<Result<(), EngineError>> {
    run_shape(model, Shape::tensor(tp), kind, KvType::F32, drive)
}

/// The same for any shape and precision of the cache.
pub(super) fn run_shape(
    model: &Checkpoint,
    shape: Shape,
    kind: Kind,
    ty: KvType,
    drive: impl FnOnce(&Sender<EngineEvent>) + Send,
) -> Vec<Result<(), EngineError>> {
    run_on(model, shape, kind, ty, &|_| None, drive)
}

/// The same with a device for each rank: `None` is the CPU.
pub(super) fn run_on(
    model: &Checkpoint,
    shape: Shape,
    kind: Kind,
    ty: KvType,
    device: &(dyn Fn(usize) -> Option<Device> + Sync),
    drive: impl FnOnce(&Sender<EngineEvent>) + Send,
) -> Vec<Result<(), EngineError>> {
    let (events, received) = channel();
    let received: Mutex<Option<Receiver<EngineEvent>>> = Mutex::new(Some(received));
    std::thread::scope(|scope| {
        let driver = scope.spawn(move || {
            drive(&events);
            // A leader that has ended by itself does not listen.
            events.send(EngineEvent::Stop).ok();
        });
        let ends = group_on(model, shape, Quantize::None, kind, ty, device, |mut engine| {
            engine.check()?;
            if engine.comms.rank() == 0 {
                let events = received.lock().expect("one leader").take().expect("one leader");
                lead(engine, &events)
            } else {
                follow(engine)
            }
        });
        driver.join().expect("no panic");
        ends
    })
}

/// Tokens with the bits of their log-probabilities.
pub(super) type Said = Vec<(u32, Option<u32>)>;

/// A driver's end.
pub(super) struct Driver<'a> {
    events: &'a Sender<EngineEvent>,
    news: UnboundedReceiver<News>,
    epoch: u64,
    pub(super) number: u64,
    /// What its plans allow.
    pub(super) drafts: Drafts,
    /// What ranks have told.
    ranks: Vec<RankUse>,
}

impl<'a> Driver<'a> {
    fn new(events: &'a Sender<EngineEvent>, news: UnboundedReceiver<News>, epoch: u64) -> Self {
        Self { events, news, epoch, number: 0, drafts: Drafts::default(), ranks: Vec::new() }
    }

    /// One that makes nothing of what an earlier one has left.
    pub(super) fn attach(events: &'a Sender<EngineEvent>, epoch: u64) -> Self {
        let (news, received) = unbounded_channel();
        let attach = EngineEvent::Attach { driver_epoch: epoch, fresh: true, news };
        events.send(attach).expect("the leader runs");
        Self::new(events, received, epoch)
    }

    /// One that goes on with what an earlier one has left.
    pub(super) fn adopt(events: &'a Sender<EngineEvent>, epoch: u64) -> (Self, Vec<HeldSequence>) {
        let (news, received) = unbounded_channel();
        let attach = EngineEvent::Attach { driver_epoch: epoch, fresh: false, news };
        events.send(attach).expect("the leader runs");
        let mut driver = Self::new(events, received, epoch);
        match driver.news.blocking_recv() {
            Some(News::Held(held)) => (driver, held),
            other => panic!("{other:?} before what is held"),
        }
    }

    pub(super) fn send(&mut self, plan: StepPlan) {
        self.number += 1;
        let (driver_epoch, number, drafts) = (self.epoch, self.number, self.drafts);
        let plan = StepPlan { driver_epoch, number, drafts, ..plan };
        self.events.send(EngineEvent::Plan { plan, came: Instant::now() }).expect("the leader runs");
    }

    /// The next report, of whatever step; `None` when the leader no longer wants to know of this driver.
    pub(super) fn next(&mut self) -> Option<StepReport> {
        loop {
            match self.news.blocking_recv()? {
                News::Held(held) => assert!(held.is_empty(), "{held:?}: left by nobody"),
                News::Report(report) => {
                    assert_eq!(report.driver_epoch, self.epoch);
                    return Some(report);
                }
            }
        }
    }

    /// The report of the last plan.
    pub(super) fn report(&mut self) -> StepReport {
        let report = self.next().expect("the leader reports");
        assert_eq!((report.number, report.unplanned), (self.number, false));
        self.ranks.extend(&report.ranks);
        report
    }

    /// Runs `joins` together until all have ended; sequence `i` joins in step `i * apart`. Returns what each said.
    pub(super) fn generate(&mut self, joins: &[Join], apart: usize) -> Vec<Said> {
        let blocks_each = BLOCKS / joins.len();
        let mut said = vec![Vec::new(); joins.len()];
        let (mut ended, mut step) = (0, 0);
        while ended < joins.len() {
            let mut plan = StepPlan::default();
            for (i, join) in joins.iter().enumerate().filter(|(i, _)| i * apart == step) {
                let blocks = (0..blocks_each).map(|b| (b * joins.len() + i) as u32).collect();
                plan.grants.push(Grant { sequence: join.sequence, blocks });
                plan.chunks.push(Chunk { sequence: join.sequence, tokens: join.tokens.len() as u32 });
                plan.joins.push(join.clone());
            }
            self.send(plan);
            for output in self.report().outputs {
                let i = joins.iter().position(|join| join.sequence == output.sequence).expect("one of ours");
                said[i]
                    .extend(output.tokens.iter().map(|token| (token.token, token.logprob.map(f32::to_bits))));
                ended += usize::from(output.end.is_some());
            }
            step += 1;
        }
        self.send(StepPlan {
            drops: joins.iter().map(|join| join.sequence).collect(),
            ..StepPlan::default()
        });
        self.report();
        said
    }
}

pub(super) fn join(sequence: SequenceId, prompt: &[u32], max_tokens: u32, temperature: f32) -> Join {
    let params = SequenceParams {
        max_tokens,
        temperature,
        top_p: 0.95,
        top_k: 0,
        seed: sequence,
        stop_token_ids: vec![],
        logprobs: Some(0),
        prompt_logprobs: false,
        ..SequenceParams::default()
    };
    Join {
        sequence,
        tokens: prompt.to_vec(),
        prompt_len: prompt.len(),
        params,
        cached: 0,
        envelope: Vec::new(),
    }
}

fn is_gone(end: &Result<(), EngineError>) -> bool {
    matches!(
        end,
        Err(EngineError::Collective(CollectiveError::PeerLost { .. } | CollectiveError::Aborted(_)))
    )
}

#[test]
fn greedy_tokens_are_those_of_transformers() {
    let (model, expected) = golden("llama-odd-heads");
    for (tp, kind) in [(1, Kind::Shm), (2, Kind::Shm), (3, Kind::Shm), (2, Kind::Tcp), (3, Kind::Tcp)] {
        let ends = run(&model, tp, kind, |events| {
            let mut driver = Driver::attach(events, 1);
            for (i, case) in expected["cases"].as_array().expect("cases").iter().enumerate() {
                let said = driver.generate(&[join(i as u64, &tokens(&case["prompt"]), 24, 0.0)], 1);
                let said: Vec<u32> = said[0].iter().map(|(token, _)| *token).collect();
                assert_eq!(said, tokens(&case["greedy"]), "tp {tp} {kind:?}, case {i}");
            }
        });
        assert!(ends[0].is_ok() && ends[1..].iter().all(is_gone), "{ends:?}");
    }
}

#[test]
fn a_sequence_says_the_same_alone_and_among_others() {
    let (model, _) = golden("llama");
    let joins: Vec<Join> = (0..8u32)
        .map(|i| {
            let prompt: Vec<u32> = (0..3 + i * 4).map(|j| (j * j * 13 + i * 29) % 320).collect();
            join(u64::from(i) + 1, &prompt, 9 + i, if i % 2 == 0 { 0.0 } else { 0.9 })
        })
        .collect();
    let ends = run(&model, 2, Kind::Shm, |events| {
        let mut driver = Driver::attach(events, 1);
        let together = driver.generate(&joins, 0);
        let staggered = driver.generate(&joins, 3);
        assert!(together == staggered);
        for (join, said) in joins.iter().zip(&together) {
            assert_eq!(said.len(), join.params.max_tokens as usize);
            assert!(driver.generate(std::slice::from_ref(join), 1)[0] == *said, "{}", join.sequence);
        }
    });
    assert!(ends[0].is_ok());
}

#[test]
fn nonsense_costs_the_driver_its_connection_and_nobody_else_anything() {
    let (model, expected) = golden("llama");
    let case = &expected["cases"][1];
    let (prompt, greedy) = (tokens(&case["prompt"]), tokens(&case["greedy"]));
    let good = || join(3, &prompt, 24, 0.0);
    let joined = |blocks: Vec<u32>, rows: usize| StepPlan {
        joins: vec![good()],
        grants: vec![Grant { sequence: 3, blocks }],
        chunks: vec![Chunk { sequence: 3, tokens: rows as u32 }],
        ..StepPlan::default()
    };
    let bad = [
        StepPlan { drops: vec![77], ..StepPlan::default() },
        joined(vec![BLOCKS as u32], prompt.len()),
        joined(vec![], prompt.len()),
        joined(vec![0], prompt.len() + 1),
        StepPlan { joins: vec![join(3, &[320], 4, 0.0)], ..StepPlan::default() },
        StepPlan {
            // More rows than a step may have, though there are blocks for them.
            joins: vec![join(3, &vec![1; BLOCKS * BLOCK_SIZE], 4, 0.0)],
            grants: vec![Grant { sequence: 3, blocks: (0..BLOCKS as u32).collect() }],
            chunks: vec![Chunk { sequence: 3, tokens: (BLOCKS * BLOCK_SIZE) as u32 }],
            ..StepPlan::default()
        },
    ];
    let ends = run(&model, 2, Kind::Shm, |events| {
        for (i, plan) in bad.into_iter().enumerate() {
            let mut driver = Driver::attach(events, 2 * i as u64 + 1);
            // Something that is running when the nonsense comes.
            driver.send(joined(vec![5, 6], prompt.len()));
            driver.report();
            let plan = if plan.joins.is_empty() { plan } else { StepPlan { drops: vec![3], ..plan } };
            driver.send(plan);
            assert_eq!(driver.next(), None, "plan {i}");
            let (mut next, held) = Driver::adopt(events, 2 * i as u64 + 2);
            assert_eq!(held, [], "what is known of it does not make sense");
            let said: Vec<u32> = next.generate(&[good()], 1)[0].iter().map(|(token, _)| *token).collect();
            assert_eq!(said, greedy, "after plan {i}");
        }
    });
    assert!(ends[0].is_ok(), "{ends:?}");
}

#[test]
fn a_newer_driver_takes_over_and_older_ones_are_not_heard() {
    let (model, expected) = golden("llama");
    let prompt = tokens(&expected["cases"][1]["prompt"]);
    let ends = run(&model, 2, Kind::Shm, |events| {
        let mut first = Driver::attach(events, 5);
        let said = first.generate(&[join(1, &prompt, 5, 0.0)], 1);
        let mut late = Driver::attach(events, 4);
        assert_eq!(late.next(), None, "an older lease");
        let mut second = Driver::attach(events, 6);
        assert_eq!(first.next(), None, "its lease has ended");
        first.send(StepPlan { drops: vec![1, 2, 3], ..StepPlan::default() });
        // A duplicate is ignored; a gap is nonsense.
        second.send(StepPlan::default());
        second.report();
        second.number -= 1;
        second.send(StepPlan::default());
        assert!(second.generate(&[join(1, &prompt, 5, 0.0)], 1) == said);
        second.number += 1;
        second.send(StepPlan::default());
        assert_eq!(second.next(), None, "a plan is missing");
    });
    assert!(ends[0].is_ok(), "{ends:?}");
}

#[test]
fn a_group_ends_when_any_rank_does() {
    let (model, _) = golden("llama");
    for kind in [Kind::Shm, Kind::Tcp] {
        for first in 0..3 {
            let ends = group(&model, Shape::tensor(3), kind, KvType::F32, |mut engine| {
                engine.check()?;
                let rank = engine.comms.rank();
                if rank == first {
                    return Ok(());
                }
                if rank == 0 {
                    // Idle until a driver's plan finds that the group is no more.
                    let (events, received) = channel();
                    let plan = StepPlan {
                        joins: vec![join(1, &[1], 1, 0.0)],
                        grants: vec![Grant { sequence: 1, blocks: vec![0] }],
                        chunks: vec![Chunk { sequence: 1, tokens: 1 }],
                        ..StepPlan::default()
                    };
                    Driver::attach(&events, 1).send(plan);
                    return match lead(engine, &received) {
                        Ok(()) => Err(EngineError::Check("the step went through".into())),
                        error => error,
                    };
                }
                follow(engine)
            });
            let others = ends.iter().enumerate().filter(|(rank, _)| *rank != first);
            for (rank, end) in others {
                assert!(is_gone(end), "{kind:?}, rank {first} left, rank {rank}: {end:?}");
            }
        }
    }
}

#[test]
fn an_abort_ends_a_waiting_follower() {
    let (model, _) = golden("llama");
    for kind in [Kind::Shm, Kind::Tcp] {
        let (gone, wait) = channel::<()>();
        let wait = Mutex::new(wait);
        let ends = group(&model, Shape::tensor(2), kind, KvType::F32, |mut engine| {
            engine.check()?;
            if engine.comms.rank() == 0 {
                // Stays, without a word, until the other has gone.
                wait.lock().expect("one leader").recv().expect("the follower says so");
                return engine.comms.all().barrier().map_err(EngineError::from);
            }
            let abort = engine.comms.abort_handle();
            let end = std::thread::scope(|scope| {
                scope.spawn(move || abort.abort("enough"));
                follow(engine)
            });
            gone.send(()).expect("the leader waits");
            end
        });
        assert!(ends.iter().all(is_gone), "{kind:?}: {ends:?}");
    }
}

#[test]
fn ranks_tell_where_their_time_goes() {
    let (model, expected) = golden("llama");
    let prompt = tokens(&expected["cases"][1]["prompt"]);
    let ends = run(&model, 2, Kind::Shm, |events| {
        let mut driver = Driver::attach(events, 1);
        for sequence in 1.. {
            driver.generate(&[join(sequence, &prompt, 100, 0.0)], 1);
            if !driver.ranks.is_empty() {
                break;
            }
        }
        // As often as it took: on a busy machine a sequence outlasts several tellings.
        for told in driver.ranks.chunks(2) {
            assert_eq!(told.iter().map(|told| told.rank).collect::<Vec<_>>(), [0, 1]);
            assert!(told[0].steps > 0 && told[0].steps == told[1].steps, "{told:?}");
            assert!(told.iter().all(|told| told.compute_us > 0 && told.collective_us > 0), "{told:?}");
            assert!(told[0].sample_us > 0 && told[1].sample_us == 0, "the leader samples: {told:?}");
            assert_eq!(told[0].dispatched_rows, 0, "there are no experts");
        }
    });
    assert!(ends[0].is_ok(), "{ends:?}");
}

#[test]
fn a_cache_takes_what_was_planned() {
    let formats = [
        (KvFormat::F32, KvType::F32),
        (KvFormat::F16, KvType::F16),
        (KvFormat::Q8_0, KvType::Q8_0),
        (KvFormat::F8, KvType::F8),
    ];
    for name in GOLDEN_DENSE.into_iter().chain(GOLDEN_WITH_EXPERTS) {
        let (model, _) = golden(name);
        let plan = model.slices(&Cut::even(Shape::tensor(2)), Quantize::None).expect("can be cut");
        for slice in &plan.ranks {
            for (format, ty) in formats {
                let cache = CacheConfig { blocks: 3, block_size: 16, ty };
                let heads = 3 * 16 * slice.layers.len() * slice.kv_heads.len();
                let planned = heads * format.head_bytes(model.spec());
                assert_eq!(cache.bytes(model.spec(), slice), Some(planned), "{name} {ty:?}");
            }
        }
    }
}

#[test]
fn kv_types_are_chosen_by_name() {
    let (model, _) = golden("llama");
    assert_eq!(kv_type("auto", &model), Ok(KvType::F32), "as the checkpoint is stored");
    assert_eq!(kv_type("f16", &model), Ok(KvType::F16));
    assert_eq!(kv_type("q8_0", &model), Ok(KvType::Q8_0));
    assert_eq!(kv_type("fp8", &model), Ok(KvType::F8));
    assert!(kv_type("int3", &model).is_err_and(|error| error.contains("int3")));
}
