//! What each rank of a group counts, and what it tells the leader.

use std::hint::black_box;
use std::time::Instant;

use anyhow::{Result, anyhow};
use foggara_kernels::collective::CollectiveStats;
use foggara_kernels::collective::shm::{self, ShmConfig};
use foggara_worker::decoder::{DispatchStats, ExpertCounts};
use foggara_worker::engine::{OwnUse, StepWatch, Told};

use super::{Pace, Part, nanos, rounds};
use crate::args::RecordingArgs;

pub(super) fn parts(args: &RecordingArgs, pace: &Pace) -> Result<Vec<Part>> {
    let part = |what, nanos| Part { place: "a rank, in its step", what, nanos };
    Ok(vec![
        part("times of the step and of sampling each row", step(pace)),
        part("times of collectives", collectives(args)),
        part("tokens of experts", experts(args, pace)),
        part("told to the leader, twice a second", pace.of_told(told(args)?)),
    ])
}

/// As the leader does, which measures most: the wait, the step, and within it the pass and each row that it samples.
fn step(pace: &Pace) -> f64 {
    let mut own = OwnUse::default();
    nanos(|| {
        let waiting = Instant::now();
        own.waited(waiting.elapsed());
        let step = StepWatch::begin(black_box(0));
        let mut pass = StepWatch::begin(black_box(0));
        (0..pace.sequences).for_each(|_| {
            pass.sample(|| {
                black_box(0);
            })
        });
        own.step(&pass.end(black_box(9)));
        black_box(step.end(black_box(9)).timing(pace.sequences));
    })
}

/// Each twice: for the call, and for the time in it that a rank has nothing to do.
fn collectives(args: &RecordingArgs) -> f64 {
    let mut stats = CollectiveStats::default();
    let mut count = || (0..args.collectives).for_each(|_| stats.count(black_box(64), Instant::now()));
    nanos(|| {
        count();
        count();
    })
}

fn experts(args: &RecordingArgs, pace: &Pace) -> f64 {
    let mut counts = ExpertCounts::new(std::iter::repeat_n(args.experts, args.layers));
    let chosen =
        |row: usize| (0..args.top).map(|n| (((row + n) % args.experts.max(1)) as u32, 0.5)).collect();
    let routes: Vec<Vec<(u32, f32)>> = (0..pace.sequences).map(chosen).collect();
    nanos(|| (0..args.layers).for_each(|layer| counts.count(layer, black_box(&routes))))
}

/// The message, its way to the leader, and what that makes of all of them.
fn told(args: &RecordingArgs) -> Result<f64> {
    let mut counts = ExpertCounts::new(std::iter::repeat_n(args.experts, args.layers));
    let (mut own, mut told) = (OwnUse::default(), Told::default());
    let length = own.message(&counts.take(), DispatchStats::default()).len();
    let computing = nanos(|| {
        let counts = counts.take();
        let dispatched = DispatchStats::default();
        let message = std::mem::replace(&mut own, OwnUse::since(dispatched)).message(&counts, dispatched);
        let all = message.repeat(args.ranks);
        told.take_in(&all, &counts);
        black_box((told.take_experts(), told.take_ranks()));
    });
    Ok(computing + gather(length)?)
}

/// Of two ranks, each a thread: as many as the machine that this was made for has cores.
fn gather(length: usize) -> Result<f64> {
    let name = format!("recording-{}", std::process::id());
    let rank = move |rank: usize, name: String| {
        let mut group = shm::connect(&ShmConfig::new(name, rank, 2))?;
        let mut all = vec![0.0; if rank == 0 { 2 * length } else { 0 }];
        let (own, counts) = (vec![1.0; length], [length; 2]);
        let mut outcome = Ok(());
        // Both do as many calls, whatever comes.
        let nanos = rounds(1, || {
            if outcome.is_ok() {
                outcome = group.gather(&own, &counts, &mut all);
            }
        });
        outcome.map(|()| nanos)
    };
    let other = std::thread::spawn({
        let name = name.clone();
        move || rank(1, name)
    });
    let nanos = rank(0, name)?;
    other.join().map_err(|_| anyhow!("a rank panicked"))??;
    Ok(nanos)
}
