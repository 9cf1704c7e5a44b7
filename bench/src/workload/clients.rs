//! A closed loop of clients: each sends a prompt, reads the answer, and sends the next.

use anyhow::{Context, Result};
use futures::future::try_join_all;

use super::Bench;
use super::streams::end_to_end_rate;
use crate::client::{Ask, Client, Trace};
use crate::report::{Measure, Unit};
use crate::stats::percentile;

/// Prompts of `input` tokens, answers of `output`.
pub(crate) async fn run(bench: &Bench<'_>, input: usize, output: usize) -> Result<Vec<Measure>> {
    let count = bench.clients;
    let rounds = if bench.quick { 1 } else { 2 };
    let mut clients = bench.target.clients(count).await?;
    // Connections are open and every part has run once.
    try_join_all(clients.iter_mut().map(|client| client.generate(bench.short()))).await?;
    let each =
        try_join_all(clients.iter_mut().map(|client| client_loop(bench, client, (input, output), rounds)))
            .await?;
    let traces: Vec<Trace> = each.into_iter().flatten().collect();
    let rate = end_to_end_rate(&traces).context("no token came")?;
    let first: Vec<f64> = traces.iter().filter_map(Trace::first_token_seconds).collect();
    let gaps: Vec<f64> = traces.iter().flat_map(Trace::gaps).map(|seconds| seconds * 1e3).collect();
    let sizes = if (input, output) == (128, 128) { String::new() } else { format!("-{input}-{output}") };
    let key = |suffix: &str| format!("clients-{count}{sizes}{suffix}");
    let what = format!("{count} clients, {input} in / {output} out");
    let mut measures = vec![
        Measure::single(&key(""), &what, Unit::TokensPerSecond, rate)
            .bound(bench.bound(|cost| cost.clients(count, input, output)))
            .note(format!("generated tokens, {} requests, prompts included", traces.len())),
    ];
    for (samples, percent, suffix, what, unit) in [
        (&first, 50.0, "-ttft-p50", "its time to first token, p50", Unit::Seconds),
        (&first, 99.0, "-ttft-p99", "its time to first token, p99", Unit::Seconds),
        (&gaps, 50.0, "-gap-p50", "its time between tokens, p50", Unit::Millis),
        (&gaps, 99.0, "-gap-p99", "its time between tokens, p99", Unit::Millis),
    ] {
        let value = percentile(samples, percent).context("no token came")?;
        measures.push(Measure::single(&key(suffix), what, unit, value));
    }
    Ok(measures)
}

async fn client_loop(
    bench: &Bench<'_>,
    client: &mut Client,
    (input, output): (usize, usize),
    rounds: usize,
) -> Result<Vec<Trace>> {
    let mut traces = Vec::new();
    for _ in 0..rounds {
        traces.push(client.generate(Ask { prompt: bench.prompts.next(input), max_tokens: output }).await?);
    }
    Ok(traces)
}
