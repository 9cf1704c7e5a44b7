//! Steps of the groups driven here.

use prometheus::{HistogramVec, IntCounterVec};

use super::table::Table;

const STEP: [f64; 12] = [0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1.0];
const ROWS: [f64; 12] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0];

/// The families, by model.
pub(super) struct StepFamilies {
    pub(super) steps: IntCounterVec,
    pub(super) seconds: HistogramVec,
    pub(super) collective_seconds: HistogramVec,
    pub(super) wait_seconds: HistogramVec,
    pub(super) sample_seconds: HistogramVec,
    pub(super) rows: HistogramVec,
    pub(super) drafted: IntCounterVec,
    pub(super) accepted: IntCounterVec,
}

impl StepFamilies {
    pub(super) fn new(table: &Table<'_>) -> Self {
        Self {
            steps: table.counters("steps_total", "Steps of groups driven here.", &["model"]),
            seconds: table.histograms(
                "step_seconds",
                "Forward pass and sampling of a step.",
                &["model"],
                &STEP,
            ),
            collective_seconds: table.histograms(
                "step_collective_seconds",
                "Time of a step inside collectives.",
                &["model"],
                &STEP,
            ),
            wait_seconds: table.histograms(
                "step_wait_seconds",
                "Time the leader waited for a plan.",
                &["model"],
                &STEP,
            ),
            sample_seconds: table.histograms(
                "step_sample_seconds",
                "Time of a step spent on sampling.",
                &["model"],
                &STEP,
            ),
            rows: table.histograms(
                "step_rows",
                "Tokens that went through the model in a step.",
                &["model"],
                &ROWS,
            ),
            drafted: table.counters(
                "draft_tokens_total",
                "Tokens that were guessed and computed with the one before.",
                &["model"],
            ),
            accepted: table.counters(
                "accepted_draft_tokens_total",
                "Guessed tokens that were right: each saved its sequence a step.",
                &["model"],
            ),
        }
    }
}
