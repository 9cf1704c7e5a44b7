//! As a picture: how many times as good as each peer, figure by figure.

use anyhow::{Result, anyhow, ensure};
use plotters::coord::Shift;
use plotters::prelude::*;

use super::Found;
use crate::stats::Summary;

const WIDTH: u32 = 900;
/// Of one figure and peer.
const BAR: u32 = 26;
/// Around the bars: caption, axis.
const AROUND: u32 = 110;

/// A bar for each figure and peer, as long as the median of its rounds; the thin line goes from the least to the most.
pub(super) fn svg(found: &Found) -> Result<String> {
    let mut bars = Vec::new();
    for row in &found.rows {
        for (peer, name) in found.sides.iter().enumerate().skip(1) {
            if let Some(summary) = Summary::of(&row.ratios(peer)) {
                bars.push((format!("{}, over {name}", row.what), summary));
            }
        }
    }
    ensure!(!bars.is_empty(), "nothing was measured that compares servers");
    let mut text = String::new();
    {
        let height = AROUND + BAR * u32::try_from(bars.len())?;
        let area = SVGBackend::with_string(&mut text, (WIDTH, height)).into_drawing_area();
        draw(&area, found, &bars).map_err(|error| anyhow!("drawing: {error}"))?;
    }
    Ok(text)
}

type Drawn = Result<(), Box<dyn std::error::Error>>;

fn draw(area: &DrawingArea<SVGBackend<'_>, Shift>, found: &Found, bars: &[(String, Summary)]) -> Drawn {
    area.fill(&WHITE)?;
    let most = bars.iter().map(|(_, summary)| summary.most).fold(1.0, f64::max) * 1.05;
    let caption = format!("{} over others ({}, {})", found.sides[0], found.machine.cpu, found.date);
    let mut chart = ChartBuilder::on(area)
        .caption(caption, ("sans-serif", 15))
        .margin(10)
        .x_label_area_size(35)
        .y_label_area_size(330)
        .build_cartesian_2d(0.0..most, (0..bars.len() - 1).into_segmented())?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .x_desc("times as good")
        .y_labels(bars.len() + 1)
        .y_label_formatter(&|place| match place {
            // The first figure on top.
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
        chart
            .draw_series([PathElement::new([(summary.least, middle()), (summary.most, middle())], BLACK)])?;
    }
    let ends = [(1.0, SegmentValue::Exact(0)), (1.0, SegmentValue::Exact(bars.len()))];
    chart.draw_series([PathElement::new(ends, RED)])?;
    area.present()?;
    Ok(())
}
