//! An open loop: requests come at random times, whether or not those before them have been answered.
//!
//! Times count from when a request was due, not from when this client came to send it: a client that is late would otherwise hide
//! what a user waits for (Tene, "How NOT to Measure Latency", 2013: coordinated omission).

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use tokio::time::Instant;

use super::Bench;
use crate::args::ArrivalArgs;
use crate::client::{Ask, Trace};
use crate::report::{Measure, Unit};
use crate::stats::percentile;

const INPUT: usize = 128;
const OUTPUT: usize = 128;
/// Requests.
const MOST: f64 = 5_000.0;

pub(crate) async fn run(bench: &Bench<'_>) -> Result<Vec<Measure>> {
    let args = bench.arrivals;
    let expected = args.rate * args.seconds as f64;
    ensure!(
        args.rate > 0.0 && expected > 0.0 && expected <= MOST,
        "--rate times --seconds must be more than 0, and {MOST} at most: each request has a connection"
    );
    let due = times(args.rate, args.seconds as f64, || bench.prompts.fraction());
    ensure!(!due.is_empty(), "no request comes within {} s at {} each second", args.seconds, args.rate);
    let mut clients = bench.target.clients(due.len()).await?;
    // Every part has run once.
    clients[0].generate(bench.short()).await?;
    let started = Instant::now();
    let asked = clients.iter_mut().zip(&due).map(|(client, after)| async move {
        let due = started + *after;
        tokio::time::sleep_until(due).await;
        let trace = client.generate(Ask { prompt: bench.prompts.next(INPUT), max_tokens: OUTPUT }).await?;
        Course::of(&trace, due.into_std()).context("no token came")
    });
    let courses = try_join_all(asked).await?;
    // Until the last has been answered: a server that falls behind does not hide it.
    measures(args, &courses, started.elapsed().as_secs_f64().max(args.seconds as f64))
}

/// When requests are due: a Poisson process of `rate` in a second, for `seconds`; `random` gives fractions in (0, 1].
fn times(rate: f64, seconds: f64, mut random: impl FnMut() -> f64) -> Vec<Duration> {
    let (mut at, mut times) = (0.0, Vec::new());
    loop {
        at -= random().ln() / rate;
        if at >= seconds {
            return times;
        }
        times.push(Duration::from_secs_f64(at));
    }
}

/// What became of one request, in seconds.
struct Course {
    /// From when it was due to its first token.
    first: f64,
    /// To its last.
    whole: f64,
    gaps: Vec<f64>,
}

impl Course {
    fn of(trace: &Trace, due: std::time::Instant) -> Option<Self> {
        let since = |at: std::time::Instant| at.saturating_duration_since(due).as_secs_f64();
        Some(Self { first: since(trace.first()?), whole: since(trace.last()?), gaps: trace.gaps().collect() })
    }

    /// Whether a user was served as promised: the first token in time, the others on average.
    fn good(&self, args: ArrivalArgs) -> bool {
        let mean = (self.whole - self.first) / self.gaps.len().max(1) as f64;
        self.first * 1e3 <= args.slo_first_ms && mean * 1e3 <= args.slo_gap_ms
    }
}

fn measures(args: ArrivalArgs, courses: &[Course], seconds: f64) -> Result<Vec<Measure>> {
    let good = courses.iter().filter(|course| course.good(args)).count();
    let note = format!(
        "{} requests of 128 in / 128 out; good: first token within {} ms, then a token each {} ms on average",
        courses.len(),
        args.slo_first_ms,
        args.slo_gap_ms
    );
    let what = format!("{} requests/s at random, good ones", args.rate);
    let mut measures = vec![
        Measure::single("arrivals-good", &what, Unit::RequestsPerSecond, good as f64 / seconds).note(note),
    ];
    let first: Vec<f64> = courses.iter().map(|course| course.first).collect();
    let whole: Vec<f64> = courses.iter().map(|course| course.whole).collect();
    let gaps: Vec<f64> =
        courses.iter().flat_map(|course| &course.gaps).map(|seconds| seconds * 1e3).collect();
    for (samples, key, what, unit) in [
        (&first, "ttft", "their time to first token", Unit::Seconds),
        (&gaps, "gap", "their time between tokens", Unit::Millis),
        (&whole, "whole", "their whole time", Unit::Seconds),
    ] {
        for percent in [50.0, 99.0] {
            let value = percentile(samples, percent).context("no token came")?;
            let (key, what) = (format!("arrivals-{key}-p{percent}"), format!("{what}, p{percent}"));
            measures.push(Measure::single(&key, &what, unit, value));
        }
    }
    Ok(measures)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prompts::Prompts;

    const ARGS: ArrivalArgs = ArrivalArgs { rate: 2.0, seconds: 10, slo_first_ms: 500.0, slo_gap_ms: 50.0 };

    #[test]
    fn requests_come_at_their_rate_and_irregularly() {
        let prompts = Prompts::new();
        let due = times(20.0, 500.0, || prompts.fraction());
        assert!(due.is_sorted() && due[due.len() - 1] < Duration::from_secs(500));
        // Ten standard deviations of a Poisson count.
        assert!((9_000..=11_000).contains(&due.len()), "{}", due.len());
        let gaps: Vec<f64> = due.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
        let longer = gaps.iter().filter(|gap| **gap > 0.05).count() as f64 / gaps.len() as f64;
        assert!((longer - (-1f64).exp()).abs() < 0.05, "{longer} are longer than the mean");
    }

    #[test]
    fn good_is_in_time_at_first_and_on_average() {
        let course = |first, gaps: &[f64]| Course {
            first,
            whole: first + gaps.iter().sum::<f64>(),
            gaps: gaps.to_vec(),
        };
        for (course, good) in [
            (course(0.4, &[0.04, 0.06]), true),
            (course(0.6, &[0.01]), false),
            (course(0.1, &[0.01, 0.2]), false),
            (course(0.1, &[]), true),
        ] {
            assert_eq!(course.good(ARGS), good, "{} {:?}", course.first, course.gaps);
        }
        // Two of three were good; the last was answered after 20 s.
        let courses = [course(0.1, &[]), course(0.1, &[0.01]), course(20.0, &[])];
        let measures = measures(ARGS, &courses, 20.0).expect("there are tokens");
        assert!((measures[0].value - 0.1).abs() < 1e-9, "{}", measures[0].value);
        assert_eq!(measures.len(), 7);
    }
}
