//! Whether processes can listen where they are to: each address is bound, and given back.

use std::io::ErrorKind;
use std::net::TcpListener;

use super::asked::{Address, Asked};
use super::finding::{Finding, Severity};
use super::holder::{Holder, holder};

const SECTION: &str = "ports";

/// What came of binding an address.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Bound {
    Free,
    Taken(Option<Holder>),
    /// By another option of this very command.
    Twice,
    /// No address of this host.
    Elsewhere,
    NotAllowed,
    Failed(String),
}

/// Binds them all.
pub(super) fn check(asked: &Asked) -> Vec<Finding> {
    // Held until all are tried, so that one that is given twice is noticed.
    let mut held: Vec<TcpListener> = Vec::new();
    let mut findings = Vec::new();
    for address in asked.addresses() {
        let own = held.iter().any(|listener| listener.local_addr().is_ok_and(|own| own == address.address));
        let bound = match TcpListener::bind(address.address) {
            Ok(listener) => {
                held.push(listener);
                Bound::Free
            }
            Err(error) => match error.kind() {
                ErrorKind::AddrInUse if own => Bound::Twice,
                ErrorKind::AddrInUse => Bound::Taken(holder(address.address.port())),
                ErrorKind::AddrNotAvailable => Bound::Elsewhere,
                ErrorKind::PermissionDenied => Bound::NotAllowed,
                _ => Bound::Failed(error.to_string()),
            },
        };
        findings.push(judge(address, &bound));
    }
    findings
}

fn judge(Address { option, address, asked }: Address, bound: &Bound) -> Finding {
    // A default that is taken may be Foggara itself, which runs here already.
    let severity = if asked { Severity::Fault } else { Severity::Warning };
    let new = |what: String, remedy: String| Finding::new(SECTION, severity, what, remedy);
    match bound {
        Bound::Free if address.port() == 0 => {
            Finding::ok(SECTION, format!("{option} {address}: a port that is free then"))
        }
        Bound::Free => Finding::ok(SECTION, format!("{option} {address} is free")),
        Bound::Taken(None) => new(
            format!("{option} {address} is taken"),
            format!("see by whom with `ss -ltnp 'sport = :{}'`, or choose another {option}", address.port()),
        ),
        Bound::Taken(Some(Holder { pid, name })) => new(
            format!("{option} {address} is taken by process {pid} ({name})"),
            format!("stop it (`kill {pid}`), or choose another {option}"),
        ),
        Bound::Twice => new(
            format!("{option} {address} is given to another option, too"),
            format!("choose another port for {option}"),
        ),
        Bound::Elsewhere => new(
            format!("{option} {address} is no address of this host"),
            "choose one of those that `ip -brief address` shows".into(),
        ),
        Bound::NotAllowed => new(
            format!("{option} {address}: this user may not listen there"),
            "choose a port from 1024 on, or let systemd give it CAP_NET_BIND_SERVICE".into(),
        ),
        Bound::Failed(error) => new(format!("{option} {address}: {error}"), "see `ip -brief address`".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_bound_is_a_fault_if_it_was_asked_for() {
        let address =
            |asked| Address { option: "--http", address: "10.0.0.1:80".parse().expect("valid"), asked };
        let holder = Holder { pid: 12, name: "nginx".into() };
        for (bound, word) in [
            (Bound::Taken(Some(holder)), "process 12 (nginx)"),
            (Bound::Taken(None), "is taken"),
            (Bound::Twice, "another option"),
            (Bound::Elsewhere, "no address of this host"),
            (Bound::NotAllowed, "may not"),
            (Bound::Failed("odd".into()), "odd"),
        ] {
            let finding = judge(address(true), &bound);
            assert!(finding.what.contains(word) && finding.what.contains("10.0.0.1:80"), "{finding:?}");
            assert_eq!(finding.severity, Severity::Fault);
            assert_eq!(judge(address(false), &bound).severity, Severity::Warning);
        }
        assert_eq!(judge(address(true), &Bound::Free).severity, Severity::Ok);
    }
}
