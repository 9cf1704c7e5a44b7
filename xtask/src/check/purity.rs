//! Decisions are pure: no runtime, no network, no clock, no randomness, no files.

use super::rust_text::{code, words};
use super::{Finding, Source};

/// The pure modules. Their tests are pure, too.
const PURE: &[&str] = &[
    "coordinator/src/batcher/",
    "coordinator/src/placement/",
    "coordinator/src/cluster/state.rs",
    "coordinator/src/router/mod.rs",
    "coordinator/src/timeline/",
];

/// Words that no pure module uses, and why.
const FORBIDDEN: &[(&str, &str)] = &[
    ("tokio", "a runtime"),
    ("tonic", "the network"),
    ("axum", "the network"),
    ("reqwest", "the network"),
    ("Instant", "a clock"),
    ("SystemTime", "a clock"),
    ("sleep", "a clock"),
    ("rand", "randomness"),
    ("uuid", "randomness"),
    ("HashMap", "randomness (its order differs from run to run; use BTreeMap)"),
    ("HashSet", "randomness (its order differs from run to run; use BTreeSet)"),
    ("fs", "files"),
    ("File", "files"),
    ("memmap2", "files"),
    ("env", "the environment"),
    ("thread", "threads"),
    ("spawn", "threads"),
    ("println", "output"),
    ("eprintln", "output"),
    ("tracing", "output"),
];

pub fn findings(sources: &[Source]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for module in PURE {
        let mut files = sources.iter().filter(|source| source.path.starts_with(module)).peekable();
        if files.peek().is_none() {
            findings.push(format!(
                "{module} is in the table of pure modules (xtask/src/check/purity.rs) and does not exist"
            ));
        }
        findings.extend(files.flat_map(of_file));
    }
    findings
}

fn of_file(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (line, number) in code(&source.text).lines().zip(1..) {
        for (word, what) in FORBIDDEN {
            if words(line).any(|found| found == *word) {
                findings.push(format!("{}:{number}: `{word}` in a pure module: {what}", source.path));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn effects_are_found() {
        let source = |path: &str, text: &str| Source { path: path.into(), text: text.into() };
        let sources = [
            source(
                "coordinator/src/batcher/a.rs",
                "// tokio is not used\nuse std::time::{Duration, Instant};",
            ),
            source("coordinator/src/placement/a.rs", "fn spawned() {}"),
            source("coordinator/src/cluster/state.rs", "let map: HashMap<u8, u8>;"),
            source("coordinator/src/timeline/a.rs", "fn timed() {}"),
            source("coordinator/src/cluster/node.rs", "use tokio::fs;"),
        ];
        let found = findings(&sources);
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[0].starts_with("coordinator/src/batcher/a.rs:2: `Instant`"), "{found:?}");
        assert!(found[1].starts_with("coordinator/src/cluster/state.rs:1: `HashMap`"), "{found:?}");
        assert!(found[2].starts_with("coordinator/src/router/mod.rs is in the table"), "{found:?}");
    }
}
