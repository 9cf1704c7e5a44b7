//! The three files of a process: its certificate, the key to it, and who signs for everybody.

use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// More is no file of certificates.
const MAX_BYTES: u64 = 4 << 20;

/// Where they are. Fields are the options of the same names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// PEM: the certificate of this process, and those between it and the authority.
    pub certificate: PathBuf,
    /// PEM: the key of the first of these.
    pub key: PathBuf,
    /// PEM: the authorities that sign for the processes of the cluster.
    pub ca: PathBuf,
}

/// What is wrong with one of the files.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct FileError {
    /// Which setting names it.
    pub field: &'static str,
    /// What is wrong, with its path.
    pub reason: String,
}

/// The settings that belong together: all three, or none.
///
/// # Errors
/// Which are missing.
pub fn together(
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    ca: Option<PathBuf>,
) -> Result<Option<TlsFiles>, FileError> {
    let given = [("tls_certificate", &certificate), ("tls_key", &key), ("tls_ca", &ca)];
    let missing: Vec<_> = given.iter().filter(|(_, path)| path.is_none()).map(|(name, _)| *name).collect();
    let present = given.iter().find(|(_, path)| path.is_some()).map(|(name, _)| *name);
    match (certificate, key, ca, present) {
        (Some(certificate), Some(key), Some(ca), _) => Ok(Some(TlsFiles { certificate, key, ca })),
        (_, _, _, None) => Ok(None),
        (_, _, _, Some(field)) => {
            let reason = format!(
                "is given without {}; TLS needs tls_certificate, tls_key and tls_ca together",
                missing.join(" and ")
            );
            Err(FileError { field, reason })
        }
    }
}

/// What the files hold.
pub(crate) struct Material {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
    pub(crate) roots: RootCertStore,
}

impl Material {
    /// Reads all three.
    ///
    /// # Errors
    /// If one cannot be read or does not hold what it should.
    pub(crate) fn read(files: &TlsFiles) -> Result<Self, FileError> {
        let (chain, key) = ("tls_certificate", "tls_key");
        Ok(Self {
            chain: certificates(&bytes(chain, &files.certificate)?)
                .map_err(|reason| wrong(chain, &files.certificate, &reason))?,
            key: PrivateKeyDer::from_pem_slice(&bytes(key, &files.key)?)
                .map_err(|_| wrong(key, &files.key, "holds no private key in PEM"))?,
            roots: roots(&files.ca)?,
        })
    }
}

/// The authorities in a file.
///
/// # Errors
/// If it cannot be read, or holds none.
pub(crate) fn roots(path: &Path) -> Result<RootCertStore, FileError> {
    let field = "tls_ca";
    let certificates = certificates(&bytes(field, path)?).map_err(|reason| wrong(field, path, &reason))?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots.add(certificate).map_err(|error| {
            wrong(field, path, &format!("holds a certificate that signs nothing: {error}"))
        })?;
    }
    Ok(roots)
}

pub(crate) fn wrong(field: &'static str, path: &Path, reason: &str) -> FileError {
    FileError { field, reason: format!("{}: {reason}", path.display()) }
}

fn bytes(field: &'static str, path: &Path) -> Result<Vec<u8>, FileError> {
    let fails = |error: std::io::Error| wrong(field, path, &error.to_string());
    let length = std::fs::metadata(path).map_err(fails)?.len();
    if length > MAX_BYTES {
        return Err(wrong(field, path, &format!("{length} bytes; the limit is {MAX_BYTES}")));
    }
    std::fs::read(path).map_err(fails)
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let all = all.map_err(|error| format!("is no PEM: {error}"))?;
    match all.is_empty() {
        true => Err("holds no certificate in PEM".into()),
        false => Ok(all),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_files_belong_together() {
        let path = |given: bool, name: &str| given.then(|| PathBuf::from(name));
        for (certificate, key, ca, says) in [
            (true, true, true, ""),
            (false, false, false, ""),
            (true, false, false, "tls_certificate: is given without tls_key and tls_ca;"),
            (false, true, true, "tls_key: is given without tls_certificate;"),
            (false, false, true, "tls_ca: is given without tls_certificate and tls_key;"),
        ] {
            let outcome = together(path(certificate, "c"), path(key, "k"), path(ca, "a"));
            match outcome {
                Ok(files) => {
                    assert_eq!(says, "");
                    assert_eq!(files.is_some(), certificate);
                }
                Err(error) => assert!(!says.is_empty() && error.to_string().starts_with(says), "{error}"),
            }
        }
    }
}
