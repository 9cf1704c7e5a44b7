//! What it takes to scrape the coordinators of a busy cluster, with the usual metrics and with vLLM's names beside them, and what
//! that costs the streams.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use serde::Serialize;

use super::{print, spread, table};
use crate::args::ScrapeArgs;
use crate::client::Ask;
use crate::client::trust;
use crate::cluster::Cluster;
use crate::prompts::Prompts;
use crate::stats::percentile;
use crate::target::Target;
use crate::workload::streams::end_to_end_rate;

const INPUT: usize = 128;
const OUTPUT: usize = 128;
/// What the project promises of a busy coordinator.
const MOST_SECONDS: f64 = 0.010;
const MOST_BYTES: f64 = 1e6;
const MOST_COST_PERCENT: f64 = 1.0;

/// One scrape of one coordinator.
#[derive(Debug, Clone, Copy)]
struct Scrape {
    seconds: f64,
    bytes: usize,
    samples: usize,
}

/// A cluster with one set of names, each time.
#[derive(Debug, Serialize)]
struct Course {
    vllm_metrics: bool,
    /// Of every scrape.
    seconds: Vec<f64>,
    bytes: Vec<f64>,
    /// Lines with a value, of the largest page.
    samples: usize,
    /// Generated tokens per second of all streams while nobody scrapes, and while somebody does.
    left_alone: Vec<f64>,
    scraped: Vec<f64>,
}

