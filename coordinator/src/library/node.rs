//! Asking other nodes for models' files.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use foggara_models::manifest::{Described, Hash, Manifest, Part};
use foggara_proto::auth::ClusterToken;
use foggara_proto::wire::files as wire;
use foggara_proto::wire::files::files_client::FilesClient;
use foggara_tls::Dialer;
use tonic::Status;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;

use crate::cluster::ClusterState;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Hashing a model may take minutes; a machine that vanishes meanwhile is noticed by this.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection to a process of this cluster, made when it is first used.
pub(crate) fn channel(dialer: &Dialer, addr: &str) -> Result<Channel, Status> {
    let endpoint = dialer.endpoint(addr);
    let endpoint = endpoint.map_err(|e| Status::invalid_argument(format!("address `{addr}`: {e}")))?;
    let endpoint = endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
    Ok(dialer.lazy(&endpoint))
}

/// How nodes are asked.
#[derive(Clone)]
pub(super) struct Asking {
    pub(super) token: ClusterToken,
    pub(super) dialer: Dialer,
}

/// A process that may have a model's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    kind: &'static str,
    id: u64,
    addr: String,
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} at {}", self.kind, self.id, self.addr)
    }
}

/// Every worker, then every coordinator but this one.
pub(super) fn nodes(state: &ClusterState, own: u64) -> Vec<Node> {
    let workers =
        state.workers.iter().map(|(id, worker)| Node { kind: "worker", id: *id, addr: worker.addr.clone() });
    let others = state.members.iter().filter(|(id, _)| **id != own);
    let others = others.map(|(id, m)| Node { kind: "coordinator", id: *id, addr: m.addr.clone() });
    workers.chain(others).collect()
}

impl Node {
    fn client(
        &self,
        asking: &Asking,
    ) -> Result<FilesClient<InterceptedService<Channel, impl Interceptor + use<>>>, Status> {
        Ok(FilesClient::with_interceptor(channel(&asking.dialer, &self.addr)?, asking.token.shown()))
    }

    /// What lies at `path` there.
    pub(super) async fn describe(&self, asking: &Asking, path: &str) -> Result<Described, Status> {
        let request = wire::DescribeRequest { path: path.to_owned() };
        let told = self.client(asking)?.describe(request).await?.into_inner();
        Ok(Described {
            path: PathBuf::from(told.path),
            manifest: Manifest::parse(&told.manifest).map_err(Status::internal)?,
            layers: told.layers as usize,
            experts: told.experts as usize,
        })
    }

    /// A part of a model's file, checked.
    pub(super) async fn fetch(&self, asking: &Asking, model: Hash, part: &Part) -> Result<Vec<u8>, Status> {
        let request =
            wire::FetchRequest { model: model.to_string(), file: part.file.clone(), bytes: part.bytes };
        let mut chunks = self.client(asking)?.fetch(request).await?.into_inner();
        let mut data = Vec::new();
        while let Some(chunk) = chunks.message().await? {
            if (data.len() + chunk.data.len()) as u64 > part.bytes {
                return Err(Status::data_loss(format!(
                    "it sends more than the {} bytes asked for",
                    part.bytes
                )));
            }
            data.extend_from_slice(&chunk.data);
        }
        match Hash::of(&data) == part.hash {
            true => Ok(data),
            false => Err(Status::data_loss("what it sends has another hash")),
        }
    }
}
