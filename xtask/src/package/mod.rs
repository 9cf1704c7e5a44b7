//! `cargo xtask package`: a tarball and a Debian package of what cargo has built, and their checksums.

mod archive;
mod contents;
mod debian;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::place;
use crate::process::{self, build, shown};
use crate::setup::{self, Purpose};

/// Make target/package: foggara-VERSION-x86_64-linux.tar.gz, foggara_VERSION_amd64.deb, and SHA256SUMS.
///
/// The same program gives the same bytes: times are those of $SOURCE_DATE_EPOCH, or of the last commit.
#[derive(clap::Args)]
pub struct Arguments {
    /// Package this program, and build none.
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Where to.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Everything a package is made from.
struct Release {
    version: &'static str,
    /// Seconds since 1970 of every file.
    epoch: String,
    /// A folder with `foggara`, stripped, and what it prints: `completions/`, `man/`.
    work: PathBuf,
}

/// Makes them.
pub fn run(arguments: &Arguments) -> Result<()> {
    ensure!(std::env::consts::ARCH == "x86_64", "packages are for x86-64, and this machine is none");
    let binary = match &arguments.binary {
        Some(path) => path.clone(),
        None => {
            setup::run(Purpose::Build)?;
            process::run(&mut build(&["foggara"]))?;
            place::built("foggara")?
        }
    };
    let out = arguments.out.clone().unwrap_or_else(|| place::root().join("target/package"));
    let work = out.join("work");
    for folder in [&out, &work] {
        if folder == &work && work.exists() {
            std::fs::remove_dir_all(&work)?;
        }
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    let release = Release { version: env!("CARGO_PKG_VERSION"), epoch: epoch()?, work: work.clone() };
    prepare(&binary, &release.work)?;
    let made = [archive::make(&release, &out)?, debian::make(&release, &out)?];
    let names: Vec<_> = made.iter().filter_map(|path| path.file_name()).collect();
    let sums = output(Command::new("sha256sum").args(&names).current_dir(&out))?;
    std::fs::write(out.join("SHA256SUMS"), &sums)?;
    std::fs::remove_dir_all(&work)?;
    println!("\n{}:\n{}", place::typed(&out), sums.trim_end());
    Ok(())
}

/// When what is packaged was made.
fn epoch() -> Result<String> {
    if let Ok(epoch) = std::env::var("SOURCE_DATE_EPOCH") {
        ensure!(epoch.parse::<u64>().is_ok(), "SOURCE_DATE_EPOCH: `{epoch}` is not a number of seconds");
        return Ok(epoch);
    }
    let commit = output(Command::new("git").args(["log", "-1", "--format=%ct"]).current_dir(place::root()));
    let commit = commit.context("set SOURCE_DATE_EPOCH: there is no commit whose time could be taken")?;
    Ok(commit.trim().to_owned())
}

/// The program, and what it says of itself.
fn prepare(binary: &Path, work: &Path) -> Result<()> {
    let program = work.join("foggara");
    std::fs::copy(binary, &program).with_context(|| format!("copying {}", binary.display()))?;
    let stripped = output(Command::new("strip").arg("--strip-debug").arg(&program));
    stripped.context("`strip` is in the package binutils")?;
    let told = output(Command::new(&program).arg("--version"))?;
    let version = env!("CARGO_PKG_VERSION");
    ensure!(
        told.trim() == format!("foggara {version}"),
        "{}: is `{}`, not {version}",
        binary.display(),
        told.trim()
    );
    let completions = work.join("completions");
    std::fs::create_dir_all(&completions)?;
    for (shell, name) in contents::COMPLETIONS {
        let script = output(Command::new(&program).args(["completions", shell]))?;
        std::fs::write(completions.join(name), script)?;
    }
    output(Command::new(&program).arg("manual").arg(work.join("man")))?;
    Ok(())
}

/// What a program prints; its errors, if it fails.
fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("starting `{}`", shown(command)))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{}` failed ({}): {errors}", shown(command), output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
