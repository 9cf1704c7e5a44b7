//! `foggara adapter`

use std::io::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Subcommand};
use foggara_proto::wire::admin as wire;

use crate::endpoint::EndpointArguments;
use crate::output::{bytes, status_text, table};

const POLL: Duration = Duration::from_millis(200);

/// Add, list and remove low-rank (LoRA) adapters: small changes of a deployment's model, each served under a name of its own
/// beside it.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Serve an adapter beside a deployment's model: a folder as PEFT writes it, with adapter_config.json and
    /// adapter_model.safetensors. What runs goes on meanwhile
    Add(Add),
    /// List the adapters
    List {
        #[command(flatten)]
        endpoint: EndpointArguments,
    },
    /// Stop serving an adapter. Answers that are being given go on; workers keep it in memory until their group ends
    Remove {
        /// Its name
        name: String,
        #[command(flatten)]
        endpoint: EndpointArguments,
    },
}

#[derive(Debug, Args)]
struct Add {
    /// What clients call it, as they call a model
    name: String,
    /// The deployment whose model it adapts [default: the only one there is]
    #[arg(long, value_name = "NAME")]
    deployment: Option<String>,
    /// The adapter's folder. Nodes find it at this path, or under its last part in their own folders (--models)
    #[arg(long, value_name = "DIR")]
    path: PathBuf,
    /// Return at once instead of when every ready replica has loaded it
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    endpoint: EndpointArguments,
}

/// `NAME=DIR`: an adapter as `foggara up` is told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AdapterArgument {
    name: String,
    path: PathBuf,
}

impl FromStr for AdapterArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, path)) if !name.is_empty() && !path.is_empty() => {
                Ok(Self { name: name.to_owned(), path: path.into() })
            }
            _ => Err("must be NAME=DIR".into()),
        }
    }
}

impl AdapterArgument {
    /// The adapter of a model that is served on this machine.
    ///
    /// # Errors
    /// If nothing lies there.
    pub(crate) fn of(&self, deployment: &str) -> anyhow::Result<wire::Adapter> {
        let found = self.path.canonicalize();
        found.map_err(|e| anyhow::anyhow!("adapter `{}`: {e}", self.path.display()))?;
        adapter(&self.name, deployment, &self.path)
    }
}

/// An adapter as the cluster is told of it: by its full path if it lies on this machine, else as it is; then it is for the nodes to
/// find.
fn adapter(name: &str, deployment: &str, path: &Path) -> anyhow::Result<wire::Adapter> {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned()).into_os_string().into_string();
    let path = path.map_err(|path| anyhow::anyhow!("adapter `{}`: the path is not UTF-8", path.display()))?;
    Ok(wire::Adapter { name: name.to_owned(), deployment: deployment.to_owned(), path, ..Default::default() })
}

/// Does it.
pub(crate) fn run(arguments: Arguments) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match arguments.action {
            Action::Add(add) => add.run().await,
            Action::List { endpoint } => {
                let status = endpoint.admin().await?.status(wire::StatusRequest {}).await?.into_inner();
                Ok(print(&mut std::io::stdout().lock(), &status)?)
            }
            Action::Remove { name, endpoint } => {
                let request_id = uuid::Uuid::new_v4().to_string();
                let request = wire::RemoveAdapterRequest { name: name.clone(), request_id };
                endpoint.admin().await?.remove_adapter(request).await?;
                Ok(writeln!(std::io::stdout(), "removed {name}")?)
            }
        }
    })
}

