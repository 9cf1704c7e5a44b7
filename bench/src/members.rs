//! The processes of a cluster, as it names them itself.

use anyhow::{Context, Result};
use foggara_proto::wire::admin::StatusRequest;
use foggara_proto::wire::admin::admin_client::AdminClient;

use crate::client::grpc::channel;
use crate::client::http;
use crate::metrics;

/// What kind of process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Coordinator,
    Worker,
    Supervisor,
}

/// A process of the cluster.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) kind: Kind,
    /// "coordinator 1, leader".
    pub(crate) label: String,
    pub(crate) pid: u32,
}

/// Coordinators and workers, and where the coordinators serve HTTP.
pub(crate) struct Members {
    pub(crate) list: Vec<Member>,
    http: Vec<String>,
}

impl Members {
    /// Asks the coordinator at `url`.
    pub(crate) async fn ask(url: &str) -> Result<Self> {
        let mut admin = AdminClient::new(channel(url).await?);
        let status = admin.status(StatusRequest {}).await.context("Status")?.into_inner();
        let scheme = if url.starts_with("https://") { "https" } else { "http" };
        let http = status.coordinators.iter().map(|one| format!("{scheme}://{}", one.http_addr)).collect();
        let coordinators = status.coordinators.into_iter().map(|one| Member {
            kind: Kind::Coordinator,
            label: format!("coordinator {}, {}", one.id, one.role),
            pid: one.pid,
        });
        let workers = status.workers.into_iter().map(|one| Member {
            kind: Kind::Worker,
            label: match one.rank {
                Some(rank) => format!("worker {}, rank {rank}", one.id),
                None => format!("worker {}, spare", one.id),
            },
            pid: one.pid,
        });
        Ok(Self { list: coordinators.chain(workers).collect(), http })
    }

    /// HTTP address of the first coordinator.
    pub(crate) fn http(&self) -> Option<&str> {
        self.http.first().map(String::as_str)
    }

    /// HTTP addresses of all coordinators.
    pub(crate) fn all_http(&self) -> &[String] {
        &self.http
    }

    /// KV blocks that live sequences hold, in all groups.
    pub(crate) async fn live_blocks(&self) -> Result<u64> {
        let mut sum = 0;
        for address in &self.http {
            let page = http::get(&format!("{address}/metrics")).await?;
            sum += metrics::sum(&page, "foggara_kv_blocks", "state=\"live\"") as u64;
        }
        Ok(sum)
    }
}
