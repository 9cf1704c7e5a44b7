//! Ranks as processes of their own, as workers are: threads of one process would wait for each other's memory maps.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use foggara_kernels::ThreadPool;
use foggara_models::{Checkpoint, Cut, Quantize};
use foggara_worker::weights::{OnCpu, RankWeights};
use serde::{Deserialize, Serialize};

use crate::args::LoadArgs;

/// What a rank says of one loading.
#[derive(Serialize, Deserialize)]
struct Loaded {
    read_bytes: u64,
    weight_bytes: usize,
}

/// All ranks once.
pub(super) struct Round {
    /// Until the last was done.
    pub(super) seconds: f64,
    /// By all together.
    pub(super) read_bytes: u64,
    /// Of matrices, for each rank.
    pub(super) weight_bytes: Vec<usize>,
}

/// The processes. They end when this is dropped: nobody asks them any more.
pub(super) struct Ranks(Vec<Rank>);

struct Rank {
    process: Child,
    /// Taken away to end it.
    ask: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

/// Is rank `rank`: loads its slice for each line that comes in, until there are no more. The files are opened anew for each: pages
/// that are mapped already would be no loading.
pub(super) fn serve(args: &LoadArgs, rank: usize) -> Result<()> {
    let pool = ThreadPool::new(1);
    let quantize: Quantize = args.quantize.parse().map_err(|e: String| anyhow!(e))?;
    let mut out = std::io::stdout();
    let mut asked = std::io::stdin().lines();
    loop {
        let model = Checkpoint::open(&args.model)?;
        let plan = model.slices(&Cut::even(super::shape(args)), quantize)?;
        writeln!(out, "ready")?;
        if asked.next().transpose()?.is_none() {
            return Ok(());
        }
        let mut read_bytes = 0;
        let mut progress = |done, _| {
            read_bytes = done;
            true
        };
        let store = OnCpu(args.weights);
        let weights = RankWeights::load_to(&store, &model, &plan, rank, quantize, &pool, &mut progress)?;
        let loaded = Loaded { read_bytes, weight_bytes: weights.bytes() };
        // Giving memory back is not loading: it comes after the answer.
        writeln!(out, "{}", serde_json::to_string(&loaded)?)?;
    }
}

impl Ranks {
    /// Starts `count` of them, with this process's own arguments.
    pub(super) fn start(count: usize) -> Result<Self> {
        let program = std::env::current_exe()?;
        let start = |rank: usize| -> Result<Rank> {
            let mut process = Command::new(&program)
                .args(std::env::args_os().skip(1))
                .args(["--rank", &rank.to_string()])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()?;
            let ask = process.stdin.take();
            let answers = BufReader::new(process.stdout.take().context("its output was asked for")?);
            Ok(Rank { process, ask, answers })
        };
        let mut ranks = Self((0..count).map(start).collect::<Result<_>>()?);
        ranks.all_ready()?;
        Ok(ranks)
    }

    /// Waits until each waits for a line.
    fn all_ready(&mut self) -> Result<()> {
        self.0.iter_mut().try_for_each(|rank| rank.answer().map(drop))
    }

    /// Every rank loads its slice, all at the same time.
    pub(super) fn load(&mut self) -> Result<Round> {
        let started = Instant::now();
        for rank in &mut self.0 {
            writeln!(rank.ask.as_mut().context("it was started with one")?, "load")?;
        }
        let loaded: Vec<Loaded> = self
            .0
            .iter_mut()
            .map(|rank| Ok(serde_json::from_str(&rank.answer()?)?))
            .collect::<Result<_>>()?;
        let seconds = started.elapsed().as_secs_f64();
        self.all_ready()?;
        Ok(Round {
            seconds,
            read_bytes: loaded.iter().map(|rank| rank.read_bytes).sum(),
            weight_bytes: loaded.iter().map(|rank| rank.weight_bytes).collect(),
        })
    }
}

impl Rank {
    fn answer(&mut self) -> Result<String> {
        let mut line = String::new();
        anyhow::ensure!(self.answers.read_line(&mut line)? > 0, "a rank has ended; its reason stands above");
        Ok(line)
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        for rank in &mut self.0 {
            rank.ask = None;
        }
        for rank in &mut self.0 {
            rank.process.wait().ok();
        }
    }
}
