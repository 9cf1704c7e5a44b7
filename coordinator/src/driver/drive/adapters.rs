//! How many sequences of each adapter a driver has.

use std::collections::{BTreeMap, BTreeSet};

use crate::metrics::AdapterUse;

/// By the adapters' numbers. Sequences without an adapter are not counted.
#[derive(Debug, Default)]
pub(super) struct AdapterCounts {
    used: BTreeMap<u64, AdapterUse>,
    changed: BTreeSet<u64>,
}

impl AdapterCounts {
    /// A sequence has come; it waits, unless it runs already.
    pub(super) fn came(&mut self, adapter: Option<u64>, waits: bool) {
        self.change(adapter, |used| *count(used, waits) += 1);
    }

    /// One that waited has entered the group.
    pub(super) fn entered(&mut self, adapter: Option<u64>) {
        self.left(adapter, true);
        self.came(adapter, false);
    }

    /// One has gone, from where it waited or ran.
    pub(super) fn left(&mut self, adapter: Option<u64>, waited: bool) {
        self.change(adapter, |used| {
            let count = count(used, waited);
            *count = count.saturating_sub(1);
        });
    }

    /// What has changed since this was asked last.
    pub(super) fn changed(&mut self) -> Vec<(u64, AdapterUse)> {
        let changed = std::mem::take(&mut self.changed);
        let now =
            changed.into_iter().map(|id| (id, self.used.get(&id).copied().unwrap_or_default())).collect();
        self.used.retain(|_, used| *used != AdapterUse::default());
        now
    }

    fn change(&mut self, adapter: Option<u64>, change: impl FnOnce(&mut AdapterUse)) {
        let Some(id) = adapter else { return };
        change(self.used.entry(id).or_default());
        self.changed.insert(id);
    }
}

fn count(used: &mut AdapterUse, waits: bool) -> &mut usize {
    if waits { &mut used.waiting } else { &mut used.running }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_are_counted_from_their_coming_to_their_end() {
        let mut counts = AdapterCounts::default();
        counts.came(None, true);
        assert_eq!(counts.changed(), []);
        counts.came(Some(7), true);
        counts.came(Some(7), true);
        counts.came(Some(3), false);
        counts.entered(Some(7));
        let used = |running, waiting| AdapterUse { running, waiting };
        assert_eq!(counts.changed(), [(3, used(1, 0)), (7, used(1, 1))]);
        counts.left(Some(7), true);
        counts.left(Some(3), false);
        assert_eq!(counts.changed(), [(3, used(0, 0)), (7, used(1, 0))]);
        assert_eq!(counts.changed(), []);
        assert_eq!(counts.used.len(), 1, "what nobody uses is forgotten");
    }
}
