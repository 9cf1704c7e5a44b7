//! Which machine, for the record.

use serde::{Deserialize, Serialize};

/// What a reader needs to tell machines apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) memory_bytes: u64,
}

impl Machine {
    /// This one.
    pub(crate) fn this() -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let memory = after(&read("/proc/meminfo"), "MemTotal:");
        let kilobytes = memory.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        let cpu = after(&read("/proc/cpuinfo"), "model name");
        Self {
            cpu: if cpu.is_empty() { std::env::consts::ARCH.to_owned() } else { cpu },
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: kilobytes * 1024,
        }
    }
}

/// The value of the first line that begins with `key`.
fn after(text: &str, key: &str) -> String {
    let value = text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
    value.trim_start_matches([' ', '\t', ':']).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    #[test]
    fn values_follow_their_keys() {
        assert_eq!(
            super::after("a: 1\nmodel name\t: Some CPU \nmodel name\t: b\n", "model name"),
            "Some CPU"
        );
        assert_eq!(super::after("", "model name"), "");
    }
}
