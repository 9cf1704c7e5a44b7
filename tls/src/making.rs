//! Making certificates: an authority of the cluster's own, and what it signs.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use time::{Duration, OffsetDateTime};

use super::certificate::{Leaf, date};

/// Clocks of machines may differ by that much.
const EARLIER: Duration = Duration::hours(1);

/// A certificate and its key, in PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Pair {
    /// Anybody may have it.
    pub certificate: String,
    /// Nobody else may.
    pub key: String,
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pair").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// An authority called `name`, good for so many days from `now` (seconds since 1970).
///
/// # Errors
/// If the name or the time is none.
pub fn authority(name: &str, days: u32, now: i64) -> Result<Pair, String> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    // It signs for processes, not for other authorities.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = life(days, now)?;
    let key = KeyPair::generate().map_err(failed)?;
    let certificate = params.self_signed(&key).map_err(failed)?;
    Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
}

/// A certificate for servers at `hosts`, signed by `authority`, good for so many days from `now` but no longer than that one is.
///
/// # Errors
/// If a host is none, or the authority cannot sign.
pub fn issue(authority: &Pair, hosts: &[String], days: u32, now: i64) -> Result<Pair, String> {
    if let Some(wrong) = hosts.iter().find(|host| ServerName::try_from(host.as_str()).is_err()) {
        return Err(format!("`{wrong}` is neither a host name nor an IP address"));
    }
    let first = hosts.first().ok_or("name a host")?;
    let signer = CertificateDer::from_pem_slice(authority.certificate.as_bytes());
    let signer = signer.map_err(|_| "the authority's certificate is no PEM")?;
    let until =
        Leaf::read(&signer).map_err(|reason| format!("the authority's certificate {reason}"))?.life.ends;
    if until <= now {
        return Err(format!("the authority's certificate expired on {}", date(until)));
    }
    let key = KeyPair::from_pem(&authority.key).map_err(|_| "the authority's key cannot be read")?;
    let issuer = Issuer::from_ca_cert_pem(&authority.certificate, key).map_err(failed)?;
    let mut params = CertificateParams::new(hosts).map_err(failed)?;
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, first.as_str());
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    (params.not_before, params.not_after) = life(days, now)?;
    params.not_after = params.not_after.min(at(until)?);
    let key = KeyPair::generate().map_err(failed)?;
    let certificate = params.signed_by(&key, &issuer).map_err(failed)?;
    Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
}

/// The first certificate of a PEM file: until when it is good.
///
/// # Errors
/// If there is none.
pub fn ends(pem: &str) -> Result<i64, String> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| "holds no certificate in PEM")?;
    Ok(Leaf::read(&der)?.life.ends)
}

fn failed(error: rcgen::Error) -> String {
    error.to_string()
}

fn at(seconds: i64) -> Result<OffsetDateTime, String> {
    OffsetDateTime::from_unix_timestamp(seconds).map_err(|error| error.to_string())
}

fn life(days: u32, now: i64) -> Result<(OffsetDateTime, OffsetDateTime), String> {
    let now = at(now)?;
    let ends = now.checked_add(Duration::days(i64::from(days))).filter(|ends| ends.year() < 9999);
    Ok((now - EARLIER, ends.ok_or_else(|| format!("{days} days is too long"))?))
}

#[cfg(test)]
pub(crate) mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::TlsFiles;

    pub(crate) const DAY: i64 = 24 * 60 * 60;
    /// Some time in 2026, with the clock of whoever tests within a hundred days of it.
    pub(crate) const NOW: i64 = 1_795_759_854;

    /// Files of a process, in a folder of their own.
    pub(crate) struct Made {
        authority: Pair,
        pub(crate) files: TlsFiles,
        _folder: TempDir,
    }

    impl Made {
        pub(crate) fn new(hosts: &[&str], days: u32) -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let path = |name: &str| folder.path().join(name);
            let files = TlsFiles { certificate: path("own.crt"), key: path("own.key"), ca: path("ca.crt") };
            let authority = authority("test", 1000, NOW).expect("made");
            std::fs::write(&files.ca, &authority.certificate).expect("written");
            let made = Self { authority, files, _folder: folder };
            made.issue(hosts, days);
            made
        }

        /// Puts another certificate in the place of the one before.
        pub(crate) fn issue(&self, hosts: &[&str], days: u32) {
            let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
            let own = issue(&self.authority, &hosts, days, NOW).expect("made");
            std::fs::write(&self.files.certificate, own.certificate).expect("written");
            std::fs::write(&self.files.key, own.key).expect("written");
        }
    }

    #[test]
    fn what_cannot_be_made_is_said() {
        let signs = authority("test", 10, NOW).expect("made");
        let issued = |hosts: &[&str], days, now| {
            let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
            issue(&signs, &hosts, days, now)
        };
        for (hosts, days, now, says) in [
            (&["a b"][..], 1, NOW, "`a b` is neither a host name nor an IP address"),
            (&["a:1"], 1, NOW, "`a:1` is neither"),
            (&[], 1, NOW, "name a host"),
            (&["a"], u32::MAX, NOW, "days is too long"),
            (&["a"], 1, NOW + 11 * DAY, "the authority's certificate expired on"),
        ] {
            let error = issued(hosts, days, now).expect_err("refused");
            assert!(error.contains(says), "{error}");
        }
        let short = issued(&["a"], 5, NOW).expect("made");
        assert_eq!(ends(&short.certificate), Ok(NOW + 5 * DAY));
        let long = issued(&["a"], 100, NOW).expect("made");
        assert_eq!(ends(&long.certificate), Ok(NOW + 10 * DAY), "no longer than who signed it");
        assert!(!format!("{long:?}").contains("PRIVATE"));
    }
}
