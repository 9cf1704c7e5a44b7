//! Workers that others have lost sight of: which of them hang.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::Registry;

/// A worker whose group has failed and that has been silent this long (it should have said something after a second) hangs, as
/// far as can be known: nothing is asked of it until it speaks.
const QUIET: Duration = Duration::from_millis(1_600);

impl Registry {
    /// Workers with a live session that can be given something to do.
    pub(in crate::control) fn able(&self) -> BTreeSet<u64> {
        self.lock().sessions.iter().filter(|(_, session)| !session.hangs).map(|(id, _)| *id).collect()
    }

    /// Workers of groups that have failed since the last call, but for those who said so. Of them, those that hang are known for it
    /// from now on.
    pub(in crate::control) fn take_suspects(&self) -> BTreeSet<u64> {
        let mut inner = self.lock();
        let suspects = std::mem::take(&mut inner.suspects);
        for id in &suspects {
            if let Some(session) = inner.sessions.get_mut(id).filter(|s| s.heard.elapsed() > QUIET) {
                tracing::warn!(worker = id, "it hangs: nothing is asked of it until it speaks");
                session.hangs = true;
            }
        }
        suspects
    }

    /// Worker `id` has said something.
    pub(super) fn heard(&self, id: u64) {
        let mut inner = self.lock();
        let Some(session) = inner.sessions.get_mut(&id) else { return };
        session.heard = Instant::now();
        if std::mem::take(&mut session.hangs) {
            drop(inner);
            self.changed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suspect_that_has_been_silent_is_asked_nothing_until_it_speaks() {
        let registry = Registry::default();
        let (says, _said) = tokio::sync::mpsc::unbounded_channel();
        for id in 1..=3 {
            registry.open(id, says.clone(), None, 0);
        }
        let silent = Instant::now().checked_sub(QUIET * 2).expect("the machine has been up for a while");
        for id in [1, 2] {
            registry.lock().sessions.get_mut(&id).expect("open").heard = silent;
        }
        // The first is silent and suspect, the second only silent, the third only suspect.
        registry.lock().suspects = BTreeSet::from([1, 3, 99]);
        assert_eq!(registry.take_suspects(), BTreeSet::from([1, 3, 99]));
        assert_eq!(registry.able(), BTreeSet::from([2, 3]));
        assert_eq!(registry.live(), BTreeSet::from([1, 2, 3]), "it is not lost for that");
        assert_eq!(registry.take_suspects(), BTreeSet::new());
        registry.heard(1);
        assert_eq!(registry.able(), BTreeSet::from([1, 2, 3]));
    }
}
