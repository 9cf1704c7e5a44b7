//! What two looks at the cluster say: states, and rates of what has grown between them.

use std::collections::BTreeMap;
use std::time::Instant;

use foggara_proto::shape::Shape;
use foggara_proto::wire::admin as wire;
use serde::Serialize;

/// One look.
pub(super) struct Sample {
    pub(super) at: Instant,
    pub(super) status: wire::StatusResponse,
    pub(super) stats: wire::StatsResponse,
}

/// What is shown.
#[derive(Debug, Serialize)]
pub(super) struct View {
    pub(super) cluster_id: String,
    pub(super) answered_by: u64,
    /// `null`: nobody leads.
    pub(super) leader: Option<u64>,
    pub(super) coordinators: usize,
    pub(super) workers: usize,
    /// Workers without a rank.
    pub(super) idle_workers: usize,
    /// Coordinators whose groups are not shown.
    pub(super) silent_coordinators: Vec<u64>,
    pub(super) groups: Vec<GroupView>,
    /// Deployments without a group, and what they wait for.
    pub(super) unserved: BTreeMap<String, String>,
}

/// A group. Rates are `null` until there are two looks at the same driver.
#[derive(Debug, Serialize)]
pub(super) struct GroupView {
    pub(super) id: u64,
    pub(super) deployment: String,
    pub(super) state: String,
    pub(super) shape: String,
    /// `null`: nobody drives it.
    pub(super) driver: Option<u64>,
    pub(super) running: u64,
    pub(super) waiting: u64,
    pub(super) kv_blocks: KvBlocks,
    pub(super) preemptions: u64,
    pub(super) steps_per_second: Option<f64>,
    /// Tokens that went through the model in a step, on average.
    pub(super) rows_per_step: Option<f64>,
    pub(super) rows_per_second: Option<f64>,
    pub(super) generated_tokens_per_second: Option<f64>,
    pub(super) ranks: Vec<RankView>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct KvBlocks {
    pub(super) free: u64,
    pub(super) live: u64,
    pub(super) cached: u64,
    pub(super) total: u64,
    /// Tokens in each.
    pub(super) size: u32,
}

/// A rank: milliseconds of a step on average, `null` while there was none.
#[derive(Debug, Serialize)]
pub(super) struct RankView {
    pub(super) rank: u32,
    pub(super) worker: u64,
    pub(super) wait_ms: Option<f64>,
    pub(super) compute_ms: Option<f64>,
    pub(super) collective_ms: Option<f64>,
    pub(super) sample_ms: Option<f64>,
    /// Sent to other ranks for experts.
    pub(super) dispatched_bytes_per_second: Option<f64>,
}

impl View {
    pub(super) fn new(before: Option<&Sample>, now: &Sample) -> Self {
        let status = &now.status;
        let served = |name: &str| status.groups.iter().any(|group| group.deployment == name);
        let waiting = status.deployments.iter().filter(|d| !served(&d.name));
        Self {
            cluster_id: status.cluster_id.clone(),
            answered_by: status.answered_by,
            leader: Some(status.leader).filter(|leader| *leader > 0),
            coordinators: status.coordinators.len(),
            workers: status.workers.len(),
            idle_workers: status.workers.iter().filter(|worker| worker.group.is_none()).count(),
            silent_coordinators: now.stats.silent.clone(),
            groups: status.groups.iter().map(|group| group_view(before, now, group)).collect(),
            unserved: waiting.map(|d| (d.name.clone(), super::super::status::state_of(d))).collect(),
        }
    }
}

fn stats_of(sample: &Sample, group: u64) -> Option<&wire::GroupStats> {
    sample.stats.groups.iter().find(|stats| stats.group == group)
}

fn group_view(before: Option<&Sample>, now: &Sample, group: &wire::Group) -> GroupView {
    let stats = stats_of(now, group.id);
    let earlier = before.and_then(|before| Some((before, stats_of(before, group.id)?)));
    // Another driver counts from 0.
    let earlier = earlier.filter(|(_, e)| stats.is_some_and(|s| s.driver_epoch == e.driver_epoch));
    let seconds = earlier.map(|(before, _)| now.at.duration_since(before.at).as_secs_f64().max(1e-3));
    let grown =
        |count: fn(&wire::GroupStats) -> u64| Some(count(stats?).saturating_sub(count(earlier?.1)) as f64);
    let rate = |count: fn(&wire::GroupStats) -> u64| Some(grown(count)? / seconds?);
    let steps = grown(|s| s.steps).filter(|steps| *steps > 0.0);
    let shape = group.shape.map(Shape::from);
    let total = group.kv_blocks * shape.map_or(1, |shape| u64::from(shape.dp));
    let kv = stats.map(|s| (s.free_blocks, s.live_blocks, s.cached_blocks)).unwrap_or_default();
    GroupView {
        id: group.id,
        deployment: group.deployment.clone(),
        state: group.state.clone(),
        shape: shape.map(|shape| shape.to_string()).unwrap_or_default(),
        driver: Some(group.driver).filter(|driver| *driver > 0),
        running: stats.map_or(0, |s| s.running),
        waiting: stats.map_or(0, |s| s.waiting),
        kv_blocks: KvBlocks { free: kv.0, live: kv.1, cached: kv.2, total, size: group.block_size },
        preemptions: stats.map_or(0, |s| s.preemptions),
        steps_per_second: rate(|s| s.steps),
        rows_per_step: grown(|s| s.rows).zip(steps).map(|(rows, steps)| rows / steps),
        rows_per_second: rate(|s| s.rows),
        generated_tokens_per_second: rate(|s| s.generated_tokens),
        ranks: (0..)
            .zip(&group.workers)
            .map(|(rank, worker)| {
                let of =
                    |stats: &wire::GroupStats| stats.ranks.iter().find(|told| told.rank == rank).copied();
                rank_view(
                    rank,
                    *worker,
                    earlier.map(|(_, e)| of(e).unwrap_or_default()),
                    stats.and_then(of),
                    seconds,
                )
            })
            .collect(),
    }
}

fn rank_view(
    rank: u32,
    worker: u64,
    before: Option<wire::RankStats>,
    now: Option<wire::RankStats>,
    seconds: Option<f64>,
) -> RankView {
    let both = before.zip(now);
    let grown = |count: fn(&wire::RankStats) -> u64| {
        both.map(|(before, now)| count(&now).saturating_sub(count(&before)) as f64)
    };
    let steps = grown(|r| r.steps).filter(|steps| *steps > 0.0);
    let millis = |count: fn(&wire::RankStats) -> u64| Some(grown(count)? / steps? / 1e3);
    RankView {
        rank,
        worker,
        wait_ms: millis(|r| r.wait_us),
        compute_ms: millis(|r| r.compute_us),
        collective_ms: millis(|r| r.collective_us),
        sample_ms: millis(|r| r.sample_us),
        dispatched_bytes_per_second: grown(|r| r.dispatched_bytes).zip(seconds).map(|(bytes, s)| bytes / s),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;

    /// Two looks a second apart at a group of two ranks, in which `steps` steps of 4 rows have been made.
    pub(crate) fn looks(steps: u64) -> (Sample, Sample) {
        let group = wire::Group {
            id: 7,
            deployment: "m".into(),
            state: "ready".into(),
            workers: vec![11, 12],
            kv_blocks: 64,
            block_size: 16,
            driver: 2,
            shape: Some(wire::Shape { tp: 1, dp: 2, pp: 1, ep: 2 }),
            ..wire::Group::default()
        };
        let at = Instant::now();
        let look = |steps: u64| {
            let rank = |rank| wire::RankStats {
                rank,
                steps,
                wait_us: 500 * steps,
                compute_us: 2000 * steps,
                collective_us: 250 * steps,
                sample_us: if rank == 0 { 100 * steps } else { 0 },
                dispatched_bytes: 1_000_000 * steps,
                ..wire::RankStats::default()
            };
            let stats = wire::GroupStats {
                group: 7,
                driver: 2,
                driver_epoch: 3,
                running: 4,
                waiting: 1,
                free_blocks: 100,
                live_blocks: 28,
                steps,
                rows: 4 * steps,
                generated_tokens: 3 * steps,
                ranks: vec![rank(0), rank(1)],
                ..wire::GroupStats::default()
            };
            let lacking = wire::Deployment {
                name: "big".into(),
                state: "pending".into(),
                reason: "memory".into(),
                ..wire::Deployment::default()
            };
            Sample {
                at: at + Duration::from_secs(u64::from(steps > 10)),
                status: wire::StatusResponse {
                    cluster_id: "c".into(),
                    leader: 1,
                    groups: vec![group.clone()],
                    deployments: vec![lacking],
                    ..wire::StatusResponse::default()
                },
                stats: wire::StatsResponse { groups: vec![stats], silent: vec![3], ..Default::default() },
            }
        };
        (look(10), look(10 + steps))
    }

    #[test]
    fn rates_are_of_what_has_grown_between_two_looks() {
        let (before, now) = looks(20);
        let view = View::new(Some(&before), &now);
        let group = &view.groups[0];
        assert_eq!(
            (group.steps_per_second, group.rows_per_step, group.rows_per_second),
            (Some(20.0), Some(4.0), Some(80.0))
        );
        assert_eq!(group.generated_tokens_per_second, Some(60.0));
        assert_eq!(group.kv_blocks, KvBlocks { free: 100, live: 28, cached: 0, total: 128, size: 16 });
        let rank = &group.ranks[1];
        assert_eq!((rank.worker, rank.compute_ms, rank.wait_ms), (12, Some(2.0), Some(0.5)));
        assert_eq!((rank.sample_ms, rank.dispatched_bytes_per_second), (Some(0.0), Some(2e7)));
        assert_eq!(view.unserved["big"], "pending: memory");
        assert_eq!(view.silent_coordinators, [3]);
    }

    #[test]
    fn without_a_look_before_there_are_no_rates() {
        let (mut before, now) = looks(20);
        for before in [None, {
            before.stats.groups[0].driver_epoch = 2;
            Some(&before)
        }] {
            let group = &View::new(before, &now).groups[0];
            assert_eq!((group.running, group.steps_per_second, group.rows_per_step), (4, None, None));
            assert_eq!(group.ranks[0].compute_ms, None);
        }
        let (before, mut now) = looks(0);
        let idle = View::new(Some(&before), &now);
        assert_eq!((idle.groups[0].steps_per_second, idle.groups[0].rows_per_step), (Some(0.0), None));
        now.stats.groups.clear();
        assert_eq!(View::new(Some(&before), &now).groups[0].steps_per_second, None, "its driver is silent");
    }
}
