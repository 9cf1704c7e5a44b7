//! What a run found: kept as JSON, shown as a table, set beside the run before.

mod machine;
mod markdown;
mod picture;

use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::bound::Bound;
use crate::cost::ModelCost;
use crate::limits::{MachineLimits, Rates};
use crate::stats::Summary;

pub(crate) use machine::Machine;
pub(crate) use markdown::markdown;

/// What a number counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Unit {
    TokensPerSecond,
    RequestsPerSecond,
    /// A ratio.
    Times,
    Seconds,
    Millis,
    Micros,
    Megabytes,
    PercentOfCore,
    /// A thousand million operations each second.
    GigaOps,
    /// A thousand million bytes each second.
    Gigabytes,
}

impl Unit {
    /// As shown after a number.
    pub(crate) fn symbol(self) -> &'static str {
        match self {
            Self::TokensPerSecond => "tok/s",
            Self::RequestsPerSecond => "requests/s",
            Self::Times => "×",
            Self::Seconds => "s",
            Self::Millis => "ms",
            Self::Micros => "µs",
            Self::Megabytes => "MB",
            Self::PercentOfCore => "% of a core",
            Self::GigaOps => "GOP/s",
            Self::Gigabytes => "GB/s",
        }
    }

    /// Whether less is better.
    pub(crate) fn is_cost(self) -> bool {
        match self {
            Self::Seconds | Self::Millis | Self::Micros | Self::Megabytes | Self::PercentOfCore => true,
            Self::TokensPerSecond
            | Self::RequestsPerSecond
            | Self::Times
            | Self::GigaOps
            | Self::Gigabytes => false,
        }
    }
}

/// One figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measure {
    /// Stable from run to run.
    pub(crate) key: String,
    /// For readers.
    pub(crate) what: String,
    pub(crate) unit: Unit,
    /// The median, if there were several.
    pub(crate) value: f64,
    /// Least and most of several.
    pub(crate) spread: Option<(f64, f64)>,
    /// The most the machine allows; the least, where less is better.
    pub(crate) limit: Option<f64>,
    /// What `limit` comes of, once rates are known.
    #[serde(skip)]
    pub(crate) bound: Option<Bound>,
    pub(crate) note: String,
    /// Value of the run before.
    pub(crate) previous: Option<f64>,
    /// Share of the limit in the run before.
    #[serde(default)]
    pub(crate) previous_share: Option<f64>,
}

impl Measure {
    /// A figure taken once.
    pub(crate) fn single(key: &str, what: &str, unit: Unit, value: f64) -> Self {
        let (key, what) = (key.to_owned(), what.to_owned());
        Self {
            key,
            what,
            unit,
            value,
            spread: None,
            limit: None,
            bound: None,
            note: String::new(),
            previous: None,
            previous_share: None,
        }
    }

    /// A figure taken several times; `None` if not even once.
    pub(crate) fn of(key: &str, what: &str, unit: Unit, samples: &[f64]) -> Option<Self> {
        let Summary { least, median, most } = Summary::of(samples)?;
        let spread = (samples.len() > 1).then_some((least, most));
        Some(Self { spread, ..Self::single(key, what, unit, median) })
    }

    /// Bounded so.
    pub(crate) fn bound(self, bound: Option<Bound>) -> Self {
        Self { bound, ..self }
    }

    /// Works out the limit.
    pub(crate) fn settle(&mut self, rates: &Rates) {
        self.limit = self.bound.as_ref().and_then(|bound| bound.limit(rates));
    }

    /// How much of the limit the figure is, if that is known.
    pub(crate) fn share(&self) -> Option<f64> {
        self.limit.map(|limit| self.share_of(limit, self.value))
    }

    fn share_of(&self, limit: f64, value: f64) -> f64 {
        if self.unit.is_cost() { limit / value } else { value / limit }
    }

    /// With what a reader should know of it.
    pub(crate) fn note(self, note: impl Into<String>) -> Self {
        Self { note: note.into(), ..self }
    }
}

/// A whole run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Report {
    /// When it ended, UTC.
    pub(crate) date: String,
    /// The version measured, as git describes the working tree this tool was run in.
    pub(crate) commit: String,
    pub(crate) command: String,
    pub(crate) machine: Machine,
    /// What was driven.
    pub(crate) target: String,
    pub(crate) model: String,
    pub(crate) cost: Option<ModelCost>,
    pub(crate) limits: MachineLimits,
    /// How limits come about.
    pub(crate) explanation: Option<String>,
    /// Of kernels by themselves.
    #[serde(default)]
    pub(crate) kernels: Vec<Measure>,
    /// Of the whole.
    pub(crate) measures: Vec<Measure>,
    /// Which run `previous` values are of.
    pub(crate) compared_with: Option<String>,
}

