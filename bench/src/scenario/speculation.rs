//! Text that repeats and text that does not, from a cluster that guesses tokens and from one that does not, in turn.

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use foggara_proto::wire::inference::SamplingParams;
use futures::future::try_join_all;
use serde::Serialize;

use super::{print, spread, table};
use crate::args::SpeculationArgs;
use crate::client::grpc::GrpcClient;
use crate::client::{Trace, http};
use crate::cluster::Cluster;
use crate::metrics;
use crate::stats::percentile;
use crate::target::Target;
use crate::workload::streams::end_to_end_rate;

const CODE: &str = "\
def total_price(goods, discount):
    total = 0
    for good in goods:
        total += good.price * good.quantity
    if discount is not None:
        total = total * (1 - discount)
    return total

def print_receipt(goods, discount):
    for good in goods:
        print(good.name, good.quantity, good.price)
    print(\"Total:\", total_price(goods, discount))

";

/// What is asked for.
#[derive(Debug, Clone, Copy)]
struct Kind {
    what: &'static str,
    before: &'static str,
    text: &'static str,
    times: usize,
    after: &'static str,
    temperature: f32,
    /// Whether `--streams` ask at once.
    many: bool,
}

/// As instruction-tuned SmolLM2 models are asked; others take it for text like any other.
const ASKED: &str = "<|im_start|>user\n";
const ANSWERS: &str = "<|im_end|>\n<|im_start|>assistant\n";
const STORY: Kind = Kind {
    what: "a story, sampled",
    before: ASKED,
    text: "Tell a long story about water in the desert.",
    times: 1,
    after: ANSWERS,
    temperature: 1.0,
    many: false,
};
const KINDS: [Kind; 5] = [
    Kind {
        what: "a file, copied",
        before: "",
        text: CODE,
        times: 3,
        after: "",
        temperature: 0.0,
        many: false,
    },
    Kind {
        what: "a file, edited",
        before: "<|im_start|>user\nRename `goods` to `items` in this code.\n```python\n",
        text: CODE,
        times: 1,
        after: "```<|im_end|>\n<|im_start|>assistant\n```python\n",
        temperature: 0.0,
        many: false,
    },
    Kind { what: "a story, greedy", temperature: 0.0, ..STORY },
    STORY,
    Kind { many: true, ..STORY },
];

/// One kind, of both clusters.
#[derive(Debug, Default, Serialize)]
struct Course {
    what: String,
    streams: usize,
    /// Tokens per second of all streams: without guesses, and with.
    without: Vec<f64>,
    with: Vec<f64>,
    /// By what factor each run was faster with guesses than the one without beside it.
    faster: Vec<f64>,
    tokens: f64,
    steps: f64,
    guessed: f64,
    right: f64,
}

/// A cluster, its clients and what it has counted.
struct Side {
    target: Target,
    clients: Vec<GrpcClient>,
}

/// Measures; the exit code says nothing of the figures.
pub(crate) async fn run(args: &SpeculationArgs) -> Result<ExitCode> {
    ensure!(args.target.own_cluster(), "--endpoint: the clusters are started here, for their options differ");
    let mut sides = [side(args, 0).await?, side(args, args.speculate).await?];
    let mut courses = Vec::new();
    for kind in KINDS {
        let streams = if kind.many { args.streams } else { 1 };
        let mut course = Course { what: kind.what.to_owned(), streams, ..Course::default() };
        for run in 0..=args.runs {
            eprintln!("… {}, {streams} at once, {run} of {}", kind.what, args.runs);
            let mut rates = [0.0; 2];
            // Each first in turn. The clusters share the machine, and one of them has nothing to do.
            for place in [run % 2, 1 - run % 2] {
                let counts = once(args, &mut sides[place], kind, streams, run, &mut rates[place]).await?;
                // The first time everything wakes up, and what steps cost is learned.
                if place == 1 && run > 0 {
                    course.count(counts);
                }
            }
            if run > 0 {
                course.without.push(rates[0]);
                course.with.push(rates[1]);
                course.faster.push(rates[1] / rates[0]);
            }
        }
        courses.push(course);
    }
    for side in sides {
        drop(side.clients);
        side.target.close().await?;
    }
    print(args.json, &courses, &show(args, &courses))?;
    Ok(ExitCode::SUCCESS)
}

async fn side(args: &SpeculationArgs, speculate: u32) -> Result<Side> {
    let workers = args.target.workers.to_string();
    let options = [("--workers", workers.clone()), ("--tp", workers), ("--speculate", speculate.to_string())];
    let cluster = Cluster::with(&args.target, &options).await?;
    let address = cluster.grpc.clone();
    let target = Target::open(&args.target, Some(cluster)).await?;
    let mut clients = Vec::new();
    for _ in 0..args.streams.max(1) {
        clients.push(GrpcClient::connect(&address, target.model()).await?);
    }
    Ok(Side { target, clients })
}

/// Asks `streams` times at once; what was counted meanwhile.
async fn once(
    args: &SpeculationArgs,
    side: &mut Side,
    kind: Kind,
    streams: usize,
    run: usize,
    rate: &mut f64,
) -> Result<[f64; 4]> {
    let before = counted(&side.target).await?;
    let text = [kind.before, &kind.text.repeat(kind.times), kind.after].concat();
    let sampling = |number: usize| SamplingParams {
        max_tokens: Some(args.tokens),
        temperature: Some(kind.temperature),
        seed: Some((run * streams + number) as u64),
        ignore_eos: true,
        ..SamplingParams::default()
    };
    let asking = side.clients.iter_mut().take(streams).enumerate();
    let asking = asking.map(|(number, client)| client.continue_text(&text, sampling(number)));
    let traces: Vec<Trace> = try_join_all(asking).await?;
    *rate = match &traces[..] {
        [one] => one.decode_rate().context("the whole answer came at once")?,
        all => end_to_end_rate(all).context("no token came")?,
    };
    let after = counted(&side.target).await?;
    let tokens = traces.iter().map(Trace::tokens).sum::<usize>() as f64;
    Ok([tokens, after[0] - before[0], after[1] - before[1], after[2] - before[2]])
}

/// Steps, guessed tokens, and right ones, so far.
async fn counted(target: &Target) -> Result<[f64; 3]> {
    let members = target.members().await?.context("a cluster of ours says who is in it")?;
    let names = ["foggara_steps_total", "foggara_draft_tokens_total", "foggara_accepted_draft_tokens_total"];
    let mut sums = [0.0; 3];
    for address in members.all_http() {
        let page = http::get(&format!("{address}/metrics")).await?;
        sums.iter_mut().zip(names).for_each(|(sum, name)| *sum += metrics::sum(&page, name, ""));
    }
    Ok(sums)
}

impl Course {
    fn count(&mut self, [tokens, steps, guessed, right]: [f64; 4]) {
        self.tokens += tokens;
        self.steps += steps;
        self.guessed += guessed;
        self.right += right;
    }
}

fn show(args: &SpeculationArgs, courses: &[Course]) -> String {
    let head =
        ["", "streams", "tok/s without", "tok/s with", "faster by", "guessed", "right", "steps a token"];
    let row = |course: &Course| {
        let Course { tokens, steps, guessed, right, .. } = course;
        let of_tokens = |count: f64| format!("{:.1} %", 100.0 * count / tokens);
        vec![
            course.what.clone(),
            course.streams.to_string(),
            spread(&course.without, 0),
            spread(&course.with, 0),
            format!("{:.2}", percentile(&course.faster, 50.0).unwrap_or_default()),
            of_tokens(*guessed),
            of_tokens(*right),
            format!("{:.2}", steps * course.streams as f64 / tokens),
        ]
    };
    let rows: Vec<Vec<String>> = courses.iter().map(row).collect();
    format!(
        "{} tokens of each answer, {} guessed at most, {} runs of each in turn; median (least–most), guessed and right of all tokens\n\n{}",
        args.tokens,
        args.speculate,
        args.runs,
        table(&head, &rows)
    )
}
