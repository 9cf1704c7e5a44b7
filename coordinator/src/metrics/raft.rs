//! Where this member of Raft stands, and, if it leads, how far the others are.

use std::sync::Mutex;

use prometheus::{Counter, IntCounter, IntGauge, IntGaugeVec};

use super::table::Table;
use crate::cluster::{RaftStatus, Role};

/// The families.
pub(super) struct RaftFamilies {
    term: IntGauge,
    leader: IntGauge,
    is_leader: IntGauge,
    commit_index: IntGauge,
    applied_index: IntGauge,
    elections: IntCounter,
    syncs: IntCounter,
    sync_seconds: Counter,
    lag: IntGaugeVec,
    active: IntGaugeVec,
    /// Two scrapes at once may not count the growth twice.
    scrape: Mutex<()>,
}

impl RaftFamilies {
    pub(super) fn new(table: &Table<'_>) -> Self {
        Self {
            term: table.gauge("raft_term", "Raft's term."),
            leader: table.gauge("raft_leader", "Id of the leader; 0 while none is known."),
            is_leader: table.gauge("raft_is_leader", "1 if this coordinator leads."),
            commit_index: table.gauge("raft_commit_index", "Last committed entry."),
            applied_index: table.gauge("raft_applied_index", "Last applied entry."),
            elections: table.counter("raft_elections_total", "Terms begun since this coordinator started."),
            syncs: table.counter("raft_syncs_total", "Durable commits of the log."),
            sync_seconds: table.seconds("raft_sync_seconds_total", "Time spent in durable commits."),
            lag: table.gauges(
                "raft_follower_lag_entries",
                "Committed entries that a follower has not confirmed; the leader alone tells.",
                &["follower"],
            ),
            active: table.gauges(
                "raft_follower_active",
                "1 if a follower has answered lately; the leader alone tells.",
                &["follower"],
            ),
            scrape: Mutex::new(()),
        }
    }

    /// Takes in where Raft stands.
    pub(super) fn set(&self, status: &RaftStatus) {
        let set = |gauge: &IntGauge, value: u64| gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        let _scrape = self.scrape.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        set(&self.term, status.term);
        set(&self.leader, status.leader.unwrap_or(0));
        set(&self.is_leader, u64::from(status.role == Role::Leader));
        set(&self.commit_index, status.commit);
        set(&self.applied_index, status.applied);
        let grow = |counter: &IntCounter, value: u64| counter.inc_by(value.saturating_sub(counter.get()));
        grow(&self.elections, status.elections);
        grow(&self.syncs, status.syncs);
        self.sync_seconds.inc_by((status.sync_seconds - self.sync_seconds.get()).max(0.0));
        // Who does not lead any more knows nothing of the others.
        self.lag.reset();
        self.active.reset();
        for peer in &status.peers {
            let id = peer.id.to_string();
            set(&self.lag.with_label_values(&[&id]), status.commit.saturating_sub(peer.matched));
            set(&self.active.with_label_values(&[&id]), u64::from(peer.active));
        }
    }
}
