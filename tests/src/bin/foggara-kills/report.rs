//! What all trials came to: a table for people, JSON for programs.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use crate::kind::Kind;
use crate::trial::Outcome;

/// How long streams of one kind of trial stalled, in seconds: for each stream the longest time between two tokens.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Row {
    kind: &'static str,
    trials: usize,
    streams: usize,
    failed: usize,
    /// Of all streams of all trials.
    p50: f64,
    p90: f64,
    p99: f64,
    max: f64,
    attached: usize,
    sent_again: usize,
    /// Of each stream, in order of length.
    stalls: Vec<f64>,
}

/// All of it.
#[derive(Debug, Serialize)]
pub struct Report {
    seed: u64,
    streams: usize,
    tokens: u32,
    rows: Vec<Row>,
    left_out: Vec<&'static str>,
    failures: Vec<String>,
}

impl Report {
    pub fn new(seed: u64, streams: usize, tokens: u32) -> Self {
        Self { seed, streams, tokens, rows: Vec::new(), left_out: Vec::new(), failures: Vec::new() }
    }

    pub fn left_out(&mut self, kind: Kind) {
        self.left_out.push(kind.name());
    }

    pub fn add(&mut self, kind: Kind, outcome: Outcome) {
        if self.rows.last().is_none_or(|row| row.kind != kind.name()) {
            self.rows.push(Row {
                kind: kind.name(),
                trials: 0,
                streams: 0,
                failed: 0,
                p50: 0.0,
                p90: 0.0,
                p99: 0.0,
                max: 0.0,
                attached: 0,
                sent_again: 0,
                stalls: Vec::new(),
            });
        }
        let row = self.rows.last_mut().expect("there is one now");
        row.trials += 1;
        row.streams += self.streams;
        row.failed += outcome.failures.len();
        row.attached += outcome.attached;
        row.sent_again += outcome.sent_again;
        row.stalls.extend(outcome.stalls.iter().map(Duration::as_secs_f64));
        row.stalls.sort_by(f64::total_cmp);
        let at = |share: f64| percentile(&row.stalls, share);
        (row.p50, row.p90, row.p99, row.max) = (at(0.5), at(0.9), at(0.99), at(1.0));
        self.failures.extend(outcome.failures);
    }

    pub fn failures(&self) -> &[String] {
        &self.failures
    }

    pub fn markdown(&self) -> String {
        let Self { seed, streams, tokens, rows, left_out, failures } = self;
        let mut text = format!(
            "{streams} streams of {tokens} tokens at once, seed {seed}; for each stream the longest time between two tokens, in seconds\n\n\
            | kind | times | streams | failed | p50 | p90 | p99 | max |\n|---|---|---|---|---|---|---|---|\n"
        );
        for row in rows {
            let Row { kind, trials, streams, failed, p50, p90, p99, max, .. } = row;
            writeln!(
                text,
                "| {kind} | {trials} | {streams} | {failed} | {p50:.2} | {p90:.2} | {p99:.2} | {max:.2} |"
            )
            .expect("a string");
        }
        for kind in left_out {
            writeln!(text, "\nLeft out: {kind} (the cluster does not know `Attach`).").expect("a string");
        }
        for Row { kind, attached, sent_again, .. } in
            rows.iter().filter(|row| row.attached + row.sent_again > 0)
        {
            writeln!(
                text,
                "\n{kind}: {attached} streams were attached to, {sent_again} requests were sent again."
            )
            .expect("a string");
        }
        writeln!(text, "\n{} streams failed or differed.", failures.len()).expect("a string");
        text
    }

    /// Writes `kills.json` and `kills.md`.
    pub fn save(&self, folder: &Path) {
        std::fs::create_dir_all(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        let json = serde_json::to_string_pretty(self).expect("plain data") + "\n";
        for (name, text) in [("kills.json", json), ("kills.md", self.markdown())] {
            let path = folder.join(name);
            std::fs::write(&path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        }
    }
}

/// The value that so large a share of `sorted` is not beyond; 0 of none.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let place = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(place.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        let samples: Vec<f64> = (1..=100).map(f64::from).collect();
        for (share, expected) in [(0.0, 1.0), (0.5, 50.0), (0.99, 99.0), (1.0, 100.0)] {
            assert!((percentile(&samples, share) - expected).abs() < 1e-9, "{share}");
        }
        assert!(percentile(&[], 0.5).abs() < 1e-9);
    }
}
