//! When a leader goes on without a plan.

use std::time::{Duration, Instant};

/// A plan that has not come this long after the leader wanted it is late. A driver that is only slow is waited for: a leader
/// that runs ahead of it fills its queues with reports. One that hangs or has died is noticed soon enough for any reader.
const LATE: Duration = Duration::from_millis(50);

/// What there is to do while no plan is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// To wait for whatever comes.
    Wait,
    /// To wait this long at most, and to ask again.
    WaitFor(Duration),
    /// A step without a plan.
    GoOn,
}

/// How long the leader may go on by itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lease {
    length: Duration,
    /// When it began: when the last plan, or a driver, came.
    since: Instant,
    /// When the leader was done with the last plan, and so wanted the next.
    wanted: Instant,
}

impl Lease {
    /// Without a plan nothing is allowed.
    pub(super) fn new(now: Instant) -> Self {
        Self { length: Duration::ZERO, since: now, wanted: now }
    }

    /// A driver has come: what the last plan allowed is allowed once more.
    pub(super) fn attached(&mut self, now: Instant) {
        (self.since, self.wanted) = (now, now);
    }

    /// It is the turn of a plan that came at `came` and allows `length`. Returns how late it came.
    pub(super) fn planned(&mut self, length: Duration, came: Instant) -> Duration {
        (self.length, self.since) = (length, came);
        came.saturating_duration_since(self.wanted)
    }

    /// The plan's step is done.
    pub(super) fn done(&mut self, now: Instant) {
        self.wanted = now;
    }

    /// What to do now, if no plan is there. `able`: a step without one would compute something.
    pub(super) fn next(&self, now: Instant, able: bool) -> Next {
        let (late, end) = (self.wanted + LATE, self.since + self.length);
        if !able || now >= end || late >= end {
            return Next::Wait;
        }
        match late.saturating_duration_since(now) {
            Duration::ZERO => Next::GoOn,
            left => Next::WaitFor(left),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Half of what is late.
    const HALF: Duration = Duration::from_millis(25);

    #[test]
    fn a_leader_goes_on_when_a_plan_is_late_until_the_lease_runs_out() {
        let start = Instant::now();
        let at = |halves: u32| start + HALF * halves;
        let mut lease = Lease::new(start);
        assert_eq!(lease.next(at(9), true), Next::Wait, "no plan has ever come");
        // It came while the leader waited for it, and its step took a while.
        assert_eq!(lease.planned(HALF * 50, at(10)), HALF * 10);
        lease.done(at(20));
        for (halves, able, next) in [
            (20, true, Next::WaitFor(LATE)),
            (21, true, Next::WaitFor(HALF)),
            (22, true, Next::GoOn),
            (22, false, Next::Wait),
            (59, true, Next::GoOn),
            (60, true, Next::Wait),
            (9_000, true, Next::Wait),
        ] {
            assert_eq!(lease.next(at(halves), able), next, "{halves} halves, able: {able}");
        }
        // The next came while it went on by itself; the one after that was there before it was wanted.
        assert_eq!(lease.planned(HALF * 50, at(30)), HALF * 10);
        lease.done(at(45));
        assert_eq!(lease.planned(HALF * 50, at(40)), Duration::ZERO);
        lease.done(at(46));
        assert_eq!(lease.next(at(89), true), Next::GoOn, "counted from when it came, not from its turn");
        assert_eq!(lease.next(at(90), true), Next::Wait);
    }

    #[test]
    fn a_driver_that_comes_begins_the_lease_anew() {
        let start = Instant::now();
        let at = |halves: u32| start + HALF * halves;
        let mut lease = Lease::new(start);
        lease.planned(HALF * 50, at(0));
        lease.done(at(1));
        assert_eq!(lease.next(at(1_000), true), Next::Wait);
        lease.attached(at(1_000));
        assert_eq!(lease.next(at(1_000), true), Next::WaitFor(LATE));
        assert_eq!(lease.next(at(1_049), true), Next::GoOn);
        assert_eq!(lease.next(at(1_050), true), Next::Wait);
        assert_eq!(lease.planned(HALF * 50, at(1_010)), HALF * 10, "wanted since the driver came");
    }

    #[test]
    fn a_lease_that_ends_before_a_plan_is_late_allows_nothing() {
        let start = Instant::now();
        for length in [Duration::ZERO, HALF, LATE] {
            let mut lease = Lease::new(start);
            lease.planned(length, start);
            lease.done(start);
            for halves in 0..9 {
                assert_eq!(
                    lease.next(start + HALF * halves, true),
                    Next::Wait,
                    "{length:?} after {halves} halves"
                );
            }
        }
    }
}
