//! Several streams decoding together, each time right after one alone: what batching gives.

use anyhow::{Context, Result};
use futures::future::try_join_all;

use super::{ANSWER, Bench, SHORT_PROMPT};
use crate::client::Trace;
use crate::client::trace::common_decode_rate;
use crate::report::{Measure, Unit};

pub(crate) async fn run(bench: &Bench<'_>) -> Result<Vec<Measure>> {
    let count = bench.streams;
    let mut clients = bench.target.clients(count).await?;
    let (mut together, mut whole, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bench.repetitions {
        let alone = clients.first_mut().context("--streams is 0")?.generate(bench.short()).await?;
        let traces = try_join_all(clients.iter_mut().map(|client| client.generate(bench.short()))).await?;
        let rate = common_decode_rate(&traces).context("the streams never decoded all together")?;
        together.push(rate);
        whole.push(end_to_end_rate(&traces).context("no token came")?);
        ratios.push(rate / alone.decode_rate().context("the whole answer came at once")?);
    }
    let key = |suffix: &str| format!("decode-{count}{suffix}");
    let all = Measure::of(&key(""), &format!("decode, {count} streams"), Unit::TokensPerSecond, &together);
    let ratio = Measure::of(&key("-ratio"), &format!("{count} streams over one"), Unit::Times, &ratios);
    let whole = Measure::of(
        &key("-whole"),
        &format!("{count} streams, prompts included"),
        Unit::TokensPerSecond,
        &whole,
    );
    let shape = format!("{SHORT_PROMPT} tokens in, {ANSWER} out, sum of all streams");
    Ok(vec![
        all.context("no repetition")?
            .bound(bench.bound(|cost| cost.decode(count)))
            .note(format!("{shape}, while all decode")),
        ratio.context("no repetition")?.note("each pair measured one after the other"),
        whole
            .context("no repetition")?
            .bound(bench.bound(|cost| cost.clients(count, SHORT_PROMPT, ANSWER)))
            .note(format!("{shape}, from the first request to the last token")),
    ])
}

/// Tokens per second from the first request to the last token.
pub(crate) fn end_to_end_rate(traces: &[Trace]) -> Option<f64> {
    let from = traces.iter().map(Trace::sent).min()?;
    let to = traces.iter().filter_map(Trace::last).max()?;
    let tokens: usize = traces.iter().map(Trace::tokens).sum();
    Some(tokens as f64 / to.checked_duration_since(from)?.as_secs_f64())
}
