//! Network interfaces: whether there are any, their MTU and speed.

use std::path::Path;

use super::asked::Asked;
use super::finding::{Finding, Severity};

const SECTION: &str = "network";
/// ARPHRD_LOOPBACK (linux/if_arp.h).
const LOOPBACK: u32 = 772;
/// Ethernet's, without extensions.
const USUAL_MTU: u32 = 1500;
/// The least that IPv6 allows (RFC 8200, section 5).
const LEAST_MTU: u32 = 1280;
/// What the placement assumes between hosts, in Mbit/s.
const ASSUMED_SPEED: i64 = 10_000;
const SLOW: i64 = 1_000;

/// An interface that is up, and no part of a bridge or bond.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Interface {
    name: String,
    mtu: u32,
    /// Mbit/s; virtual ones do not tell.
    speed: Option<i64>,
}

/// Those of this host.
pub(super) fn check(asked: &Asked) -> Vec<Finding> {
    judge(&interfaces(Path::new("/sys/class/net")), asked.beyond_this_host(), asked.roles.worker)
}

fn interfaces(folder: &Path) -> Vec<Interface> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<Interface> = entries
        .filter_map(|entry| {
            let read = |name: &str| std::fs::read_to_string(entry.path().join(name)).ok();
            let number = |name: &str| read(name)?.trim().parse::<i64>().ok();
            // Tunnels are up without saying so.
            let up = matches!(read("operstate")?.trim(), "up" | "unknown");
            let loopback = number("type") == Some(i64::from(LOOPBACK));
            let interface = Interface {
                name: entry.file_name().to_string_lossy().into_owned(),
                mtu: number("mtu").and_then(|mtu| mtu.try_into().ok()).unwrap_or(0),
                speed: number("speed").filter(|speed| *speed > 0),
            };
            (up && !loopback && !entry.path().join("master").exists()).then_some(interface)
        })
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

fn judge(interfaces: &[Interface], beyond: bool, worker: bool) -> Vec<Finding> {
    if interfaces.is_empty() {
        let what = "no network interface is up besides loopback";
        return vec![match beyond {
            true => Finding::new(
                SECTION,
                Severity::Fault,
                what,
                "ip link set dev NAME up (`ip -brief link` shows which there are)",
            ),
            false => Finding::note(SECTION, format!("{what}: enough for a cluster on this host alone")),
        }];
    }
    let mut findings: Vec<Finding> = interfaces.iter().map(|interface| one(interface, worker)).collect();
    let mtus = interfaces.iter().map(|i| i.mtu);
    let (least, most) = (mtus.clone().min().unwrap_or(0), mtus.max().unwrap_or(0));
    if least != most {
        findings.push(Finding::note(
            SECTION,
            format!("MTUs differ, {least} to {most}: what counts is that hosts of one network have the same"),
        ));
    }
    findings
}

fn one(Interface { name, mtu, speed }: &Interface, worker: bool) -> Finding {
    let told = speed.map_or_else(String::new, |speed| match speed {
        1_000.. => format!(", {:.0} Gbit/s", speed as f64 / 1e3),
        _ => format!(", {speed} Mbit/s"),
    });
    let jumbo = if *mtu > USUAL_MTU { " (jumbo frames)" } else { "" };
    let what = format!("{name} is up, MTU {mtu}{jumbo}{told}");
    let same =
        format!("ip link set dev {name} mtu {USUAL_MTU}, if every host and switch of the network has that");
    match (mtu, speed) {
        (0..LEAST_MTU, _) => {
            Finding::new(SECTION, Severity::Warning, format!("{what}: less than IPv6 allows"), same)
        }
        (_, Some(speed)) if worker && *speed < SLOW => Finding::new(
            SECTION,
            Severity::Warning,
            format!("{what}: too slow for groups that span hosts"),
            format!("see what was negotiated with `ethtool {name}`, and the cable"),
        ),
        (_, Some(speed)) if worker && *speed < ASSUMED_SPEED => {
            Finding::note(SECTION, format!("{what}: predictions assume 10 Gbit/s between hosts"))
        }
        (LEAST_MTU..USUAL_MTU, _) => {
            Finding::note(SECTION, format!("{what}: below {USUAL_MTU}, as in tunnels and some clouds"))
        }
        _ => Finding::ok(SECTION, what),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::{severities, worst};
    use super::*;

    #[test]
    fn interfaces_are_judged_one_by_one_and_together() {
        let interface = |mtu, speed| Interface { name: "eth0".into(), mtu, speed };
        for (interface, worker, severity) in [
            (interface(1500, Some(10_000)), true, Severity::Ok),
            (interface(9000, Some(100_000)), true, Severity::Ok),
            (interface(1500, None), true, Severity::Ok),
            (interface(1400, None), true, Severity::Note),
            (interface(1200, None), true, Severity::Warning),
            (interface(1500, Some(1_000)), true, Severity::Note),
            (interface(1500, Some(100)), true, Severity::Warning),
            (interface(1500, Some(100)), false, Severity::Ok),
        ] {
            assert_eq!(
                severities(&judge(std::slice::from_ref(&interface), true, worker)),
                [severity],
                "{interface:?}"
            );
        }
        assert_eq!(worst(&judge(&[], true, true)), Severity::Fault);
        assert_eq!(worst(&judge(&[], false, true)), Severity::Note);
        let differ = judge(&[interface(1500, None), interface(9000, None)], true, true);
        assert!(differ[2].what.contains("1500 to 9000"), "{differ:?}");
    }
}
