//! Everybody is served, whatever else comes.

use super::world::{Setup, World};
use super::{LARGE, LIMITS, MEDIUM, SMALL, workload};
use crate::batcher::Limits;

/// The most that priorities of these workloads can set anybody back.
const HANDICAP_US: u64 = 10_000_000;

/// Runs `count` requests; checks that nobody waits longer to enter than if requests were served one after the other.
fn run(setup: Setup, count: usize, mean_us: f64, lengths: (usize, usize)) -> u64 {
    let clients = workload::mixed(setup.seed, count, mean_us, lengths);
    let mut world = World::new(setup, clients);
    world.run();
    let mut serial_us = 0;
    for (id, seen) in world.seen.iter().enumerate() {
        let client = world.client(id);
        let params = &client.request.params;
        let answer = usize::try_from(params.seed).expect("small");
        serial_us = serial_us.max(client.at_us);
        if !seen.cancelled {
            assert!(seen.end.is_some(), "{id} never ended");
            assert_eq!(seen.tokens_us.len(), answer, "{id}");
        }
        if let Some(entered) = seen.entered_us {
            let (waited, serial) = (entered - client.at_us, serial_us - client.at_us);
            assert!(waited <= serial + HANDICAP_US, "{id} waited {waited} us, one by one {serial}");
        }
        let alone = setup.costs.alone(client.request.prompt_len, answer, setup.limits.step_rows as usize);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let alone = alone as u64;
        serial_us += alone;
    }
    world.batcher.occupancy().preemptions
}

#[test]
fn thousands_of_requests_all_end() {
    for (costs, mean_us) in [(SMALL, 350_000.0), (MEDIUM, 90_000.0), (LARGE, 15_000.0)] {
        for seed in 1..4 {
            run(Setup { seed, ..Setup::new(costs, LIMITS) }, 2_000, mean_us, (12, 10));
        }
    }
}

#[test]
fn so_they_do_when_memory_is_short() {
    let limits = Limits { kv_blocks: 620, block_size: 4, ..LIMITS };
    let preemptions = run(Setup { seed: 5, ..Setup::new(MEDIUM, limits) }, 2_000, 60_000.0, (12, 60));
    assert!(preemptions > 20, "only {preemptions}: memory is not short");
}
