//! The least that some work can take on a machine, and so the most that a figure can be.

use crate::limits::Rates;

/// What a piece of work asks of the machine.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Work {
    /// Read from memory.
    pub(crate) bytes: f64,
    /// On bytes; a multiply-add is two.
    pub(crate) int8_ops: f64,
    /// On f32; a multiply-add is two.
    pub(crate) flops: f64,
}

impl Work {
    /// No less than it takes to read, nor than it takes to compute.
    fn seconds(&self, rates: &Rates) -> f64 {
        let over = |amount: f64, rate: u64| if amount > 0.0 { amount / rate.max(1) as f64 } else { 0.0 };
        let computing = over(self.int8_ops, rates.int8_ops) + over(self.flops, rates.flops);
        over(self.bytes, rates.read_bytes_per_second).max(computing)
    }
}

/// What bounds a figure.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Bound {
    /// So many `units` come of `steps`, one after the other: how often, and what each asks for. The figure is units per second.
    Rate { units: f64, steps: Vec<(f64, Work)> },
    /// Something must pass from one thread to another. The figure is microseconds.
    Handover,
}

impl Bound {
    /// So many units of a single piece of work.
    pub(crate) fn of(units: f64, work: Work) -> Self {
        Self::Rate { units, steps: vec![(1.0, work)] }
    }

    /// The most (of times: the least) that the figure can be at these rates.
    pub(crate) fn limit(&self, rates: &Rates) -> Option<f64> {
        match self {
            Self::Rate { units, steps } => {
                let seconds: f64 = steps.iter().map(|(times, work)| times * work.seconds(rates)).sum();
                (seconds > 0.0).then(|| units / seconds)
            }
            Self::Handover => rates.handover_nanos.map(|nanos| nanos as f64 / 1e3),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATES: Rates = Rates {
        threads: 2,
        read_bytes_per_second: 1000,
        flops: 100,
        int8_ops: 400,
        handover_nanos: Some(90),
    };

    #[test]
    fn what_takes_longest_bounds() {
        let limit = |work| Bound::of(6.0, work).limit(&RATES).expect("there is work");
        // 2 s to read; to compute 1 s of bytes and 0.5 s of floats, one after the other.
        let reading = Work { bytes: 2000.0, int8_ops: 400.0, flops: 50.0 };
        assert!((limit(reading) - 3.0).abs() < 1e-9);
        assert!((limit(Work { bytes: 10.0, ..reading }) - 4.0).abs() < 1e-9);
    }

    #[test]
    fn steps_follow_each_other() {
        let (long, short) =
            (Work { flops: 100.0, ..Work::default() }, Work { flops: 25.0, ..Work::default() });
        let bound = Bound::Rate { units: 10.0, steps: vec![(1.0, long), (4.0, short)] };
        assert_eq!(bound.limit(&RATES), Some(5.0));
    }

    #[test]
    fn what_is_not_known_bounds_nothing() {
        assert_eq!(Bound::of(1.0, Work::default()).limit(&RATES), None);
        assert_eq!(Bound::Handover.limit(&RATES), Some(0.09));
        assert_eq!(Bound::Handover.limit(&Rates { handover_nanos: None, ..RATES }), None);
    }
}
