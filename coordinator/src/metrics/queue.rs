//! How long sequences wait to enter a group.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use prometheus::{GaugeVec, HistogramVec};

use super::LATENCY;
use super::driven::DrivenGroups;
use super::table::Table;

/// The families, by model.
pub(super) struct QueueFamilies {
    pub(super) wait: HistogramVec,
    oldest: GaugeVec,
    /// The models that `oldest` tells of.
    told: Mutex<BTreeSet<String>>,
}

impl QueueFamilies {
    pub(super) fn new(table: &Table<'_>) -> Self {
        Self {
            wait: table.histograms(
                "queue_wait_seconds",
                "From a sequence's arrival at the driver until it enters the group.",
                &["model"],
                &LATENCY,
            ),
            oldest: table.ratios(
                "queue_oldest_seconds",
                "How long the sequence has waited that has waited longest, of groups driven here; 0 if none waits.",
                &["model"],
            ),
            told: Mutex::default(),
        }
    }

    /// Takes in who waits now. A driver to whom nothing happens, because its group hangs, need not tell for that.
    pub(super) fn read(&self, driven: &DrivenGroups, now: Instant) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let mut before = std::mem::take(&mut *told);
        for (model, since) in driven.waits_since() {
            let seconds = since.map_or(0.0, |since| now.saturating_duration_since(since).as_secs_f64());
            self.oldest.with_label_values(&[&model]).set(seconds);
            before.remove(&model);
            told.insert(model);
        }
        // What is not driven here is not told of here.
        for model in before {
            self.oldest.remove_label_values(&[&model]).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{Metrics, Occupancy};

    #[test]
    fn the_oldest_of_all_groups_of_a_model_is_told() {
        let metrics = Metrics::new();
        let (mut one, mut two) = (metrics.driver(1, 1, "m"), metrics.driver(2, 1, "m"));
        let other = metrics.driver(3, 1, "n");
        let came = std::time::Instant::now();
        let at = |seconds| came + Duration::from_secs(seconds);
        let oldest = |seconds, model| {
            metrics.queue.read(&metrics.driven, at(seconds));
            metrics.queue.oldest.with_label_values(&[model]).get()
        };
        for (since, asked, expected) in [
            ([None, None], 9, 0.0),
            ([Some(2), None], 9, 7.0),
            ([Some(2), Some(1)], 9, 8.0),
            // Nothing happens, and it grows.
            ([Some(2), Some(1)], 99, 98.0),
            ([Some(5), None], 4, 0.0),
        ] {
            one.occupancy(Occupancy::default(), since[0].map(at));
            two.occupancy(Occupancy::default(), since[1].map(at));
            assert_eq!((oldest(asked, "m"), oldest(asked, "n")), (expected, 0.0), "{since:?}");
        }
        drop((one, two));
        let text = metrics.render();
        let series = |model| text.contains(&format!("foggara_queue_oldest_seconds{{model=\"{model}\"}} 0"));
        assert!(!series("m") && series("n"), "{text}");
        drop(other);
    }
}
