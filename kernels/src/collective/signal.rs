//! A counter in shared memory that other processes wait for.
//!
//! Waiters sleep on a word of its own, the bell, and not on the counter: so an abort, which moves no counter, can wake
//! them without a gap between their last look and their sleep.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::thread::futex;

/// A phase number that only grows (and wraps around), with who waits for it. All zeros is a valid start.
#[repr(C)]
pub(super) struct Signal {
    phase: AtomicU32,
    /// Changes with every call to [`ring`](Self::ring).
    bell: AtomicU32,
    /// Threads that sleep on the bell or are about to.
    sleepers: AtomicU32,
}

impl Signal {
    /// Whether the counter has come to `phase`, across wrap-around. What was written before it was set is visible then.
    pub(super) fn reached(&self, phase: u32) -> bool {
        self.phase.load(Ordering::SeqCst).wrapping_sub(phase) as i32 >= 0
    }

    /// Sets the counter; costs a system call only if someone sleeps.
    pub(super) fn set(&self, phase: u32) {
        // Either this load sees a sleeper, or the sleeper, which counts itself first, sees the phase.
        self.phase.store(phase, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            self.ring();
        }
    }

    /// Wakes everyone who sleeps or is about to.
    pub(super) fn ring(&self) {
        self.bell.fetch_add(1, Ordering::SeqCst);
        // Waking cannot fail in a way that matters: sleepers look again after a while on their own.
        futex::wake(&self.bell, futex::Flags::empty(), i32::MAX as u32).ok();
    }

    /// Calls `look` until it has a result, asleep in between. `look` is told whether the sleep before it ran out; it gives
    /// either the result or how long to sleep at most.
    pub(super) fn sleep_until<T>(&self, mut look: impl FnMut(bool) -> Result<T, Duration>) -> T {
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let mut ran_out = false;
        let result = loop {
            // Read before the look: a ring after it makes the sleep return at once.
            let bell = self.bell.load(Ordering::SeqCst);
            match look(ran_out) {
                Ok(result) => break result,
                Err(limit) => ran_out = self.sleep(bell, limit),
            }
        };
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        result
    }

    /// Sleeps while the bell is `seen`, at most `limit`; whether that ran out.
    fn sleep(&self, seen: u32, limit: Duration) -> bool {
        let timeout = futex::Timespec {
            tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(limit.subsec_nanos()),
        };
        let woken = futex::wait(&self.bell, futex::Flags::empty(), seen, Some(&timeout));
        woken == Err(rustix::io::Errno::TIMEDOUT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(phase: u32) -> Signal {
        Signal { phase: AtomicU32::new(phase), bell: AtomicU32::new(0), sleepers: AtomicU32::new(0) }
    }

    #[test]
    fn phases_are_compared_across_wrap_around() {
        for (at, phase, reached) in [
            (0, 0, true),
            (0, 1, false),
            (5, 3, true),
            (0, u32::MAX, true),
            (u32::MAX, 0, false),
            (2, u32::MAX - 1, true),
        ] {
            assert_eq!(new(at).reached(phase), reached, "{at} for {phase}");
        }
    }

    #[test]
    fn a_ring_between_the_look_and_the_sleep_is_not_lost() {
        let signal = new(0);
        let mut looks = 0;
        // Were the ring lost, the sleep would last for days.
        signal.sleep_until(|_| {
            looks += 1;
            if looks == 3 {
                return Ok(());
            }
            signal.ring();
            Err(Duration::from_secs(1_000_000))
        });
        assert_eq!((looks, signal.sleepers.load(Ordering::SeqCst)), (3, 0));
    }

    #[test]
    fn a_sleep_that_runs_out_says_so() {
        let mut told = Vec::new();
        new(0).sleep_until(|ran_out| {
            told.push(ran_out);
            if ran_out { Ok(()) } else { Err(Duration::from_millis(1)) }
        });
        assert_eq!((told.first(), told.last()), (Some(&false), Some(&true)));
    }
}
