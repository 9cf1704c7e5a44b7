//! The report as Markdown, its table aligned so that it can be read in a terminal too.

use std::fmt::Write;

use super::{Measure, Report};

/// Notes longer than this go below the table.
const NOTE_WIDTH: usize = 84;

/// The whole report.
pub(crate) fn markdown(report: &Report) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write!(text, "{}", head(report));
    for measures in [&report.kernels, &report.measures].into_iter().filter(|measures| !measures.is_empty()) {
        let _ = write!(text, "\n{}", table(measures));
    }
    let all = report.kernels.iter().chain(&report.measures);
    let long = all.filter(|measure| measure.note.chars().count() > NOTE_WIDTH);
    for measure in long {
        let _ = write!(text, "\n{}: {}\n", measure.what, measure.note);
    }
    if let Some(explanation) = &report.explanation {
        let _ = write!(text, "\n{explanation}\n");
    }
    if let Some(before) = &report.compared_with {
        let _ = write!(
            text,
            "\n\"before\" is this figure over that of {before}; in brackets, its share of the limit then\n"
        );
    }
    text
}

fn head(report: &Report) -> String {
    let machine = &report.machine;
    let mut text = format!(
        "{}, {}: `{}`\n\n- machine: {}, {} cores, {:.0} GiB\n",
        report.date,
        report.commit,
        report.command,
        machine.cpu,
        machine.cores,
        machine.memory_bytes as f64 / f64::from(1 << 30)
    );
    for (when, all) in [("before", &report.limits.rates), ("after", &report.limits.after)] {
        for rates in all {
            let giga = |rate: u64| rate as f64 / 1e9;
            let _ = write!(
                text,
                "- measured {when}, {} thread(s): reads {:.1} GB/s, {:.0} GFLOP/s (f32 fused multiply-add), {:.0} GOP/s (int8)",
                rates.threads,
                giga(rates.read_bytes_per_second),
                giga(rates.flops),
                giga(rates.int8_ops),
            );
            let handover =
                rates.handover_nanos.map(|nanos| format!(", {nanos} ns from one thread to another"));
            let _ = writeln!(text, "{}", handover.unwrap_or_default());
        }
    }
    let _ = writeln!(text, "- model `{}`, {}", report.model, report.target);
    text
}

fn table(measures: &[Measure]) -> String {
    let head = ["measure", "median", "unit", "least–most", "limit", "share", "before", "note"];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(measures.iter().map(row));
    let widths: Vec<usize> = (0..head.len())
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    let mut lines: Vec<String> = rows.iter().map(|row| line(row, &widths)).collect();
    let rule: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
    lines.insert(1, format!("| {} |", rule.join(" | ")));
    lines.join("\n") + "\n"
}

fn line(cells: &[String], widths: &[usize]) -> String {
    let padded = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
    format!("| {} |", padded.collect::<Vec<_>>().join(" | "))
}

fn row(measure: &Measure) -> [String; 8] {
    let or_empty = |cell: Option<String>| cell.unwrap_or_default();
    [
        measure.what.clone(),
        number(measure.value),
        measure.unit.symbol().to_owned(),
        or_empty(measure.spread.map(|(least, most)| format!("{}–{}", number(least), number(most)))),
        or_empty(measure.limit.map(number)),
        or_empty(measure.share().map(|share| shares(share, measure.previous_share))),
        or_empty(measure.previous.filter(|old| *old > 0.0).map(|old| format!("{:.2}×", measure.value / old))),
        if measure.note.chars().count() > NOTE_WIDTH { "see below".to_owned() } else { measure.note.clone() },
    ]
}

/// In percent, with that of the run before.
fn shares(share: f64, before: Option<f64>) -> String {
    let before = before.map(|before| format!(" ({:.0})", before * 100.0));
    format!("{:.0} %{}", share * 100.0, before.unwrap_or_default())
}

/// Three digits that matter.
fn number(value: f64) -> String {
    let decimals = match value.abs() {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Rates;
    use crate::report::Unit;
    use crate::report::tests::report;

    #[test]
    fn numbers_have_three_digits() {
        for (value, shown) in [(0.0, "0.00"), (1.234, "1.23"), (12.34, "12.3"), (1234.5, "1234")] {
            assert_eq!(number(value), shown);
        }
    }

    #[test]
    fn rows_show_share_and_ratio_where_known() {
        let bare = Measure::single("k", "bare", Unit::Seconds, 2.0);
        assert_eq!(row(&bare), ["bare", "2.00", "s", "", "", "", "", ""]);
        let mut full = Measure::of("k", "full", Unit::TokensPerSecond, &[40.0, 60.0, 50.0]).expect("three");
        full = Measure { limit: Some(200.0), ..full }.note("x");
        full.previous = Some(40.0);
        assert_eq!(row(&full), ["full", "50.0", "tok/s", "40.0–60.0", "200", "25 %", "1.25×", "x"]);
        full.previous_share = Some(0.4);
        assert_eq!(row(&full)[5], "25 % (40)");
    }

    #[test]
    fn both_looks_at_the_limits_are_told_and_kernels_have_a_table() {
        let mut report = report(vec![Measure::single("k", "the whole", Unit::Times, 1.0)]);
        let rates = |read| Rates {
            threads: 2,
            read_bytes_per_second: read,
            flops: 80_000_000_000,
            int8_ops: 500_000_000_000,
            handover_nanos: Some(70),
        };
        report.limits.rates = vec![rates(20_000_000_000)];
        report.limits.after = vec![rates(31_000_000_000)];
        let told = |text: &str, when| {
            let line = text.lines().find(|line| line.contains(when)).map(str::to_owned);
            line.unwrap_or_default()
        };
        let text = markdown(&report);
        assert!(told(&text, "measured before").contains("reads 20.0 GB/s, 80 GFLOP/s"), "{text}");
        assert!(told(&text, "measured after").contains("reads 31.0 GB/s"), "{text}");
        assert!(
            told(&text, "measured after").ends_with("500 GOP/s (int8), 70 ns from one thread to another")
        );
        assert_eq!(text.matches("| measure").count(), 1);
        report.kernels = vec![Measure::single("k", "a kernel", Unit::GigaOps, 1.0)];
        assert_eq!(markdown(&report).matches("| measure").count(), 2);
    }

    #[test]
    fn tables_are_aligned() {
        let measures = ["a", "a longer one"].map(|what| Measure::single("k", what, Unit::Times, 1.0));
        let table = table(&measures);
        let widths: Vec<usize> = table.lines().map(|line| line.chars().count()).collect();
        assert_eq!(widths.len(), 4);
        assert!(widths.iter().all(|width| *width == widths[0]), "{table}");
    }
}
