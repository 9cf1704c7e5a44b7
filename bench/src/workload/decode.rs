//! One stream: tokens per second once the first has come.

use anyhow::{Context, Result};

use super::{ANSWER, Bench, SHORT_PROMPT};
use crate::client::Client;
use crate::report::{Measure, Unit};
use crate::stats::percentile;

pub(crate) async fn run(bench: &Bench<'_>) -> Result<Vec<Measure>> {
    let client = bench.target.client().await?;
    measure(bench, client, "decode-1", "decode, 1 stream").await
}

/// Measures one stream through `client`.
pub(super) async fn measure(
    bench: &Bench<'_>,
    mut client: Client,
    key: &str,
    what: &str,
) -> Result<Vec<Measure>> {
    // Opens the connection and wakes everything up.
    client.generate(bench.short()).await?;
    let (mut rates, mut gaps) = (Vec::new(), Vec::new());
    for _ in 0..bench.repetitions {
        let trace = client.generate(bench.short()).await?;
        rates.push(trace.decode_rate().context("the whole answer came at once")?);
        gaps.extend(trace.gaps());
    }
    let millis = |percent| percentile(&gaps, percent).unwrap_or_default() * 1e3;
    let note = format!(
        "{SHORT_PROMPT} tokens in, {ANSWER} out; between tokens p50 {:.1} ms, p99 {:.1} ms",
        millis(50.0),
        millis(99.0)
    );
    let measure = Measure::of(key, what, Unit::TokensPerSecond, &rates).context("no repetition")?;
    Ok(vec![measure.bound(bench.bound(|cost| cost.decode(1))).note(note)])
}
