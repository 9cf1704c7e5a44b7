//! Ranks as processes of their own, as workers are: threads of one process would wait for each other's memory maps.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};
use foggara_kernels::ThreadPool;
use foggara_models::{Checkpoint, Quantize, SlicePlan};
use foggara_worker::weights::RankWeights;
use serde::{Deserialize, Serialize};

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

/// Is rank `rank`: loads its slice for each line that comes in, until there are no more.
pub(super) fn serve(model: &Checkpoint, plan: &SlicePlan, quantize: Quantize, rank: usize) -> Result<()> {
    let pool = ThreadPool::new(1);
    let mut out = std::io::stdout();
    writeln!(out, "ready")?;
    for line in std::io::stdin().lines() {
        line?;
        let mut read_bytes = 0;
        let weights = RankWeights::load(model, plan, rank, quantize, &pool, &mut |done, _| {
            read_bytes = done;
            true
        })?;
        let loaded = Loaded { read_bytes, weight_bytes: weights.bytes() };
        // Giving memory back is not loading: it comes after the answer.
        writeln!(out, "{}", serde_json::to_string(&loaded)?)?;
    }
    Ok(())
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
        for rank in &mut ranks.0 {
            rank.answer()?;
        }
        Ok(ranks)
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
        Ok(Round {
            seconds: started.elapsed().as_secs_f64(),
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
