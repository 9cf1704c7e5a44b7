//! As a picture: how many times as good as each peer, figure by figure.

use anyhow::{Context, Result};

use super::Found;
use crate::plot::Bars;
use crate::stats::Summary;

/// A bar for each figure and peer, of its rounds.
pub(super) fn svg(found: &Found) -> Result<String> {
    let mut bars = Vec::new();
    for row in &found.rows {
        for (peer, name) in found.sides.iter().enumerate().skip(1) {
            if let Some(summary) = Summary::of(&row.ratios(peer)) {
                bars.push((format!("{}, over {name}", row.what), summary));
            }
        }
    }
    let caption = format!("{} over others ({}, {})", found.sides[0], found.machine.cpu, found.date);
    Bars { caption, axis: "times as good".into(), mark: 1.0, bars }.svg().context("servers side by side")
}
