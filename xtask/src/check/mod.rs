//! `cargo xtask check`: the rules that no reviewer should have to repeat.
//!
//! The rules of our own are pure functions from texts to findings, a file each; here they are given the texts.

mod arrows;
mod links;
mod manifests;
mod purity;
mod rust_text;
mod unsafe_code;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::place;
use crate::process::{self, cargo};
use crate::setup::{self, Purpose};
use crate::terraform;

/// Check formatting, lints, documentation, and the rules of this project.
///
/// Rules of our own: crates depend in the direction of the arrows; versions and lints come from the workspace; unsafe code
/// is in kernels/ (and one file of models/); pure modules use no runtime, clock, randomness or files; links in documents
/// lead to files. Then rustfmt, clippy, rustdoc, and cargo-deny where it is installed.
#[derive(clap::Args)]
pub struct Arguments {
    /// Only what needs no compiling: our own rules, and formatting.
    #[arg(long)]
    quick: bool,
}

/// Something against a rule: where, and what.
type Finding = String;

/// A file of the workspace: its path from the root, with slashes, and its text.
pub struct Source {
    pub path: String,
    pub text: String,
}

/// Runs every check and reports all that fail.
pub fn run(arguments: &Arguments) -> Result<()> {
    if !arguments.quick {
        setup::run(Purpose::Build)?;
        println!();
    }
    println!("Checks:");
    let mut failed = Vec::new();
    let mut note = |name: &'static str, outcome: Result<()>, started: Instant| {
        let seconds = started.elapsed().as_secs_f64();
        match outcome {
            Ok(()) => println!("  ok      {name} ({seconds:.1} s)"),
            Err(error) => {
                println!("  FAILED  {name} ({seconds:.1} s)\n{error:#}");
                failed.push(name);
            }
        }
    };
    for (name, check) in OWN {
        let started = Instant::now();
        note(name, check().and_then(none), started);
    }
    for tool in tools().into_iter().filter(|tool| !(arguments.quick && tool.compiles)) {
        let Some(mut command) = tool.command else {
            println!("  skipped {}", tool.name);
            continue;
        };
        let started = Instant::now();
        note(tool.name, process::run(&mut command), started);
    }
    if !failed.is_empty() {
        bail!("against the rules: {}", failed.join("; "));
    }
    println!("All checks passed.");
    Ok(())
}

/// Gathers the texts, and finds what is against one rule.
type OwnCheck = fn() -> Result<Vec<Finding>>;

/// Checks of our own; they read files and `cargo metadata` only.
const OWN: &[(&str, OwnCheck)] = &[
    ("crates depend in the direction of the arrows", || Ok(arrows::findings(&metadata()?))),
    ("manifests take lints and versions from the workspace", || {
        Ok(manifests::findings(&sources(|path| path.file_name().is_some_and(|name| name == "Cargo.toml"))?))
    }),
    ("unsafe code is where it may be", || {
        Ok(unsafe_code::findings(&sources(|path| has_extension(path, "rs"))?))
    }),
    ("pure modules touch nothing", || Ok(purity::findings(&sources(|path| has_extension(path, "rs"))?))),
    ("links in documents lead to files", || {
        Ok(links::findings(&sources(|path| has_extension(path, "md"))?, |path| {
            place::root().join(path).exists()
        }))
    }),
    (
        "Terraform modules have the tables they should have, and what AWS's provider knows",
        terraform::findings,
    ),
];

/// A check that is somebody else's program; no command if that program is not here.
struct Tool {
    name: &'static str,
    compiles: bool,
    command: Option<Command>,
}

fn tools() -> Vec<Tool> {
    let mut doc =
        cargo(&["doc", "--release", "--workspace", "--no-deps", "--document-private-items", "--quiet"]);
    // Private items are documented, too, so links to them lead somewhere.
    doc.env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private-intra-doc-links");
    let clippy = ["clippy", "--release", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"];
    let deny = process::find("cargo-deny").map(|_| cargo(&["deny", "--log-level", "error", "check"]));
    let deny_name = match deny.is_some() {
        true => "licences, advisories and sources of dependencies",
        false => "licences, advisories and sources of dependencies: cargo-deny is not installed",
    };
    let modules = process::find("terraform").and_then(|_| std::env::current_exe().ok()).map(|xtask| {
        let mut command = Command::new(xtask);
        command.args(["terraform", "check"]);
        command
    });
    let modules_name = match modules.is_some() {
        true => "Terraform modules",
        false => "Terraform modules: terraform is not installed",
    };
    vec![
        Tool { name: "formatting", compiles: false, command: Some(cargo(&["fmt", "--all", "--check"])) },
        Tool { name: "clippy", compiles: true, command: Some(cargo(&clippy)) },
        Tool { name: "documentation", compiles: true, command: Some(doc) },
        Tool { name: modules_name, compiles: false, command: modules },
        Tool { name: deny_name, compiles: false, command: deny },
    ]
}

fn none(findings: Vec<Finding>) -> Result<()> {
    if findings.is_empty() {
        return Ok(());
    }
    bail!("{}", findings.iter().map(|finding| format!("          {finding}")).collect::<Vec<_>>().join("\n"))
}

fn metadata() -> Result<arrows::Metadata> {
    let output = cargo(&["metadata", "--format-version", "1", "--no-deps", "--offline"]).output()?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    }
    serde_json::from_slice(&output.stdout).context("reading cargo's metadata")
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found == extension)
}

/// Every file of the workspace that `fits`.
fn sources(fits: fn(&Path) -> bool) -> Result<Vec<Source>> {
    let (root, mut found) = (place::root(), Vec::new());
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(root.join(&folder))? {
            let entry = entry?;
            let path = folder.join(entry.file_name());
            let skipped = entry.file_name().to_string_lossy().starts_with('.') || path == Path::new("target");
            if entry.file_type()?.is_dir() {
                if !skipped {
                    folders.push(path);
                }
            } else if fits(&path) {
                let text = std::fs::read_to_string(root.join(&path));
                let text = text.with_context(|| format!("reading {}", path.display()))?;
                found.push(Source { path: path.display().to_string(), text });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}
