//! `foggara trace`

mod events;
mod json;
mod print;
mod summary;
#[cfg(test)]
mod tests;

use std::io::Write;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use foggara_proto::wire::admin as wire;
use serde_json::Value;

use crate::endpoint::EndpointArguments;

/// A coordinator asks the others, and waits for them for a second.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Timelines of many requests.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// Show where the time of a recent request went: in the queue and why, prefill chunk by chunk, and the slowest tokens with what
/// their steps did beside. Without an id, list recent requests.
///
/// The id is the client's own (`x-request-id`, or `request_id` in gRPC) or the one that the answer and the log lines carry. Any
/// coordinator answers for all; each keeps the last 4,096 requests, in memory.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  foggara trace --last 10            the last ten requests\n  \
    foggara trace --slowest            those that took longest\n  \
    foggara trace my-request           one of them, from its arrival to its end\n\n\
    Times of different coordinators are as far apart as their clocks.")]
pub(crate) struct Arguments {
    /// The request
    #[arg(value_name = "REQUEST_ID", conflicts_with_all = ["slowest", "last"])]
    request_id: Option<String>,
    /// List the requests that took longest, of those that are kept
    #[arg(long)]
    slowest: bool,
    /// How many requests to list, at most 200
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=200))]
    last: u32,
    /// Print JSON; points in time are microseconds after the arrival
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    endpoint: EndpointArguments,
}

/// Asks once and prints.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let asked = wire::TraceRequest {
        request_id: arguments.request_id.clone().unwrap_or_default(),
        slowest: arguments.slowest,
        limit: arguments.last,
    };
    let answer = runtime.block_on(async {
        let ask = async {
            let mut admin = arguments.endpoint.admin().await?.max_decoding_message_size(MAX_MESSAGE_BYTES);
            anyhow::Ok(admin.trace(asked).await?.into_inner())
        };
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, ask).await;
        answer.with_context(|| format!("no answer within {ANSWER_TIMEOUT:?}"))?
    })?;
    let mut out = std::io::stdout().lock();
    match (&arguments.request_id, arguments.json) {
        (Some(_), true) => {
            let timeline = answer.timelines.first().context("the answer is empty")?;
            let mut shown = json::whole(timeline);
            shown["silent_coordinators"] = answer.silent.clone().into();
            writeln!(out, "{}", serde_json::to_string_pretty(&shown)?)?;
        }
        (Some(_), false) => {
            let timeline = answer.timelines.first().context("the answer is empty")?;
            print::whole(&mut out, timeline)?;
            print::silent(&mut out, &answer.silent)?;
        }
        (None, true) => {
            let list: Vec<Value> = answer.timelines.iter().map(json::listed).collect();
            let shown = serde_json::json!({"requests": list, "silent_coordinators": answer.silent});
            writeln!(out, "{}", serde_json::to_string_pretty(&shown)?)?;
        }
        (None, false) => {
            print::list(&mut out, &answer)?;
            print::silent(&mut out, &answer.silent)?;
        }
    }
    Ok(out.flush()?)
}
