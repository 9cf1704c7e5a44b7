//! Whether this program can work with the coordinators there are: they may be of another version.

use foggara_proto::version::Build;

use super::finding::{Finding, Severity};
use super::peers::{Peer, Told};

const SECTION: &str = "version";

/// Beside what the coordinators say; `coordinator`: it is to be one of them, and keep the replicated state with them.
pub(super) fn judge(own: &Build, coordinator: bool, peers: &[Peer]) -> Vec<Finding> {
    let Build { version, protocols, .. } = own;
    let mut findings = vec![Finding::ok(SECTION, format!("foggara {version}, protocol {protocols}"))];
    for Peer { address, answer } in peers {
        let Ok(answer) = answer else { continue };
        findings.push(match &answer.version {
            Ok(told) if told.version == *version => Finding::ok(SECTION, format!("{address} runs the same")),
            Ok(told) => other(own, coordinator, address, told),
            Err(reason) => Finding::new(
                SECTION,
                Severity::Warning,
                format!("{address} does not say which version it runs: {reason}"),
                format!("curl http://{address}/version"),
            ),
        });
    }
    findings
}

/// A coordinator of another version.
fn other(own: &Build, coordinator: bool, address: &str, told: &Told) -> Finding {
    let Told { version, build } = told;
    let fault = |why: String| {
        Finding::new(
            SECTION,
            Severity::Fault,
            format!("{address} runs foggara {version}, which cannot work with {} here: {why}", own.version),
            format!("install foggara {version} here, or upgrade the cluster first, one release at a time"),
        )
    };
    let Some(build) = build else { return fault("it does not say which protocols it speaks".into()) };
    let works = match coordinator {
        true => own.keeps_state_with(build),
        false => own.speaks_with(version, build.protocols),
    };
    match works {
        Ok(()) => Finding::ok(
            SECTION,
            format!(
                "{address} runs foggara {version}, which works with {} here: the cluster can be upgraded step by step",
                own.version
            ),
        ),
        Err(why) => fault(why.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use foggara_proto::version::Range;

    use super::super::finding::severities;
    use super::super::peers::answering;
    use super::*;

    #[test]
    fn another_version_is_no_fault_if_they_can_work_together() {
        let range = |oldest, newest| Range { oldest, newest };
        let build = |version: &str, protocols, formats| Build { version: version.into(), protocols, formats };
        let own = build("1.1.0", range(3, 4), range(4, 5));
        let told = |version: &str, build| Ok(Told { version: version.into(), build });
        // For a worker, and for a coordinator.
        for (version, severities_of) in [
            (told("1.1.0", Some(own.clone())), [Severity::Ok; 2]),
            (told("1.1.0", None), [Severity::Ok; 2]),
            (told("1.0.0", Some(build("1.0.0", range(3, 3), range(4, 4)))), [Severity::Ok; 2]),
            (told("2.0.0", Some(build("2.0.0", range(5, 5), range(4, 5)))), [Severity::Fault; 2]),
            (told("2.0.0", Some(build("2.0.0", range(4, 5), range(6, 6)))), [Severity::Ok, Severity::Fault]),
            (told("0.0.9", None), [Severity::Fault; 2]),
            (Err("it answers `404`".to_owned()), [Severity::Warning; 2]),
        ] {
            let mut peer = answering("a:1");
            peer.answer.as_mut().expect("it answers").version = version;
            for (coordinator, severity) in [false, true].into_iter().zip(severities_of) {
                assert_eq!(severities(&judge(&own, coordinator, &[peer.clone()])), [Severity::Ok, severity]);
            }
        }
    }
}
