//! How fast a long prompt is read: its tokens over the time to the first new one.

use anyhow::{Context, Result};

use super::Bench;
use crate::client::Ask;
use crate::report::{Measure, Unit};

const PROMPT: usize = 512;

pub(crate) async fn run(bench: &Bench<'_>) -> Result<Vec<Measure>> {
    let mut client = bench.target.client().await?;
    let (mut rates, mut seconds) = (Vec::new(), Vec::new());
    // The first is the warm-up.
    for repetition in 0..=bench.repetitions {
        let trace = client.generate(Ask { prompt: bench.prompts.next(PROMPT), max_tokens: 1 }).await?;
        let first = trace.first_token_seconds().context("no token came")?;
        if repetition > 0 {
            rates.push(PROMPT as f64 / first);
            seconds.push(first);
        }
    }
    let note = format!("one prompt of {PROMPT} at a time, over its time to first token");
    let prefill = Measure::of("prefill-512", "prefill, prompt of 512", Unit::TokensPerSecond, &rates);
    let first = Measure::of("prefill-512-ttft", "time to first token of it", Unit::Seconds, &seconds);
    Ok(vec![
        prefill.context("no repetition")?.bound(bench.bound(|cost| cost.prefill(PROMPT))).note(note),
        first.context("no repetition")?,
    ])
}
