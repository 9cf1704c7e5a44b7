//! A file that describes machines: what `models plan --nodes` plans for.

use std::path::Path;

use anyhow::{Context as _, ensure};
use foggara_coordinator::placement::facts::{Kind, Link, Links, Speeds, Takes, WorkerFacts};
use serde::Deserialize;

const MAX_WORKERS: usize = 4096;

/// The file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Nodes {
    /// Between hosts; assumed if left out.
    network: Option<Way>,
    /// Between the GPUs of a host; assumed if left out.
    accelerators: Option<Way>,
    /// Kinds of machines.
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Way {
    gigabytes_per_second: f64,
    latency_us: f64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Node {
    /// Begins the hosts' names [default: "node"].
    name: Option<String>,
    /// Machines of this kind [default: 1].
    count: Option<usize>,
    /// Workers of each [default: 1].
    workers: Option<usize>,
    /// "cpu" (the default) or "gpu".
    kind: Option<String>,
    /// Memory of each worker, in 10⁹ bytes: its part of its host's, or all of its GPU's.
    memory_gb: f64,
    /// Its bandwidth, in 10⁹ bytes per second.
    bandwidth_gb_s: f64,
    /// Operations per second of each worker, in 10¹².
    tflops: f64,
    /// Last-level caches of a host, in 10⁶ bytes [default: 0, as if there were none].
    cache_mb: Option<f64>,
    /// Bandwidth of each worker from there, in 10⁹ bytes per second; goes with `cache_mb`.
    cache_gb_s: Option<f64>,
    /// Operations on bytes per second of each worker, in 10¹² [default: taken for what is usual].
    int8_tops: Option<f64>,
}

impl Node {
    /// How fast each worker is.
    fn speeds(&self) -> anyhow::Result<Speeds> {
        let or_none = |field: &str, value: Option<f64>, unit: f64| {
            value.map_or(Ok(0), |value| Ok::<_, anyhow::Error>((positive(field, value)? * unit) as u64))
        };
        ensure!(
            self.cache_mb.is_some() == self.cache_gb_s.is_some(),
            "cache_mb and cache_gb_s go together: give both or neither"
        );
        Ok(Speeds {
            bytes_per_second: (positive("bandwidth_gb_s", self.bandwidth_gb_s)? * 1e9) as u64,
            flops: (positive("tflops", self.tflops)? * 1e12) as u64,
            cache_bytes: or_none("cache_mb", self.cache_mb, 1e6)?,
            cache_bytes_per_second: or_none("cache_gb_s", self.cache_gb_s, 1e9)?,
            int8_ops_per_second: or_none("int8_tops", self.int8_tops, 1e12)?,
        })
    }
}

fn positive(field: &str, value: f64) -> anyhow::Result<f64> {
    ensure!(value.is_finite() && value > 0.0, "{field}: {value}, must be above 0");
    Ok(value)
}

/// The workers that `file` describes, and their links.
///
/// # Errors
/// If it cannot be read, or what it describes cannot be.
pub(super) fn read(file: &Path) -> anyhow::Result<(Vec<WorkerFacts>, Links)> {
    let text = std::fs::read_to_string(file).with_context(|| format!("nodes {}", file.display()))?;
    parse(&text).with_context(|| format!("nodes {}", file.display()))
}

fn parse(text: &str) -> anyhow::Result<(Vec<WorkerFacts>, Links)> {
    let file: Nodes = toml::from_str(text)?;
    let link = |way: Option<Way>, assumed: Link| -> anyhow::Result<Link> {
        let Some(way) = way else { return Ok(assumed) };
        Ok(Link {
            bytes_per_second: (positive("gigabytes_per_second", way.gigabytes_per_second)? * 1e9) as u64,
            latency_ns: (positive("latency_us", way.latency_us)? * 1e3) as u64,
        })
    };
    let links = Links {
        network: link(file.network, Links::ASSUMED.network)?,
        accelerators: link(file.accelerators, Links::ASSUMED.accelerators)?,
        ..Links::ASSUMED
    };
    let mut workers = Vec::new();
    for (i, node) in file.nodes.iter().enumerate() {
        let kind = match node.kind.as_deref() {
            None | Some("cpu") => Kind::Cpu,
            Some("gpu") => Kind::Gpu,
            Some(other) => anyhow::bail!("kind: `{other}` is not one of cpu, gpu"),
        };
        let (count, each) = (node.count.unwrap_or(1), node.workers.unwrap_or(1));
        ensure!(count > 0 && each > 0, "count and workers must be at least 1");
        ensure!(
            count.saturating_mul(each).saturating_add(workers.len()) <= MAX_WORKERS,
            "there are more than {MAX_WORKERS} workers"
        );
        let name = node.name.clone().unwrap_or_else(|| format!("node{}", i + 1));
        for host in 1..=count {
            let host = if count > 1 { format!("{name}-{host}") } else { name.clone() };
            for _ in 0..each {
                workers.push(WorkerFacts {
                    id: workers.len() as u64 + 1,
                    host: host.clone(),
                    kind,
                    version: String::new(),
                    takes: Takes::usual(kind),
                    memory_bytes: (positive("memory_gb", node.memory_gb)? * 1e9) as u64,
                    speeds: node.speeds()?,
                });
            }
        }
    }
    ensure!(!workers.is_empty(), "nodes: there are none");
    Ok((workers, links))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: &str = "[[nodes]]\nmemory_gb = 80\nbandwidth_gb_s = 3350\ntflops = 989\n";

    #[test]
    fn machines_are_counted_out() {
        let text = format!(
            "[network]\ngigabytes_per_second = 3\nlatency_us = 20.5\n{NODE}kind = \"gpu\"\ncount = 2\nworkers = 4\n{NODE}name = \"box\"\n"
        );
        let (workers, links) = parse(&text).expect("valid");
        assert_eq!(links.network, Link { bytes_per_second: 3_000_000_000, latency_ns: 20_500 });
        assert_eq!(links.accelerators, Links::ASSUMED.accelerators);
        let hosts: Vec<&str> = workers.iter().map(|worker| worker.host.as_str()).collect();
        assert_eq!(hosts[3..], ["node1-1", "node1-2", "node1-2", "node1-2", "node1-2", "box"]);
        assert_eq!((workers[0].kind, workers[8].kind, workers[8].id), (Kind::Gpu, Kind::Cpu, 9));
        assert_eq!(workers[8].memory_bytes, 80_000_000_000);
    }

    #[test]
    fn caches_and_bytes_may_be_given() {
        let (plain, _) = parse(NODE).expect("valid");
        assert_eq!(plain[0].speeds, Speeds::of_memory(3_350_000_000_000, 989_000_000_000_000));
        let text = format!("{NODE}cache_mb = 32\ncache_gb_s = 40\nint8_tops = 0.5\n");
        let speeds = parse(&text).expect("valid").0[0].speeds;
        assert_eq!((speeds.cache_bytes, speeds.cache_bytes_per_second), (32_000_000, 40_000_000_000));
        assert_eq!(speeds.int8_ops_per_second, 500_000_000_000);
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (text, says) in [
            ("nodes = []", "none"),
            (&format!("{NODE}kind = \"tpu\""), "tpu"),
            (&format!("{NODE}cores = 4"), "cores"),
            (&format!("{NODE}count = 0"), "at least 1"),
            (&format!("{NODE}count = 5000"), "4096"),
            (&NODE.replace("80", "-1"), "memory_gb"),
            (&format!("{NODE}cache_mb = 32"), "cache_gb_s"),
            (&format!("{NODE}cache_mb = 32\ncache_gb_s = 0"), "cache_gb_s: 0"),
            (&format!("{NODE}int8_tops = -2"), "int8_tops"),
        ] {
            let error = format!("{:#}", parse(text).expect_err(says));
            assert!(error.contains(says), "{error}");
        }
    }
}
