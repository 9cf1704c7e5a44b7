//! Prints how fast a group computes, without coordinators: prefill, and decode of one and of many sequences.
//!
//! `cargo run --release -p foggara-worker --example step_rate -- MODEL [RANKS [THREADS_PER_RANK [PART_OF_A_LINE]]]`, with
//! `FOGGARA_WEIGHTS=mapped` to have floats as they lie in their files, not in panels, and `FOGGARA_QUANTIZE=bf16` (q8_0, …) to have them quantized.

#![allow(clippy::print_stdout)]

use std::path::Path;
use std::time::{Duration, Instant};

use foggara_kernels::ThreadPool;
use foggara_kernels::collective::{Collective, CollectiveStats, Solo, SpinPolicy, shm};
use foggara_kernels::op::kv_cache::KvType;
use foggara_models::{Checkpoint, Cut, Quantize, Shape, SlicePlan};
use foggara_worker::Adapters;
use foggara_worker::decoder::{BlockTables, CacheConfig, Comms, Decoder, Forward, Segment, StepInput};
use foggara_worker::weights::{OnCpu, RankWeights, Residence};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const BLOCK_SIZE: usize = 16;
const BLOCKS_EACH: usize = 40;
const MOST_SEQUENCES: usize = 32;
const CHUNK: usize = 128;
const PROMPT: usize = 512;
const PROMPTS: usize = 8;
/// As `foggara-bench` asks of each stream: so many tokens after a prompt of so many.
const DECODED: usize = 128;
const ASKED: usize = 32;
/// Blocks of the long prompt, whose slot comes after all others'.
const LONG_BLOCKS: usize = 510;
const LONG_SLOT: usize = MOST_SEQUENCES;

/// What weights become when they are loaded: `FOGGARA_QUANTIZE`, or nothing else.
fn quantize() -> Result<Quantize> {
    Ok(std::env::var("FOGGARA_QUANTIZE").map_or(Ok(Quantize::None), |name| name.parse())?)
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("give the path of a model")?;
    let ranks: usize = args.next().map_or(Ok(2), |n| n.parse())?;
    let threads: usize = args.next().map_or(Ok(1), |n| n.parse())?;
    let wanted = args.next().unwrap_or_default();
    let started = Instant::now();
    let model = Checkpoint::open(Path::new(&path))?;
    let slices = model.slices(&Cut::even(Shape::tensor(ranks)), quantize()?)?;
    println!("opened in {:.0?}, {ranks} ranks of {threads} threads", started.elapsed());
    std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..ranks)
            .map(|rank| {
                scope.spawn({
                    let (m, s, wanted) = (&model, &slices, &wanted);
                    move || run(m, s, rank, threads, wanted)
                })
            })
            .collect();
        ranks.into_iter().try_for_each(|rank| rank.join().map_err(|_| "a rank panicked")?)
    })
}

fn connect(rank: usize, ranks: usize, spin: SpinPolicy) -> Result<Box<dyn Collective>> {
    if ranks == 1 {
        return Ok(Box::<Solo>::default());
    }
    let name = format!("foggara-step-rate-{}", std::process::id());
    Ok(shm::connect(&shm::ShmConfig { spin, ..shm::ShmConfig::new(name, rank, ranks) })?)
}

