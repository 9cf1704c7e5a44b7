//! What the prefix cache is asked for, and finds.

use prometheus::IntCounterVec;

use super::table::Table;

/// The families, by model.
pub(super) struct PrefixFamilies {
    pub(super) asked: IntCounterVec,
    pub(super) found: IntCounterVec,
}

impl PrefixFamilies {
    pub(super) fn new(table: &Table<'_>) -> Self {
        Self {
            asked: table.counters(
                "prefix_cache_query_tokens_total",
                "Tokens of sequences that were looked for in the prefix cache.",
                &["model"],
            ),
            found: table.counters(
                "prefix_cache_hit_tokens_total",
                "Of them, those that were there.",
                &["model"],
            ),
        }
    }
}
