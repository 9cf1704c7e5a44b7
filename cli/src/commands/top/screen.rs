//! A view as lines of text.

use super::view::{GroupView, RankView, View};
use crate::output::table;

/// All of it, the cluster first.
pub(super) fn lines(view: &View) -> Vec<String> {
    let leader = view.leader.map_or_else(|| "no leader".to_owned(), |id| format!("leader {id}"));
    let generated: f64 = view.groups.iter().filter_map(|group| group.generated_tokens_per_second).sum();
    let sum = |count: fn(&GroupView) -> u64| view.groups.iter().map(count).sum::<u64>();
    let mut lines = vec![
        format!(
            "cluster {}: {leader}, {} coordinators, {} workers ({} idle); answered by {}",
            view.cluster_id, view.coordinators, view.workers, view.idle_workers, view.answered_by
        ),
        format!(
            "{generated:.1} tokens/s generated, {} sequences running, {} waiting",
            sum(|group| group.running),
            sum(|group| group.waiting)
        ),
    ];
    for id in &view.silent_coordinators {
        lines.push(format!("coordinator {id} does not answer: what it drives is not counted"));
    }
    lines.push(String::new());
    let header = [
        "group",
        "deployment",
        "state",
        "shape",
        "driver",
        "run",
        "wait",
        "tok/s",
        "rows/s",
        "steps/s",
        "rows/step",
        "kv live",
        "cached",
        "free",
        "preempted",
    ];
    lines.extend(rows(&header, &view.groups.iter().map(group_row).collect::<Vec<_>>()));
    lines.push(String::new());
    let header =
        ["group", "rank", "worker", "wait ms", "compute ms", "collective ms", "sample ms", "experts MB/s"];
    let ranks = view.groups.iter().flat_map(|group| group.ranks.iter().map(|rank| rank_row(group, rank)));
    lines.extend(rows(&header, &ranks.collect::<Vec<_>>()));
    if !view.unserved.is_empty() {
        lines.push(String::new());
        lines.extend(view.unserved.iter().map(|(name, state)| format!("  {name} is not served: {state}")));
    }
    lines
}

fn rows(header: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let mut text = Vec::new();
    // Memory takes everything.
    table(&mut text, header, rows).ok();
    String::from_utf8_lossy(&text).lines().map(str::to_owned).collect()
}

/// With so many digits after the point; a dash where nothing is known.
fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".into(), |value| format!("{value:.digits$}"))
}

fn group_row(g: &GroupView) -> Vec<String> {
    let percent = |blocks: u64| format!("{:.0}%", blocks as f64 * 100.0 / g.kv_blocks.total.max(1) as f64);
    vec![
        g.id.to_string(),
        g.deployment.clone(),
        g.state.clone(),
        g.shape.clone(),
        g.driver.map_or_else(|| "-".into(), |driver| driver.to_string()),
        g.running.to_string(),
        g.waiting.to_string(),
        number(g.generated_tokens_per_second, 1),
        number(g.rows_per_second, 0),
        number(g.steps_per_second, 1),
        number(g.rows_per_step, 1),
        percent(g.kv_blocks.live),
        percent(g.kv_blocks.cached),
        percent(g.kv_blocks.free),
        g.preemptions.to_string(),
    ]
}

fn rank_row(g: &GroupView, r: &RankView) -> Vec<String> {
    vec![
        g.id.to_string(),
        r.rank.to_string(),
        r.worker.to_string(),
        number(r.wait_ms, 2),
        number(r.compute_ms, 2),
        number(r.collective_ms, 2),
        number(r.sample_ms, 2),
        number(r.dispatched_bytes_per_second.map(|bytes| bytes / 1e6), 1),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::view::tests::looks;
    use super::*;

    #[test]
    fn everything_that_is_asked_after_is_there() {
        let (before, now) = looks(20);
        let text = lines(&View::new(Some(&before), &now)).join("\n");
        for expected in [
            "cluster c: leader 1",
            "60.0 tokens/s generated, 4 sequences running, 1 waiting",
            "coordinator 3 does not answer",
            "7      m           ready  tp1·dp2·pp1·ep2  2       4    1     60.0   80      20.0     4.0",
            "22%",
            "7      1     12      0.50     2.00        0.25           0.00       20.0",
            "big is not served: pending: memory",
        ] {
            assert!(text.contains(expected), "{expected}\n{text}");
        }
        let text = lines(&View::new(None, &now)).join("\n");
        assert!(text.contains(" -  "), "rates are not known yet:\n{text}");
    }
}
