//! Tenants that have requests waiting are given tokens by their weights.

use super::world::{Client, Setup, World};
use super::{LARGE, LIMITS, MEDIUM, SMALL, workload};
use crate::batcher::tests::Lcg;

/// A tenant's weight, and how long its prompts and answers are at least and at most.
type Tenant = (&'static str, u32, (usize, usize), (usize, usize));

fn backlog(tenants: &[Tenant], each: usize, at_us: u64) -> Vec<Client> {
    let mut random = Lcg(9);
    let mut clients = Vec::new();
    for _ in 0..each {
        for (tenant, weight, prompt, answer) in tenants {
            let answer = random.length(answer.0, answer.1);
            let mut request = workload::request(tenant, random.length(prompt.0, prompt.1), answer, answer);
            request.weight = *weight;
            clients.push(workload::client(at_us, request));
        }
    }
    clients
}

/// Runs until somebody has nothing waiting; returns what each was given from `from_us` on, as a share of its due.
fn shares(setup: Setup, clients: Vec<Client>, tenants: &[Tenant], from_us: u64) -> Vec<f64> {
    let mut world = World::new(setup, clients);
    while world.now_us < from_us || world.is_expecting() {
        assert!(world.step());
    }
    let given =
        |world: &World| tenants.iter().map(|t| world.charged().get(t.0).copied().unwrap_or(0)).collect();
    let before: Vec<u64> = given(&world);
    let mut steps = 0;
    while steps % 64 != 0 || tenants.iter().all(|tenant| world.waiting(tenant.0) > 0) {
        assert!(world.step());
        steps += 1;
    }
    let after: Vec<u64> = given(&world);
    let gained: Vec<u64> = after.iter().zip(before).map(|(after, before)| after - before).collect();
    let weights: u64 = tenants.iter().map(|tenant| u64::from(tenant.1)).sum();
    let all: u64 = gained.iter().sum();
    assert!(all > 300_000, "only {all} tokens");
    let share = |(gained, tenant): (&u64, &Tenant)| {
        #[allow(clippy::cast_precision_loss)]
        let share = (gained * weights) as f64 / (all * u64::from(tenant.1)) as f64;
        share
    };
    gained.iter().zip(tenants).map(share).collect()
}

fn assert_fair(shares: &[f64]) {
    assert!(shares.iter().all(|share| (share - 1.0).abs() < 0.05), "shares of their due: {shares:.3?}");
}

#[test]
fn shares_are_within_five_percent_of_weights() {
    let tenants: [Tenant; 3] =
        [("a", 1, (40, 400), (30, 100)), ("b", 2, (40, 400), (30, 100)), ("c", 5, (40, 400), (30, 100))];
    for costs in [SMALL, MEDIUM, LARGE] {
        assert_fair(&shares(Setup::new(costs, LIMITS), backlog(&tenants, 3_000, 0), &tenants, 0));
    }
}

#[test]
fn shares_are_of_tokens_and_not_of_requests() {
    let tenants: [Tenant; 3] = [
        ("chats", 1, (20, 100), (60, 300)),
        ("files", 1, (600, 3_000), (4, 10)),
        ("pings", 2, (8, 10), (2, 4)),
    ];
    // Those with short requests have as many more of them.
    let mut clients = backlog(&tenants[..2], 2_000, 0);
    clients.extend(backlog(&tenants[2..], 60_000, 0));
    let limits = crate::batcher::Limits { queue: 100_000, ..LIMITS };
    assert_fair(&shares(Setup::new(MEDIUM, limits), clients, &tenants, 0));
}

#[test]
fn idle_time_is_no_credit() {
    let tenants: [Tenant; 2] = [("always", 1, (40, 400), (30, 100)), ("late", 1, (40, 400), (30, 100))];
    let late_us = 200_000_000;
    let mut clients = backlog(&tenants[..1], 6_000, 0);
    clients.extend(backlog(&tenants[1..], 3_000, late_us));
    // From a moment after it came: what runs then was let in before.
    let shares = shares(Setup::new(MEDIUM, LIMITS), clients, &tenants, late_us + 20_000_000);
    assert_fair(&shares);
}
