//! Other servers beside ours: the same client asks each of them in turn, so that all see the machine alike.

mod plot;
mod table;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::print;
use crate::args::VersusArgs;
use crate::bound::Bound;
use crate::cluster::Cluster;
use crate::cost::ModelCost;
use crate::limits::MachineLimits;
use crate::prompts::Prompts;
use crate::quiet;
use crate::report::{Machine, Measure, Unit};
use crate::target::Target;
use crate::workload::{Bench, Workload};

/// What is measured where nothing is asked for.
const WORKLOADS: [Workload; 4] = [Workload::Decode, Workload::Prefill, Workload::Streams, Workload::Clients];
/// What ours is called.
const OURS: &str = "foggara";

/// A server that ours is compared with.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    name: String,
    url: String,
}

/// `NAME=URL`.
impl std::str::FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let good = |url: &str| url.starts_with("http://") || url.starts_with("https://");
        match text.split_once('=') {
            Some((name, url)) if !name.is_empty() && good(url) => {
                Ok(Self { name: name.to_owned(), url: url.to_owned() })
            }
            _ => Err("is not NAME=URL, as in llama.cpp=http://127.0.0.1:8000".to_owned()),
        }
    }
}

/// Everything found.
#[derive(Debug, Serialize)]
struct Found {
    /// UTC.
    date: String,
    commit: String,
    command: String,
    machine: Machine,
    /// Names of the servers, ours first.
    sides: Vec<String>,
    /// Before and after; what limits come of are the higher ones.
    limits: MachineLimits,
    rows: Vec<Row>,
}

/// One figure of all servers.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Row {
    key: String,
    what: String,
    unit: Unit,
    /// The most that the machine allows ours, if it is known.
    limit: Option<f64>,
    #[serde(skip)]
    bound: Option<Bound>,
    /// By server, then by round.
    values: Vec<Vec<f64>>,
}

impl Row {
    /// How many times as good as the `peer`-th server ours was, round by round.
    fn ratios(&self, peer: usize) -> Vec<f64> {
        let pairs = self.values[0].iter().zip(&self.values[peer]);
        if self.unit.is_cost() {
            pairs.map(|(ours, theirs)| theirs / ours).collect()
        } else {
            pairs.map(|(ours, theirs)| ours / theirs).collect()
        }
    }
}

/// Measures; the exit code says nothing of the figures.
pub(crate) async fn run(args: &VersusArgs) -> Result<ExitCode> {
    ensure!(args.rounds > 0 && args.runs > 0, "--rounds and --runs must be at least 1");
    for workload in [Workload::Kernels, Workload::ColdStart, Workload::HttpDecode, Workload::Idle] {
        ensure!(
            !args.only.contains(&workload),
            "--only {} is measured of our own cluster alone: run it without `versus`",
            workload.name()
        );
    }
    let cost = ModelCost::asked(&args.target)?;
    let threads = args.target.workers * args.target.threads;
    let mut limits = MachineLimits::measure(threads, false);
    let ours = if args.target.own_cluster() { Some(Cluster::start(&args.target).await?) } else { None };
    let mut sides = vec![(OURS.to_owned(), Target::open(&args.target, ours).await?)];
    for Peer { name, url } in &args.peers {
        ensure!(sides.iter().all(|(other, _)| other != name), "--peer {name} is given twice");
        let target = Target::other(url).await.with_context(|| format!("--peer {name}"))?;
        sides.push((name.clone(), target));
    }
    let mut rows: Vec<Row> = Vec::new();
    for round in 0..args.rounds {
        for workload in if args.only.is_empty() { &WORKLOADS[..] } else { &args.only } {
            // Nobody is always the first, when the machine may have rested.
            let mut order: Vec<usize> = (0..sides.len()).collect();
            if round % 2 == 1 {
                order.reverse();
            }
            for side in order {
                let (name, target) = &sides[side];
                // vLLM's threads spin for a second after an answer, beside whoever is asked next.
                quiet::wait().await?;
                eprintln!("… {name}, {}, {} of {}", workload.name(), round + 1, args.rounds);
                let bench = Bench {
                    target,
                    cost,
                    prompts: Prompts::new(),
                    repetitions: args.runs,
                    streams: args.streams,
                    clients: args.clients,
                    arrivals: args.arrivals,
                    quick: true,
                };
                let measures = bench.run(*workload).await.with_context(|| name.clone())?;
                take(&mut rows, sides.len(), side, measures);
            }
        }
    }
    limits.measure_after(threads, false);
    let rates = limits.of(threads);
    for row in &mut rows {
        row.limit = row.bound.as_ref().zip(rates.as_ref()).and_then(|(bound, rates)| bound.limit(rates));
    }
    let found = Found {
        date: crate::run::now()?,
        commit: crate::run::commit(),
        command: crate::run::command_line(),
        machine: Machine::this(),
        sides: sides.iter().map(|(name, _)| name.clone()).collect(),
        limits,
        rows,
    };
    for (_, target) in sides {
        target.close().await?;
    }
    if let Some(folder) = &args.save {
        save(folder, &found)?;
    }
    print(args.json, &found, &table::markdown(&found))?;
    Ok(ExitCode::SUCCESS)
}

