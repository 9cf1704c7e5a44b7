//! Streams decode; a prompt as long as the context comes. How long do the streams wait between tokens, before and while it is
//! read?

use std::cell::RefCell;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::future::try_join_all;
use serde::Serialize;

use super::{Gaps, print, spread, table};
use crate::args::LongPromptArgs;
use crate::client::grpc::GrpcClient;
use crate::client::{Ask, Trace};
use crate::cluster::Cluster;
use crate::prompts::Prompts;
use crate::target::Target;

const SHORT_PROMPT: usize = 32;
/// Between two looks at how far the streams are.
const LOOK: Duration = Duration::from_millis(5);

/// One time.
#[derive(Debug, Serialize)]
struct Run {
    before: Gaps,
    /// While the prompt is read: all of it, its first part and its last.
    during: Gaps,
    first: Gaps,
    last: Gaps,
    after: Gaps,
    /// From sending the prompt to its first token.
    first_token_seconds: f64,
}

impl Run {
    /// How much longer the streams wait than without the prompt: each end of it beside what is next to it, since their own
    /// answers become longer, and slower, too.
    fn ratios(&self) -> [f64; 2] {
        [self.first.p99 / self.before.p99, self.last.p99 / self.after.p99]
    }
}

/// Measures; the exit code says nothing of the figures.
pub(crate) async fn run(args: &LongPromptArgs) -> Result<ExitCode> {
    let cluster = if args.target.own_cluster() { Some(Cluster::start(&args.target).await?) } else { None };
    let target = Target::open(&args.target, cluster).await?;
    let mut runs = Vec::new();
    for number in 0..args.runs {
        eprintln!("… {} of {}", number + 1, args.runs);
        runs.push(once(&target, args).await?);
    }
    target.close().await?;
    print(args.json, &runs, &show(args, &runs))?;
    Ok(ExitCode::SUCCESS)
}

async fn once(target: &Target, args: &LongPromptArgs) -> Result<Run> {
    let prompts = Prompts::new();
    let mut clients = Vec::new();
    for _ in 0..args.streams {
        clients.push(GrpcClient::connect(target.grpc()?, target.model()).await?);
    }
    let mut late = GrpcClient::connect(target.grpc()?, target.model()).await?;
    let traces: Vec<RefCell<Trace>> = clients.iter().map(|_| RefCell::new(Trace::start())).collect();
    // Longer than it takes: they are hung up on.
    let ask = || Ask { prompt: prompts.next(SHORT_PROMPT), max_tokens: args.prompt.max(4000) };
    let streams =
        try_join_all(clients.iter_mut().zip(&traces).map(|(client, trace)| client.follow(ask(), trace)));
    let script = async {
        let start = further(&traces, 1).await;
        let came = further(&traces, args.around).await;
        let read = RefCell::new(Trace::start());
        late.follow(Ask { prompt: prompts.next(args.prompt), max_tokens: 1 }, &read).await?;
        let first = read.borrow().first().context("no token came")?;
        let end = further(&traces, args.around).await;
        let gaps = |from, to| -> Vec<Vec<f64>> {
            traces.iter().map(|trace| trace.borrow().gaps_within(from, to).collect()).collect()
        };
        let during = gaps(came, first);
        let part = |gaps: &Vec<f64>| args.around.min(gaps.len() / 2);
        let begin = during.iter().map(|gaps| gaps[..part(gaps)].to_vec());
        let close = during.iter().map(|gaps| gaps[gaps.len() - part(gaps)..].to_vec());
        let of = |gaps: Vec<Vec<f64>>| Gaps::of(&gaps.concat());
        Ok(Run {
            before: of(gaps(start, came)),
            first: of(begin.collect()),
            last: of(close.collect()),
            after: of(gaps(first, end)),
            during: of(during.clone()),
            first_token_seconds: (first - came).as_secs_f64(),
        })
    };
    tokio::select! {
        run = script => run,
        ended = streams => {
            ended?;
            bail!("the streams ended before the prompt was read")
        }
    }
}

/// Waits until every stream has so many messages more; says when that was.
async fn further(traces: &[RefCell<Trace>], messages: usize) -> Instant {
    let before: Vec<usize> = traces.iter().map(|trace| trace.borrow().messages()).collect();
    while traces.iter().zip(&before).any(|(trace, before)| trace.borrow().messages() < before + messages) {
        tokio::time::sleep(LOOK).await;
    }
    Instant::now()
}

fn show(args: &LongPromptArgs, runs: &[Run]) -> String {
    let head = [
        "run",
        "before: p50, p99",
        "at first: p50, p99",
        "of before",
        "at last: p50, p99",
        "after: p50, p99",
        "of after",
        "all of it: p50, p99, max",
        "first token",
    ];
    let both = |gaps: &Gaps| format!("{:.1}, {:.1}", gaps.p50, gaps.p99);
    let row = |(number, run): (usize, &Run)| {
        let [first, last] = run.ratios();
        vec![
            (number + 1).to_string(),
            both(&run.before),
            both(&run.first),
            format!("{first:.2}"),
            both(&run.last),
            both(&run.after),
            format!("{last:.2}"),
            format!("{}, {:.1}", both(&run.during), run.during.max),
            format!("{:.1} s", run.first_token_seconds),
        ]
    };
    let rows: Vec<Vec<String>> = runs.iter().enumerate().map(row).collect();
    let ratios: Vec<f64> = runs.iter().flat_map(Run::ratios).collect();
    format!(
        "{} streams, a prompt of {} tokens; milliseconds between tokens\n\n{}\n99th percentile beside what is next to it, at first and at last: {}\n",
        args.streams,
        args.prompt,
        table(&head, &rows),
        spread(&ratios, 2)
    )
}
