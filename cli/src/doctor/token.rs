//! Whether the cluster token is there where it is needed, and the right one.

use super::asked::Asked;
use super::finding::{Finding, Severity};
use super::peers::{Admission, Peer};

const SECTION: &str = "token";

/// With what the coordinators said to it.
pub(super) fn judge(asked: &Asked, peers: &[Peer]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let beyond = asked.addresses().into_iter().filter(|address| !address.address.ip().is_loopback());
    if let (false, Some(address)) = (asked.token.is_set(), beyond.into_iter().next()) {
        findings.push(Finding::new(
            SECTION,
            Severity::Fault,
            format!("{} {} is beyond loopback, and there is no cluster token", address.option, address.address),
            "FOGGARA_CLUSTER_TOKEN=$(openssl rand -hex 32), the same for all processes and operators of the cluster",
        ));
    }
    for peer in peers {
        let Ok(answer) = &peer.answer else { continue };
        match answer.admission {
            Admission::Taken if asked.token.is_set() => {
                findings.push(Finding::ok(SECTION, format!("{} takes it", peer.address)));
            }
            Admission::Refused => findings.push(Finding::new(
                SECTION,
                Severity::Fault,
                match asked.token.is_set() {
                    true => format!("{} refuses this cluster token: it has another", peer.address),
                    false => format!("{} asks for a cluster token, and none is given", peer.address),
                },
                "give that coordinator's FOGGARA_CLUSTER_TOKEN (or --cluster-token); under systemd it is in its environment file",
            )),
            Admission::Taken | Admission::Failed(_) => {}
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use foggara_proto::auth::ClusterToken;

    use super::super::asked::nothing;
    use super::super::finding::severities;
    use super::super::peers::answering;
    use super::*;

    #[test]
    fn a_token_is_needed_beyond_loopback() {
        let open = Asked { grpc: Some("10.0.0.1:8081".parse().expect("valid")), ..nothing() };
        assert_eq!(severities(&judge(&open, &[])), [Severity::Fault]);
        let shut = Asked { token: ClusterToken::new(Some("secret")), ..open };
        assert!(judge(&shut, &[]).is_empty());
        assert!(judge(&nothing(), &[answering("a:1")]).is_empty());
    }

    #[test]
    fn a_token_that_is_refused_is_wrong_or_missing() {
        let mut peer = answering("a:1");
        let taken = peer.clone();
        peer.answer.as_mut().expect("it answers").admission = Admission::Refused;
        let with = Asked { token: ClusterToken::new(Some("secret")), ..nothing() };
        assert_eq!(severities(&judge(&with, &[taken])), [Severity::Ok]);
        for (asked, word) in [(with, "refuses this cluster token"), (nothing(), "none is given")] {
            let found = judge(&asked, std::slice::from_ref(&peer));
            assert_eq!(severities(&found), [Severity::Fault]);
            assert!(found[0].what.contains(word) && !found[0].what.contains("secret"), "{found:?}");
        }
    }
}
