//! What a process says of itself to whatever runs it: a service manager, say.

use tokio::sync::watch;

/// How a process is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Condition {
    /// Whether it does what it was started for. Stays so.
    pub ready: bool,
    /// In a few words, for people.
    pub status: String,
    /// Grows while everything in it that must go on does.
    pub beats: u64,
}

/// Where a process says it. Cheap to clone; it does not matter whether anybody listens.
#[derive(Debug, Clone, Default)]
pub struct Reporter(watch::Sender<Condition>);

impl Reporter {
    /// It does what it was started for, from now on.
    pub fn ready(&self) {
        self.0.send_if_modified(|condition| !std::mem::replace(&mut condition.ready, true));
    }

    /// How it is now, in a few words.
    pub fn status(&self, text: String) {
        self.0.send_if_modified(|condition| {
            let changed = condition.status != text;
            condition.status = text;
            changed
        });
    }

    /// Everything in it that must go on does.
    pub fn beat(&self) {
        self.0.send_modify(|condition| condition.beats += 1);
    }

    /// Follows it.
    pub fn watch(&self) -> watch::Receiver<Condition> {
        self.0.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_changes_are_told() {
        let reporter = Reporter::default();
        let mut condition = reporter.watch();
        let mut told = || {
            let changed = condition.has_changed().unwrap_or_default();
            condition.mark_unchanged();
            changed
        };
        reporter.status("looking for a leader".into());
        assert!(told());
        reporter.status("looking for a leader".into());
        assert!(!told());
        reporter.ready();
        assert!(told());
        reporter.ready();
        assert!(!told());
        reporter.beat();
        assert!(told());
        assert_eq!((reporter.watch().borrow().ready, reporter.watch().borrow().beats), (true, 1));
    }
}
