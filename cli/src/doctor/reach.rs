//! Whether the coordinators that are named can be reached.

use super::asked::Asked;
use super::finding::{Finding, Severity};
use super::peers::{Admission, Answer, Peer, Silence};

const SECTION: &str = "peers";
/// Every plan of a step that was not sent ahead waits that long.
const SLOW_MILLIS: f64 = 20.0;

/// Of those to join, one must be there. Of the coordinators that are to be, one that is not started yet is no fault.
pub(super) fn judge(asked: &Asked, join: &[Peer], peers: &[Peer]) -> Vec<Finding> {
    let any = join.iter().any(|peer| peer.answer.is_ok());
    let joined = join.iter().map(|peer| one(peer, if any { Severity::Warning } else { Severity::Fault }));
    let others = peers.iter().map(|peer| match peer.answer {
        Err(Silence::Refused) => one(peer, Severity::Warning),
        _ => one(peer, Severity::Fault),
    });
    let mut findings: Vec<Finding> = joined.chain(others).collect();
    findings.extend(advertise(asked, join));
    findings
}

fn one(peer: &Peer, severity: Severity) -> Finding {
    let address = &peer.address;
    let new = |what: String, remedy: String| Finding::new(SECTION, severity, what, remedy);
    let (host, port) = address.rsplit_once(':').unwrap_or((address, ""));
    match &peer.answer {
        Ok(answer) => answered(address, answer),
        Err(Silence::Refused) => new(
            format!("{address} is unreachable: the host answers, but nobody listens there"),
            format!(
                "start the coordinator; on that host, `ss -ltn 'sport = :{port}'` shows whether it listens, and on which address"
            ),
        ),
        Err(Silence::TimedOut) => new(
            format!("{address} is unreachable: nothing comes back"),
            format!(
                "see `ping {host}` and `ip route get {host}`; let TCP to port {port} through the firewalls between"
            ),
        ),
        Err(Silence::Insecure(reason)) => new(
            format!("{address} is there, but there is no TLS with it: {reason}"),
            "all processes of a cluster speak TLS or none does, with certificates by authorities of the same --tls-ca, for the addresses they are called at".to_owned(),
        ),
        Err(Silence::Failed(error)) => new(
            format!("{address} is unreachable: {error}"),
            format!("see `getent hosts {host}` and `ip route`; an address is HOST:PORT"),
        ),
    }
}

fn answered(address: &str, answer: &Answer) -> Finding {
    let millis = answer.round_trip.as_secs_f64() * 1e3;
    let what = format!("{address} answers, {millis:.1} ms away");
    match &answer.admission {
        Admission::Failed(reason) if reason.contains(foggara_tls::SPEAKS_TLS) => Finding::new(
            SECTION,
            Severity::Fault,
            format!("{address} speaks TLS, and without --tls-ca it is spoken to in plain text"),
            "--tls-ca FILE, the authorities of that cluster; a process of it needs --tls-certificate and --tls-key, too",
        ),
        Admission::Failed(reason) => Finding::new(
            SECTION,
            Severity::Fault,
            format!("{address} is there, but does not answer gRPC: {reason}"),
            "give the coordinators' gRPC address, and put no proxy between that speaks HTTP/1 only",
        ),
        _ if millis > SLOW_MILLIS => Finding::new(
            SECTION,
            Severity::Warning,
            format!("{what}: coordinators and workers of a cluster should be within a few milliseconds"),
            "put them into one region",
        ),
        _ => Finding::ok(SECTION, what),
    }
}

/// A worker that listens everywhere must say where.
fn advertise(asked: &Asked, join: &[Peer]) -> Option<Finding> {
    let listen = asked.listen.filter(|listen| listen.ip().is_unspecified() && asked.advertise.is_none())?;
    let own = join.iter().find_map(|peer| peer.answer.as_ref().ok()?.from);
    let own = own.map_or_else(|| "HOST".to_owned(), |own| own.to_string());
    Some(Finding::new(
        SECTION,
        Severity::Fault,
        format!("--listen {listen} does not say where others find this worker"),
        format!("--advertise {own}"),
    ))
}

#[cfg(test)]
mod tests {
    use super::super::asked::nothing;
    use super::super::finding::{severities, worst};
    use super::super::peers::answering;
    use super::*;

    fn silent(silence: Silence) -> Peer {
        Peer { address: "10.0.0.9:8081".into(), answer: Err(silence) }
    }

    #[test]
    fn one_to_join_is_enough() {
        let gone = silent(Silence::Refused);
        let judged = |join: &[Peer]| severities(&judge(&nothing(), join, &[]));
        assert_eq!(judged(&[answering("a:1")]), [Severity::Ok]);
        assert_eq!(judged(&[answering("a:1"), gone.clone()]), [Severity::Ok, Severity::Warning]);
        assert_eq!(judged(&[gone.clone(), gone]), [Severity::Fault, Severity::Fault]);
    }

    #[test]
    fn a_coordinator_that_is_not_started_is_no_fault_of_the_first_one() {
        for (silence, severity) in [
            (Silence::Refused, Severity::Warning),
            (Silence::TimedOut, Severity::Fault),
            (Silence::Failed("no such host".into()), Severity::Fault),
            (Silence::Insecure("it is another's".into()), Severity::Fault),
        ] {
            let found = judge(&nothing(), &[], &[silent(silence)]);
            assert_eq!(severities(&found), [severity]);
            assert!(found[0].what.starts_with("10.0.0.9:8081 is "), "{found:?}");
        }
    }

    #[test]
    fn what_answers_something_else_is_a_fault() {
        let mut peer = answering("a:1");
        let answer = peer.answer.as_mut().expect("it answers");
        answer.admission = Admission::Failed("h2 protocol error".into());
        assert_eq!(worst(&judge(&nothing(), &[], &[peer])), Severity::Fault);
        let mut secure = answering("a:1");
        let said = format!("status 14: {}", foggara_tls::SPEAKS_TLS);
        secure.answer.as_mut().expect("it answers").admission = Admission::Failed(said);
        let found = judge(&nothing(), &[], &[secure]);
        assert!(found[0].what.contains("without --tls-ca"), "{found:?}");
        let mut far = answering("a:1");
        far.answer.as_mut().expect("it answers").round_trip = std::time::Duration::from_millis(80);
        assert_eq!(worst(&judge(&nothing(), &[far], &[])), Severity::Warning);
    }

    #[test]
    fn a_worker_that_listens_everywhere_is_told_its_address() {
        let listen = Some("0.0.0.0:8082".parse().expect("valid"));
        let asked = Asked { listen, ..nothing() };
        let mut peer = answering("a:1");
        peer.answer.as_mut().expect("it answers").from = Some("10.0.0.7".parse().expect("valid"));
        let found = judge(&asked, &[peer], &[]);
        assert_eq!(found[1].remedy.as_deref(), Some("--advertise 10.0.0.7"));
        let told = Asked { advertise: Some("w".into()), ..asked };
        assert!(judge(&told, &[], &[]).is_empty());
    }
}
