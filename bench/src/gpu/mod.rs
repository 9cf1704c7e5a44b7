//! A GPU by itself: how fast the forward pass of a model of a given shape is on it, beside what its memory and its tensor cores
//! allow. No model is needed: weights are random and made on the device.

mod limits;
mod model;
mod pages;
mod report;
mod serving;
mod steps;
mod timeline;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use foggara_kernels::cuda::{Device, Gpu, WeightKind};
use foggara_kernels::op::kv_cache::KvType;
use foggara_models::footprint::spec_of_config;
use foggara_models::slices::Granularity;
use foggara_models::{ArchSpec, Cut, Shape, plan_slices};
use foggara_worker::decoder::{CacheConfig, DeviceDecoder};

use crate::args::GpuArgs;
use report::{Report, Row};
use serving::Serving;
use steps::{Runner, warm_up_of};

const SHAPES: [(&str, &str); 3] = [
    ("mixtral-8x7b", include_str!("shapes/mixtral-8x7b.json")),
    ("llama-3-8b", include_str!("shapes/llama-3-8b.json")),
    ("llama-3-70b", include_str!("shapes/llama-3-70b.json")),
];

/// Positions in a block of the cache.
const BLOCK_SIZE: usize = 16;

fn spec(args: &GpuArgs) -> Result<ArchSpec> {
    if let Some(path) = &args.config {
        return Ok(spec_of_config(path)?.0);
    }
    let Some((_, text)) = SHAPES.iter().find(|(name, _)| *name == args.shape) else {
        let names: Vec<&str> = SHAPES.iter().map(|(name, _)| *name).collect();
        bail!("--shape {}: {}, or --config a config.json", args.shape, names.join(", "));
    };
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("config.json");
    std::fs::write(&path, text)?;
    let mut spec = spec_of_config(&path)?.0;
    if let Some(layers) = args.layers {
        spec.layers.truncate(layers);
    }
    Ok(spec)
}

fn kind(args: &GpuArgs) -> Result<WeightKind> {
    Ok(match args.weights.as_str() {
        "bf16" => WeightKind::Bf16,
        "f16" => WeightKind::F16,
        "fp8" => WeightKind::F8,
        other => {
            let found = WeightKind::BLOCKS.into_iter().find(|kind| kind.name() == other);
            let names = || WeightKind::BLOCKS.map(WeightKind::name).join(", ");
            found.with_context(|| format!("--weights {other}: bf16, f16, fp8, or blocks: {}", names()))?
        }
    })
}

fn kv_type(args: &GpuArgs) -> Result<KvType> {
    Ok(match args.kv.as_str() {
        "f16" => KvType::F16,
        "fp8" => KvType::F8,
        other => bail!("--kv {other}: f16 or fp8"),
    })
}

/// Measures and prints.
pub(crate) fn run(args: &GpuArgs) -> Result<ExitCode> {
    let (spec, kind, kv) = (spec(args)?, kind(args)?, kv_type(args)?);
    let device = Gpu::open_with(args.gpu, &|notice| eprintln!("{notice}"))?;
    let limits = limits::measure(&device).context("measuring the GPU")?;
    eprintln!("{}: {limits}", device.name());
    let plan = plan_slices(&spec, Granularity::ANY, &Cut::even(Shape::default()))?;
    let weights = model::random_weights(&device, &spec, &plan.ranks[0], kind)?;
    let most_streams = args.streams.iter().copied().max().unwrap_or(1);
    let blocks_each = |positions: usize| positions.div_ceil(BLOCK_SIZE) + 1;
    let blocks = blocks_each(args.context + args.tokens + 2) * most_streams;
    let served: Vec<Serving> = args.serve.map_or(Vec::new(), |(prompt, answer)| {
        let of = |streams: &usize| Serving::new(prompt, answer, (*streams).min(args.chunk), args.chunk);
        args.serve_streams.iter().map(of).collect()
    });
    let serve_steps = args.serve_steps + warm_up_of(args.serve_steps);
    let taken = served.iter().map(|serving| pages::most_taken(serving.clone(), serve_steps, BLOCK_SIZE));
    let blocks = blocks.max(blocks_each(args.prefill)).max(taken.max().unwrap_or(0));
    let cache = CacheConfig { blocks, block_size: BLOCK_SIZE, ty: kv };
    let max_rows = args.chunk.max(most_streams);
    let weight_bytes = weights.bytes() as u64;
    let decoder = DeviceDecoder::new(&device, &spec, &plan, 0, weights, cache, max_rows)?;
    let mut runner = Runner::new(decoder, device.clone(), cache, args.one_by_one)?;
    runner.share(blocks_each(args.context + args.tokens + 2))?;
    let mut report = Report::new(args, &spec, &device, limits, weight_bytes);
    for streams in &args.streams {
        let seconds = runner.decode(*streams, args.context, args.tokens)?;
        let row =
            Row::decode(&spec, (kind, kv), &report.limits, *streams, args.context, args.tokens, seconds);
        eprintln!("{row}");
        report.rows.push(row);
    }
    if args.prefill > 0 {
        runner.share(blocks_each(args.prefill))?;
        let seconds = runner.prefill(args.prefill, args.chunk, args.runs)?;
        let row = Row::prefill(&spec, &report.limits, args.prefill, seconds);
        eprintln!("{row}");
        report.rows.push(row);
    }
    for serving in served {
        let (requests, streams) = (args.serve.unwrap_or_default(), serving.streams());
        let (seconds, tokens) = runner.serve(serving, args.serve_steps)?;
        let row = Row::serving(requests, streams, tokens, seconds, args.serve_steps);
        eprintln!("{row}");
        report.rows.push(row);
    }
    let moments = Gpu::of(&device).map(Gpu::moments).transpose()?.unwrap_or_default();
    if !moments.is_empty() {
        eprint!("{}", timeline::Timeline::of(&moments));
    }
    report.launches = launches(&device);
    report.save(args)?;
    Ok(ExitCode::SUCCESS)
}

/// What was launched how often.
fn launches(device: &Device) -> Vec<(String, u64)> {
    let mut launches: Vec<_> =
        device.driver().launches().into_iter().map(|(name, count)| (name.to_owned(), count)).collect();
    launches.sort();
    launches
}
