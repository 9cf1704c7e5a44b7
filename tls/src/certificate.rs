//! What stands in a certificate.

use std::net::IpAddr;
use std::time::SystemTime;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::ParsedCertificate;
use time::OffsetDateTime;
use time::macros::format_description;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// From when to when a certificate is good, in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    /// Not before.
    pub begins: i64,
    /// Not after.
    pub ends: i64,
}

impl Life {
    /// Whether less than a tenth of it is left: whoever renews certificates has forgotten this one. A share, since some live for a
    /// day and some for years.
    pub fn is_near_its_end(&self, now: i64) -> bool {
        self.ends - now < (self.ends - self.begins) / 10
    }
}

/// Seconds since 1970.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// A time as people read it: `2027-01-31 12:00 UTC`.
pub fn date(seconds: i64) -> String {
    let form = format_description!("[year]-[month]-[day] [hour]:[minute] UTC");
    let time = OffsetDateTime::from_unix_timestamp(seconds).ok().and_then(|time| time.format(form).ok());
    time.unwrap_or_else(|| format!("second {seconds}"))
}

/// A server's own certificate, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Leaf {
    pub(crate) life: Life,
    /// Hosts that it is for.
    pub(crate) names: Vec<String>,
}

impl Leaf {
    /// Reads one.
    ///
    /// # Errors
    /// If it is none.
    pub(crate) fn read(der: &CertificateDer<'_>) -> Result<Self, String> {
        let (_, parsed) =
            X509Certificate::from_der(der).map_err(|error| format!("is no certificate: {error}"))?;
        let validity = parsed.validity();
        let life = Life { begins: validity.not_before.timestamp(), ends: validity.not_after.timestamp() };
        let names = parsed.subject_alternative_name().ok().flatten();
        let names = names.iter().flat_map(|names| &names.value.general_names).filter_map(name).collect();
        Ok(Self { life, names })
    }
}

fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|bytes| IpAddr::from(bytes).to_string()),
            _ => <[u8; 16]>::try_from(*bytes).ok().map(|bytes| IpAddr::from(bytes).to_string()),
        },
        _ => None,
    }
}

/// Whether a certificate is for `host`, by the rules that clients go by.
pub(crate) fn is_for(der: &CertificateDer<'_>, host: &str) -> bool {
    let (Ok(parsed), Ok(name)) = (ParsedCertificate::try_from(der), ServerName::try_from(host)) else {
        return false;
    };
    rustls::client::verify_server_name(&parsed, &name).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_tenth_of_a_life_is_its_end() {
        let day = 24 * 60 * 60;
        for (days, left, near) in [(365, 37, false), (365, 36, true), (365, -1, true), (10, 2, false)] {
            let life = Life { begins: 0, ends: days * day };
            assert_eq!(life.is_near_its_end((days - left) * day), near, "{left} of {days} days");
        }
    }

    #[test]
    fn times_are_written_for_people() {
        // As `date -ud @SECONDS` has it.
        assert_eq!(date(1_795_759_854), "2026-11-27 06:10 UTC");
    }
}
