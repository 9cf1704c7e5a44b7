//! Whether the certificate is one that others will go by.

use foggara_tls::{Examined, FileError, Trouble, date, examine};

use super::asked::Asked;
use super::finding::{Finding, Severity};
use crate::secret;

const SECTION: &str = "certificates";

/// Reads the files that are named.
pub(super) fn check(asked: &Asked) -> Vec<Finding> {
    let files = match asked.tls.together() {
        Ok(Some(files)) => files,
        // Somebody who only looks at a cluster has no certificate.
        Err(FileError { field: "tls_ca", .. }) | Ok(None) => return Vec::new(),
        Err(error) => {
            let remedy = "give --tls-certificate, --tls-key and --tls-ca together, or none of them";
            return vec![Finding::new(SECTION, Severity::Fault, error.to_string(), remedy)];
        }
    };
    let mut findings = Vec::new();
    if let Ok(metadata) = std::fs::metadata(&files.key)
        && let Err(reason) = secret::check_private(&files.key, &metadata)
    {
        let (what, remedy) = reason.split_once("; ").unwrap_or((&reason, "let nobody else read it"));
        let what = format!("tls_key: {}: {what}", files.key.display());
        findings.push(Finding::new(SECTION, Severity::Fault, what, remedy));
    }
    findings.extend(judge(
        &files.certificate.display().to_string(),
        examine(&files, &asked.called, foggara_tls::now()),
    ));
    findings
}

fn judge(certificate: &str, examined: Result<Examined, FileError>) -> Vec<Finding> {
    let examined = match examined {
        Ok(examined) => examined,
        Err(error) => {
            let remedy = match error.reason.contains("is not the key of") {
                true => "put the key there that was made with the certificate, or issue both anew",
                false => "the files are PEM, and the user that runs the process must be able to read them",
            };
            return vec![Finding::new(SECTION, Severity::Fault, error.to_string(), remedy)];
        }
    };
    if examined.troubles.is_empty() {
        let what = format!(
            "{certificate} is for {}, good until {}",
            examined.names.join(", "),
            date(examined.life.ends)
        );
        return vec![Finding::ok(SECTION, what)];
    }
    examined.troubles.iter().map(|trouble| one(certificate, trouble)).collect()
}

fn one(certificate: &str, trouble: &Trouble) -> Finding {
    const ANOTHER: &str = "put another in its place (`foggara certificates issue` makes one); a process that runs takes it by itself";
    let (severity, remedy) = match trouble {
        Trouble::Ending(_) => (Severity::Warning, ANOTHER.to_owned()),
        Trouble::Expired(_) | Trouble::Other(_) => (Severity::Fault, ANOTHER.to_owned()),
        Trouble::NotYet(_) => (Severity::Fault, "set this host's clock, or wait".to_owned()),
        Trouble::NotSigned => {
            let remedy = "give the --tls-ca that all processes of the cluster have, and a certificate that one of its authorities signed";
            (Severity::Fault, remedy.to_owned())
        }
        Trouble::AuthorityEnded => {
            let remedy = "make another authority, add its certificate to --tls-ca everywhere, then issue the others anew";
            (Severity::Fault, remedy.to_owned())
        }
        Trouble::NotFor { host, .. } => {
            (Severity::Fault, format!("issue one for it, too: foggara certificates issue --host {host} …"))
        }
    };
    Finding::new(SECTION, severity, format!("{certificate} {trouble}"), remedy)
}

#[cfg(test)]
mod tests {
    use foggara_tls::Life;

    use super::super::asked::nothing;
    use super::super::finding::severities;
    use super::*;
    use crate::tls::TlsArguments;

    #[test]
    fn every_trouble_has_a_remedy() {
        let host = || Trouble::NotFor { host: "10.0.0.1".into(), names: vec!["a".into()] };
        for (trouble, severity, says) in [
            (Trouble::Ending(0), Severity::Warning, "foggara certificates issue"),
            (Trouble::Expired(0), Severity::Fault, "takes it by itself"),
            (Trouble::NotYet(0), Severity::Fault, "clock"),
            (Trouble::NotSigned, Severity::Fault, "--tls-ca"),
            (Trouble::AuthorityEnded, Severity::Fault, "another authority"),
            (host(), Severity::Fault, "--host 10.0.0.1"),
        ] {
            let life = Life { begins: 0, ends: 1 };
            let found = judge("own.crt", Ok(Examined { life, names: Vec::new(), troubles: vec![trouble] }));
            assert_eq!(severities(&found), [severity]);
            assert!(found[0].remedy.as_deref().is_some_and(|remedy| remedy.contains(says)), "{found:?}");
        }
        let life = Life { begins: 0, ends: 86_400 };
        let good = Examined { life, names: vec!["a".into()], troubles: Vec::new() };
        let found = judge("own.crt", Ok(good));
        assert_eq!(found, [Finding::ok(SECTION, "own.crt is for a, good until 1970-01-02 00:00 UTC")]);
    }

    #[test]
    fn files_that_cannot_be_used_are_a_fault() {
        let asked = |certificate: Option<&str>, key: Option<&str>, ca: Option<&str>| {
            let tls = TlsArguments::of(certificate.map(Into::into), key.map(Into::into), ca.map(Into::into));
            severities(&check(&Asked { tls, ..nothing() }))
        };
        assert!(asked(None, None, None).is_empty());
        assert!(asked(None, None, Some("/nowhere")).is_empty(), "an operator's");
        assert_eq!(asked(Some("/nowhere"), None, Some("/nowhere")), [Severity::Fault]);
        assert_eq!(asked(Some("/nowhere"), Some("/nowhere"), Some("/nowhere")), [Severity::Fault]);
    }
}