fn run(model: &Checkpoint, slices: &SlicePlan, rank: usize, threads: usize, wanted: &str) -> Result<()> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let spin = if slices.ranks.len() * threads > cores { SpinPolicy::Park } else { SpinPolicy::default() };
    let pool = ThreadPool::with_spin(threads, spin != SpinPolicy::Park);
    let started = Instant::now();
    let residence = std::env::var("FOGGARA_WEIGHTS").map_or(Ok(Residence::default()), |name| name.parse())?;
    let (store, quantize) = (OnCpu(residence), quantize()?);
    let mut weights = RankWeights::load_to(&store, model, slices, rank, quantize, &pool, &mut |_, _| true)?;
    if residence == Residence::Auto {
        // As a worker has them some moments after its start.
        for mapped in std::mem::take(&mut weights.mapped) {
            mapped.repack(&pool)?;
        }
    }
    if rank == 0 {
        println!("loaded {:.1} MB in {:.0?}", weights.bytes() as f64 / 1e6, started.elapsed());
    }
    let all = connect(rank, slices.ranks.len(), spin)?;
    let mut comms = Comms::join(slices.shape, all, |_| Err("a tensor-parallel group has no parts"))?;
    let blocks = MOST_SEQUENCES * BLOCKS_EACH + LONG_BLOCKS;
    let cache = CacheConfig { blocks, block_size: BLOCK_SIZE, ty: KvType::F16 };
    let mut decoder = Decoder::new(model.spec(), slices, rank, weights, cache, Adapters::default(), pool)?;
    let mut tables = BlockTables::new(1, blocks);
    let places = |slot| {
        let first = slot * BLOCKS_EACH;
        first as u32..(first + if slot == LONG_SLOT { LONG_BLOCKS } else { BLOCKS_EACH }) as u32
    };
    let grants = (0..=LONG_SLOT).map(|slot| (slot as u32, places(slot).collect())).collect();
    tables.apply(&StepInput { grants, ..StepInput::default() })?;

    let mut measure = |what: &str, steps: usize, step: &dyn Fn(usize) -> StepInput| -> Result<()> {
        if !what.contains(wanted) {
            return Ok(());
        }
        let before = comms.stats();
        let mut rows = 0;
        let mut best = Duration::MAX;
        comms.all().barrier()?;
        let started = Instant::now();
        for number in 0..steps {
            let one = Instant::now();
            let input = step(number);
            rows += input.tokens.len();
            decoder.forward(&input, &tables, &mut comms, &mut |_, _| ())?;
            best = best.min(one.elapsed());
        }
        let seconds = started.elapsed().as_secs_f64();
        let CollectiveStats { nanos, wait_nanos, .. } = comms.stats();
        if rank == 0 {
            println!(
                "{what:22} {:8.1} tok/s, step {:8.0} µs (best {:8.0}), {:2.0} % in collectives, {:2.0} % waiting",
                rows as f64 / seconds,
                seconds / steps as f64 * 1e6,
                best.as_secs_f64() * 1e6,
                (nanos - before.nanos) as f64 / seconds / 1e7,
                (wait_nanos - before.wait_nanos) as f64 / seconds / 1e7
            );
        }
        Ok(())
    };
    let chunks = PROMPT / CHUNK;
    measure("prefill", PROMPTS * chunks, &|number| rows(1, number % chunks * CHUNK, CHUNK))?;
    for sequences in [1, 8, 16, 32] {
        let what = format!("decode, {sequences} sequences");
        measure(&what, DECODED, &|number| rows(sequences, ASKED + number, 1))?;
    }
    for start in [0, 2000, 4000, 8000] {
        for len in [0, 1, 2, 4, 8, 16] {
            let what = format!("8 and {len} from {start}");
            measure(&what, DECODED / 4, &|number| with_prompt(rows(8, 128 + number, 1), start, len))?;
        }
    }
    Ok(())
}

/// Some rows of a long prompt beside what others decode.
fn with_prompt(mut step: StepInput, start: usize, len: usize) -> StepInput {
    let [slot, start, len] = [LONG_SLOT, start, len].map(|n| n as u32);
    if len > 0 {
        step.segments.push(Segment { slot, start, len, logits_from: len });
        step.tokens.extend((0..len).map(|i| i % 1000));
    }
    step
}

/// `len` positions of each of `sequences`, from `start`; the last of each wants logits.
fn rows(sequences: usize, start: usize, len: usize) -> StepInput {
    let word = |n: usize| n as u32;
    let segment =
        |slot| Segment { slot: word(slot), start: word(start), len: word(len), logits_from: word(len - 1) };
    StepInput {
        segments: (0..sequences).map(segment).collect(),
        tokens: (0..sequences * len).map(|i| word(i * 7 + start) % 1000).collect(),
        ..StepInput::default()
    }
}
