//! Saying what cluster a test wants.

use std::path::Path;

use foggara_tls::TlsFiles;

use crate::certificates;
use crate::cluster::Cluster;

/// The arguments of `foggara up`.
#[derive(Debug, Clone)]
pub struct Setup {
    pub(crate) name: String,
    pub(crate) coordinators: u16,
    pub(crate) arguments: Vec<String>,
    pub(crate) variables: Vec<(String, String)>,
    pub(crate) tls: Option<TlsFiles>,
}

impl Setup {
    /// Three coordinators and two workers with a thread each, unless changed; `name` is for logs.
    pub fn new(name: &str) -> Self {
        let (arguments, variables) = (Vec::new(), Vec::new());
        Self { name: name.into(), coordinators: 3, arguments, variables, tls: None }.option("threads", 1)
    }

    /// Serves a model under a name.
    #[must_use]
    pub fn model(self, name: &str, path: &Path) -> Self {
        let path = path.display();
        self.option("model", format!("{name}={path}"))
    }

    /// That many coordinators.
    #[must_use]
    pub fn coordinators(mut self, count: u16) -> Self {
        self.coordinators = count;
        self
    }

    /// That many workers.
    #[must_use]
    pub fn workers(self, count: usize) -> Self {
        self.option("workers", count)
    }

    /// `--name value`.
    #[must_use]
    pub fn option(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        self.arguments.extend([format!("--{name}"), value.to_string()]);
        self
    }

    /// A variable of the environment of all its processes.
    #[must_use]
    pub fn variable(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        self.variables.push((name.into(), value.to_string()));
        self
    }

    /// Its processes speak TLS.
    #[must_use]
    pub fn tls(mut self, files: &TlsFiles) -> Self {
        self.arguments.extend(certificates::options(files));
        self.tls = Some(files.clone());
        self
    }

    /// Starts it.
    pub async fn start(&self) -> Cluster {
        Cluster::start(self).await
    }
}
