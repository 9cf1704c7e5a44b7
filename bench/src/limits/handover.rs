//! How long it takes one thread to see what another has written: what bounds a small sum over ranks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// There and back, for each look at the clock.
const TURNS: u64 = 200;
/// The best of so many counts: another process may take a core in the others.
const PARTS: u64 = 40;
/// Looks before the core is offered to others.
const PATIENCE: u32 = 10_000;

/// A number in a cache line (and its neighbour, which some processors fetch along) of its own.
#[derive(Default)]
#[repr(align(128))]
struct Place(AtomicU64);

impl Place {
    fn wait_for(&self, number: u64) {
        let mut looks = 0;
        while self.0.load(Ordering::Acquire) != number {
            std::hint::spin_loop();
            looks += 1;
            if looks % PATIENCE == 0 {
                std::thread::yield_now();
            }
        }
    }
}

/// Nanoseconds for one way.
pub(super) fn nanos() -> u64 {
    let (there, back) = (Place::default(), Place::default());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 1..=TURNS * PARTS {
                there.wait_for(number);
                back.0.store(number, Ordering::Release);
            }
        });
        let part = |part: u64| {
            let started = Instant::now();
            for number in part * TURNS + 1..=(part + 1) * TURNS {
                there.0.store(number, Ordering::Release);
                back.wait_for(number);
            }
            started.elapsed().as_nanos() as u64 / (2 * TURNS)
        };
        (0..PARTS).map(part).min().unwrap_or(0).max(1)
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_handover_takes_some_time() {
        assert!(super::nanos() >= 1);
    }
}
