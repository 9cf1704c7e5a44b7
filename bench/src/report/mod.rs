//! What a run found: kept as JSON, shown as a table, set beside the run before.

mod machine;
mod markdown;

use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::limits::{MachineLimits, ModelCost};
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
    Megabytes,
    PercentOfCore,
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
            Self::Megabytes => "MB",
            Self::PercentOfCore => "% of a core",
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
    /// The most the machine allows.
    pub(crate) limit: Option<f64>,
    pub(crate) note: String,
    /// Value of the run before.
    pub(crate) previous: Option<f64>,
}

impl Measure {
    /// A figure taken once.
    pub(crate) fn single(key: &str, what: &str, unit: Unit, value: f64) -> Self {
        let (key, what) = (key.to_owned(), what.to_owned());
        Self { key, what, unit, value, spread: None, limit: None, note: String::new(), previous: None }
    }

    /// A figure taken several times; `None` if not even once.
    pub(crate) fn of(key: &str, what: &str, unit: Unit, samples: &[f64]) -> Option<Self> {
        let Summary { least, median, most } = Summary::of(samples)?;
        let spread = (samples.len() > 1).then_some((least, most));
        Some(Self { spread, ..Self::single(key, what, unit, median) })
    }

    /// Bounded by `limit`.
    pub(crate) fn limit(self, limit: Option<f64>) -> Self {
        Self { limit, ..self }
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
    pub(crate) measures: Vec<Measure>,
    /// Which run `previous` values are of.
    pub(crate) compared_with: Option<String>,
}

impl Report {
    /// Fills in the values of the run before, line by line.
    pub(crate) fn compare(&mut self, before: &Self) {
        for measure in &mut self.measures {
            let same = before.measures.iter().find(|other| other.key == measure.key);
            measure.previous = same.map(|other| other.value);
        }
        if self.measures.iter().any(|measure| measure.previous.is_some()) {
            let Self { date, commit, command, .. } = before;
            self.compared_with = Some(format!("{date}, {commit}: `{command}`"));
        }
    }

    /// The run before, if its record is there and readable by this version.
    pub(crate) fn previous(folder: &Path) -> Option<Self> {
        serde_json::from_str(&std::fs::read_to_string(folder.join("latest.json")).ok()?).ok()
    }

    /// Writes `latest.json` and `latest.md`.
    pub(crate) fn save(&self, folder: &Path) -> Result<()> {
        let write = |name: &str, text: String| {
            let path = folder.join(name);
            std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
        };
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        write("latest.json", serde_json::to_string_pretty(self)?)?;
        write("latest.md", markdown(self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(measures: Vec<Measure>) -> Report {
        Report {
            date: "2026-01-02 03:04 UTC".into(),
            commit: "abc".into(),
            command: "foggara-bench".into(),
            machine: Machine { cpu: "a cpu".into(), cores: 2, memory_bytes: 1 << 30 },
            target: "a server".into(),
            model: "m".into(),
            cost: None,
            limits: MachineLimits { rates: vec![] },
            explanation: None,
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
    fn a_record_can_be_read_back() {
        let folder = tempfile::tempdir().expect("a folder");
        assert!(Report::previous(folder.path()).is_none());
        let measure =
            Measure::of("a", "a", Unit::Times, &[1.0, 3.0]).expect("two").limit(Some(4.0)).note("n");
        report(vec![measure.clone()]).save(folder.path()).expect("it can be written");
        let back = Report::previous(folder.path()).expect("it was written");
        assert_eq!(back.measures, [measure]);
    }
}
