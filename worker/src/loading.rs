//! How far loading is, in the log and for the cluster.

use std::time::{Duration, Instant};

use foggara_proto::wire::worker as wire;

/// Between two reports to the cluster.
const REPORT_INTERVAL: Duration = Duration::from_millis(250);
/// Between two lines in the log.
const LOG_INTERVAL: Duration = Duration::from_secs(2);

/// The loading of one rank.
pub(crate) struct Loading {
    group: u64,
    epoch: u64,
    /// Bytes per second at which this machine reads its memory, as measured; 0 if not.
    read_speed: u64,
    started: Instant,
    reported: Option<Instant>,
    logged: Instant,
    done: u64,
    total: u64,
}

impl Loading {
    pub(crate) fn new(assign: &wire::Assign, read_speed: u64) -> Self {
        let now = Instant::now();
        Self {
            group: assign.group,
            epoch: assign.epoch,
            read_speed,
            started: now,
            reported: None,
            logged: now,
            done: 0,
            total: 0,
        }
    }

    /// Takes in how far it is; what to tell the cluster, if it is time.
    pub(crate) fn at(&mut self, loaded_bytes: u64, total_bytes: u64) -> Option<wire::LoadProgress> {
        (self.done, self.total) = (loaded_bytes, total_bytes);
        let bytes_per_second = self.speed();
        if self.logged.elapsed() >= LOG_INTERVAL {
            self.logged = Instant::now();
            let share = self.share();
            tracing::info!(
                group = self.group,
                loaded_bytes,
                total_bytes,
                bytes_per_second,
                share_of_read_speed = share,
                "loading"
            );
        }
        if self.reported.is_some_and(|at| at.elapsed() < REPORT_INTERVAL) {
            return None;
        }
        self.reported = Some(Instant::now());
        Some(self.told())
    }

    fn told(&self) -> wire::LoadProgress {
        wire::LoadProgress {
            group: self.group,
            epoch: self.epoch,
            loaded_bytes: self.done,
            total_bytes: self.total,
            bytes_per_second: self.speed(),
        }
    }

    /// Says how it went; what to tell the cluster, at once: a rank that waits for the others has nothing left to load.
    pub(crate) fn end(&self, model: &str, memory_bytes: usize) -> wire::LoadProgress {
        tracing::info!(
            model,
            memory_bytes,
            read_bytes = self.done,
            seconds = self.started.elapsed().as_secs_f64(),
            bytes_per_second = self.speed(),
            share_of_read_speed = self.share(),
            "weights loaded"
        );
        wire::LoadProgress { loaded_bytes: self.total, ..self.told() }
    }

    fn speed(&self) -> u64 {
        (self.done as f64 / self.started.elapsed().as_secs_f64().max(1e-6)) as u64
    }

    /// Of the speed of memory, to two digits.
    fn share(&self) -> f64 {
        match self.read_speed {
            0 => 0.0,
            speed => (self.speed() as f64 / speed as f64 * 100.0).round() / 100.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_few_and_say_how_far_it_is() {
        let assign = wire::Assign { group: 3, epoch: 7, ..wire::Assign::default() };
        let mut loading = Loading::new(&assign, 1);
        let first = loading.at(10, 40).expect("the first is told");
        assert_eq!((first.group, first.epoch, first.loaded_bytes, first.total_bytes), (3, 7, 10, 40));
        assert!(first.bytes_per_second > 0);
        assert_eq!(loading.at(20, 40), None, "not so soon");
        loading.reported = None;
        assert_eq!(loading.at(40, 40).map(|told| told.loaded_bytes), Some(40));
        assert_eq!(loading.at(39, 40), None, "not so soon");
        let last = loading.end("m", 40);
        assert_eq!((last.group, last.epoch, last.loaded_bytes, last.total_bytes), (3, 7, 40, 40));
        assert!(loading.share() >= 1.0);
    }
}
