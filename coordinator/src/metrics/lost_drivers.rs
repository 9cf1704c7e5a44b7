//! What happens when a driver is late, or lost.

use prometheus::IntCounterVec;

use super::table::Table;

/// The families, by model.
pub(super) struct LostDrivers {
    pub(super) adopted: IntCounterVec,
    pub(super) unplanned_steps: IntCounterVec,
}

impl LostDrivers {
    pub(super) fn new(table: &Table<'_>) -> Self {
        Self {
            adopted: table.counters(
                "adopted_sequences_total",
                "Sequences taken over from drivers that were lost.",
                &["model"],
            ),
            unplanned_steps: table.counters(
                "unplanned_steps_total",
                "Steps that leaders ran by themselves because the next plan was late.",
                &["model"],
            ),
        }
    }
}
