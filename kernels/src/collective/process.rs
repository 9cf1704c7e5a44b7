//! Whether the process behind a rank still runs.

/// A process, told apart from later ones with the same id by when it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: u32,
    /// Clock ticks since boot.
    pub(super) started: u64,
}

impl Process {
    /// This process.
    pub(super) fn this() -> Self {
        let pid = std::process::id();
        Self { pid, started: state(pid).map_or(0, |(_, started)| started) }
    }

    /// Whether it still runs (a zombie does not).
    pub(super) fn is_alive(self) -> bool {
        state(self.pid).is_some_and(|(state, since)| since == self.started && state != b'Z' && state != b'X')
    }
}

/// A process's state letter and start time in clock ticks since boot (proc(5): fields 3 and 22 of `/proc/PID/stat`).
fn state(pid: u32) -> Option<(u8, u64)> {
    parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse(stat: &str) -> Option<(u8, u64)> {
    // The command in parentheses may hold anything, so fields are counted after it.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_state_and_start_behind_any_command() {
        let fields = "1 1 1 0 -1 4194304 5 0 0 0 0 0 0 0 20 0 1 0 8855 2 3";
        for command in ["cat", "a b", ") Z (", ""] {
            let stat = format!("77 ({command}) S {fields}");
            assert_eq!(parse(&stat), Some((b'S', 8855)), "{stat}");
        }
        for stat in ["", "77 (cat)", "77 (cat) S 1 2 3", "77 cat S"] {
            assert_eq!(parse(stat), None, "{stat}");
        }
    }

    #[test]
    fn a_process_lives_under_its_own_start_time_only() {
        let this = Process::this();
        assert!(this.is_alive());
        assert!(!Process { started: this.started + 1, ..this }.is_alive());
        let mut child = std::process::Command::new("true").spawn().expect("`true` runs");
        let ended =
            Process { pid: child.id(), started: state(child.id()).expect("it has not been reaped").1 };
        child.wait().expect("it ends");
        assert!(!ended.is_alive());
    }
}
