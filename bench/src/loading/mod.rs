//! How fast a model is loaded, beside how fast its bytes can be read from the page cache at all.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use foggara_kernels::cpu::measure::read_to_memory;
use foggara_models::{Checkpoint, Quantize, Shape};
use serde::Serialize;

use ranks::Ranks;

use crate::args::LoadArgs;

mod ranks;

/// Bytes read at once, about what a processor's own cache holds.
const BUFFER: usize = 1 << 20;
/// The best of so many rounds counts.
const ROUNDS: usize = 3;

/// What was measured.
#[derive(Serialize)]
struct Loading {
    model: String,
    shape: String,
    quantize: String,
    weights: String,
    file_bytes: u64,
    /// By all ranks together.
    read_bytes: u64,
    /// One thread for each rank, reading the files.
    page_cache_bytes_per_second: f64,
    /// The same into new memory that is kept, as that of weights is: the system has to clear it first.
    kept_bytes_per_second: f64,
    /// A process of one thread for each rank, reading and repacking its slice.
    load_bytes_per_second: f64,
    seconds: f64,
    /// Of matrices, for each rank.
    weight_bytes: Vec<usize>,
}

/// Measures and prints.
pub(crate) fn run(args: &LoadArgs) -> Result<ExitCode> {
    if let Some(rank) = args.rank {
        ranks::serve(args, rank)?;
        return Ok(ExitCode::SUCCESS);
    }
    let model = Checkpoint::open(&args.model)?;
    let quantize: Quantize = args.quantize.parse().map_err(|e: String| anyhow!(e))?;
    let shape = shape(args);
    let files = files(&args.model)?;
    let file_bytes = files.iter().map(|(_, len)| len).sum();
    let (mut page_cache, mut kept) = (0.0f64, 0.0f64);
    let mut ranks = Ranks::start(shape.ranks())?;
    let mut best: Option<ranks::Round> = None;
    for _ in 0..ROUNDS {
        page_cache = page_cache.max(read_rate(&files, shape.ranks(), false)?);
        kept = kept.max(read_rate(&files, shape.ranks(), true)?);
        let round = ranks.load()?;
        if best.as_ref().is_none_or(|best| round.seconds < best.seconds) {
            best = Some(round);
        }
    }
    let ranks::Round { seconds, read_bytes, weight_bytes } = best.context("at least one round")?;
    let loading = Loading {
        model: model.name().into(),
        shape: shape.to_string(),
        quantize: quantize.to_string(),
        weights: args.weights.to_string(),
        file_bytes,
        read_bytes,
        page_cache_bytes_per_second: page_cache,
        kept_bytes_per_second: kept,
        load_bytes_per_second: read_bytes as f64 / seconds,
        seconds,
        weight_bytes,
    };
    let text = if args.json { serde_json::to_string_pretty(&loading)? + "\n" } else { show(&loading) };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn shape(args: &LoadArgs) -> Shape {
    Shape { tp: args.tp.unwrap_or(args.workers), dp: args.dp, pp: args.pp, ep: args.ep }
}

fn show(l: &Loading) -> String {
    let giga = |bytes: f64| bytes / 1e9;
    let memory: Vec<String> =
        l.weight_bytes.iter().map(|bytes| format!("{:.0} MB", *bytes as f64 / 1e6)).collect();
    format!(
        "{} ({:.2} GB), {}, quantize {}, {}, a process of one thread for each rank, the best of {ROUNDS}\n\
         page cache read  {:6.2} GB/s into one small buffer, {:.2} GB/s into memory that is kept\n\
         loaded           {:6.2} GB/s, {:.0} % and {:.0} % of these: {:.2} GB in {:.2} s\n\
         weights by rank  {}\n",
        l.model,
        giga(l.file_bytes as f64),
        l.shape,
        l.quantize,
        l.weights,
        giga(l.page_cache_bytes_per_second),
        giga(l.kept_bytes_per_second),
        giga(l.load_bytes_per_second),
        l.load_bytes_per_second / l.page_cache_bytes_per_second * 100.0,
        l.load_bytes_per_second / l.kept_bytes_per_second * 100.0,
        giga(l.read_bytes as f64),
        l.seconds,
        memory.join(", ")
    )
}

/// The files that hold tensors, with their lengths.
fn files(model: &Path) -> Result<Vec<(PathBuf, u64)>> {
    let holds_tensors = |path: &Path| path.extension().is_some_and(|e| e == "safetensors" || e == "gguf");
    let paths: Vec<PathBuf> = if model.is_file() {
        vec![model.into()]
    } else {
        std::fs::read_dir(model)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|p| holds_tensors(p))
            .collect()
    };
    paths.into_iter().map(|path| Ok((path.clone(), std::fs::metadata(&path)?.len()))).collect()
}

/// Bytes/s of `threads` threads that read the files, each its part of every one: into the same small buffer again and again,
/// or into memory that it keeps.
fn read_rate(files: &[(PathBuf, u64)], threads: usize, keep: bool) -> Result<f64> {
    let started = Instant::now();
    let read = |thread: usize| -> Result<(u64, f64)> {
        let mut buffer = vec![0u8; BUFFER];
        let mut total = 0;
        let mut kept = Vec::new();
        for (path, len) in files {
            let from = len * thread as u64 / threads as u64;
            let to = len * (thread as u64 + 1) / threads as u64;
            let mut file = std::fs::File::open(path)?;
            std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(from))?;
            if keep {
                kept.push(read_to_memory(&mut file, usize::try_from(to - from)?)?);
                total += to - from;
                continue;
            }
            let mut part = file.take(to - from);
            loop {
                match part.read(&mut buffer)? {
                    0 => break,
                    bytes => total += bytes as u64,
                }
            }
        }
        // Before what was kept is given back.
        Ok((total, started.elapsed().as_secs_f64()))
    };
    let parts = each(threads, read)?;
    let last = parts.iter().map(|(_, seconds)| *seconds).fold(0.0, f64::max);
    Ok(parts.iter().map(|(bytes, _)| bytes).sum::<u64>() as f64 / last)
}

/// Runs `f` on a thread for each of `0..count`.
fn each<T: Send>(count: usize, f: impl Fn(usize) -> Result<T> + Sync) -> Result<Vec<T>> {
    std::thread::scope(|scope| {
        let f = &f;
        let threads: Vec<_> = (0..count).map(|i| scope.spawn(move || f(i))).collect();
        threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?).collect()
    })
}
