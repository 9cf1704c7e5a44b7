//! What a process shows and whom it goes by, read anew when the files change.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::{ClientConfig, ServerConfig};

use super::certificate::{Leaf, Life, date, is_for, now};
use super::check::{Trouble, listed, troubles};
use super::files::{FileError, Material, TlsFiles, wrong};
use super::{H2, HTTP_1, host_of, provider, trust};

/// Between two looks at the files.
const LOOK: Duration = Duration::from_secs(2);
/// Between two lines about a certificate that is near its end.
const REMIND_SECONDS: i64 = 24 * 60 * 60;

/// The TLS of a process. Cheap to clone.
#[derive(Clone)]
pub struct Tls(Arc<Shared>);

struct Shared {
    files: TlsFiles,
    current: RwLock<Current>,
}

/// What new connections go by.
#[derive(Clone)]
struct Current {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    leaf: Leaf,
    chain: Vec<rustls::pki_types::CertificateDer<'static>>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Tls").field(&self.0.files).finish()
    }
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// If they cannot be used: then nobody would go by what this process shows.
    pub fn load(files: TlsFiles) -> Result<Self, FileError> {
        let current = Current::read(&files, now())?;
        Ok(Self(Arc::new(Shared { files, current: RwLock::new(current) })))
    }

    fn current(&self) -> Current {
        self.0.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// For connections that are accepted.
    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        self.current().server
    }

    /// For connections that are opened, over gRPC.
    pub(crate) fn client(&self) -> Arc<ClientConfig> {
        self.current().client
    }

    /// The file of authorities.
    pub(crate) fn ca(&self) -> &Path {
        &self.0.files.ca
    }

    /// From when to when the certificate is good.
    pub fn life(&self) -> Life {
        self.current().leaf.life
    }

    /// Says in the log if the certificate is not for `address`, where others find this process.
    pub fn warn_unless_for(&self, address: &str) {
        let (current, host) = (self.current(), host_of(address));
        if current.chain.first().is_some_and(|leaf| !is_for(leaf, host)) {
            let (path, names) = (self.0.files.certificate.display(), listed(&current.leaf.names));
            tracing::warn!(
                "{path} is for {names}, not for {host}, where others call this process: they will not go by it"
            );
        }
    }

    /// Looks at the files again and again, and takes what is new in them, for as long as the process lives.
    pub async fn follow(self) {
        let mut watch = Watch { seen: self.stamps(), ..Watch::default() };
        loop {
            let own = self.clone();
            // Files may lie where reading takes its time.
            let looked = tokio::task::spawn_blocking(move || {
                own.look(&mut watch, now());
                watch
            });
            watch = looked.await.unwrap_or_default();
            tokio::time::sleep(LOOK).await;
        }
    }

    fn look(&self, watch: &mut Watch, now: i64) {
        let stamps = self.stamps();
        if stamps != watch.seen {
            match Current::read(&self.0.files, now) {
                Ok(new) => {
                    tracing::info!(
                        names = listed(&new.leaf.names),
                        until = date(new.leaf.life.ends),
                        "new certificates are used from now on"
                    );
                    *self.0.current.write().unwrap_or_else(PoisonError::into_inner) = new;
                    *watch = Watch { seen: stamps, ..Watch::default() };
                }
                Err(error) => {
                    if let Some(reason) = watch.fails(error.to_string()) {
                        tracing::warn!(
                            reason,
                            "new certificates cannot be used; the ones before them stay in use"
                        );
                    }
                }
            }
        }
        if let Some(ends) = watch.reminds(self.life(), now) {
            let (path, ends, over) = (self.0.files.certificate.display(), date(ends), ends < now);
            match over {
                true => tracing::error!("{path} expired on {ends}: nobody goes by it any more"),
                false => tracing::warn!("{path} is near its end: it is good until {ends}"),
            }
        }
    }

    fn stamps(&self) -> [Stamp; 3] {
        let TlsFiles { certificate, key, ca } = &self.0.files;
        [certificate, key, ca].map(|path| Stamp::of(path))
    }
}

impl Current {
    fn read(files: &TlsFiles, now: i64) -> Result<Self, FileError> {
        let material = Material::read(files)?;
        let leaf = leaf(files, &material)?;
        // What time mends, or the next file, is no reason to stand still.
        let serious = |trouble: &Trouble| {
            matches!(trouble, Trouble::NotSigned | Trouble::AuthorityEnded | Trouble::Other(_))
        };
        let troubles = troubles(&leaf, &material.chain, &material.roots, &[], now);
        if let Some(trouble) = troubles.into_iter().find(serious) {
            let ca = files.ca.display();
            let reason = trouble.to_string().replace("tls_ca", &ca.to_string());
            return Err(wrong("tls_certificate", &files.certificate, &reason));
        }
        let (chain, roots) = (material.chain.clone(), material.roots.clone());
        let server = Arc::new(server(files, material)?);
        Ok(Self { server, client: Arc::new(trust::config(roots, &[H2])), leaf, chain })
    }
}