impl Add {
    async fn run(self) -> anyhow::Result<()> {
        let mut admin = self.endpoint.admin().await?;
        let deployment = match self.deployment {
            Some(name) => name,
            None => only(&admin.status(wire::StatusRequest {}).await?.into_inner())?,
        };
        let adapter = adapter(&self.name, &deployment, &self.path)?;
        let request_id = uuid::Uuid::new_v4().to_string();
        let put = admin.put_adapter(wire::PutAdapterRequest { adapter: Some(adapter), request_id }).await;
        put.map_err(|status| anyhow::anyhow!("{}", status_text(&status)))?;
        let name = self.name;
        writeln!(std::io::stdout(), "added {name} to {deployment}")?;
        if self.no_wait {
            return Ok(());
        }
        let mut shown = String::new();
        loop {
            let status = admin.status(wire::StatusRequest {}).await?.into_inner();
            let adapter = status.adapters.into_iter().find(|adapter| adapter.name == name);
            let Some(adapter) = adapter else { anyhow::bail!("`{name}` was removed meanwhile") };
            if let Some(reason) = failed(&adapter) {
                anyhow::bail!("`{name}` cannot be loaded: {reason}");
            }
            if adapter.state != shown {
                writeln!(std::io::stdout(), "{name}: {}", adapter.state)?;
                shown.clone_from(&adapter.state);
            }
            if adapter.state == "ready" {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// Why an adapter is not loaded, if it cannot be.
pub(crate) fn failed(adapter: &wire::Adapter) -> Option<&str> {
    (adapter.state == "failed").then_some(&adapter.reason)
}

/// The deployment that is meant where none is named.
fn only(status: &wire::StatusResponse) -> anyhow::Result<String> {
    match &status.deployments[..] {
        [one] => Ok(one.name.clone()),
        [] => anyhow::bail!(
            "nothing is deployed that could have an adapter: `foggara models add` serves a model"
        ),
        several => {
            let names: Vec<&str> = several.iter().map(|deployment| deployment.name.as_str()).collect();
            anyhow::bail!("there are several deployments; say --deployment {}", names.join(" or "))
        }
    }
}

/// Adapters as a table: nothing if there are none but its header.
pub(crate) fn print(out: &mut impl Write, status: &wire::StatusResponse) -> std::io::Result<()> {
    let row = |a: &wire::Adapter| {
        let state = failed(a).map_or_else(|| a.state.clone(), |reason| format!("failed: {reason}"));
        let of = status.deployments.iter().find(|d| d.name == a.deployment).map_or(0, |d| d.ready_replicas);
        let replicas = format!("{}/{of}", a.ready_replicas);
        vec![a.name.clone(), state, a.deployment.clone(), replicas, bytes(a.bytes), a.path.clone()]
    };
    let rows: Vec<_> = status.adapters.iter().map(row).collect();
    table(out, &["name", "state", "deployment", "replicas", "size", "path"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(deployments: &[&str]) -> wire::StatusResponse {
        let deployment = |name: &&str| wire::Deployment { name: (*name).into(), ..Default::default() };
        wire::StatusResponse {
            deployments: deployments.iter().map(deployment).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn only_one_deployment_need_not_be_named() {
        assert_eq!(only(&status(&["m"])).expect("one"), "m");
        for (deployments, says) in [(&[][..], "nothing is deployed"), (&["a", "b"], "--deployment a or b")] {
            let error = only(&status(deployments)).expect_err(says).to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn a_name_and_a_folder_make_an_adapter() {
        let parsed: AdapterArgument = "pirate=/adapters/a=b".parse().expect("valid");
        assert_eq!((parsed.name.as_str(), parsed.path.as_path()), ("pirate", Path::new("/adapters/a=b")));
        for wrong in ["", "pirate", "=x", "pirate="] {
            assert!(wrong.parse::<AdapterArgument>().is_err(), "{wrong}");
        }
        let missing: AdapterArgument = "pirate=/no/such/folder".parse().expect("valid");
        assert!(missing.of("m").is_err(), "nothing lies there");
        assert_eq!(adapter("a", "m", Path::new("elsewhere")).expect("UTF-8").path, "elsewhere");
    }

    #[test]
    fn a_failure_is_printed_with_its_reason() {
        let adapter = wire::Adapter {
            name: "pirate".into(),
            deployment: "m".into(),
            state: "failed".into(),
            reason: "rank 1: no such file".into(),
            ready_replicas: 1,
            ..Default::default()
        };
        let mut status = status(&["m"]);
        (status.deployments[0].ready_replicas, status.adapters) = (2, vec![adapter]);
        let mut out = Vec::new();
        print(&mut out, &status).expect("memory");
        let text = String::from_utf8_lossy(&out);
        assert!(text.contains("failed: rank 1: no such file") && text.contains("1/2"), "{text}");
    }
}
