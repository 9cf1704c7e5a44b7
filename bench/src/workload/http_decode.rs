//! The single stream again, through `/v1/completions`.

use anyhow::Result;

use super::{Bench, decode};
use crate::report::Measure;

pub(crate) async fn run(bench: &Bench<'_>) -> Result<Vec<Measure>> {
    match bench.target.http_client().await? {
        Some(client) => decode::measure(bench, client, "decode-1-http", "decode, 1 stream, HTTP").await,
        // Everything goes through HTTP already.
        None => Ok(Vec::new()),
    }
}
