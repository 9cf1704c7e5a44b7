//! Commands that the pages of documentation name are commands of this program, with options that it has.

use std::path::{Path, PathBuf};
use std::process::Command;

use clap::error::ErrorKind;

/// Every page.
fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository");
    let mut pages: Vec<PathBuf> =
        ["README.md", "ARCHITECTURE.md", "deploy/README.md"].iter().map(|page| root.join(page)).collect();
    for folder in ["docs", "docs/runbooks", "docs/reference"] {
        let files =
            std::fs::read_dir(root.join(folder)).expect("the pages").flatten().map(|file| file.path());
        pages.extend(files.filter(|path| path.extension().is_some_and(|end| end == "md")));
    }
    pages
}

/// What a page says to type that begins with `foggara `: in blocks, and in spans of code.
fn commands(page: &str) -> Vec<String> {
    let mut found = Vec::new();
    let (mut inside, mut before) = (false, String::new());
    for line in page.lines() {
        if line.trim_start().starts_with("```") {
            inside = !inside;
            continue;
        }
        if inside {
            let typed = line.trim().split("   ").next().unwrap_or_default();
            before += typed.trim_end_matches('\\');
            if !typed.ends_with('\\') {
                found.push(std::mem::take(&mut before));
            }
        } else {
            found.extend(line.split('`').skip(1).step_by(2).map(str::to_owned));
        }
    }
    let ours = |line: &String| line.starts_with("foggara ") || line.starts_with("target/release/foggara ");
    // What goes on elsewhere, or is only the beginning of a command, cannot be read.
    found.into_iter().filter(ours).filter(|line| !line.contains('…')).collect()
}

/// A command as a shell cuts it, with values for what pages leave open. `None` if it is more than a command of ours.
fn words(command: &str) -> Option<Vec<String>> {
    let command = command.split(" > ").next()?.split(" | ").next()?.split("; ").next()?;
    let mut filled = command.to_owned();
    for (open, value) in [
        ("HOST:PORT", "127.0.0.1:1"),
        ("http://HOST", "http://127.0.0.1"),
        ("ADDR", "127.0.0.1:1"),
        ("HOST", "127.0.0.1"),
        ("SECONDS", "1"),
        ("NUMBER", "1"),
        (" N", " 1"),
    ] {
        filled = filled.replace(open, value);
    }
    let cut = Command::new("sh").args(["-c", &format!("printf '%s\\n' {filled}")]).output().expect("a shell");
    assert!(cut.status.success(), "{command}: a shell cannot read it");
    Some(String::from_utf8_lossy(&cut.stdout).lines().map(str::to_owned).collect())
}

#[test]
fn every_command_of_the_pages_is_one_of_this_program() {
    let (mut seen, mut wrong) = (0, Vec::new());
    for page in pages() {
        let text = std::fs::read_to_string(&page).expect("a page");
        for command in commands(&text) {
            let Some(words) = words(&command) else { continue };
            seen += 1;
            let Err(error) = crate::command_line().try_get_matches_from(words) else { continue };
            // Pages leave out what is clear, and name commands by their beginnings.
            let may_be = [
                ErrorKind::MissingRequiredArgument,
                ErrorKind::DisplayHelp,
                ErrorKind::DisplayVersion,
                ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand,
                ErrorKind::MissingSubcommand,
            ];
            if !may_be.contains(&error.kind()) {
                let said = error.to_string();
                wrong.push(format!(
                    "{}: {command}: {}",
                    page.display(),
                    said.lines().next().unwrap_or_default()
                ));
            }
        }
    }
    assert!(seen > 80, "{seen} commands");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
