//! Bars, as SVG.

use anyhow::{Result, anyhow, ensure};
use plotters::coord::Shift;
use plotters::prelude::*;

use crate::stats::Summary;

const WIDTH: u32 = 900;
/// Of one bar.
const BAR: u32 = 26;
/// Around the bars: caption, axis.
const AROUND: u32 = 110;

/// A picture of bars, the first on top.
pub(crate) struct Bars {
    pub(crate) caption: String,
    /// What a bar's length means.
    pub(crate) axis: String,
    /// Where a line is drawn through all of them.
    pub(crate) mark: f64,
    /// What each is of. A bar is as long as the median; the thin line goes from the least to the most.
    pub(crate) bars: Vec<(String, Summary)>,
}

impl Bars {
    /// The text of an SVG file.
    ///
    /// # Errors
    /// If there is no bar.
    pub(crate) fn svg(&self) -> Result<String> {
        ensure!(!self.bars.is_empty(), "there is nothing to draw");
        let mut text = String::new();
        {
            let height = AROUND + BAR * u32::try_from(self.bars.len().max(2))?;
            let area = SVGBackend::with_string(&mut text, (WIDTH, height)).into_drawing_area();
            self.draw(&area).map_err(|error| anyhow!("drawing: {error}"))?;
        }
        Ok(text)
    }

    fn draw(&self, area: &DrawingArea<SVGBackend<'_>, Shift>) -> Result<(), Box<dyn std::error::Error>> {
        area.fill(&WHITE)?;
        let bars = &self.bars;
        let most = bars.iter().map(|(_, summary)| summary.most).fold(self.mark, f64::max) * 1.05;
        // A single segment would have no label: there is an empty one beside it.
        let last = (bars.len() - 1).max(1);
        let mut chart = ChartBuilder::on(area)
            .caption(&self.caption, ("sans-serif", 15))
            .margin(10)
            .x_label_area_size(35)
            .y_label_area_size(330)
            .build_cartesian_2d(0.0..most, (0..last).into_segmented())?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .x_desc(&self.axis)
            .label_style(("sans-serif", 12))
            .y_labels(last + 2)
            .y_label_formatter(&|place| match place {
                SegmentValue::CenterOf(place) => {
                    bars.iter().rev().nth(*place).map_or_else(String::new, |bar| bar.0.clone())
                }
                _ => String::new(),
            })
            .draw()?;
        for (place, (_, summary)) in bars.iter().rev().enumerate() {
            let (low, high) = (SegmentValue::Exact(place), SegmentValue::Exact(place + 1));
            let mut bar = Rectangle::new([(0.0, low), (summary.median, high)], BLUE.mix(0.5).filled());
            bar.set_margin(4, 4, 0, 0);
            chart.draw_series([bar])?;
            let middle = || SegmentValue::CenterOf(place);
            let spread = [(summary.least, middle()), (summary.most, middle())];
            chart.draw_series([PathElement::new(spread, BLACK)])?;
        }
        let ends = [(self.mark, SegmentValue::Exact(0)), (self.mark, SegmentValue::Exact(bars.len()))];
        chart.draw_series([PathElement::new(ends, RED)])?;
        area.present()?;
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Panics if `text` is not XML whose elements are closed in order, with one `svg` around them.
    pub(crate) fn assert_well_formed(text: &str) {
        let mut open: Vec<&str> = Vec::new();
        let mut roots = 0;
        for piece in text.split('<').skip(1) {
            let (tag, after) = piece.split_once('>').expect("a tag ends");
            assert!(!after.contains('>'), "a bare > in {after}");
            for entity in after.split('&').skip(1) {
                assert!(entity.split_once(';').is_some(), "a bare & in {after}");
            }
            assert_eq!(tag.matches('"').count() % 2, 0, "quotes of {tag}");
            if tag.starts_with(['?', '!']) {
                continue;
            }
            if let Some(closed) = tag.strip_prefix('/') {
                assert_eq!(open.pop(), Some(closed.trim()));
            } else {
                roots += usize::from(open.is_empty());
                if !tag.ends_with('/') {
                    open.push(tag.split_whitespace().next().expect("a name"));
                }
            }
        }
        assert!(open.is_empty() && roots == 1 && text.starts_with("<svg"), "{open:?}, {roots} roots");
    }

    fn bars(count: usize) -> Bars {
        let summary = Summary { least: 10.0, median: 40.0, most: 60.0 };
        let bars = (0..count).map(|i| (format!("product <{i}> & \"more\""), summary)).collect();
        Bars { caption: "what & where".into(), axis: "% of the limit".into(), mark: 100.0, bars }
    }

    #[test]
    fn pictures_are_well_formed_and_name_every_bar() {
        for count in [1, 2, 30] {
            let text = bars(count).svg().expect("it can be drawn");
            assert_well_formed(&text);
            for i in 0..count {
                assert!(text.contains(&format!("product &lt;{i}&gt; &amp;")), "bar {i} of {count}");
            }
            assert!(text.contains("what &amp; where") && text.contains("% of the limit"));
        }
    }

    #[test]
    fn nothing_cannot_be_drawn() {
        assert!(bars(0).svg().is_err());
    }
}
