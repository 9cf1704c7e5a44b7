//! Numbers from samples.

/// The `percent`-th percentile, interpolated between the two samples it falls between; `None` without samples.
pub(crate) fn percentile(samples: &[f64], percent: f64) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    let place = percent.clamp(0.0, 100.0) / 100.0 * last as f64;
    let below = place.floor() as usize;
    let above = (below + 1).min(last);
    Some(sorted[below] + (sorted[above] - sorted[below]) * (place - below as f64))
}

/// Middle and ends of some repetitions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Summary {
    pub(crate) least: f64,
    pub(crate) median: f64,
    pub(crate) most: f64,
}

impl Summary {
    /// `None` without samples.
    pub(crate) fn of(samples: &[f64]) -> Option<Self> {
        Some(Self {
            least: percentile(samples, 0.0)?,
            median: percentile(samples, 50.0)?,
            most: percentile(samples, 100.0)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_has_no_percentile() {
        assert_eq!(percentile(&[], 50.0), None);
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn percentiles_interpolate_and_do_not_mind_order() {
        let samples = [4.0, 1.0, 3.0, 2.0];
        for (percent, expected) in
            [(0.0, 1.0), (25.0, 1.75), (50.0, 2.5), (100.0, 4.0), (-5.0, 1.0), (250.0, 4.0)]
        {
            assert_eq!(percentile(&samples, percent), Some(expected), "p{percent}");
        }
        assert_eq!(percentile(&[7.0], 99.0), Some(7.0));
    }

    #[test]
    fn a_high_percentile_sees_the_tail() {
        let mut samples = vec![1.0; 99];
        samples.push(101.0);
        let p99 = percentile(&samples, 99.0).expect("100 samples");
        assert!((p99 - 2.0).abs() < 1e-9, "{p99}");
        assert_eq!(percentile(&samples, 50.0), Some(1.0));
    }

    #[test]
    fn a_summary_is_ends_and_middle() {
        let summary = Summary::of(&[5.0, 9.0, 1.0]).expect("three samples");
        assert_eq!(summary, Summary { least: 1.0, median: 5.0, most: 9.0 });
    }
}
