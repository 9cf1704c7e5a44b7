//! Policies by themselves, and over four replicas in time.

use super::*;
use crate::batcher::shadow::ModelLeader;
use crate::batcher::tests::{LIMITS, Lcg, request};
use crate::batcher::{Batcher, CacheTokens, Limits};

fn view(group: u64, load: usize) -> GroupView {
    GroupView { group, driver_epoch: 1, load, blocks: 1000, block_size: 4 }
}

fn views(loads: &[usize]) -> Vec<GroupView> {
    (1..).zip(loads).map(|(group, load)| view(group, *load)).collect()
}

fn asked<'a>(tokens: &'a [u32], salt: Option<&str>, session: Option<&'a str>) -> Asked<'a> {
    Asked { tokens, root: BlockHash::root("", salt, None), session }
}

#[test]
fn policies_have_names() {
    for (name, kind) in PolicyKind::ALL {
        assert_eq!((name.parse(), kind.to_string()), (Ok(kind), name.to_owned()));
    }
    assert_eq!(PolicyKind::default().to_string(), "prefix-aware");
    assert!("best".parse::<PolicyKind>().is_err_and(|error| error.contains("round-robin")));
}

#[test]
fn the_least_loaded_is_the_first_of_those_with_the_fewest() {
    let mut policy = PolicyKind::LeastLoaded.build();
    for (loads, expected) in [(&[0][..], 0), (&[1, 0, 0], 1), (&[3, 3, 4], 0)] {
        assert_eq!(policy.choose(&asked(&[1], None, None), &views(loads)), expected, "{loads:?}");
    }
}

#[test]
fn round_robin_goes_around_whoever_comes_and_goes() {
    let mut policy = PolicyKind::RoundRobin.build();
    let mut choose = |groups: &[u64]| {
        let groups: Vec<GroupView> = groups.iter().map(|group| view(*group, 0)).collect();
        groups[policy.choose(&asked(&[1], None, None), &groups)].group
    };
    assert_eq!(
        [choose(&[1, 2, 3]), choose(&[1, 2, 3]), choose(&[1, 2, 3]), choose(&[1, 2, 3])],
        [1, 2, 3, 1]
    );
    assert_eq!([choose(&[1, 3, 9]), choose(&[1, 3, 9]), choose(&[1, 3, 9])], [3, 9, 1]);
    assert_eq!(
        [choose(&[20, 21]), choose(&[1, 3]), choose(&[20, 21])],
        [20, 3, 21],
        "models do not disturb each other"
    );
}

#[test]
fn a_known_beginning_attracts_until_too_many_are_there() {
    let mut policy = PolicyKind::PrefixAware.build();
    let prompt: Vec<u32> = (0..200).collect();
    let longer: Vec<u32> = (0..220).collect();
    let groups = views(&[0, 0, 0]);
    assert_eq!(policy.choose(&asked(&prompt, None, None), &groups), 0);
    policy.placed(&asked(&prompt, None, None), &groups[2]);
    assert_eq!(policy.choose(&asked(&longer, None, None), &groups), 2);
    assert_eq!(
        policy.choose(&asked(&longer, Some("x"), None), &groups),
        0,
        "under another salt nothing is known"
    );
    assert_eq!(policy.choose(&asked(&longer[1..], None, None), &groups), 0, "another beginning");
    // 200 rows are worth six sequences.
    assert_eq!(policy.choose(&asked(&longer, None, None), &views(&[1, 1, 7])), 2);
    assert_eq!(policy.choose(&asked(&longer, None, None), &views(&[1, 1, 8])), 0);
    // A new driver begins with an empty cache.
    let mut renewed = groups.clone();
    renewed[2].driver_epoch = 2;
    assert_eq!(policy.choose(&asked(&longer, None, None), &renewed), 0);
    policy.placed(&asked(&[7; 8], None, None), &renewed[2]);
    assert_eq!(policy.choose(&asked(&longer, None, None), &renewed), 0);
}

