//! As Markdown.

use std::fmt::Write as _;

use super::{Found, Row};
use crate::scenario::{spread, table};
use crate::stats::percentile;

/// Everything, with what a reader must know.
pub(super) fn markdown(found: &Found) -> String {
    let machine = &found.machine;
    let rounds = found.rows.first().map_or(0, |row| row.values[0].len());
    let mut text = format!(
        "{}, {}: `{}`\n\n{}, {} cores, {:.0} GiB; {rounds} rounds, in each of which every server was measured, one after the \
         other. Median (least–most); × says how many times as good {} was, round by round.\n\n",
        found.date,
        found.commit,
        found.command,
        machine.cpu,
        machine.cores,
        machine.memory_bytes as f64 / f64::from(1 << 30),
        found.sides[0],
    );
    let ours = &found.sides[0];
    let mut head = vec!["measure".to_owned(), "unit".to_owned(), ours.clone(), "of the limit".to_owned()];
    for peer in &found.sides[1..] {
        head.extend([peer.clone(), format!("{ours} over {peer}")]);
    }
    let head: Vec<&str> = head.iter().map(String::as_str).collect();
    let rows: Vec<Vec<String>> = found.rows.iter().map(cells).collect();
    write!(text, "{}", table(&head, &rows)).expect("a string takes everything");
    text
}

fn cells(row: &Row) -> Vec<String> {
    let middle = percentile(&row.values[0], 50.0).unwrap_or_default();
    let share = row.limit.map(|limit| format!("{:.0} %", middle / limit * 100.0));
    let digits = if middle >= 100.0 { 0 } else { 1 + usize::from(middle < 10.0) };
    let mut cells = vec![row.what.clone(), row.unit.symbol().to_owned()];
    cells.extend([spread(&row.values[0], digits), share.unwrap_or_default()]);
    for peer in 1..row.values.len() {
        cells.extend([spread(&row.values[peer], digits), format!("{} ×", spread(&row.ratios(peer), 2))]);
    }
    cells
}
