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
/// From calling a prompt off until nothing of it is left.
const SETTLING: Duration = Duration::from_millis(500);

/// One time.
#[derive(Debug, Serialize)]
struct Run {
    before: Gaps,
    /// While the prompt is read: all of it, and its last part.
    during: Gaps,
    last: Gaps,
    /// Whenever it was called off for a while.
    between: Option<Gaps>,
    after: Gaps,
    /// While it was read.
    reading_seconds: f64,
}

impl Run {
    /// How much longer the streams wait while the prompt is read than before it came.
    fn of_before(&self) -> f64 {
        self.during.p99 / self.before.p99
    }

    /// The same, and while the last of it is read, than whenever it was called off.
    fn of_between(&self) -> Option<[f64; 2]> {
        let between = self.between.as_ref()?;
        Some([self.during.p99 / between.p99, self.last.p99 / between.p99])
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
        let Turns { reading, between } = read(&mut late, &prompts.next(args.prompt), args.turn).await?;
        let first = Instant::now();
        let end = further(&streams, args.around).await;
        let gaps = |spans: &[Span]| -> Vec<Vec<f64>> {
            let of =
                |stream: &Stream| spans.iter().flat_map(|span| stream.gaps_within(span.0, span.1)).collect();
            streams.iter().map(of).collect()
        };
        let of = |gaps: Vec<Vec<f64>>| Gaps::of(&gaps.concat());
        let during = gaps(&reading);
        let last = during.iter().map(|gaps| gaps[gaps.len().saturating_sub(args.around)..].to_vec());
        Ok(Run {
            before: of(gaps(&[(start, came)])),
            last: of(last.collect()),
            between: (!between.is_empty()).then(|| of(gaps(&between))),
            after: of(gaps(&[(first, end)])),
            during: of(during),
            reading_seconds: reading.iter().map(|(from, to)| (*to - *from).as_secs_f64()).sum(),
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

/// From and to.
type Span = (Instant, Instant);

/// When a prompt was read, and when it was called off for a while.
struct Turns {
    reading: Vec<Span>,
    between: Vec<Span>,
}

/// Has `prompt` read in turns of `seconds`, with as long between two; in one if that is 0.
async fn read(client: &mut GrpcClient, prompt: &[u32], seconds: u64) -> Result<Turns> {
    let turn = Duration::from_secs(seconds);
    let most = if turn.is_zero() { Duration::MAX } else { turn };
    let mut turns = Turns { reading: Vec::new(), between: Vec::new() };
    loop {
        let (sent, trace) = (Instant::now(), RefCell::new(Trace::start()));
        let answer = client.follow(Ask { prompt: prompt.to_vec(), max_tokens: 1 }, &trace);
        if let Ok(answer) = tokio::time::timeout(most, answer).await {
            answer?;
            turns.reading.push((sent, trace.borrow().first().context("no token came")?));
            return Ok(turns);
        }
        let stopped = Instant::now();
        turns.reading.push((sent, stopped));
        // What is on its way is not looked at.
        tokio::time::sleep(SETTLING).await;
        let from = Instant::now();
        tokio::time::sleep(turn).await;
        turns.between.push((from, Instant::now()));
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
        "called off: p50, p99",
        "of that",
        "at last: p50, p99",
        "of that",
        "after: p50, p99",
        "read in",
    ];
    let both = |gaps: &Gaps| format!("{:.1}, {:.1}", gaps.p50, gaps.p99);
    let row = |(number, run): (usize, &Run)| {
        let of_between = run.of_between().map(|ratios| ratios.map(|ratio| format!("{ratio:.2}")));
        let [all, last] = of_between.unwrap_or_default();
        vec![
            (number + 1).to_string(),
            both(&run.before),
            format!("{}, {:.1}", both(&run.during), run.during.max),
            format!("{:.2}", run.of_before()),
            run.between.as_ref().map(both).unwrap_or_default(),
            all,
            both(&run.last),
            last,
            both(&run.after),
            format!("{:.1} s", run.reading_seconds),
        ]
    };
    let rows: Vec<Vec<String>> = runs.iter().enumerate().map(row).collect();
    let before: Vec<f64> = runs.iter().map(Run::of_before).collect();
    let between: Vec<f64> = runs.iter().filter_map(Run::of_between).map(|[all, _]| all).collect();
    let mut text = format!(
        "{} streams of answers of {} tokens, a prompt of {} tokens; milliseconds between tokens\n\n{}\n99th percentile while it is read, of before: {}\n",
        args.streams,
        args.answer,
        args.prompt,
        table(&head, &rows),
        spread(&before, 2)
    );
    if !between.is_empty() {
        text += &format!("… of when it was called off: {}\n", spread(&between, 2));
    }
    text
}
