//! The families there are, as documentation: `docs/reference/metrics.md` is [`reference()`]'s text.

use std::fmt::Write as _;

/// What a family's numbers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, from 0 at the process's start.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts of observations at most so large, their number and their sum.
    Histogram {
        /// Upper bounds, infinity apart.
        buckets: usize,
    },
}

impl Kind {
    /// As Prometheus calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram { .. } => "histogram",
        }
    }

    /// Series of one combination of labels.
    fn series(self) -> usize {
        match self {
            Self::Counter | Self::Gauge => 1,
            Self::Histogram { buckets } => buckets + 3,
        }
    }
}

/// One family, as it was declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Family {
    /// With its prefix.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// What it means.
    pub help: String,
    /// The names of its labels.
    pub labels: Vec<String>,
}

impl Family {
    /// What it is counted in, by the endings that Prometheus recommends.
    fn unit(&self) -> &'static str {
        let name = self.name.trim_end_matches("_total");
        [
            ("_seconds", "seconds"),
            ("_bytes", "bytes"),
            ("_tokens", "tokens"),
            ("_rows", "tokens"),
            ("bytes_per_second", "bytes a second"),
        ]
        .into_iter()
        .find_map(|(end, unit)| name.ends_with(end).then_some(unit))
        .unwrap_or("number")
    }

    /// How many series there can be on one coordinator.
    fn bound(&self) -> String {
        let mut bound = self.kind.series().to_string();
        for label in &self.labels {
            bound.push_str(" × ");
            bound.push_str(values_of(label).0);
        }
        bound
    }
}

/// How many values a label has, and which.
///
/// # Panics
/// For a label that is not described: a new one belongs here.
fn values_of(label: &str) -> (&'static str, &'static str) {
    match label {
        "model" => ("models", "names of deployments, and `unknown` for requests that name no model there is"),
        "deployment" => ("models", "names of deployments"),
        "adapter" => (
            "256",
            "names of adapters, at most 256 of each deployment; one that was removed is told of for ten minutes more",
        ),
        "api" => ("4", "`grpc`, `attach`, `chat`, `completions`"),
        "status" => {
            ("20", "`stop` and `length` for answers that are complete, `cancelled`, or the kind of error")
        }
        "state" => ("4", "given with each family"),
        "layer" => ("layers", "layers of the model that have experts, from 0"),
        "expert" => ("experts", "experts of a layer, from 0"),
        "rank" => ("ranks", "ranks of a replica, from 0; at most 64"),
        "phase" => ("4", "`wait`, `compute`, `collective`, `sample`"),
        "worker" => ("workers", "ids of workers that load"),
        "follower" => ("coordinators", "ids of the other coordinators"),
        "version" => ("1", "the version of Foggara"),
        other => panic!("label `{other}` is not described"),
    }
}

/// The page of documentation about `families`.
///
/// # Panics
/// If one has a label that is not described.
pub fn reference(families: &[Family]) -> String {
    let mut page = String::from(
        "# Metrics\n\n\
         Every coordinator answers `GET /metrics` in Prometheus's text format. Each tells what it knows itself: requests of its front\n\
         door, groups that it drives, its own Raft member and process. Sum over coordinators for the cluster. Workers have no metrics of their own;\n\
         what they do is told to the coordinator that drives them.\n\n\
         This page is made from the declarations (`coordinator/src/metrics`); a test compares it. *Series at most* is for one coordinator.\n\n\
         | name | type | unit | labels | meaning | series at most |\n|---|---|---|---|---|---|\n",
    );
    let mut sorted: Vec<_> = families.iter().collect();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    for family in &sorted {
        let labels = family.labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(" ");
        let (name, kind, unit) = (&family.name, family.kind.name(), family.unit());
        // Writing to a string never fails.
        writeln!(page, "| `{name}` | {kind} | {unit} | {labels} | {} | {} |", family.help, family.bound())
            .ok();
    }
    page.push_str("\n## Labels\n| label | values |\n|---|---|\n");
    let mut labels: Vec<_> = families.iter().flat_map(|family| &family.labels).collect();
    labels.sort();
    labels.dedup();
    for label in labels {
        writeln!(page, "| `{label}` | {} |", values_of(label).1).ok();
    }
    page
}
