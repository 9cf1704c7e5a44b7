//! The batcher against a simulated engine, in simulated time: seeded workloads, and what must hold whatever they bring.
//!
//! - `engine`: executes plans as a leader does, and says how long a step takes; blocks are checked at every step
//! - `world`: clients, the batcher and the engine, with the distance between them
//! - `workload`: lengths, arrivals and cancellations
//!
//! One promise a file: `starvation`, `fairness`, `latency`, `optimum` (throughput against the best of all schedules), and
//! `depth` (plans ahead over a distance).

mod depth;
mod engine;
mod fairness;
mod latency;
mod optimum;
mod starvation;
mod workload;
mod world;

use super::Limits;
use engine::Costs;

/// A small model on a few cores: a row costs half of what reading the weights does.
const SMALL: Costs = Costs { fixed: 5_000.0, row: 2_400.0, sampled: 150.0, attended: 1.0 };
/// A larger one on a larger machine.
const MEDIUM: Costs = Costs { fixed: 20_000.0, row: 500.0, sampled: 200.0, attended: 0.1 };
/// An accelerator: hundreds of rows for the price of the weights.
const LARGE: Costs = Costs { fixed: 8_000.0, row: 25.0, sampled: 10.0, attended: 0.004 };

const LIMITS: Limits = Limits {
    kv_blocks: 4_096,
    pools: 1,
    block_size: 16,
    step_rows: 256,
    sequences: 64,
    queue: 20_000,
    lease_ms: 0,
    drafts: 0,
};
