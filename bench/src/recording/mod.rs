//! What counting costs: the functions that record metrics and timelines, run by themselves again and again. They are always on, and what
//! they take does not show when one run is set beside another, which differ by more.
//!
//! A rank's part is in its step. A coordinator's is beside the steps, for plans are made ahead: it counts as if it were not.

mod driver;
mod front;
mod rank;

use std::hint::black_box;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Instant;

use anyhow::Result;
use serde::Serialize;

use crate::args::RecordingArgs;
use crate::scenario::{print, table};
use crate::stats::percentile;

/// What the project promises: of the time of a step.
const MOST_PERCENT: f64 = 1.0;
/// What ranks count is told this often.
const TOLD_SECONDS: f64 = 0.5;
/// Each thing is measured so often; the median counts.
const ROUNDS: usize = 301;
/// So short, that what else runs on this core falls between rounds more often than into one.
const ROUND_NANOS: f64 = 50_000.0;
/// Requests that are remembered before anything is measured.
const REMEMBERED: usize = 5000;

/// A step of decodes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Pace {
    /// Sequences that get a token in it.
    pub(crate) sequences: usize,
    /// How long it takes.
    pub(crate) milliseconds: f64,
}

impl FromStr for Pace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let both = text.split_once('/').and_then(|(sequences, milliseconds)| {
            Some(Self { sequences: sequences.parse().ok()?, milliseconds: milliseconds.parse().ok()? })
        });
        both.filter(|pace| pace.sequences > 0 && pace.milliseconds > 0.0)
            .ok_or_else(|| "sequences of a step and its milliseconds, like 32/33".to_owned())
    }
}

impl Pace {
    /// The part of what is told every [`TOLD_SECONDS`] that falls to one step.
    fn of_told(&self, nanos: f64) -> f64 {
        nanos * self.milliseconds / 1e3 / TOLD_SECONDS
    }
}

/// Something that is recorded.
#[derive(Debug, Serialize)]
struct Part {
    place: &'static str,
    what: &'static str,
    /// What falls to one step.
    nanos: f64,
}

/// All of it, of steps at one pace.
#[derive(Debug, Serialize)]
struct Course {
    pace: Pace,
    parts: Vec<Part>,
}

impl Course {
    fn nanos(&self) -> f64 {
        self.parts.iter().map(|part| part.nanos).sum()
    }

    /// Of the time of a step.
    fn percent(&self) -> f64 {
        self.nanos() / (self.pace.milliseconds * 1e6) * 100.0
    }
}

/// Nanoseconds that a call takes, at the median.
fn nanos(mut call: impl FnMut()) -> f64 {
    let once = rounds(1, &mut call);
    rounds((ROUND_NANOS / once.max(1.0)).clamp(1.0, ROUND_NANOS) as usize, &mut call)
}

/// The same of rounds of so many calls.
fn rounds(calls: usize, mut call: impl FnMut()) -> f64 {
    let round = |_| {
        let began = Instant::now();
        (0..calls).for_each(|_| call());
        began.elapsed().as_nanos() as f64 / calls as f64
    };
    percentile(&(0..ROUNDS).map(round).collect::<Vec<_>>(), 50.0).unwrap_or_default()
}

/// Measures; fails if it is more than is promised.
pub(crate) fn run(args: &RecordingArgs) -> Result<ExitCode> {
    let course = |pace: &Pace| {
        let mut parts = rank::parts(args, pace)?;
        parts.extend(driver::parts(args, pace));
        parts.extend(front::parts(args, pace));
        Ok(Course { pace: *pace, parts })
    };
    let courses = args.steps.iter().map(course).collect::<Result<Vec<_>>>()?;
    print(args.json, &courses, &show(args, &courses))?;
    let kept = courses.iter().all(|course| course.percent() < MOST_PERCENT);
    Ok(if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn show(args: &RecordingArgs, courses: &[Course]) -> String {
    let mut head = vec!["where".to_owned(), "what".to_owned()];
    head.extend(courses.iter().map(|Course { pace, .. }| match pace.sequences {
        1 => format!("1 sequence, {} ms", pace.milliseconds),
        n => format!("{n} sequences, {} ms", pace.milliseconds),
    }));
    let mut rows: Vec<Vec<String>> = Vec::new();
    for (number, part) in courses.first().map_or(&[][..], |course| &course.parts).iter().enumerate() {
        let cells = courses.iter().map(|course| format!("{:.0}", course.parts[number].nanos));
        rows.push([part.place.to_owned(), part.what.to_owned()].into_iter().chain(cells).collect());
    }
    let mut sum = |what: &str, of: &dyn Fn(&Course) -> String| {
        rows.push(["".to_owned(), what.to_owned()].into_iter().chain(courses.iter().map(of)).collect());
    };
    sum("a step", &|course| format!("{:.0}", course.nanos()));
    sum("a token", &|course| format!("{:.0}", course.nanos() / course.pace.sequences as f64));
    sum("of the step's time", &|course| format!("{:.3} %", course.percent()));
    let head: Vec<&str> = head.iter().map(String::as_str).collect();
    format!(
        "nanoseconds of a step; {} layers of {} experts, {} for each token, {} collectives, {} ranks, answers of {} tokens; \
        the clock is read in {:.0} ns\n\n{}\nlimit: {MOST_PERCENT} %\n",
        args.layers,
        args.experts,
        args.top,
        args.collectives,
        args.ranks,
        args.answer,
        nanos(|| {
            black_box(Instant::now());
        }),
        table(&head, &rows),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paces_are_read() {
        assert_eq!("32/33".parse(), Ok(Pace { sequences: 32, milliseconds: 33.0 }));
        assert_eq!("1/2.7".parse(), Ok(Pace { sequences: 1, milliseconds: 2.7 }));
        for wrong in ["", "32", "0/5", "5/0", "a/b"] {
            assert!(wrong.parse::<Pace>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn shares_are_of_the_step() {
        let pace = Pace { sequences: 2, milliseconds: 5.0 };
        let part = |nanos| Part { place: "", what: "", nanos };
        let course = Course { pace, parts: vec![part(20_000.0), part(pace.of_told(500_000.0))] };
        assert!((course.nanos() - 25_000.0).abs() < 1e-6 && (course.percent() - 0.5).abs() < 1e-9);
    }
}
