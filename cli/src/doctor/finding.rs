//! What a check has found.

use serde_json::{Value, json};

/// How much it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Severity {
    /// As it should be.
    Ok,
    /// Worth knowing.
    Note,
    /// It works, but badly, or not for long.
    Warning,
    /// It does not work.
    Fault,
}

impl Severity {
    /// As it is called in JSON and in print.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Fault => "fault",
        }
    }
}

/// One thing that was found, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    /// What was looked at; findings are grouped by it.
    pub(crate) section: &'static str,
    pub(crate) severity: Severity,
    pub(crate) what: String,
    pub(crate) remedy: Option<String>,
}

impl Finding {
    /// As it should be.
    pub(crate) fn ok(section: &'static str, what: impl Into<String>) -> Self {
        Self { section, severity: Severity::Ok, what: what.into(), remedy: None }
    }

    /// Anything else, and what to do.
    pub(crate) fn new(
        section: &'static str,
        severity: Severity,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { section, severity, what: what.into(), remedy: Some(remedy.into()) }
    }

    /// Worth knowing, and nothing to do.
    pub(crate) fn note(section: &'static str, what: impl Into<String>) -> Self {
        Self { section, severity: Severity::Note, what: what.into(), remedy: None }
    }

    /// The documented shape.
    pub(crate) fn as_json(&self) -> Value {
        json!({"section": self.section, "severity": self.severity.name(), "what": self.what, "remedy": self.remedy})
    }
}

/// Severities of findings, for tables of tests.
#[cfg(test)]
pub(super) fn severities(findings: &[Finding]) -> Vec<Severity> {
    findings.iter().map(|finding| finding.severity).collect()
}

/// The worst of them, for tables of tests.
#[cfg(test)]
pub(super) fn worst(findings: &[Finding]) -> Severity {
    findings.iter().map(|finding| finding.severity).max().unwrap_or(Severity::Ok)
}
