//! Rank 0: takes plans from the driver, runs them with the other ranks, samples, and reports. When a plan is late it goes on
//! by itself for a while; when a driver is lost it keeps what it has for the next.

use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use foggara_proto::step::{Drafts, HeldSequence, StepPlan, StepReport};
use tokio::sync::mpsc::UnboundedSender;

use super::collect::micros;
use super::lease::{Lease, Next};
use super::{Engine, EngineError, STEP_DEADLINE, SequenceTable, StepTimes, StepWatch};
use crate::decoder::StepInput;

/// What reaches the leader's thread.
#[derive(Debug)]
pub enum EngineEvent {
    /// A driver takes over.
    Attach {
        /// Its lease.
        driver_epoch: u64,
        /// Whatever an earlier one had here is forgotten.
        fresh: bool,
        /// What it is told. Dropped when a plan does not make sense.
        news: UnboundedSender<News>,
    },
    /// The driver's next step.
    Plan {
        /// The step.
        plan: StepPlan,
        /// When it came to this worker.
        came: Instant,
    },
    /// The group is dissolved.
    Stop,
}

/// What a driver is told.
#[derive(Debug)]
pub enum News {
    /// First of all: what an earlier driver has left.
    Held(Vec<HeldSequence>),
    /// A step has been run.
    Report(StepReport),
}

struct Driver {
    epoch: u64,
    last_plan: u64,
    news: UnboundedSender<News>,
}

/// Between two times at which the ranks tell what they have counted.
const COLLECT_INTERVAL: Duration = Duration::from_millis(500);

/// While a step computes that was begun, and the next plan has not come, the leader looks so often whether either has changed.
const LOOK: Duration = Duration::from_micros(20);

/// Leads the group until it ends.
///
/// # Errors
/// Why it ended, unless it was asked to.
pub fn lead(mut engine: Engine, events: &Receiver<EngineEvent>) -> Result<(), EngineError> {
    engine.comms.set_deadline(Some(STEP_DEADLINE));
    let now = Instant::now();
    let mut leader = Leader {
        table: SequenceTable::new(engine.decoder.spec().vocab, engine.block_size, engine.max_rows),
        engine,
        driver: None,
        lease: Lease::new(now),
        collected: now,
        begun: None,
        bytes: Vec::new(),
    };
    loop {
        match leader.wait(events)? {
            Heard::Event(EngineEvent::Attach { driver_epoch, fresh, news }) => {
                leader.finish_begun()?;
                leader.attach(driver_epoch, fresh, news)?;
            }
            Heard::Event(EngineEvent::Plan { plan, came }) => leader.planned(plan, came)?,
            Heard::NoPlan => leader.unplanned()?,
            Heard::Done => leader.finish_begun()?,
            Heard::Event(EngineEvent::Stop) | Heard::Nobody => return Ok(()),
        }
    }
}

enum Heard {
    Event(EngineEvent),
    /// The next plan is late, and there is something to do without it.
    NoPlan,
    /// The step that was begun is done.
    Done,
    /// The worker no longer holds the group.
    Nobody,
}

struct Leader {
    engine: Engine,
    table: SequenceTable,
    /// Absent after a plan that made no sense: the table is unusable then.
    driver: Option<Driver>,
    lease: Lease,
    /// When the ranks last told what they had counted.
    collected: Instant,
    /// A planned step that was begun and not finished: the next may be begun behind it.
    begun: Option<Begun>,
    /// A step on its way to the other ranks.
    bytes: Vec<u8>,
}

struct Begun {
    /// Its plan's number.
    number: u64,
    /// How late that came.
    late: Duration,
    rows: usize,
    /// Since it computes.
    watch: StepWatch,
}

impl Leader {
    /// Waits for the next event, or until the leader may go on without.
    fn wait(&mut self, events: &Receiver<EngineEvent>) -> Result<Heard, EngineError> {
        match &self.begun {
            Some(_) => self.wait_begun(events),
            None => Ok(self.wait_idle(events)),
        }
    }

