//! Prints what a model makes of some tokens: a JSON list with the logits of every position. Without tokens, prints the
//! architecture as it was understood. For comparing with another implementation when numbers are in doubt.
//!
//! `cargo run --release -p foggara-worker --example logits -- MODEL [--tp N] [--dp N] [--pp N] [--ep N]
//! [--quantize TYPE] [TOKEN…]`

#![allow(clippy::print_stdout)]

use std::path::Path;

use foggara_kernels::ThreadPool;
use foggara_kernels::collective::{Collective, Solo, SpinPolicy, shm};
use foggara_kernels::op::kv_cache::KvType;
use foggara_models::footprint::spec_of_config;
use foggara_models::{Checkpoint, Cut, Quantize, Shape, SlicePlan};
use foggara_worker::Adapters;
use foggara_worker::decoder::{BlockTables, CacheConfig, Comms, Decoder, Forward, Part, Segment, StepInput};
use foggara_worker::weights::RankWeights;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const BLOCK_SIZE: usize = 16;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("give the path of a model")?;
    let (mut shape, mut tokens, mut quantize) = (Shape::default(), Vec::new(), Quantize::None);
    while let Some(arg) = args.next() {
        let degree = match arg.as_str() {
            "--tp" => &mut shape.tp,
            "--dp" => &mut shape.dp,
            "--pp" => &mut shape.pp,
            "--ep" => &mut shape.ep,
            "--quantize" => {
                quantize = args.next().ok_or("a type is missing")?.parse()?;
                continue;
            }
            token => {
                tokens.push(token.parse::<u32>()?);
                continue;
            }
        };
        *degree = args.next().ok_or("a degree is missing")?.parse()?;
    }
    let path = Path::new(&path);
    if tokens.is_empty() {
        println!("{:#?}", spec_of_config(path).map(|(spec, _)| spec).or_else(|_| open(path))?);
        return Ok(());
    }
    let model = Checkpoint::open(path)?;
    if tokens.len() > model.spec().context {
        return Err(format!("{} tokens in a context of {}", tokens.len(), model.spec().context).into());
    }
    let plan = model.slices(&Cut::even(shape), quantize)?;
    let rows = std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..shape.ranks())
            .map(|rank| {
                let (model, plan, tokens) = (&model, &plan, &tokens);
                scope.spawn(move || run(model, plan, rank, quantize, tokens))
            })
            .collect();
        let mut rows = Vec::new();
        for rank in ranks {
            rows.push(rank.join().map_err(|_| "a rank panicked")??);
        }
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(rows.swap_remove(0))
    })?;
    println!("{}", serde_json::to_string(&rows)?);
    Ok(())
}

fn open(path: &Path) -> std::result::Result<foggara_models::ArchSpec, foggara_models::ModelError> {
    Ok(Checkpoint::open(path)?.spec().clone())
}

fn connect(ranks: &[usize], rank: usize, number: u64) -> Result<Box<dyn Collective>> {
    let place = ranks.iter().position(|member| *member == rank).ok_or("not a member")?;
    if ranks.len() == 1 {
        return Ok(Box::<Solo>::default());
    }
    let name = format!("foggara-logits-{}-{number:x}", std::process::id());
    let config = shm::ShmConfig { spin: SpinPolicy::Park, ..shm::ShmConfig::new(name, place, ranks.len()) };
    Ok(shm::connect(&config)?)
}

/// All positions of one sequence in one step.
fn run(
    model: &Checkpoint,
    plan: &SlicePlan,
    rank: usize,
    quantize: Quantize,
    tokens: &[u32],
) -> Result<Vec<Vec<f32>>> {
    let pool = ThreadPool::with_spin(1, false);
    let weights = RankWeights::load(model, plan, rank, quantize, &pool, &mut |_, _| true)?;
    let everyone: Vec<usize> = (0..plan.shape.ranks()).collect();
    let all = connect(&everyone, rank, 0)?;
    let mut comms = Comms::join(plan.shape, all, |part: &Part| connect(&part.ranks, rank, part.number))?;
    let blocks = tokens.len().div_ceil(BLOCK_SIZE);
    let cache = CacheConfig { blocks, block_size: BLOCK_SIZE, ty: KvType::F32 };
    let mut decoder = Decoder::new(model.spec(), plan, rank, weights, cache, Adapters::default(), pool)?;
    let len = u32::try_from(tokens.len())?;
    let input = StepInput {
        grants: vec![(0, (0..u32::try_from(blocks)?).collect())],
        segments: vec![Segment { slot: 0, start: 0, len, logits_from: 0 }],
        tokens: tokens.to_vec(),
        ..StepInput::default()
    };
    let mut tables = BlockTables::new(plan.shape.dp, blocks);
    tables.apply(&input)?;
    input.check(&tables, model.spec().vocab, BLOCK_SIZE, tokens.len())?;
    let mut rows = Vec::new();
    decoder.forward(&input, &tables, &mut comms, &mut |_, scores| {
        rows.extend(scores.whole().map(<[f32]>::to_vec));
    })?;
    Ok(rows)
}
