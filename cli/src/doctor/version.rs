//! Whether the cluster runs this version: workers of another are refused.

use super::finding::{Finding, Severity};
use super::peers::Peer;

const SECTION: &str = "version";
/// Of this program.
pub(super) const OWN: &str = env!("CARGO_PKG_VERSION");

/// Beside what the coordinators say.
pub(super) fn judge(peers: &[Peer]) -> Vec<Finding> {
    let mut findings = vec![Finding::ok(SECTION, format!("foggara {OWN}"))];
    for peer in peers {
        let Ok(answer) = &peer.answer else { continue };
        findings.push(match &answer.version {
            Ok(version) if version == OWN => Finding::ok(SECTION, format!("{} runs the same", peer.address)),
            Ok(version) => Finding::new(
                SECTION,
                Severity::Fault,
                format!("{} runs foggara {version}, this is {OWN}", peer.address),
                format!("install foggara {version} here, or upgrade the cluster: all processes must be of one version"),
            ),
            Err(reason) => Finding::new(
                SECTION,
                Severity::Warning,
                format!("{} does not say which version it runs: {reason}", peer.address),
                format!("curl http://{}/version", peer.address),
            ),
        });
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::finding::severities;
    use super::super::peers::answering;
    use super::*;

    #[test]
    fn all_must_be_of_one_version() {
        for (version, severity) in [
            (Ok(OWN.to_owned()), Severity::Ok),
            (Ok("0.0.9".to_owned()), Severity::Fault),
            (Err("it answers `404`".to_owned()), Severity::Warning),
        ] {
            let mut peer = answering("a:1");
            peer.answer.as_mut().expect("it answers").version = version;
            assert_eq!(severities(&judge(&[peer])), [Severity::Ok, severity]);
        }
    }
}