    /// Waits for the next event, or until the step that was begun is done.
    fn wait_begun(&mut self, events: &Receiver<EngineEvent>) -> Result<Heard, EngineError> {
        let mut heard = events.try_recv().map_err(|error| match error {
            TryRecvError::Empty => RecvTimeoutError::Timeout,
            TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
        });
        loop {
            match heard {
                Ok(event) => return Ok(Heard::Event(event)),
                Err(RecvTimeoutError::Disconnected) => return Ok(Heard::Nobody),
                Err(RecvTimeoutError::Timeout) if self.engine.decoder.is_done()? => return Ok(Heard::Done),
                Err(RecvTimeoutError::Timeout) => heard = events.recv_timeout(LOOK),
            }
        }
    }

    fn wait_idle(&mut self, events: &Receiver<EngineEvent>) -> Heard {
        loop {
            let rows = self.table.decoding_rows();
            let able = self.driver.is_some() && (1..=self.engine.max_rows).contains(&rows);
            let began = Instant::now();
            let heard = match self.lease.next(began, able) {
                Next::Wait => events.recv().map_err(RecvTimeoutError::from),
                Next::WaitFor(time) => events.recv_timeout(time),
                Next::GoOn => match events.try_recv() {
                    Err(TryRecvError::Empty) => return Heard::NoPlan,
                    heard => heard.map_err(|_| RecvTimeoutError::Disconnected),
                },
            };
            self.engine.own.waited(began.elapsed());
            match heard {
                Ok(event) => return Heard::Event(event),
                Err(RecvTimeoutError::Timeout) => {}
                // The sender lives as long as the worker holds the group.
                Err(RecvTimeoutError::Disconnected) => return Heard::Nobody,
            }
        }
    }

    /// A driver takes over, unless there is a newer one.
    fn attach(&mut self, epoch: u64, fresh: bool, news: UnboundedSender<News>) -> Result<(), EngineError> {
        if self.driver.as_ref().is_some_and(|current| current.epoch >= epoch) {
            return Ok(());
        }
        let forgotten = match fresh || self.driver.is_none() {
            true => self.table.clear(),
            false => self.table.forget_untellable(),
        };
        // It may know of no drafts; its plans say.
        self.table.allow(Drafts::default());
        self.engine.prepare(&forgotten)?;
        self.run(&forgotten)?;
        news.send(News::Held(self.table.held())).ok();
        self.driver = Some(Driver { epoch, last_plan: 0, news });
        self.lease.attached(Instant::now());
        Ok(())
    }

    /// Runs a plan, unless it is an older driver's or a duplicate.
    fn planned(&mut self, plan: StepPlan, came: Instant) -> Result<(), EngineError> {
        let Some(driver) = self.driver.as_mut().filter(|driver| driver.epoch == plan.driver_epoch) else {
            return Ok(());
        };
        let (number, last) = (plan.number, driver.last_plan);
        if number <= last {
            return Ok(());
        }
        if number != last + 1 {
            return self.refuse(&format!("plan {number} follows plan {last}"));
        }
        driver.last_plan = number;
        let length = Duration::from_millis(u64::from(plan.lease_ms));
        if self.begun.is_some() && !self.is_collecting() && self.table.can_follow(&plan) {
            // It has come before it was wanted.
            self.lease.planned(length, came);
            return self.follow(plan, number);
        }
        self.finish_begun()?;
        let late = self.lease.planned(length, came);
        // No other rank has heard of a plan that makes no sense.
        let input = match self.table.begin(plan) {
            Ok(input) => input,
            Err(error) => return self.refuse(&error.to_string()),
        };
        if let Err(error) = self.engine.prepare(&input) {
            return self.refuse(&error.to_string());
        }
        if !self.is_collecting() && self.engine.decoder.can_begin(&input, &self.engine.comms) {
            let watch = self.watch();
            self.engine.begin(&input, &[])?;
            self.begun = Some(Begun { number, late, rows: input.tokens.len(), watch });
            return Ok(());
        }
        let skipped = self.table.take_skipped();
        let report = StepReport { skipped, ..self.step(input)? };
        self.report(number, late, report);
        self.lease.done(Instant::now());
        Ok(())
    }