/// Adds what the `side`-th of `sides` servers was measured at. (What compares it with itself is left out.)
fn take(rows: &mut Vec<Row>, sides: usize, side: usize, measures: Vec<Measure>) {
    for measure in measures.into_iter().filter(|measure| measure.unit != Unit::Times) {
        let Measure { key, what, unit, value, bound, .. } = measure;
        let row = match rows.iter_mut().position(|row| row.key == key) {
            Some(place) => &mut rows[place],
            None => {
                rows.push(Row { key, what, unit, limit: None, bound, values: vec![Vec::new(); sides] });
                let last = rows.len() - 1;
                &mut rows[last]
            }
        };
        row.values[side].push(value);
    }
}

/// Writes `NAME.json`, `NAME.md` and `NAME.svg`, where `path` is the name without its end.
fn save(path: &Path, found: &Found) -> Result<()> {
    let file = |end: &str| PathBuf::from(format!("{}.{end}", path.display()));
    for (end, text) in [
        ("json", serde_json::to_string_pretty(found)? + "\n"),
        ("md", table::markdown(found)),
        ("svg", plot::svg(found)?),
    ] {
        std::fs::write(file(end), text).with_context(|| format!("writing {}", file(end).display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measure(key: &str, unit: Unit, value: f64) -> Measure {
        Measure::single(key, &format!("what {key} is"), unit, value)
    }

    fn found() -> Found {
        let mut rows = Vec::new();
        // Two rounds, the second the other way round.
        for (side, rate, first) in [(0, 100.0, 1.0), (1, 50.0, 3.0), (1, 60.0, 2.0), (0, 90.0, 2.0)] {
            let measures = [
                ("rate", Unit::TokensPerSecond, rate),
                ("first", Unit::Seconds, first),
                ("own", Unit::Times, 9.0),
            ];
            take(&mut rows, 2, side, measures.map(|(key, unit, value)| measure(key, unit, value)).to_vec());
        }
        Found {
            date: "2026-01-02 03:04 UTC".into(),
            commit: "abc".into(),
            command: "foggara-bench versus".into(),
            machine: Machine { cpu: "a cpu".into(), cores: 2, memory_bytes: 1 << 30 },
            sides: vec![OURS.into(), "other".into()],
            limits: MachineLimits { rates: vec![], after: vec![] },
            rows,
        }
    }

    #[test]
    fn ratios_say_how_many_times_as_good_round_by_round() {
        let found = found();
        let keys: Vec<&str> = found.rows.iter().map(|row| row.key.as_str()).collect();
        assert_eq!(keys, ["rate", "first"], "what compares a server with itself is left out");
        assert_eq!(found.rows[0].ratios(1), [2.0, 1.5]);
        assert_eq!(found.rows[1].ratios(1), [3.0, 1.0], "less time is better");
    }

    #[test]
    fn table_and_picture_show_every_figure() {
        let found = found();
        let (text, picture) = (table::markdown(&found), plot::svg(&found).expect("it can be drawn"));
        assert!(
            text.contains(
                "| what rate is | tok/s | 95.0 (90.0–100.0) |  | 55.0 (50.0–60.0) | 1.75 (1.50–2.00) × |"
            ),
            "{text}"
        );
        for row in &found.rows {
            assert!(
                text.contains(&row.what) && picture.contains(&format!("{}, over other", row.what)),
                "{picture}"
            );
        }
        crate::plot::tests::assert_well_formed(&picture);
    }

    #[test]
    fn peers_have_a_name_and_a_url() {
        let peer: Peer = "llama.cpp=http://127.0.0.1:8000".parse().expect("a peer");
        assert_eq!((peer.name.as_str(), peer.url.as_str()), ("llama.cpp", "http://127.0.0.1:8000"));
        for wrong in ["", "llama.cpp", "=http://a", "a=", "a=127.0.0.1:8000"] {
            assert!(wrong.parse::<Peer>().is_err(), "{wrong}");
        }
    }
}
