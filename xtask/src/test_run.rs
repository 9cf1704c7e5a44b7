//! Running `cargo test`, and counting.

use std::fmt;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::process;

/// What a run of `cargo test` came to.
#[derive(Debug)]
pub struct Tally {
    pub name: &'static str,
    pub passed: u64,
    pub failed: u64,
    pub ignored: u64,
    pub time: Duration,
    /// What cargo said: also false when something did not compile.
    pub succeeded: bool,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, passed, failed, ignored, .. } = self;
        write!(
            f,
            "{name:<20} {passed:>5} passed, {failed} failed, {ignored} ignored, in {} s",
            self.time.as_secs()
        )
    }
}

impl Tally {
    /// Takes in one line of output.
    fn line(&mut self, line: &str) {
        let Some(counts) = line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". ")) else {
            return;
        };
        for count in counts.1.split("; ") {
            let mut words = count.split(' ');
            let (Some(Ok(number)), Some(what)) = (words.next().map(str::parse::<u64>), words.next()) else {
                continue;
            };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }
}

/// Runs `command` (a `cargo test`), showing its output as it comes.
pub fn run(name: &'static str, command: &mut Command) -> Result<Tally> {
    println!("$ {}", process::shown(command));
    let started = Instant::now();
    let mut child = command.stdout(Stdio::piped()).spawn().context("starting cargo")?;
    let mut output = child.stdout.take().context("the output of cargo")?;
    let mut tally = Tally { name, passed: 0, failed: 0, ignored: 0, time: Duration::ZERO, succeeded: false };
    // Passed on in pieces, not in lines: a test's name shows while it runs.
    let (mut piece, mut line) = ([0; 4096], Vec::new());
    loop {
        let read = output.read(&mut piece).context("reading the output of cargo")?;
        if read == 0 {
            break;
        }
        let mut terminal = std::io::stdout().lock();
        terminal.write_all(&piece[..read]).and_then(|()| terminal.flush()).context("writing")?;
        for byte in &piece[..read] {
            match byte {
                b'\n' => tally.line(&String::from_utf8_lossy(&std::mem::take(&mut line))),
                byte => line.push(*byte),
            }
        }
    }
    tally.succeeded = child.wait().context("waiting for cargo")?.success();
    tally.time = started.elapsed();
    Ok(tally)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_are_added_up() {
        let mut tally =
            Tally { name: "x", passed: 0, failed: 0, ignored: 0, time: Duration::ZERO, succeeded: true };
        for line in [
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.02s",
            "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s",
            "test a::b ... ok",
        ] {
            tally.line(line);
        }
        assert_eq!((tally.passed, tally.failed, tally.ignored), (15, 2, 1));
    }
}
