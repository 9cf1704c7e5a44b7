//! What each rank of the groups driven here does. Ranks of a model's replicas with the same number are counted together.

use std::collections::BTreeMap;
use std::time::Duration;

use foggara_proto::shape::MAX_RANKS;
use foggara_proto::step::RankUse;
use prometheus::{Counter, CounterVec, IntCounter, IntCounterVec};

use super::table::Table;

/// What a rank's time goes into, in the order of [`RankCounters::seconds`].
const PHASES: [&str; 4] = ["wait", "compute", "collective", "sample"];

/// The families, by model and rank.
#[derive(Clone)]
pub(super) struct RankFamilies {
    steps: IntCounterVec,
    seconds: CounterVec,
    dispatched_rows: IntCounterVec,
    dispatched_bytes: IntCounterVec,
}

impl RankFamilies {
    pub(super) fn new(table: &Table<'_>) -> Self {
        let labels = ["model", "rank"];
        Self {
            steps: table.counters("rank_steps_total", "Steps of each rank.", &labels),
            seconds: table.seconds_by(
                "rank_seconds_total",
                "Where each rank's time goes: wait for the next step, compute, collective, sample.",
                &["model", "rank", "phase"],
            ),
            dispatched_rows: table.counters(
                "expert_dispatch_rows_total",
                "Rows each rank sent to others for experts there, and results it sent back.",
                &labels,
            ),
            dispatched_bytes: table.counters(
                "expert_dispatch_bytes_total",
                "Bytes each rank sent to others for experts.",
                &labels,
            ),
        }
    }

    /// Those of `model`.
    pub(super) fn of(&self, model: &str) -> RankMetrics {
        RankMetrics { families: self.clone(), model: model.to_owned(), ranks: BTreeMap::new() }
    }
}

/// One rank's.
struct RankCounters {
    steps: IntCounter,
    seconds: [Counter; 4],
    dispatched_rows: IntCounter,
    dispatched_bytes: IntCounter,
}

/// Those of one model's ranks, made when they are first told of.
pub(super) struct RankMetrics {
    families: RankFamilies,
    model: String,
    ranks: BTreeMap<u32, RankCounters>,
}

impl RankMetrics {
    pub(super) fn add(&mut self, told: &[RankUse]) {
        // More there are not in any group.
        for told in told.iter().filter(|told| told.rank < MAX_RANKS) {
            let (families, model) = (&self.families, self.model.as_str());
            let rank = self.ranks.entry(told.rank).or_insert_with(|| {
                let rank = told.rank.to_string();
                let labels = [model, rank.as_str()];
                RankCounters {
                    steps: families.steps.with_label_values(&labels),
                    seconds: PHASES
                        .map(|phase| families.seconds.with_label_values(&[model, rank.as_str(), phase])),
                    dispatched_rows: families.dispatched_rows.with_label_values(&labels),
                    dispatched_bytes: families.dispatched_bytes.with_label_values(&labels),
                }
            });
            rank.steps.inc_by(told.steps);
            let micros = [told.wait_us, told.compute_us, told.collective_us, told.sample_us];
            for (counter, micros) in rank.seconds.iter().zip(micros) {
                counter.inc_by(Duration::from_micros(micros).as_secs_f64());
            }
            rank.dispatched_rows.inc_by(told.dispatched_rows);
            rank.dispatched_bytes.inc_by(told.dispatched_bytes);
        }
    }
}