impl Report {
    /// Fills in the values of the run before, line by line.
    pub(crate) fn compare(&mut self, before: &Self) {
        let all = [(&mut self.kernels, &before.kernels), (&mut self.measures, &before.measures)];
        let mut found = false;
        for (now, before) in all {
            for measure in now {
                let same = before.iter().find(|other| other.key == measure.key);
                measure.previous = same.map(|other| other.value);
                measure.previous_share = same.and_then(Measure::share);
                found |= same.is_some();
            }
        }
        if found {
            let Self { date, commit, command, .. } = before;
            self.compared_with = Some(format!("{date}, {commit}: `{command}`"));
        }
    }

    /// Works out every limit, at rates that were measured before and after.
    pub(crate) fn settle(&mut self, rates: &Rates) {
        let measures = self.kernels.iter_mut().chain(&mut self.measures);
        measures.for_each(|measure| measure.settle(rates));
    }

    /// The run before, if its record is there and readable by this version.
    pub(crate) fn previous(folder: &Path) -> Option<Self> {
        serde_json::from_str(&std::fs::read_to_string(folder.join("latest.json")).ok()?).ok()
    }

    /// Writes `latest.json`, `latest.md` and, if any share of a limit is known, `latest.svg`.
    pub(crate) fn save(&self, folder: &Path) -> Result<()> {
        let write = |name: &str, text: String| {
            let path = folder.join(name);
            std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
        };
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        write("latest.json", serde_json::to_string_pretty(self)?)?;
        if let Some(picture) = picture::svg(self)? {
            write("latest.svg", picture)?;
        }
        write("latest.md", markdown(self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bound::Work;

    pub(super) fn report(measures: Vec<Measure>) -> Report {
        Report {
            date: "2026-01-02 03:04 UTC".into(),
            commit: "abc".into(),
            command: "foggara-bench".into(),
            machine: Machine { cpu: "a cpu".into(), cores: 2, memory_bytes: 1 << 30 },
            target: "a server".into(),
            model: "m".into(),
            cost: None,
            limits: MachineLimits { rates: vec![], after: vec![] },
            explanation: None,
            kernels: vec![],
            measures,
            compared_with: None,
        }
    }

    #[test]
    fn runs_are_compared_line_by_line() {
        let old = Measure::single("a", "a", Unit::Seconds, 2.0);
        let mut now = report(vec![
            Measure::single("a", "a", Unit::Seconds, 1.0),
            Measure::single("b", "b", Unit::Seconds, 1.0),
        ]);
        now.compare(&report(vec![]));
        assert_eq!(now.compared_with, None);
        now.compare(&report(vec![old]));
        assert_eq!((now.measures[0].previous, now.measures[1].previous), (Some(2.0), None));
        assert!(now.compared_with.is_some_and(|text| text.contains("abc")));
    }

    #[test]
    fn kernels_are_compared_with_kernels_and_shares_with_shares() {
        let kernel = |value| {
            let measure = Measure::single("k", "k", Unit::GigaOps, value);
            measure.bound(Some(Bound::of(1.0, Work { flops: 2e9, ..Work::default() })))
        };
        let rates =
            |flops| Rates { threads: 1, read_bytes_per_second: 1, flops, int8_ops: 1, handover_nanos: None };
        let (mut before, mut now) = (report(vec![]), report(vec![]));
        (before.kernels, now.kernels) = (vec![kernel(1.0)], vec![kernel(3.0)]);
        before.settle(&rates(4_000_000_000));
        now.settle(&rates(8_000_000_000));
        now.compare(&before);
        let kernel = &now.kernels[0];
        assert_eq!(
            (kernel.previous, kernel.previous_share, kernel.share()),
            (Some(1.0), Some(0.5), Some(0.75))
        );
        assert!(now.compared_with.is_some());
    }

    #[test]
    fn less_of_a_cost_is_a_higher_share() {
        let time = Measure::single("t", "t", Unit::Micros, 4.0);
        assert_eq!(Measure { limit: Some(1.0), ..time }.share(), Some(0.25));
    }

    #[test]
    fn a_record_can_be_read_back() {
        let folder = tempfile::tempdir().expect("a folder");
        assert!(Report::previous(folder.path()).is_none());
        let measure = Measure::of("a", "a", Unit::Times, &[1.0, 3.0]).expect("two").note("n");
        let measure = Measure { limit: Some(4.0), ..measure };
        report(vec![measure.clone()]).save(folder.path()).expect("it can be written");
        let back = Report::previous(folder.path()).expect("it was written");
        assert_eq!(back.measures, [measure]);
        for name in ["latest.md", "latest.svg"] {
            assert!(folder.path().join(name).exists(), "{name}");
        }
    }
}
