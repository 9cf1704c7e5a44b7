//! A steady load of streams; a prompt as long as the context comes. How long do the streams wait between tokens, before and
//! while it is read?

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
    /// While the prompt is read: all of it, and its last part.
    during: Gaps,
    last: Gaps,
    after: Gaps,
    /// From sending the prompt to its first token.
    first_token_seconds: f64,
}

impl Run {
    /// How much longer the streams wait than before: while the prompt is read, and while the last of it is.
    fn ratios(&self) -> [f64; 2] {
        [self.during.p99 / self.before.p99, self.last.p99 / self.before.p99]
    }
}

/// One client's answers, one after the other.
struct Stream {
    ended: RefCell<Vec<Trace>>,
    now: RefCell<Trace>,
}

impl Stream {
    fn new() -> Self {
        Self { ended: RefCell::default(), now: RefCell::new(Trace::start()) }
    }

    /// Asks again and again; the first answer has `first` tokens.
    async fn go_on(
        &self,
        client: &mut GrpcClient,
        first: usize,
        args: &LongPromptArgs,
        prompts: &Prompts,
    ) -> Result<()> {
        let mut max_tokens = first;
        loop {
            client.follow(Ask { prompt: prompts.next(SHORT_PROMPT), max_tokens }, &self.now).await?;
            self.ended.borrow_mut().push(self.now.replace(Trace::start()));
            max_tokens = args.answer;
        }
    }

    fn messages(&self) -> usize {
        self.ended.borrow().iter().map(Trace::messages).sum::<usize>() + self.now.borrow().messages()
    }

    /// Seconds between messages of one answer that both came within `from` and `to`.
    fn gaps_within(&self, from: Instant, to: Instant) -> Vec<f64> {
        let (ended, now) = (self.ended.borrow(), self.now.borrow());
        ended.iter().chain([&*now]).flat_map(|trace| trace.gaps_within(from, to)).collect()
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
    let streams: Vec<Stream> = clients.iter().map(|_| Stream::new()).collect();
    let load = clients.iter_mut().zip(&streams).enumerate().map(|(number, (client, stream))| {
        // They do not end together.
        let first = args.answer * (number + 1) / args.streams;
        stream.go_on(client, first.max(1), args, &prompts)
    });
    let script = async {
        further(&streams, args.answer).await;
        let start = Instant::now();
        let came = further(&streams, args.around).await;
        let read = RefCell::new(Trace::start());
        late.follow(Ask { prompt: prompts.next(args.prompt), max_tokens: 1 }, &read).await?;
        let first = read.borrow().first().context("no token came")?;
        let end = further(&streams, args.around).await;
        let gaps = |from, to| -> Vec<Vec<f64>> { streams.iter().map(|s| s.gaps_within(from, to)).collect() };
        let of = |gaps: Vec<Vec<f64>>| Gaps::of(&gaps.concat());
        let during = gaps(came, first);
        let last = during.iter().map(|gaps| gaps[gaps.len().saturating_sub(args.around)..].to_vec());
        Ok(Run {
            before: of(gaps(start, came)),
            last: of(last.collect()),
            after: of(gaps(first, end)),
            during: of(during),
            first_token_seconds: (first - came).as_secs_f64(),
        })
    };
    tokio::select! {
        run = script => run,
        ended = try_join_all(load) => {
            ended?;
            bail!("there are no streams")
        }
    }
}

/// Waits until every stream has so many messages more; says when that was.
async fn further(streams: &[Stream], messages: usize) -> Instant {
    let before: Vec<usize> = streams.iter().map(Stream::messages).collect();
    while streams.iter().zip(&before).any(|(stream, before)| stream.messages() < before + messages) {
        tokio::time::sleep(LOOK).await;
    }
    Instant::now()
}

fn show(args: &LongPromptArgs, runs: &[Run]) -> String {
    let head = [
        "run",
        "before: p50, p99",
        "while it is read: p50, p99, max",
        "of before",
        "at last: p50, p99",
        "of before",
        "after: p50, p99",
        "first token",
    ];
    let both = |gaps: &Gaps| format!("{:.1}, {:.1}", gaps.p50, gaps.p99);
    let row = |(number, run): (usize, &Run)| {
        let [all, last] = run.ratios();
        vec![
            (number + 1).to_string(),
            both(&run.before),
            format!("{}, {:.1}", both(&run.during), run.during.max),
            format!("{all:.2}"),
            both(&run.last),
            format!("{last:.2}"),
            both(&run.after),
            format!("{:.1} s", run.first_token_seconds),
        ]
    };
    let rows: Vec<Vec<String>> = runs.iter().enumerate().map(row).collect();
    let ratios: Vec<f64> = runs.iter().map(|run| run.ratios()[0]).collect();
    format!(
        "{} streams of answers of {} tokens, a prompt of {} tokens; milliseconds between tokens\n\n{}\n99th percentile while it is read, of before: {}\n",
        args.streams,
        args.answer,
        args.prompt,
        table(&head, &rows),
        spread(&ratios, 2)
    )
}
