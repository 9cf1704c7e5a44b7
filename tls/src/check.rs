//! Whether certificates are such that others will go by them.

use std::fmt;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, Error, RootCertStore};

use super::certificate::{Leaf, Life, date, is_for};
use super::files::{FileError, Material, TlsFiles};
use super::{identity, provider};

/// Why others will not go by a certificate, or soon will not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// No authority of the cluster has signed it.
    NotSigned,
    /// The authority that has signed it is no longer good itself.
    AuthorityEnded,
    /// It is good no longer.
    Expired(i64),
    /// It is not good yet.
    NotYet(i64),
    /// It soon will not be.
    Ending(i64),
    /// It is for other hosts.
    NotFor {
        /// The host that it should be for.
        host: String,
        /// Those that it is for.
        names: Vec<String>,
    },
    /// Something else that rustls finds.
    Other(String),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSigned => f.write_str("is not signed by any certificate of tls_ca"),
            Self::AuthorityEnded => {
                f.write_str("is signed by an authority whose own certificate has expired")
            }
            Self::Expired(at) => write!(f, "expired on {}", date(*at)),
            Self::NotYet(at) => write!(f, "is not good before {}", date(*at)),
            Self::Ending(at) => write!(f, "expires on {}", date(*at)),
            Self::NotFor { host, names } => write!(f, "is for {}, not for {host}", listed(names)),
            Self::Other(reason) => f.write_str(reason),
        }
    }
}

/// Names one after the other.
pub(crate) fn listed(names: &[String]) -> String {
    match names.is_empty() {
        true => "no host".into(),
        false => names.join(", "),
    }
}

/// What was found in the files of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Examined {
    /// Of its certificate.
    pub life: Life,
    /// The hosts that its certificate is for.
    pub names: Vec<String>,
    /// What is wrong.
    pub troubles: Vec<Trouble>,
}

/// Looks at the files of a process that others call under the names `hosts`.
///
/// # Errors
/// If one cannot be read, or the key belongs to another certificate.
pub fn examine(files: &TlsFiles, hosts: &[String], now: i64) -> Result<Examined, FileError> {
    let material = Material::read(files)?;
    let leaf = identity::leaf(files, &material)?;
    let troubles = troubles(&leaf, &material.chain, &material.roots, hosts, now);
    identity::server(files, material)?;
    Ok(Examined { life: leaf.life, names: leaf.names, troubles })
}

pub(crate) fn troubles(
    leaf: &Leaf,
    chain: &[CertificateDer<'static>],
    roots: &RootCertStore,
    hosts: &[String],
    now: i64,
) -> Vec<Trouble> {
    let Life { begins, ends } = leaf.life;
    let in_time = match now {
        now if now > ends => Some(Trouble::Expired(ends)),
        now if now < begins => Some(Trouble::NotYet(begins)),
        now if leaf.life.is_near_its_end(now) => Some(Trouble::Ending(ends)),
        _ => None,
    };
    let not_for = hosts.iter().filter(|host| chain.first().is_none_or(|leaf| !is_for(leaf, host)));
    let not_for = not_for.map(|host| Trouble::NotFor { host: host.clone(), names: leaf.names.clone() });
    // Whether it is signed does not hang on its own time.
    let signed = signed(chain, roots, now.clamp(begins, ends));
    signed.err().into_iter().chain(in_time).chain(not_for).collect()
}

fn signed(chain: &[CertificateDer<'static>], roots: &RootCertStore, at: i64) -> Result<(), Trouble> {
    let other = |error: &dyn fmt::Display| Trouble::Other(format!("cannot be used: {error}"));
    let (leaf, between) = chain.split_first().ok_or(Trouble::NotSigned)?;
    let leaf = ParsedCertificate::try_from(leaf).map_err(|error| other(&error))?;
    let at = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(at).unwrap_or(0)));
    let algorithms = provider().signature_verification_algorithms.all;
    let verified =
        rustls::client::verify_server_cert_signed_by_trust_anchor(&leaf, roots, between, at, algorithms);
    verified.map_err(|error| match error {
        Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            Trouble::NotSigned
        }
        Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            Trouble::AuthorityEnded
        }
        error => other(&error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::making::tests::{DAY, Made, NOW};

    fn found(made: &Made, hosts: &[&str], now: i64) -> Vec<String> {
        let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
        let examined = examine(&made.files, &hosts, now).expect("readable");
        examined.troubles.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn certificates_are_good_in_their_time_for_their_hosts() {
        let made = Made::new(&["10.0.0.1", "a.example", "::1"], 100);
        let all = ["10.0.0.1", "a.example", "::1"];
        assert_eq!(found(&made, &all, NOW), Vec::<String>::new());
        assert_eq!(examine(&made.files, &[], NOW).expect("readable").names, all);
        let says = |hosts: &[&str], now: i64| found(&made, hosts, now).join("; ");
        assert_eq!(says(&["10.0.0.2"], NOW), "is for 10.0.0.1, a.example, ::1, not for 10.0.0.2");
        assert!(says(&all, NOW + 95 * DAY).starts_with("expires on "));
        assert!(says(&all, NOW + 101 * DAY).starts_with("expired on "));
        assert!(says(&all, NOW - DAY).starts_with("is not good before "));
    }

    #[test]
    fn only_who_signs_for_the_cluster_counts() {
        let (ours, theirs) = (Made::new(&["a"], 100), Made::new(&["a"], 100));
        let mixed = TlsFiles { ca: theirs.files.ca.clone(), ..ours.files.clone() };
        let examined = examine(&mixed, &["a".into()], NOW).expect("readable");
        assert_eq!(examined.troubles, [Trouble::NotSigned]);
        let mixed = TlsFiles { key: theirs.files.key.clone(), ..ours.files.clone() };
        let error = examine(&mixed, &[], NOW).expect_err("of another").to_string();
        assert!(error.starts_with("tls_key: ") && error.contains("is not the key of"), "{error}");
        for (files, says) in [
            (TlsFiles { ca: "/nowhere".into(), ..ours.files.clone() }, "tls_ca: /nowhere: No such file"),
            (TlsFiles { certificate: ours.files.key.clone(), ..ours.files.clone() }, "holds no certificate"),
            (TlsFiles { key: ours.files.ca.clone(), ..ours.files.clone() }, "holds no private key"),
        ] {
            let error = examine(&files, &[], NOW).expect_err("unusable").to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
