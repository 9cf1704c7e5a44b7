//! Certificates of a test's own, made as an operator makes them.

use std::path::{Path, PathBuf};

use foggara_tls::{Dialer, TlsFiles, Trust};

use crate::process::{foggara, text};

/// An authority, and what it has signed, in a folder.
#[derive(Debug, Clone)]
pub struct Certificates(PathBuf);

impl Certificates {
    /// A new authority in `folder`.
    pub fn new(folder: &Path) -> Self {
        made(&["certificates", "ca", "--out", &folder.display().to_string()]);
        Self(folder.into())
    }

    /// A certificate for `hosts`, in the place of the one before.
    pub fn issue(&self, hosts: &[&str]) -> TlsFiles {
        let folder = self.0.display().to_string();
        let hosts: Vec<&str> = hosts.iter().flat_map(|host| ["--host", host]).collect();
        made(
            &[&["certificates", "issue", "--force", "--ca", &folder, "--out", &folder], &hosts[..]].concat(),
        );
        let file = |end: &str| self.0.join(format!("{}.{end}", hosts[1]));
        TlsFiles { certificate: file("crt"), key: file("key"), ca: self.ca() }
    }

    /// The authority's certificate.
    pub fn ca(&self) -> PathBuf {
        self.0.join("ca.crt")
    }

    /// Its key.
    pub fn ca_key(&self) -> PathBuf {
        self.0.join("ca.key")
    }
}

/// The options of a process that uses `files`.
pub fn options(files: &TlsFiles) -> Vec<String> {
    let TlsFiles { certificate, key, ca } = files;
    let options = [("--tls-certificate", certificate), ("--tls-key", key), ("--tls-ca", ca)];
    options.into_iter().flat_map(|(name, path)| [name.to_owned(), path.display().to_string()]).collect()
}

/// How a client that goes by `ca` calls.
pub fn dialer(ca: &Path) -> Dialer {
    Dialer::new(Some(Trust::of_client(Some(ca)).expect("an authority")))
}

fn made(arguments: &[&str]) {
    let output = foggara(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output));
}
