//! As a picture: how much of its limit each figure is.

use anyhow::Result;

use super::{Measure, Report};
use crate::plot::Bars;
use crate::stats::Summary;

/// A bar for each figure whose limit is known; `None` if there is none.
pub(super) fn svg(report: &Report) -> Result<Option<String>> {
    let all = report.kernels.iter().chain(&report.measures);
    let bars: Vec<(String, Summary)> =
        all.filter_map(|measure| Some((measure.what.clone(), shares(measure)?))).collect();
    if bars.is_empty() {
        return Ok(None);
    }
    let caption =
        format!("{}, {} cores, {}, {}", report.machine.cpu, report.machine.cores, report.commit, report.date);
    let axis = "% of what the machine allows".to_owned();
    Bars { caption, axis, mark: 100.0, bars }.svg().map(Some)
}

/// In percent.
fn shares(measure: &Measure) -> Option<Summary> {
    let limit = measure.limit?;
    let share = |value| measure.share_of(limit, value) * 100.0;
    let (a, b) = measure.spread.unwrap_or((measure.value, measure.value));
    let (a, b) = (share(a), share(b));
    Some(Summary { least: a.min(b), median: share(measure.value), most: a.max(b) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plot::tests::assert_well_formed;
    use crate::report::Unit;
    use crate::report::tests::report;

    fn limited(what: &str, unit: Unit, samples: &[f64], limit: f64) -> Measure {
        Measure { limit: Some(limit), ..Measure::of(what, what, unit, samples).expect("samples") }
    }

    #[test]
    fn shares_are_percent_of_the_limit_whichever_way_is_better() {
        let rate = limited("a", Unit::GigaOps, &[10.0, 20.0, 40.0], 80.0);
        assert_eq!(shares(&rate), Some(Summary { least: 12.5, median: 25.0, most: 50.0 }));
        let time = limited("a", Unit::Micros, &[2.0, 4.0, 8.0], 1.0);
        assert_eq!(shares(&time), Some(Summary { least: 12.5, median: 25.0, most: 50.0 }));
        assert_eq!(shares(&Measure::single("a", "a", Unit::Seconds, 1.0)), None);
    }

    #[test]
    fn kernels_and_the_whole_are_drawn_where_limits_are_known() {
        let mut report = report(vec![
            limited("decode, 1 stream", Unit::TokensPerSecond, &[100.0], 300.0),
            Measure::single("idle", "idle worker", Unit::Megabytes, 100.0),
        ]);
        report.kernels = vec![limited("product, Q4_0, 8 rows", Unit::GigaOps, &[90.0, 100.0], 500.0)];
        let text = svg(&report).expect("it can be drawn").expect("two limits are known");
        assert_well_formed(&text);
        assert!(text.contains("decode, 1 stream") && text.contains("product, Q4_0, 8 rows"), "{text}");
        assert!(!text.contains("idle worker"));
    }

    #[test]
    fn without_limits_there_is_no_picture() {
        let report = report(vec![Measure::single("a", "a", Unit::Seconds, 1.0)]);
        assert_eq!(svg(&report).expect("nothing to draw"), None);
    }
}
