//! `unsafe` has an address.

use super::rust_text::{code, words};
use super::{Finding, Source};

/// Where it may be: numbers on devices, and the memory map of checkpoints.
const HOMES: &[&str] = &["kernels/", "models/src/mmap.rs"];

pub fn findings(sources: &[Source]) -> Vec<Finding> {
    let elsewhere = sources.iter().filter(|source| !HOMES.iter().any(|home| source.path.starts_with(home)));
    elsewhere.flat_map(of_file).collect()
}

fn of_file(source: &Source) -> Vec<Finding> {
    let code = code(&source.text);
    let lines = code.lines().zip(1..).filter(|(line, _)| words(line).any(|word| word == "unsafe"));
    lines.map(|(_, number)| format!("{}:{number}: unsafe code; its place is kernels/", source.path)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_counts() {
        let source = |path: &str, text: &str| Source { path: path.into(), text: text.into() };
        let sources = [
            source("kernels/src/a.rs", "unsafe {}"),
            source("models/src/mmap.rs", "unsafe {}"),
            source("worker/src/a.rs", "#![forbid(unsafe_code)]\n// unsafe\nlet a = \"unsafe\";"),
            source("worker/src/b.rs", "fn b() {\n    unsafe { c() }\n}"),
        ];
        assert_eq!(findings(&sources), ["worker/src/b.rs:2: unsafe code; its place is kernels/"]);
    }
}
