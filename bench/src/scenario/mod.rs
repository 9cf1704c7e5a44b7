//! Questions that are not how fast, but what one thing does to another: each starts the cluster that it needs.

pub(crate) mod adapters;
pub(crate) mod distance;
pub(crate) mod long_prompt;
pub(crate) mod predictions;
pub(crate) mod prefixes;
pub(crate) mod scrape;
pub(crate) mod speculation;
pub(crate) mod versus;

use std::fmt::Write as _;
use std::io::Write as _;

use anyhow::Result;
use serde::Serialize;

use crate::stats::percentile;

/// Milliseconds between tokens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Gaps {
    pub(crate) count: usize,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
}

impl Gaps {
    /// Of `seconds`; zeros of none.
    fn of(seconds: &[f64]) -> Self {
        let at = |percent| percentile(seconds, percent).unwrap_or_default() * 1e3;
        Self { count: seconds.len(), p50: at(50.0), p99: at(99.0), max: at(100.0) }
    }
}

/// Mean of `samples`; 0 of none.
fn mean(samples: &[f64]) -> f64 {
    if samples.is_empty() { 0.0 } else { samples.iter().sum::<f64>() / samples.len() as f64 }
}

/// Least, median and most, as one cell of a table.
fn spread(samples: &[f64], digits: usize) -> String {
    let at = |percent| percentile(samples, percent).unwrap_or_default();
    format!("{:.digits$} ({:.digits$}–{:.digits$})", at(50.0), at(0.0), at(100.0))
}

/// A table of Markdown.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut text = format!("| {} |\n|{}\n", head.join(" | "), "---|".repeat(head.len()));
    for row in rows {
        writeln!(text, "| {} |", row.join(" | ")).expect("a string takes everything");
    }
    text
}

/// Prints what was found, for people or for programs.
pub(crate) fn print(json: bool, found: &impl Serialize, text: &str) -> Result<()> {
    let text = if json { serde_json::to_string_pretty(found)? + "\n" } else { text.to_owned() };
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_in_milliseconds() {
        let gaps = Gaps::of(&[0.010, 0.020, 0.030]);
        assert_eq!((gaps.count, gaps.p50, gaps.max), (3, 20.0, 30.0));
        assert_eq!(Gaps::of(&[]).p99, 0.0);
    }

    #[test]
    fn tables_are_markdown() {
        let text = table(&["a", "b"], &[vec!["1".into(), spread(&[1.0, 3.0, 2.0], 1)]]);
        assert_eq!(text, "| a | b |\n|---|---|\n| 1 | 2.0 (1.0–3.0) |\n");
    }
}
