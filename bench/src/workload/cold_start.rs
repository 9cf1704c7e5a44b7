//! From starting the program to `ready`: processes, election, loading, a checked step.

use anyhow::{Context, Result};

use crate::args::TargetArgs;
use crate::cluster::Cluster;
use crate::report::{Measure, Unit};

/// Starts a cluster `times` times and leaves the last one running.
pub(crate) async fn run(args: &TargetArgs, times: usize) -> Result<(Cluster, Vec<Measure>)> {
    let mut cluster = Cluster::start(args).await?;
    let mut seconds = vec![cluster.ready_seconds];
    for _ in 1..times {
        cluster.stop().await?;
        cluster = Cluster::start(args).await?;
        seconds.push(cluster.ready_seconds);
    }
    let measure = Measure::of("cold-start", "start to ready", Unit::Seconds, &seconds).context("no start")?;
    Ok((cluster, vec![measure.note("model in the page cache")]))
}