/// Measures; fails if a page is larger or slower, at the median, than is promised.
pub(crate) async fn run(args: &ScrapeArgs) -> Result<ExitCode> {
    ensure!(args.target.own_cluster(), "--endpoint: the cluster is started here, for its options change");
    let mut courses = Vec::new();
    for vllm_metrics in [false, true] {
        courses.push(course(args, vllm_metrics).await?);
    }
    let kept = courses.iter().all(Course::kept);
    print(args.json, &courses, &show(args, &courses))?;
    Ok(if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn course(args: &ScrapeArgs, vllm_metrics: bool) -> Result<Course> {
    let workers = args.target.workers.to_string();
    let options = [("--workers", workers.clone()), ("--tp", workers)];
    let environment = [("FOGGARA_VLLM_METRICS", vllm_metrics.to_string())];
    let cluster = Cluster::in_environment(&args.target, &options, &environment).await?;
    let target = Target::open(&args.target, Some(cluster)).await?;
    let members = target.members().await?.context("a cluster of ours says who is in it")?;
    let pages: Vec<String> = members.all_http().iter().map(|address| format!("{address}/metrics")).collect();
    let prompts = Prompts::new();
    let mut clients = target.clients(args.streams).await?;
    let ask = || Ask { prompt: prompts.next(INPUT), max_tokens: OUTPUT };
    eprintln!("… warming up");
    try_join_all(clients.iter_mut().map(|client| client.generate(ask()))).await?;
    let (mut scrapes, mut left_alone, mut scraped) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..args.runs {
        eprintln!("… vLLM's names: {vllm_metrics}, {} of {}", number + 1, args.runs);
        // Each first in turn: what warms up or wears off does so for both.
        for scrape in [number % 2 == 0, number % 2 != 0] {
            let stop = Arc::new(AtomicBool::new(!scrape));
            let (stopped, pages) = (Arc::clone(&stop), pages.clone());
            let every = Duration::from_millis(args.every);
            // On a thread of its own: what is measured there does not wait for what the clients do.
            let scraper = tokio::task::spawn_blocking(move || scrape_until(&stopped, &pages, every));
            let load = try_join_all(clients.iter_mut().map(|client| client.generate(ask()))).await;
            stop.store(true, Ordering::Relaxed);
            scrapes.extend(scraper.await??);
            let rate = end_to_end_rate(&load?).context("no token came")?;
            if scrape { &mut scraped } else { &mut left_alone }.push(rate);
        }
    }
    drop(clients);
    target.close().await?;
    ensure!(!scrapes.is_empty(), "nothing was scraped: more --runs or longer answers are needed");
    Ok(Course {
        vllm_metrics,
        seconds: scrapes.iter().map(|scrape| scrape.seconds).collect(),
        bytes: scrapes.iter().map(|scrape| scrape.bytes as f64).collect(),
        samples: scrapes.iter().map(|scrape| scrape.samples).max().unwrap_or(0),
        left_alone,
        scraped,
    })
}

/// Scrapes all `pages` again and again, on a connection that stays open, as Prometheus does.
fn scrape_until(stop: &AtomicBool, pages: &[String], every: Duration) -> Result<Vec<Scrape>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let first = pages.first().map_or("", String::as_str);
    let (client, mut scrapes) = (trust::http(first)?, Vec::new());
    while !stop.load(Ordering::Relaxed) {
        for page in pages {
            let started = Instant::now();
            let text = runtime.block_on(async {
                let response = client.get(page).send().await?.error_for_status()?;
                response.text().await
            });
            let text = text.with_context(|| format!("GET {page}"))?;
            let seconds = started.elapsed().as_secs_f64();
            let samples = text.lines().filter(|line| !line.starts_with('#')).count();
            scrapes.push(Scrape { seconds, bytes: text.len(), samples });
        }
        std::thread::sleep(every);
    }
    Ok(scrapes)
}

impl Course {
    /// Whether pages are as small and as quick, at the median, as is promised.
    fn kept(&self) -> bool {
        let median = |samples: &[f64]| percentile(samples, 50.0).unwrap_or(f64::INFINITY);
        median(&self.seconds) < MOST_SECONDS && median(&self.bytes) < MOST_BYTES
    }

    /// Percent of the speed that is lost to scraping, each time.
    fn costs(&self) -> Vec<f64> {
        let pairs = self.left_alone.iter().zip(&self.scraped);
        pairs.map(|(alone, scraped)| (1.0 - scraped / alone) * 100.0).collect()
    }
}

fn show(args: &ScrapeArgs, courses: &[Course]) -> String {
    let head =
        ["names", "samples", "kB", "scrape, ms", "tokens/s left alone", "tokens/s scraped", "costs, %"];
    let scaled =
        |samples: &[f64], factor: f64| samples.iter().map(|sample| sample * factor).collect::<Vec<_>>();
    let row = |course: &Course| {
        vec![
            if course.vllm_metrics { "ours and vLLM's" } else { "ours" }.to_owned(),
            course.samples.to_string(),
            spread(&scaled(&course.bytes, 1e-3), 0),
            spread(&scaled(&course.seconds, 1e3), 1),
            spread(&course.left_alone, 0),
            spread(&course.scraped, 0),
            spread(&course.costs(), 1),
        ]
    };
    let rows: Vec<Vec<String>> = courses.iter().map(row).collect();
    format!(
        "{} streams of {INPUT} in and {OUTPUT} out, {} times; every coordinator scraped each {} ms; median (least–most)\n\n{}\n\
        limits: {:.0} ms, {:.0} kB, {MOST_COST_PERCENT} %\n",
        args.streams,
        args.runs,
        args.every,
        table(&head, &rows),
        MOST_SECONDS * 1e3,
        MOST_BYTES / 1e3,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn course(milliseconds: f64, kilobytes: f64) -> Course {
        Course {
            vllm_metrics: false,
            seconds: vec![milliseconds / 1e3],
            bytes: vec![kilobytes * 1e3],
            samples: 9,
            left_alone: vec![100.0, 200.0],
            scraped: vec![99.0, 202.0],
        }
    }

    #[test]
    fn promises_are_kept_or_not() {
        assert!(course(9.0, 900.0).kept());
        assert!(!course(11.0, 900.0).kept() && !course(9.0, 1100.0).kept());
    }

    #[test]
    fn a_cost_is_of_each_pair() {
        let costs = course(1.0, 1.0).costs();
        assert!((costs[0] - 1.0).abs() < 1e-9 && (costs[1] + 1.0).abs() < 1e-9, "{costs:?}");
    }
}
