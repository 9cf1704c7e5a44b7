//! Prompts that begin alike, over several replicas: how much is found in their caches by each way of routing?

use std::cell::RefCell;
use std::process::ExitCode;

use anyhow::{Context, Result};
use futures::future::try_join_all;
use serde::Serialize;

use super::{mean, print, spread, table};
use crate::args::PrefixesArgs;
use crate::client::{Ask, Client, Trace, http};
use crate::cluster::Cluster;
use crate::metrics;
use crate::prompts::Prompts;
use crate::target::Target;

const OUTPUT: usize = 16;
const POLICIES: [&str; 3] = ["prefix-aware", "least-loaded", "round-robin"];

/// One policy, each time on a new cluster.
#[derive(Debug, Serialize)]
struct Course {
    policy: &'static str,
    /// Of the tokens that were looked for in a cache, the percentage that was there.
    hit_rates: Vec<f64>,
    /// Mean seconds to the first token.
    first_tokens: Vec<f64>,
    /// Generated tokens per second, from the first request to the last token.
    rates: Vec<f64>,
}

/// Measures; the exit code says nothing of the figures.
pub(crate) async fn run(args: &PrefixesArgs) -> Result<ExitCode> {
    let new = |policy| Course { policy, hit_rates: Vec::new(), first_tokens: Vec::new(), rates: Vec::new() };
    let mut courses: Vec<Course> = POLICIES.into_iter().map(new).collect();
    for number in 0..args.runs {
        for course in &mut courses {
            eprintln!("… {}, {} of {}", course.policy, number + 1, args.runs);
            once(args, course).await?;
        }
    }
    print(args.json, &courses, &show(args, &courses))?;
    Ok(ExitCode::SUCCESS)
}

async fn once(args: &PrefixesArgs, course: &mut Course) -> Result<()> {
    let mut options = vec![
        ("--workers", args.replicas.to_string()),
        ("--replicas", args.replicas.to_string()),
        ("--tp", "1".to_owned()),
        ("--router-policy", course.policy.to_owned()),
    ];
    options.extend(args.kv_tokens.map(|tokens| ("--kv-tokens", tokens.to_string())));
    let target = Target::open(&args.target, Some(Cluster::with(&args.target, &options).await?)).await?;
    let prompts = Prompts::new();
    let beginnings: Vec<Vec<u32>> = (0..args.beginnings).map(|_| prompts.next(args.shared)).collect();
    let mut asks = Vec::new();
    for beginning in &beginnings {
        for _ in 0..args.prompts {
            let prompt = [beginning.clone(), prompts.next(args.own)].concat();
            asks.push(Ask { prompt, max_tokens: OUTPUT });
        }
    }
    prompts.shuffle(&mut asks);
    let mut clients = target.clients(args.clients).await?;
    for client in &mut clients {
        client.generate(Ask { prompt: prompts.next(8), max_tokens: 2 }).await?;
    }
    let before = looked_up(&target).await?;
    let asks = RefCell::new(asks);
    let traces = try_join_all(clients.iter_mut().map(|client| ask_in_turn(client, &asks))).await?;
    let traces: Vec<Trace> = traces.into_iter().flatten().collect();
    let after = looked_up(&target).await?;
    target.close().await?;
    course.hit_rates.push((after.found - before.found) / (after.asked - before.asked) * 100.0);
    let first: Vec<f64> = traces.iter().filter_map(Trace::first_token_seconds).collect();
    course.first_tokens.push(mean(&first));
    course.rates.push(crate::workload::streams::end_to_end_rate(&traces).context("no token came")?);
    Ok(())
}

async fn ask_in_turn(client: &mut Client, asks: &RefCell<Vec<Ask>>) -> Result<Vec<Trace>> {
    let mut traces = Vec::new();
    loop {
        let Some(ask) = asks.borrow_mut().pop() else { return Ok(traces) };
        traces.push(client.generate(ask).await?);
    }
}

/// Tokens that were looked for in prefix caches, and those found.
struct LookedUp {
    asked: f64,
    found: f64,
}

async fn looked_up(target: &Target) -> Result<LookedUp> {
    let members = target.members().await?.context("this cluster does not say where its metrics are")?;
    let mut sums = LookedUp { asked: 0.0, found: 0.0 };
    for address in members.all_http() {
        let page = http::get(&format!("{address}/metrics")).await?;
        sums.asked += metrics::sum(&page, "foggara_prefix_cache_query_tokens_total", "");
        sums.found += metrics::sum(&page, "foggara_prefix_cache_hit_tokens_total", "");
    }
    Ok(sums)
}

fn show(args: &PrefixesArgs, courses: &[Course]) -> String {
    let row = |course: &Course| {
        let millis: Vec<f64> = course.first_tokens.iter().map(|seconds| seconds * 1e3).collect();
        vec![
            course.policy.to_owned(),
            format!("{} %", spread(&course.hit_rates, 1)),
            format!("{} ms", spread(&millis, 0)),
            spread(&course.rates, 0),
        ]
    };
    let rows: Vec<Vec<String>> = courses.iter().map(row).collect();
    format!(
        "{} replicas; {} beginnings of {} tokens, {} prompts of each with {} tokens of its own, {} clients, {} times; \
        median (least–most)\n\n{}",
        args.replicas,
        args.beginnings,
        args.shared,
        args.prompts,
        args.own,
        args.clients,
        args.runs,
        table(&["policy", "found in the cache", "mean time to first token", "tokens/s"], &rows)
    )
}
