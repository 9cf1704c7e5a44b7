//! `foggara-kills`: streams that must outlive whatever is killed under them, many times over, and how long they stall.
//!
//! Each time, several seeded streams are followed while something is killed at a moment that the seed chooses. No stream may
//! fail, and every token and log-probability must be that of the undisturbed run. `cargo xtask soak --kills TIMES` runs it.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "a tool whose output is what it is for")]

mod kind;
mod report;
mod stream;
mod trial;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use foggara_tests::paths;
use foggara_tests::setup::Setup;

use kind::Kind;
use report::Report;
use trial::Trials;

/// Kills what serves streams, many times, and checks that nobody can tell but by the clock.
#[derive(Parser)]
struct Arguments {
    /// How often each kind of kill is done.
    #[arg(long, value_name = "N", default_value_t = 20)]
    times: usize,
    /// Chooses the moments and the victims.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Only this kind; may repeat.
    #[arg(long, value_name = "KIND", value_enum)]
    kind: Vec<Kind>,
    /// Streams at once; every other one is sampled, at temperature 0.8.
    #[arg(long, value_name = "N", default_value_t = 8)]
    streams: usize,
    /// Tokens of each.
    #[arg(long, value_name = "N", default_value_t = 160)]
    tokens: u32,
    /// Where `kills.json` and `kills.md` are written [default: target/soak].
    #[arg(long, value_name = "DIR")]
    results: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.expect("a runtime").block_on(run(&arguments))
}

async fn run(arguments: &Arguments) -> ExitCode {
    let setup =
        Setup::new("kills").model(trial::MODEL, &paths::smol_gguf()).coordinators(trial::COORDINATORS);
    let cluster = setup.workers(trial::WORKERS).option("tp", 2).start().await;
    let mut trials = Trials::new(&cluster, arguments.seed, arguments.streams, arguments.tokens).await;
    let mut report = Report::new(arguments.seed, arguments.streams, arguments.tokens);
    let all = Kind::value_variants();
    let kinds: Vec<Kind> = if arguments.kind.is_empty() { all.to_vec() } else { arguments.kind.clone() };
    for kind in kinds {
        if kind.attaches() && !stream::attach_is_there(&cluster.client(0)).await {
            println!("{}: left out: this cluster does not know `Attach` yet", kind.name());
            report.left_out(kind);
            continue;
        }
        for number in 0..arguments.times {
            let outcome = trials.run(kind, number).await;
            println!("{}", outcome.line());
            report.add(kind, outcome);
        }
    }
    let folder = arguments.results.clone().unwrap_or_else(|| paths::root().join("target/soak"));
    report.save(&folder);
    println!("\n{}", report.markdown());
    if report.failures().is_empty() {
        return ExitCode::SUCCESS;
    }
    report.failures().iter().for_each(|failure| println!("FAILED  {failure}"));
    cluster.show_logs();
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use foggara_tests::page::{Page, words};

    use super::*;

    #[test]
    fn what_the_pages_pass_on_is_taken() {
        let commands: Vec<String> =
            Page::all().iter().flat_map(|page| page.typed(&["cargo xtask soak"])).collect();
        let passed =
            |command: &String| words(command).into_iter().skip_while(|word| word != "--").skip(1).collect();
        let passed: Vec<Vec<String>> =
            commands.iter().map(passed).filter(|more: &Vec<String>| !more.is_empty()).collect();
        assert!(!passed.is_empty(), "{commands:?}");
        for more in passed {
            let words = ["foggara-kills".to_owned()].into_iter().chain(more);
            Arguments::command().try_get_matches_from(words).unwrap_or_else(|e| panic!("{e}"));
        }
    }
}
