//! Why there is no TLS with somebody, in words.

use std::io;

use rustls::pki_types::UnixTime;
use rustls::{CertificateError, Error};

use super::certificate::date;
use super::check::listed;

/// What a port of TLS says to a client that speaks plain text.
pub const SPEAKS_TLS: &str = "this port speaks TLS: use https://";

/// The innermost of an error's causes: tonic's own text says only "transport error".
pub fn cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// Why a handshake with `address` failed, whose certificate should be for `host` and signed by `signers`.
pub(crate) fn of_handshake(error: &io::Error, address: &str, host: &str, signers: &str) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(error) => of(error, address, host, signers),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            format!(
                "{address} closed the connection in the TLS handshake; a plain-text port may do that (http://)"
            )
        }
        None => format!("TLS with {address}: {error}"),
    }
}

fn of(error: &Error, address: &str, host: &str, signers: &str) -> String {
    let seconds = |time: &UnixTime| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    let fault = match error {
        Error::InvalidMessage(_) => {
            return format!("{address} speaks no TLS: this is a plain-text port: use http://");
        }
        Error::InvalidCertificate(fault) => fault,
        error => return format!("TLS with {address}: {error}"),
    };
    let what = match fault {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            format!("is not signed by {signers}")
        }
        CertificateError::NotValidForNameContext { presented, .. } => {
            let names: Vec<String> = presented.iter().map(|name| bare(name)).collect();
            format!("is for {}, not for {host}", listed(&names))
        }
        CertificateError::NotValidForName => format!("is not for {host}"),
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("expired on {}", date(seconds(not_after)))
        }
        CertificateError::Expired => "has expired".into(),
        CertificateError::NotValidYetContext { not_before, .. } => {
            format!("is not good before {}; see this machine's clock", date(seconds(not_before)))
        }
        CertificateError::NotValidYet => "is not good yet; see this machine's clock".into(),
        other => format!("cannot be used: {other}"),
    };
    format!("the certificate of {address} {what}")
}

/// A name that rustls writes as `DnsName("a")` or `IpAddress(10.0.0.1)`.
fn bare(presented: &str) -> String {
    let inner = presented.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
    inner.unwrap_or(presented).trim_matches('"').to_owned()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustls::pki_types::ServerName;
    use rustls::{InvalidMessage, PeerMisbehaved};

    use super::*;

    #[test]
    fn every_failure_says_what_failed() {
        let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let certificate = |error| Error::InvalidCertificate(error);
        let other_name = CertificateError::NotValidForNameContext {
            expected: ServerName::try_from("10.0.0.1").expect("an address"),
            presented: vec!["DnsName(\"a.example\")".into(), "IpAddress(10.0.0.2)".into()],
        };
        for (error, says) in [
            (
                certificate(CertificateError::UnknownIssuer),
                "the certificate of 10.0.0.1:1 is not signed by ca.crt",
            ),
            (
                certificate(other_name),
                "the certificate of 10.0.0.1:1 is for a.example, 10.0.0.2, not for 10.0.0.1",
            ),
            (
                certificate(CertificateError::ExpiredContext { time: at(0), not_after: at(86_400) }),
                "the certificate of 10.0.0.1:1 expired on 1970-01-02 00:00 UTC",
            ),
            (
                certificate(CertificateError::NotValidYetContext { time: at(0), not_before: at(86_400) }),
                "the certificate of 10.0.0.1:1 is not good before 1970-01-02 00:00 UTC; see this machine's clock",
            ),
            (
                Error::InvalidMessage(InvalidMessage::InvalidContentType),
                "10.0.0.1:1 speaks no TLS: this is a plain-text port: use http://",
            ),
        ] {
            let error = io::Error::new(io::ErrorKind::InvalidData, error);
            assert_eq!(of_handshake(&error, "10.0.0.1:1", "10.0.0.1", "ca.crt"), says);
        }
        let error = io::Error::other(Error::PeerMisbehaved(PeerMisbehaved::TooMuchEarlyDataReceived));
        assert!(of_handshake(&error, "a:1", "a", "ca").starts_with("TLS with a:1: "));
        let error = io::Error::from(io::ErrorKind::UnexpectedEof);
        assert!(of_handshake(&error, "a:1", "a", "ca").contains("plain-text port"));
    }
}