/// What stands in the process's own certificate.
pub(crate) fn leaf(files: &TlsFiles, material: &Material) -> Result<Leaf, FileError> {
    let first = material.chain.first().ok_or_else(|| "holds no certificate".to_owned());
    first.and_then(Leaf::read).map_err(|reason| wrong("tls_certificate", &files.certificate, &reason))
}

/// How connections are accepted.
pub(crate) fn server(files: &TlsFiles, material: Material) -> Result<ServerConfig, FileError> {
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let config = builder
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(material.chain, material.key));
    let mut config = config.map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            wrong("tls_key", &files.key, &format!("is not the key of {}", files.certificate.display()))
        }
        error => wrong("tls_key", &files.key, &format!("cannot be used: {error}")),
    })?;
    config.alpn_protocols = vec![H2.to_vec(), HTTP_1.to_vec()];
    Ok(config)
}

/// Which file lies at a path: another one, or another content of it, has another stamp.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Stamp(Option<(u64, u64, i64, i64)>);

impl Stamp {
    fn of(path: &Path) -> Self {
        let metadata = std::fs::metadata(path).ok();
        Self(metadata.map(|file| (file.ino(), file.len(), file.mtime(), file.mtime_nsec())))
    }
}

/// What has been seen, and said.
#[derive(Debug, Default)]
struct Watch {
    /// Of what is in use.
    seen: [Stamp; 3],
    /// Why the last look found nothing that could be used, and whether that has been said.
    failing: Option<(String, bool)>,
    /// When it was last said that the end is near.
    reminded: Option<i64>,
}

impl Watch {
    /// What is to be said of new files that cannot be used: something at the second look that finds the same, for one of them may
    /// have been on its way at the first, and nothing after that.
    fn fails(&mut self, reason: String) -> Option<String> {
        match &mut self.failing {
            Some((known, told)) if *known == reason => {
                let say = !*told;
                *told = true;
                say.then_some(reason)
            }
            _ => {
                self.failing = Some((reason, false));
                None
            }
        }
    }

    /// When the certificate ends, if that should be said.
    fn reminds(&mut self, life: Life, now: i64) -> Option<i64> {
        let due = self.reminded.is_none_or(|last| now - last >= REMIND_SECONDS);
        let say = due && life.is_near_its_end(now);
        if say {
            self.reminded = Some(now);
        }
        say.then_some(life.ends)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::making::tests::{DAY, Made, NOW};

    #[test]
    fn a_failure_is_said_once_when_it_lasts() {
        let mut watch = Watch::default();
        let mut said = |reason: &str| watch.fails(reason.to_owned()).is_some();
        let reasons = ["half written", "wrong key", "wrong key", "wrong key", "no file", "no file"];
        assert_eq!(reasons.map(&mut said), [false, false, true, false, false, true]);
    }

    #[test]
    fn an_end_is_said_once_a_day() {
        let (mut watch, life) = (Watch::default(), Life { begins: 0, ends: 100 * DAY });
        let mut said = |day: i64| watch.reminds(life, day * DAY).is_some();
        assert_eq!([89, 90, 91, 92].map(&mut said), [false, false, true, true]);
        assert!(watch.reminds(life, 92 * DAY + 60).is_none());
    }

    #[test]
    fn what_is_new_and_good_is_taken() {
        let made = Made::new(&["a"], 100);
        let tls = Tls::load(made.files.clone()).expect("good");
        let mut watch = Watch { seen: tls.stamps(), ..Watch::default() };
        let names = |tls: &Tls| tls.current().leaf.names;
        let before = tls.server();
        tls.look(&mut watch, NOW);
        assert!(Arc::ptr_eq(&before, &tls.server()), "nothing is new");
        made.issue(&["b"], 100);
        tls.look(&mut watch, NOW);
        assert_eq!(names(&tls), ["b"]);
        let stranger = Made::new(&["c"], 100);
        std::fs::copy(&stranger.files.certificate, &made.files.certificate).expect("copied");
        tls.look(&mut watch, NOW);
        assert_eq!(names(&tls), ["b"], "its key is not there");
        std::fs::copy(&stranger.files.key, &made.files.key).expect("copied");
        tls.look(&mut watch, NOW);
        assert_eq!(names(&tls), ["b"], "nobody of ours has signed it");
        std::fs::copy(&stranger.files.ca, &made.files.ca).expect("copied");
        tls.look(&mut watch, NOW);
        assert_eq!(names(&tls), ["c"]);
        std::fs::remove_file(&made.files.key).expect("it is there");
        tls.look(&mut watch, NOW);
        assert_eq!(names(&tls), ["c"]);
        let error = Tls::load(made.files.clone()).expect_err("gone").to_string();
        assert!(error.starts_with("tls_key: "), "{error}");
    }
}
