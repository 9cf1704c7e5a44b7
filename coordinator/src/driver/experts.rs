//! How many tokens were routed to each expert, as the drivers here have heard.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use foggara_proto::step::ExpertCount;

/// Most layer and expert numbers: what a leader reports beyond them is no expert of any model there is.
const MAX_LAYERS: u32 = 1024;
const MAX_EXPERTS: u32 = 4096;

/// Tokens by layer and expert.
pub type ExpertLoad = BTreeMap<(u32, u32), u64>;

/// The sums of all models driven here, for whoever assigns experts to ranks.
#[derive(Clone, Default)]
pub struct ExpertLoads(Arc<Mutex<BTreeMap<String, ExpertLoad>>>);

impl ExpertLoads {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, ExpertLoad>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Adds what a report says of `model`. Returns what was taken.
    pub fn add(&self, model: &str, counts: Vec<ExpertCount>) -> Vec<ExpertCount> {
        if counts.is_empty() {
            return counts;
        }
        let mut loads = self.lock();
        let load = loads.entry(model.to_owned()).or_default();
        let real = counts.into_iter().filter(|count| count.layer < MAX_LAYERS && count.expert < MAX_EXPERTS);
        real.inspect(|count| {
            let sum = load.entry((count.layer, count.expert)).or_default();
            *sum = sum.saturating_add(count.tokens);
        })
        .collect()
    }

    /// What is known of `model`.
    pub fn of(&self, model: &str) -> ExpertLoad {
        self.lock().get(model).cloned().unwrap_or_default()
    }

    /// Forgets models that `served` does not know.
    pub(super) fn retain(&self, served: impl Fn(&str) -> bool) {
        self.lock().retain(|model, _| served(model));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_add_up_by_model_and_nonsense_is_left_out() {
        let loads = ExpertLoads::default();
        let count = |layer, expert, tokens| ExpertCount { layer, expert, tokens };
        assert_eq!(loads.add("m", vec![count(0, 1, 5), count(0, 4096, 1), count(1024, 0, 1)]).len(), 1);
        loads.add("m", vec![count(0, 1, 2), count(3, 0, u64::MAX)]);
        loads.add("m", vec![count(3, 0, 1)]);
        loads.add("n", vec![count(0, 1, 9)]);
        assert_eq!(loads.of("m"), ExpertLoad::from([((0, 1), 7), ((3, 0), u64::MAX)]));
        loads.retain(|model| model == "n");
        assert_eq!((loads.of("m").len(), loads.of("n").len()), (0, 1));
    }
}
