//! How long this coordinator's certificate is good.

use foggara_tls::{Life, Tls};
use prometheus::IntGaugeVec;

use super::table::Table;

/// The families. Without TLS they have no series.
pub(super) struct TlsFamilies {
    issued: IntGaugeVec,
    expires: IntGaugeVec,
    tls: Option<Tls>,
}

impl TlsFamilies {
    pub(super) fn new(table: &Table<'_>) -> Self {
        Self {
            issued: table.gauges(
                "tls_certificate_issued_seconds",
                "From when on this coordinator's certificate is good, since 1970. Without TLS there is none.",
                &[],
            ),
            expires: table.gauges(
                "tls_certificate_expires_seconds",
                "Until when this coordinator's certificate is good, since 1970. Without TLS there is none.",
                &[],
            ),
            tls: None,
        }
    }

    pub(super) fn follow(&mut self, tls: Option<Tls>) {
        self.tls = tls;
    }

    /// Reads them.
    pub(super) fn read(&self) {
        let Some(Life { begins, ends }) = self.tls.as_ref().map(Tls::life) else { return };
        let none: &[&str] = &[];
        self.issued.with_label_values(none).set(begins);
        self.expires.with_label_values(none).set(ends);
    }
}
