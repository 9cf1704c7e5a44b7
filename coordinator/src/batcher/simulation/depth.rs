//! Plans ahead: distance between driver and leader costs no throughput.

use super::world::{Setup, World};
use super::{LARGE, LIMITS, MEDIUM, workload};

/// The part of the time from the first step to the last in which the engine computed.
fn busy(world: &World) -> f64 {
    let computed: f64 = world.steps.iter().map(|(_, step)| step.micros).sum();
    let (first, last) = (world.steps[0].0, world.steps[world.steps.len() - 1]);
    #[allow(clippy::cast_precision_loss)]
    let span = (last.0 - first) as f64 + last.1.micros;
    computed / span
}

#[test]
fn the_engine_does_not_wait_for_a_distant_driver() {
    for (costs, round_trip_us) in [(MEDIUM, 300), (MEDIUM, 40_000), (MEDIUM, 120_000), (LARGE, 40_000)] {
        let request = |i: usize| workload::client(0, workload::request("", 128, 100 + i % 20, 200));
        let clients = (0..200).map(request).collect();
        let mut world = World::new(Setup { round_trip_us, ..Setup::new(costs, LIMITS) }, clients);
        world.run();
        let busy = busy(&world);
        assert!(busy > 0.97, "{costs:?} at {round_trip_us} us: busy for {busy:.3} of the time");
    }
}
