//! The options about TLS: of processes that listen, and of clients.

use std::path::PathBuf;

use clap::Args;
use foggara_tls::{FileError, TlsFiles};

use crate::exit::UsageError;
use crate::secret;

impl From<FileError> for UsageError {
    fn from(error: FileError) -> Self {
        Self(error.to_string())
    }
}

/// What a process listens with, and by whom it checks those that it calls. All three, or none.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct TlsArguments {
    /// The certificate of this process in PEM, followed by those between it and the authority: with it, all ports speak TLS alone.
    /// It is read anew when the file changes
    #[arg(long, env = "FOGGARA_TLS_CERTIFICATE", hide_env = true, value_name = "FILE")]
    tls_certificate: Option<PathBuf>,
    /// The certificate's key in PEM, which only its user (or, if root's, its group) may read
    #[arg(long, env = "FOGGARA_TLS_KEY", hide_env = true, value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// The authorities in PEM that sign for the processes of the cluster: whoever is called must have a certificate of theirs
    #[arg(long, env = "FOGGARA_TLS_CA", hide_env = true, value_name = "FILE")]
    tls_ca: Option<PathBuf>,
}

impl TlsArguments {
    /// These files.
    #[cfg(test)]
    pub(crate) fn of(
        tls_certificate: Option<PathBuf>,
        tls_key: Option<PathBuf>,
        tls_ca: Option<PathBuf>,
    ) -> Self {
        Self { tls_certificate, tls_key, tls_ca }
    }

    /// The files; none for plain text.
    ///
    /// # Errors
    /// If some are missing, or other users can read the key.
    pub(crate) fn files(&self) -> Result<Option<TlsFiles>, UsageError> {
        let files = self.together()?;
        if let Some(files) = &files
            // A key that is not there is found when it is read.
            && let Ok(metadata) = std::fs::metadata(&files.key)
        {
            let path = files.key.display();
            secret::check_private(&files.key, &metadata)
                .map_err(|reason| UsageError(format!("tls_key: {path}: {reason}")))?;
        }
        Ok(files)
    }

    /// The same, whatever the files are.
    ///
    /// # Errors
    /// If some are missing.
    pub(crate) fn together(&self) -> Result<Option<TlsFiles>, FileError> {
        let Self { tls_certificate, tls_key, tls_ca } = self.clone();
        foggara_tls::together(tls_certificate, tls_key, tls_ca)
    }

    /// The authorities alone: for what only calls others.
    pub(crate) fn ca(&self) -> Option<PathBuf> {
        self.tls_ca.clone()
    }
}

/// By whom a client checks servers.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct TrustArguments {
    /// The authorities in PEM that sign for the cluster, for https:// endpoints and those without http:// [default: this system's,
    /// for https://]
    #[arg(long, env = "FOGGARA_TLS_CA", value_name = "FILE")]
    tls_ca: Option<PathBuf>,
}

impl TrustArguments {
    /// This file.
    #[cfg(test)]
    pub(crate) fn of(tls_ca: Option<PathBuf>) -> Self {
        Self { tls_ca }
    }

    /// The file.
    pub(crate) fn ca(&self) -> Option<PathBuf> {
        self.tls_ca.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_private() {
        let path = std::env::temp_dir().join(format!("foggara-tls-key-{}", std::process::id()));
        std::fs::write(&path, "a key").expect("written");
        let files = |mode: u32| {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("set");
            let file = |name: &str| Some(PathBuf::from(name));
            let given =
                TlsArguments { tls_certificate: file("/a"), tls_key: Some(path.clone()), tls_ca: file("/b") };
            given.files().map_err(|error| error.to_string())
        };
        let error = files(0o644).expect_err("everybody reads it");
        assert!(error.starts_with("tls_key: ") && error.contains("chmod"), "{error}");
        assert!(files(0o600).is_ok_and(|files| files.is_some()));
        std::fs::remove_file(path).ok();
        assert!(TlsArguments::default().files().is_ok_and(|files| files.is_none()));
    }
}
