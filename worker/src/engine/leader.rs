//! Rank 0: takes plans from the driver, runs them with the other ranks, samples, and reports.

use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use foggara_proto::step::{StepPlan, StepReport, StepTiming};
use tokio::sync::mpsc::UnboundedSender;

use super::{Engine, EngineError, STEP_DEADLINE, SequenceTable, StepTimes};
use crate::decoder::StepInput;

/// What reaches the leader's thread.
#[derive(Debug)]
pub enum EngineEvent {
    /// A driver has taken over; whatever an earlier one had here is forgotten.
    Attach {
        /// Its lease.
        driver_epoch: u64,
        /// Where its reports go. Dropped when a plan does not make sense.
        reports: UnboundedSender<StepReport>,
    },
    /// The driver's next step.
    Plan(StepPlan),
    /// The group is dissolved.
    Stop,
}

struct Driver {
    epoch: u64,
    last_plan: u64,
    reports: UnboundedSender<StepReport>,
    /// When the ranks last told what they had counted.
    collected: Instant,
}

/// Between two times at which the ranks tell what they have counted.
const COLLECT_INTERVAL: Duration = Duration::from_millis(500);

/// Leads the group until it ends.
///
/// # Errors
/// Why it ended, unless it was asked to.
pub fn lead(mut engine: Engine, events: &Receiver<EngineEvent>) -> Result<(), EngineError> {
    engine.comms.set_deadline(Some(STEP_DEADLINE));
    let mut table = SequenceTable::new(engine.decoder.spec().vocab);
    let mut driver: Option<Driver> = None;
    let mut bytes = Vec::new();
    loop {
        let waiting = Instant::now();
        // The sender lives as long as the worker holds the group.
        let Ok(event) = events.recv() else { return Ok(()) };
        match event {
            EngineEvent::Stop => return Ok(()),
            EngineEvent::Attach { driver_epoch, reports } => {
                let newer = driver.as_ref().is_none_or(|current| current.epoch < driver_epoch);
                if newer {
                    let input = table.clear();
                    engine.prepare(&input)?;
                    run(&mut engine, &input, &mut bytes, &mut |_, _| ())?;
                    driver = Some(Driver {
                        epoch: driver_epoch,
                        last_plan: 0,
                        reports,
                        collected: Instant::now(),
                    });
                }
            }
            EngineEvent::Plan(plan) => {
                let Some(current) = driver.as_mut().filter(|d| d.epoch == plan.driver_epoch) else {
                    continue;
                };
                if plan.number <= current.last_plan {
                    continue;
                }
                let waited = waiting.elapsed();
                if let Err(reason) = step(&mut engine, &mut table, current, plan, &mut bytes, waited)? {
                    tracing::error!(reason, "a step plan does not make sense; the driver is disconnected");
                    // The next one that attaches finds an empty table.
                    driver = None;
                }
            }
        }
    }
}

/// Runs a plan. The inner error says why it makes no sense; no other rank has heard of it then.
fn step(
    engine: &mut Engine,
    table: &mut SequenceTable,
    driver: &mut Driver,
    plan: StepPlan,
    bytes: &mut Vec<u8>,
    waited: Duration,
) -> Result<Result<(), String>, EngineError> {
    if plan.number != driver.last_plan + 1 {
        return Ok(Err(format!("plan {} follows plan {}", plan.number, driver.last_plan)));
    }
    let number = plan.number;
    let mut input = match table.begin(plan) {
        Ok(input) => input,
        Err(error) => return Ok(Err(error.to_string())),
    };
    if let Err(error) = engine.prepare(&input) {
        return Ok(Err(error.to_string()));
    }
    driver.last_plan = number;
    let started = Instant::now();
    if driver.collected.elapsed() >= COLLECT_INTERVAL {
        input.collect = true;
        driver.collected = started;
    }
    engine.own.waited(waited);
    let collective_before = engine.comms.stats().nanos;
    let sampling = run(engine, &input, bytes, &mut |row, logits| table.take_logits(row, logits))?.sample;
    let micros = |d: Duration| u32::try_from(d.as_micros()).unwrap_or(u32::MAX);
    let collective = Duration::from_nanos(engine.comms.stats().nanos - collective_before);
    let timing = StepTiming {
        rows: u32::try_from(input.tokens.len()).unwrap_or(u32::MAX),
        wait_us: micros(waited),
        compute_us: micros(started.elapsed().saturating_sub(sampling)),
        collective_us: micros(collective),
        sample_us: micros(sampling),
    };
    let report = StepReport {
        driver_epoch: driver.epoch,
        number,
        outputs: table.finish(),
        timing,
        experts: engine.told.take_experts(),
        ranks: engine.told.take_ranks(),
        unplanned: false,
        skipped: Vec::new(),
    };
    // A driver that has gone away is replaced by one that attaches anew.
    driver.reports.send(report).ok();
    Ok(Ok(()))
}

/// Runs a prepared step on every rank.
fn run(
    engine: &mut Engine,
    input: &StepInput,
    bytes: &mut Vec<u8>,
    on_logits: &mut dyn FnMut(usize, &[f32]),
) -> Result<StepTimes, EngineError> {
    if input.is_empty() {
        return Ok(StepTimes::default());
    }
    if engine.comms.size() > 1 {
        input.encode(bytes);
        engine.comms.all().broadcast(bytes)?;
    }
    Ok(engine.run(input, on_logits)?)
}