#[test]
fn sessions_keep_to_a_group_and_are_spread() {
    let mut policy = PolicyKind::PrefixAware.build();
    let groups = views(&[0, 0, 0, 0]);
    let names: Vec<String> = (0..200).map(|i| format!("session {i}")).collect();
    let mut choose = |name: &str, groups: &[GroupView]| {
        groups[policy.choose(&asked(&[1], None, Some(name)), groups)].group
    };
    let homes: Vec<u64> = names.iter().map(|name| choose(name, &groups)).collect();
    for group in &groups {
        let share = homes.iter().filter(|home| **home == group.group).count();
        assert!((25..100).contains(&share), "group {}: {share} of 200", group.group);
    }
    // When a group goes, only its own sessions move; and a group that is busy is left alone.
    for (name, home) in names.iter().zip(&homes) {
        let moved = choose(name, &groups[..3]);
        assert!(moved == *home || *home == 4, "{name}");
        let busy: Vec<GroupView> = groups
            .iter()
            .map(|view| GroupView { load: if view.group == *home { 20 } else { 0 }, ..*view })
            .collect();
        assert_ne!(choose(name, &busy), *home, "{name}");
    }
}

/// Four replicas whose requests begin with one of many prompts.
struct Simulation {
    hits: CacheTokens,
    /// Mean steps from arrival to the first token.
    first_token: f64,
    /// Requests of each replica.
    shares: Vec<usize>,
}

fn simulate(kind: PolicyKind, seed: u64) -> Simulation {
    const REQUESTS: u64 = 400;
    let limits = Limits { kv_blocks: 200, sequences: 16, ..LIMITS };
    let mut policy = kind.build();
    let mut random = Lcg(seed);
    let mut replicas: Vec<(Batcher, ModelLeader)> =
        (0..4).map(|_| (Batcher::new(1, limits), ModelLeader::new(limits))).collect();
    let mut arrived = std::collections::BTreeMap::new();
    let (mut next, mut now, mut waited, mut shares) = (0, 0u64, 0u64, vec![0; 4]);
    while next < REQUESTS || !replicas.iter().all(|(batcher, _)| batcher.is_idle()) {
        now += 1;
        if next < REQUESTS && random.below(3) == 0 {
            // Sixteen prompts of 96 tokens: twice what one replica can hold beside its work.
            let prompt = random.below(16) as u32;
            let mut tokens: Vec<u32> = (0..96).map(|i| 1 + (i * (prompt + 3) + prompt) % 1000).collect();
            tokens.extend((0..8).map(|_| 1 + random.below(1000) as u32));
            let request = request(&tokens, 8);
            let groups: Vec<GroupView> = (0..)
                .zip(&replicas)
                .map(|(group, (batcher, _))| {
                    let occupancy = batcher.occupancy();
                    let load = occupancy.running + occupancy.waiting;
                    GroupView { group, driver_epoch: 1, load, blocks: 200, block_size: 4 }
                })
                .collect();
            let place = policy.choose(&Asked::from(&request), &groups);
            policy.placed(&Asked::from(&request), &groups[place]);
            shares[place] += 1;
            replicas[place].0.submit(next, request, None).expect("there is room to wait");
            arrived.insert(next, now);
            next += 1;
        }
        for (batcher, leader) in &mut replicas {
            let Some(plan) = batcher.plan() else { continue };
            let news = batcher.report(leader.execute(&plan)).expect("in order");
            let began = news.iter().filter(|(_, event)| !event.tokens.is_empty());
            waited += began.filter_map(|(id, _)| arrived.remove(id)).map(|since| now - since).sum::<u64>();
        }
    }
    let hits = replicas.iter().fold(CacheTokens::default(), |sum, (batcher, _)| {
        let prefix = batcher.occupancy().prefix;
        CacheTokens { asked: sum.asked + prefix.asked, found: sum.found + prefix.found }
    });
    Simulation { hits, first_token: waited as f64 / REQUESTS as f64, shares }
}

#[test]
fn with_shared_prompts_over_four_replicas_prefix_aware_beats_the_others() {
    for seed in 0..3 {
        let rate = |s: &Simulation| s.hits.found as f64 / s.hits.asked as f64;
        let aware = simulate(PolicyKind::PrefixAware, seed);
        for other in [PolicyKind::RoundRobin, PolicyKind::LeastLoaded] {
            let other = (other, simulate(other, seed));
            let (rates, steps) = ((rate(&aware), rate(&other.1)), (aware.first_token, other.1.first_token));
            eprintln!(
                "{}: hit rates {rates:?}, steps to the first token {steps:?}, {:?}",
                other.0, aware.shares
            );
            assert!(rates.0 > 1.15 * rates.1 && steps.0 < steps.1, "{}: {rates:?} {steps:?}", other.0);
        }
        assert!(aware.shares.iter().all(|share| (50..200).contains(share)), "{:?}", aware.shares);
    }
}
