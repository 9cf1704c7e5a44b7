//! Waiting until the machine has nothing to do: threads of a server that was measured a moment ago may still spin, and one that has
//! just begun may still be arranging its weights.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Time that the machine is looked at, again and again.
const LOOK: Duration = Duration::from_millis(250);
/// One after the other in which it must have had next to nothing to do.
const LOOKS: usize = 3;
/// The most processors that may have been busy in each, in the mean.
const BUSY: f64 = 0.2;
/// What never ends is measured beside.
const LONGEST: Duration = Duration::from_secs(30);

/// Waits until the machine is quiet, at most half a minute; says so where it is not.
///
/// # Errors
/// If the system does not tell what the processors do.
pub(crate) async fn wait() -> Result<()> {
    let started = Instant::now();
    let (mut before, mut quiet, mut told) = (Times::now()?, 0, false);
    let processors = std::thread::available_parallelism().map_or(1, usize::from) as f64;
    let mut busy = 0.0;
    while quiet < LOOKS {
        if started.elapsed() > LONGEST {
            eprintln!(
                "the machine is busy ({busy:.1} of {processors} processors), which slows what is measured: stop what else runs on it"
            );
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
        let now = Times::now()?;
        busy = now.busy_since(before) * processors;
        quiet = if busy <= BUSY { quiet + 1 } else { 0 };
        if quiet == 0 && !std::mem::replace(&mut told, true) {
            eprintln!(
                "… waiting for the machine to be quiet ({busy:.1} of {processors} processors are busy)"
            );
        }
        before = now;
    }
    Ok(())
}

/// Time of all processors since the machine started, in ticks.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Times {
    busy: u64,
    idle: u64,
}

impl Times {
    fn now() -> Result<Self> {
        let text = std::fs::read_to_string("/proc/stat").context("asking what the processors do")?;
        Self::parse(&text).with_context(|| format!("/proc/stat: {text}"))
    }

    /// The first line of `/proc/stat` (proc_stat(5)): user, nice, system, idle, iowait, irq, softirq, and what a hypervisor took, which is
    /// neither.
    fn parse(text: &str) -> Option<Self> {
        let mut fields = text.lines().next()?.strip_prefix("cpu ")?.split_whitespace().map(str::parse::<u64>);
        let mut next = || fields.next()?.ok();
        let (user, nice, system, idle, waiting) = (next()?, next()?, next()?, next()?, next()?);
        let interrupts = next()? + next()?;
        Some(Self { busy: user + nice + system + interrupts, idle: idle + waiting })
    }

    /// The share of all processors' time.
    fn busy_since(self, before: Self) -> f64 {
        let busy = self.busy.saturating_sub(before.busy);
        let idle = self.idle.saturating_sub(before.idle);
        busy as f64 / (busy + idle).max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_of_processors_is_understood() {
        let before = Times::parse("cpu  100 20 30 1000 50 6 4 99 0 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n");
        assert_eq!(before, Some(Times { busy: 160, idle: 1050 }));
        let after = Times { busy: 190, idle: 1140 };
        assert_eq!(before.map(|before| after.busy_since(before)), Some(0.25));
        assert_eq!(after.busy_since(after), 0.0, "no time has passed");
        for wrong in ["", "cpu0 1 2 3 4 5 6 7\n", "cpu  1 2 3 4 5 6\n", "cpu  1 2 3 x 5 6 7\n"] {
            assert_eq!(Times::parse(wrong), None, "{wrong}");
        }
    }
}
