//! `cargo xtask test` and `cargo xtask soak`.

use std::process::Command;

use anyhow::{Result, bail};

use crate::cubins;
use crate::place;
use crate::process::{build, cargo, run as run_command};
use crate::setup::{self, Purpose};
use crate::test_run::{self, Tally};

/// Set up, then run every test: each crate's own, then clusters of real processes.
#[derive(clap::Args)]
pub struct Arguments {
    /// Run only tests whose name contains this.
    filter: Option<String>,
    /// Trust that everything is set up.
    #[arg(long)]
    no_setup: bool,
}

/// Run the cluster tests with longer loops: hours of kills and restarts in place of minutes.
///
/// Sets FOGGARA_SOAK=1 for them. With --kills it runs something else: streams that outlive what is killed under them.
#[derive(clap::Args)]
pub struct SoakArguments {
    /// Run only tests whose name contains this.
    filter: Option<String>,
    /// In place of the tests: follow 8 streams, kill a worker, the driver, a hanging driver or the front door under them, each
    /// so many times; prints how long streams stalled, and writes it to target/soak/.
    #[arg(long, value_name = "TIMES", conflicts_with = "filter")]
    kills: Option<usize>,
    /// For `foggara-kills` (see its --help): --seed N, --kind KIND, --results DIR …
    #[arg(last = true, requires = "kills")]
    more: Vec<String>,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    if !arguments.no_setup {
        setup::run(Purpose::Test)?;
    }
    let filter = arguments.filter.as_deref();
    if filter.is_none() {
        println!("\nkernels as machine code, for every GPU they are made for:");
        cubins::run(&cubins::Arguments::all())?;
    }
    build_everything()?;
    let parts = [
        part("unit tests", "of each crate", &["--lib", "--bins"], filter)?,
        part("documentation tests", "of each library", &["--doc"], filter)?,
        cluster_tests(filter, false)?,
    ];
    report(&parts)
}

pub fn soak(arguments: &SoakArguments) -> Result<()> {
    setup::run(Purpose::Test)?;
    match arguments.kills {
        None => {
            build_everything()?;
            report(&[cluster_tests(arguments.filter.as_deref(), true)?])
        }
        Some(times) => kills(times, &arguments.more),
    }
}

/// The kills have a program of their own.
fn kills(times: usize, more: &[String]) -> Result<()> {
    run_command(&mut build(&["foggara", "foggara-kills"]))?;
    let mut command = Command::new(place::built("foggara-kills")?);
    run_command(command.args(["--times", &times.to_string()]).args(more).current_dir(place::root()))
}

/// Builds the tests, and the programs that they run. All in one, since what crates need for their tests alone (features of others)
/// counts for whatever is built together: apart from the tests, the programs would be made of other crates, and all of these built
/// twice.
fn build_everything() -> Result<()> {
    println!("\ntests, and programs that they run:");
    run_command(&mut cargo(&["build", "--release", "--workspace", "--bins", "--tests"]))
}

/// `cargo test`. Always of the whole workspace, and only the kind of test differs: another choice of crates would have
/// other features, and build everything again.
fn cargo_test(kind: &[&str]) -> Command {
    let mut command = cargo(&["test", "--release", "--workspace", "--no-fail-fast"]);
    command.args(kind);
    command
}

fn part(name: &'static str, of: &str, kind: &[&str], filter: Option<&str>) -> Result<Tally> {
    println!("\n{name}, {of}:");
    test_run::run(name, cargo_test(kind).args(filter))
}

/// Clusters of real processes; two tests at a time: most wait for states more than they compute. Those that must have the machine to
/// themselves wait for it (`tests/src/machine.rs`).
fn cluster_tests(filter: Option<&str>, soak: bool) -> Result<Tally> {
    println!("\ncluster tests, of real processes:");
    let mut command = cargo_test(&["--test", "*", "--", "--test-threads=2"]);
    command.args(filter);
    if soak {
        command.env("FOGGARA_SOAK", "1");
    }
    test_run::run("cluster tests", &mut command)
}

fn report(parts: &[Tally]) -> Result<()> {
    println!();
    for part in parts {
        println!("{part}");
    }
    let (passed, failed) = parts.iter().fold((0, 0), |(p, f), part| (p + part.passed, f + part.failed));
    println!("{passed} passed, {failed} failed");
    match parts.iter().find(|part| !part.succeeded) {
        Some(part) => bail!("{} failed", part.name),
        None if passed == 0 => bail!("no test was run"),
        None => Ok(()),
    }
}
