//! What low-rank adapters cost: streams of the model alone, of one adapter, and each of its own, in turn, from one cluster.

mod random;

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use foggara_models::{Adapter, Checkpoint};
use foggara_proto::wire::inference::SamplingParams;
use futures::future::try_join_all;
use serde::Serialize;

use super::{print, spread, table};
use crate::args::AdaptersArgs;
use crate::client::Trace;
use crate::client::grpc::{GrpcClient, models};
use crate::cluster::Cluster;
use crate::stats::percentile;
use crate::workload::streams::end_to_end_rate;

/// Who is asked at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Model,
    OneAdapter,
    EachItsOwn,
}

impl Asked {
    /// The place of stream `number` among the model and its adapters.
    fn place(self, number: usize) -> usize {
        match self {
            Self::Model => 0,
            Self::OneAdapter => 1,
            Self::EachItsOwn => 1 + number,
        }
    }
}

/// Streams of one kind.
#[derive(Debug, Serialize)]
struct Course {
    streams: usize,
    adapters: usize,
    /// Tokens per second of all of them.
    rates: Vec<f64>,
    /// Of each run, in parts of that of the model alone beside it.
    shares: Vec<f64>,
}

#[derive(Debug, Serialize)]
struct Found {
    rank: usize,
    /// Bytes of each adapter, and of the model.
    adapter_bytes: u64,
    model_bytes: u64,
    courses: Vec<Course>,
}

/// Measures; the exit code says nothing of the figures.
pub(crate) async fn run(args: &AdaptersArgs) -> Result<ExitCode> {
    ensure!(args.target.own_cluster(), "--endpoint: the cluster is started here, with adapters made for it");
    ensure!(args.streams > 0, "--streams must be at least 1");
    let path = args.target.model_path().context("a cluster needs a --model")?;
    let model = Checkpoint::open(&path)?;
    let folder = tempfile::TempDir::with_prefix("foggara-adapters-")?;
    let workers = args.target.workers.to_string();
    let mut options = vec![("--workers", workers.clone()), ("--tp", workers)];
    let names: Vec<String> = (0..args.streams).map(|number| format!("adapter-{number}")).collect();
    for (number, name) in names.iter().enumerate() {
        let adapter = folder.path().join(name);
        random::write(model.spec(), args.rank, number as u64, &adapter)?;
        options.push(("--adapter", format!("{name}={}", adapter.display())));
    }
    let adapter_bytes = Adapter::open(&folder.path().join(&names[0]))?.bytes();
    let cluster = Cluster::with(&args.target, &options).await?;
    let own = models(&cluster.grpc).await?.into_iter().find(|name| !names.contains(name));
    let all: Vec<String> = own.into_iter().chain(names).collect();
    // Whoever asks, of whom.
    let mut clients: Vec<Vec<GrpcClient>> = Vec::new();
    for _ in 0..args.streams {
        clients.push(try_join_all(all.iter().map(|name| GrpcClient::connect(&cluster.grpc, name))).await?);
    }
    let mut courses = Vec::new();
    for (streams, kinds) in [
        (1, &[Asked::Model, Asked::OneAdapter][..]),
        (args.streams, &[Asked::Model, Asked::OneAdapter, Asked::EachItsOwn]),
    ] {
        let first = courses.len();
        let adapters = |kind: &Asked| match kind {
            Asked::Model => 0,
            Asked::OneAdapter => 1,
            Asked::EachItsOwn => streams,
        };
        courses.extend(kinds.iter().map(|kind| Course {
            streams,
            adapters: adapters(kind),
            rates: Vec::new(),
            shares: Vec::new(),
        }));
        for run in 0..=args.runs {
            eprintln!("… {streams} at once, {run} of {}", args.runs);
            let mut rates = vec![0.0; kinds.len()];
            // Each first in turn.
            for place in (0..kinds.len()).map(|place| (place + run) % kinds.len()) {
                rates[place] = once(args, &mut clients[..streams], kinds[place], run).await?;
            }
            // The first time everything wakes up, adapters are loaded, and what steps cost is learned.
            if run > 0 {
                for (course, rate) in courses[first..].iter_mut().zip(&rates) {
                    course.rates.push(*rate);
                    course.shares.push(rate / rates[0]);
                }
            }
        }
    }
    drop(clients);
    cluster.stop().await?;
    let found = Found { rank: args.rank, adapter_bytes, model_bytes: model.total_bytes(), courses };
    print(args.json, &found, &show(args, &found))?;
    Ok(ExitCode::SUCCESS)
}

/// Tokens per second of all clients, each with a prompt of its own.
async fn once(args: &AdaptersArgs, clients: &mut [Vec<GrpcClient>], asked: Asked, run: usize) -> Result<f64> {
    let sampling = SamplingParams {
        max_tokens: Some(args.tokens),
        temperature: Some(0.0),
        ignore_eos: true,
        ..SamplingParams::default()
    };
    let asking = clients.iter_mut().enumerate().map(|(number, of)| {
        let (client, sampling) = (&mut of[asked.place(number)], sampling.clone());
        async move { client.continue_text(&format!("Story {number} of day {run}."), sampling).await }
    });
    let traces: Vec<Trace> = try_join_all(asking).await?;
    match &traces[..] {
        [one] => one.decode_rate().context("the whole answer came at once"),
        all => end_to_end_rate(all).context("no token came"),
    }
}

fn show(args: &AdaptersArgs, found: &Found) -> String {
    let head = ["streams", "adapters", "tok/s", "of the model alone"];
    let row = |course: &Course| {
        vec![
            course.streams.to_string(),
            course.adapters.to_string(),
            spread(&course.rates, 0),
            format!("{:.1} %", 100.0 * percentile(&course.shares, 50.0).unwrap_or_default()),
        ]
    };
    let rows: Vec<Vec<String>> = found.courses.iter().map(row).collect();
    format!(
        "adapters of rank {}, of all matrices of layers: {:.1} MB each in bf16, {:.1} % of the model's {:.0} MB; {} tokens of each \
         answer, {} runs of each in turn; median (least–most)\n\n{}",
        found.rank,
        found.adapter_bytes as f64 / 1e6,
        100.0 * found.adapter_bytes as f64 / found.model_bytes as f64,
        found.model_bytes as f64 / 1e6,
        args.tokens,
        args.runs,
        table(&head, &rows)
    )
}
