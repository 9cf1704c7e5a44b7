//! The same load without delay and with it, in turn, on one cluster: what does it cost when the coordinator is far away?

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use futures::future::try_join_all;
use serde::Serialize;

use super::{mean, print, spread, table};
use crate::apart::Apart;
use crate::args::DistanceArgs;
use crate::client::{Address, Ask, Client, Trace};
use crate::prompts::Prompts;
use crate::workload::streams::end_to_end_rate;

const INPUT: usize = 128;
const OUTPUT: usize = 128;

/// One delay, each time.
#[derive(Debug, Serialize)]
struct Course {
    one_way_millis: u64,
    /// Generated tokens per second of all streams, from the first request to the last token.
    rates: Vec<f64>,
    /// Of the time from the first request to the last token, percent that the leader waited for plans.
    waits: Vec<f64>,
    /// Mean seconds to the first token of them.
    first_tokens: Vec<f64>,
    /// Mean seconds to the first token of requests one after the other.
    single_first_tokens: Vec<f64>,
    /// Tokens per second of one stream alone.
    single_rates: Vec<f64>,
}

/// Measures; the exit code says nothing of the figures.
pub(crate) async fn run(args: &DistanceArgs) -> Result<ExitCode> {
    let apart = Apart::start(&args.target).await?;
    let prompts = Prompts::new();
    let address = Address::Grpc(apart.grpc.clone());
    let connect = || Client::connect(&address, apart.model());
    let mut clients = try_join_all((0..args.streams).map(|_| connect())).await?;
    let ask = || Ask { prompt: prompts.next(INPUT), max_tokens: OUTPUT };
    eprintln!("… warming up");
    try_join_all(clients.iter_mut().map(|client| client.generate(ask()))).await?;
    let delays: Vec<u64> = std::iter::once(0).chain(args.one_way.iter().copied()).collect();
    let mut courses: Vec<Course> = delays.iter().map(|delay| Course::of(*delay)).collect();
    for number in 0..args.runs {
        for course in &mut courses {
            eprintln!("… {} ms each way, {} of {}", course.one_way_millis, number + 1, args.runs);
            apart.set_delay(course.one_way_millis);
            // The driver learns the distance from the plans that the leader waits for.
            clients[0].generate(ask()).await?;
            let mut singles = Vec::new();
            for _ in 0..args.singles {
                singles.push(clients[0].generate(Ask { max_tokens: 32, ..ask() }).await?);
            }
            let (waited, started) = (apart.waited().await?, Instant::now());
            let traces = try_join_all(clients.iter_mut().map(|client| client.generate(ask()))).await?;
            let seconds = started.elapsed().as_secs_f64();
            course.waits.push((apart.waited().await? - waited) / seconds * 100.0);
            course.rates.push(end_to_end_rate(&traces).context("no token came")?);
            course.first_tokens.push(mean(&first_tokens(&traces)));
            course.single_first_tokens.push(mean(&first_tokens(&singles)));
            let rates: Vec<f64> = singles.iter().filter_map(Trace::decode_rate).collect();
            course.single_rates.push(mean(&rates));
        }
    }
    print(args.json, &courses, &show(args, &courses))?;
    Ok(ExitCode::SUCCESS)
}

fn first_tokens(traces: &[Trace]) -> Vec<f64> {
    traces.iter().filter_map(Trace::first_token_seconds).collect()
}

impl Course {
    fn of(one_way_millis: u64) -> Self {
        Self {
            one_way_millis,
            rates: Vec::new(),
            waits: Vec::new(),
            first_tokens: Vec::new(),
            single_first_tokens: Vec::new(),
            single_rates: Vec::new(),
        }
    }
}

fn show(args: &DistanceArgs, courses: &[Course]) -> String {
    let near = &courses[0];
    let head = [
        "each way",
        "tokens/s",
        "of without",
        "waiting for plans",
        "mean first token, s",
        "more, ms",
        "single: first token, ms",
        "more, ms",
        "single: tokens/s",
    ];
    let row = |course: &Course| {
        // Each with the one measured just before it.
        let pairs = |of: fn(&Course) -> &Vec<f64>| of(course).iter().zip(of(near));
        let shares: Vec<f64> = pairs(|c| &c.rates).map(|(far, near)| far / near * 100.0).collect();
        let more = |of: fn(&Course) -> &Vec<f64>| -> Vec<f64> {
            pairs(of).map(|(far, near)| (far - near) * 1e3).collect()
        };
        let singles: Vec<f64> = course.single_first_tokens.iter().map(|seconds| seconds * 1e3).collect();
        vec![
            format!("{} ms", course.one_way_millis),
            spread(&course.rates, 0),
            format!("{} %", spread(&shares, 1)),
            format!("{} %", spread(&course.waits, 1)),
            spread(&course.first_tokens, 2),
            spread(&more(|c| &c.first_tokens), 0),
            spread(&singles, 0),
            spread(&more(|c| &c.single_first_tokens), 0),
            spread(&course.single_rates, 0),
        ]
    };
    let rows: Vec<Vec<String>> = courses.iter().map(row).collect();
    format!(
        "{} streams of {INPUT} in and {OUTPUT} out, {} times; median (least–most)\n\n{}",
        args.streams,
        args.runs,
        table(&head, &rows)
    )
}
