//! A long prompt does not stall those who stream.

use super::engine::Costs;
use super::world::{Client, Setup, World, percentile};
use super::{LARGE, LIMITS, MEDIUM, SMALL, workload};

const LONG: usize = 8_192;

/// `streams` streams, and `long` requests that come after a while. Runs until those are read.
fn run(setup: Setup, streams: usize, long: Vec<Client>) -> World {
    let stream = |i| workload::client(i as u64 * 1_000, workload::request("", 20 + i, 20_000, 20_000));
    let clients = (0..streams).map(stream).chain(long).collect();
    let mut world = World::new(setup, clients);
    while world.seen.iter().skip(streams).any(|seen| seen.end.is_none()) {
        assert!(world.step());
    }
    world
}

/// Returns the 99th percentile of the time between streams' tokens while a long prompt is read, and of the same tokens had
/// it not come, in microseconds; and how long it took over how long it takes alone.
fn beside(costs: Costs, streams: usize, seed: u64) -> (u64, u64, f64) {
    let setup = Setup { noise: 0.04, seed, ..Setup::new(costs, LIMITS) };
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let long_us = (costs.of(streams, streams, 0) * 150.0) as u64;
    let long = workload::client(long_us, workload::request("", LONG, 4, 4));
    let world = run(setup, streams, vec![long]);
    let first_us = world.seen[streams].tokens_us[0];
    let tokens = world.seen[0].tokens_us.len();
    let mut without = World::new(setup, (0..streams).map(|id| world.client(id).clone()).collect());
    while without.seen.iter().any(|seen| seen.tokens_us.len() < tokens) {
        assert!(without.step());
    }
    let (mut during, mut undisturbed) = (Vec::new(), Vec::new());
    for (seen, other) in world.seen[..streams].iter().zip(&without.seen) {
        let pairs = seen.tokens_us.windows(2).zip(other.tokens_us.windows(2));
        for (pair, other) in pairs.filter(|(pair, _)| pair[0] >= long_us && pair[1] <= first_us) {
            during.push(pair[1] - pair[0]);
            undisturbed.push(other[1] - other[0]);
        }
    }
    let alone = costs.alone(LONG, 0, LIMITS.step_rows as usize);
    #[allow(clippy::cast_precision_loss)]
    let slower = (first_us - long_us) as f64 / alone;
    (percentile(during, 99), percentile(undisturbed, 99), slower)
}

#[test]
fn a_long_prompt_keeps_the_time_between_tokens_within_twice_of_before() {
    // One row is the least there is: beside fewer than eight streams of the small model, a row that attends to thousands of
    // positions takes longer than all of their step.
    for (costs, streams) in [
        (SMALL, 8),
        (SMALL, 16),
        (SMALL, 60),
        (MEDIUM, 1),
        (MEDIUM, 4),
        (MEDIUM, 32),
        (LARGE, 1),
        (LARGE, 16),
        (LARGE, 60),
    ] {
        for seed in 1..3 {
            let (during, before, slower) = beside(costs, streams, seed);
            assert!(
                during <= 2 * before,
                "{costs:?}, {streams} streams: {before} us without, {during} us with"
            );
            // 3 times, if every step were stretched to just 1.5 times what its decodes take.
            assert!(slower < 4.0, "{costs:?}, {streams} streams: the prompt took {slower:.1} times as long");
        }
    }
}

#[test]
fn a_short_prompt_does_not_wait_for_a_long_one() {
    let mut clients = vec![workload::client(0, workload::request("", 16, 4_000, 4_000))];
    clients.push(workload::client(1_000_000, workload::request("", LONG, 4, 4)));
    clients.push(workload::client(2_000_000, workload::request("", 64, 4, 4)));
    let mut world = World::new(Setup::new(MEDIUM, LIMITS), clients);
    while world.seen[1].end.is_none() {
        assert!(world.step());
    }
    let (long, short) = (world.seen[1].tokens_us[0], world.seen[2].tokens_us[0]);
    assert!(short < 2_500_000 && long > 4_000_000, "first tokens: long {long}, short {short}");
}