    /// Begins the step of a plan behind the one that computes, and then takes what that has found.
    fn follow(&mut self, plan: StepPlan, number: u64) -> Result<(), EngineError> {
        let (input, fed) = self.table.follow(plan);
        if let Err(error) = self.engine.prepare(&input) {
            return self.refuse(&error.to_string());
        }
        self.engine.begin(&input, &fed)?;
        self.finish_begun()?;
        // It computes from now on.
        let (rows, watch) = (input.tokens.len(), self.watch());
        self.begun = Some(Begun { number, late: Duration::ZERO, rows, watch });
        Ok(())
    }

    /// A step begins.
    fn watch(&self) -> StepWatch {
        StepWatch::begin(self.engine.comms.stats().nanos)
    }

    /// Waits for the step that was begun, if one was, and reports.
    fn finish_begun(&mut self) -> Result<(), EngineError> {
        let Some(Begun { number, late, rows, watch }) = self.begun.take() else { return Ok(()) };
        let times = self.engine.finish(watch, &mut |row, scores| self.table.take_scores(row, scores))?;
        let report = StepReport { skipped: self.table.take_skipped(), ..self.found(&times, rows) };
        self.table.next();
        self.report(number, late, report);
        self.lease.done(Instant::now());
        Ok(())
    }

    /// Whether after the next step the ranks are to tell what they have counted.
    fn is_collecting(&self) -> bool {
        self.collected.elapsed() >= COLLECT_INTERVAL
    }

    /// Decodes what can be without a plan.
    fn unplanned(&mut self) -> Result<(), EngineError> {
        let input = self.table.go_on();
        self.engine.prepare(&input)?;
        let report = StepReport { unplanned: true, ..self.step(input)? };
        let number = self.driver.as_ref().map_or(0, |driver| driver.last_plan);
        self.report(number, Duration::ZERO, report);
        Ok(())
    }

    /// The driver's plan makes no sense: it is disconnected, and the next one finds an empty table.
    fn refuse(&mut self, reason: &str) -> Result<(), EngineError> {
        // What was asked for before is done.
        self.finish_begun()?;
        tracing::error!(reason, "a step plan does not make sense; the driver is disconnected");
        self.driver = None;
        Ok(())
    }

    /// Runs a prepared step; what there is to tell of it, but for the plan.
    fn step(&mut self, mut input: StepInput) -> Result<StepReport, EngineError> {
        let watch = self.watch();
        if self.is_collecting() {
            input.collect = true;
            self.collected = watch.began();
        }
        let sample = self.run(&input)?.sample;
        let times = StepTimes { sample, ..watch.end(self.engine.comms.stats().nanos) };
        Ok(self.found(&times, input.tokens.len()))
    }

    /// What a step of so many rows has found, and what ranks have told by then.
    fn found(&mut self, times: &StepTimes, rows: usize) -> StepReport {
        let (drafted, accepted) = self.table.take_drafted();
        StepReport {
            outputs: self.table.finish(),
            drafted,
            accepted,
            timing: times.timing(rows),
            experts: self.engine.told.take_experts(),
            ranks: self.engine.told.take_ranks(),
            ..StepReport::default()
        }
    }

    /// Tells the driver of the step of its plan of this number.
    fn report(&self, number: u64, late: Duration, mut report: StepReport) {
        let Some(driver) = &self.driver else { return };
        (report.driver_epoch, report.number) = (driver.epoch, number);
        report.timing.wait_us = micros(late);
        // A driver that has gone away is replaced by one that attaches anew and is told of all that is here.
        driver.news.send(News::Report(report)).ok();
    }

    /// Runs a prepared step on every rank.
    fn run(&mut self, input: &StepInput) -> Result<StepTimes, EngineError> {
        if input.is_empty() {
            return Ok(StepTimes::default());
        }
        if self.engine.comms.size() > 1 {
            input.encode(&mut self.bytes);
            self.engine.comms.set_deadline(Some(STEP_DEADLINE));
            self.engine.comms.all().broadcast(&mut self.bytes)?;
        }
        self.engine.run(input, &mut |row, scores| self.table.take_scores(row, scores))
    }
}
