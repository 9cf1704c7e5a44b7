//! Whether this host's clock is right: beside those of the coordinators, and whether anything keeps it right.
//!
//! Nothing of Foggara's safety hangs on it: leases and elections count seconds, and do not compare times. But logs, traces and
//! metrics of several hosts cannot be put beside each other, and certificates and tokens of what is around it expire early or late.

use std::time::SystemTime;

use super::finding::{Finding, Severity};
use super::peers::Peer;

const SECTION: &str = "clock";
/// A date header says seconds, and takes a round trip: less than that is no difference.
const SURE_SECONDS: f64 = 2.0;
/// From here on a log of one host beside another's misleads.
const WRONG_SECONDS: f64 = 30.0;
/// Programs that set clocks, by the names the kernel has for their processes (15 letters at most).
const KEEPERS: [&str; 8] =
    ["chronyd", "systemd-timesyn", "ntpd", "ntpd-rs", "ntp-daemon", "openntpd", "ptp4l", "phc2sys"];

/// How far a clock is ahead of ours, in seconds, that said `date` between `before` and `after`.
pub(super) fn ahead(date: SystemTime, before: SystemTime, after: SystemTime) -> f64 {
    let seconds = |time: SystemTime| match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => since.as_secs_f64(),
        Err(earlier) => -earlier.duration().as_secs_f64(),
    };
    // A date is cut to seconds: on average half of one is missing.
    seconds(date) + 0.5 - (seconds(before) + seconds(after)) / 2.0
}

/// Beside the coordinators', and with what runs here.
pub(super) fn check(peers: &[Peer]) -> Vec<Finding> {
    judge(peers, keeper().as_deref())
}

/// The program that keeps this host's clock, if one runs.
fn keeper() -> Option<String> {
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    let names = processes.filter_map(|entry| std::fs::read_to_string(entry.path().join("comm")).ok());
    names.map(|name| name.trim().to_owned()).find(|name| KEEPERS.contains(&name.as_str()))
}

fn judge(peers: &[Peer], keeper: Option<&str>) -> Vec<Finding> {
    let told = peers.iter().filter_map(|peer| Some((&peer.address, peer.answer.as_ref().ok()?.ahead?)));
    let mut findings: Vec<Finding> = told.map(|(address, ahead)| beside(address, ahead)).collect();
    findings.push(match keeper {
        Some(name) => Finding::ok(SECTION, format!("{name} keeps it")),
        None => Finding::new(
            SECTION,
            Severity::Note,
            "nothing that is known keeps it (chrony, systemd-timesyncd, ntpd, ptp4l); a container's host may",
            "apt-get install chrony",
        ),
    });
    findings
}

fn beside(address: &str, ahead: f64) -> Finding {
    let off = ahead.abs();
    let direction = if ahead > 0.0 { "behind" } else { "ahead of" };
    let severity = match off {
        ..=SURE_SECONDS => {
            return Finding::ok(SECTION, format!("the same as {address}'s, within {SURE_SECONDS:.0} s"));
        }
        ..=WRONG_SECONDS => Severity::Warning,
        _ => Severity::Fault,
    };
    let what = format!(
        "this host's clock is {off:.0} s {direction} {address}'s: logs, traces and metrics of both cannot be put side by side"
    );
    let remedy =
        "set whichever is wrong (`date -u` on both): `chronyc makestep`, or `timedatectl set-ntp true`";
    Finding::new(SECTION, severity, what, remedy)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::finding::severities;
    use super::super::peers::answering;
    use super::*;

    #[test]
    fn a_date_is_compared_with_the_middle_of_the_call() {
        let at = |millis| SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
        assert!((ahead(at(10_000), at(9_400), at(9_600)) - 1.0).abs() < 1e-9);
        assert!((ahead(at(10_000), at(3_610_500), at(3_610_500)) + 3600.0).abs() < 1e-9);
    }

    #[test]
    fn a_clock_is_wrong_from_half_a_minute_on() {
        for (ahead, severity, word) in [
            (0.4, Severity::Ok, "the same"),
            (-1.9, Severity::Ok, "the same"),
            (5.0, Severity::Warning, "5 s behind a:1"),
            (-29.0, Severity::Warning, "29 s ahead of a:1"),
            (3600.0, Severity::Fault, "3600 s behind"),
            (-3600.0, Severity::Fault, "3600 s ahead of"),
        ] {
            let mut peer = answering("a:1");
            peer.answer.as_mut().expect("it answers").ahead = Some(ahead);
            let found = judge(&[peer], Some("chronyd"));
            assert_eq!(severities(&found), [severity, Severity::Ok], "{ahead}");
            assert!(found[0].what.contains(word), "{found:?}");
        }
        assert_eq!(severities(&judge(&[], None)), [Severity::Note]);
    }
}
