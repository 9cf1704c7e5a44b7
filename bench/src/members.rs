//! The processes of a cluster, as it names them itself.

use anyhow::{Context, Result};
use foggara_proto::wire::admin::StatusRequest;
use foggara_proto::wire::admin::admin_client::AdminClient;

use crate::client::grpc::channel;
use crate::client::http;

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
        let http = status.coordinators.iter().map(|one| format!("http://{}", one.http_addr)).collect();
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
            sum += live_blocks(&http::get(&format!("{address}/metrics")).await?);
        }
        Ok(sum)
    }
}

/// Sums `foggara_kv_blocks{…state="live"…}` of a page of metrics.
fn live_blocks(page: &str) -> u64 {
    let lines = page.lines().filter_map(|line| line.strip_prefix("foggara_kv_blocks{"));
    let live =
        lines.filter_map(|line| line.split_once('}')).filter(|(labels, _)| labels.contains("state=\"live\""));
    live.filter_map(|(_, value)| value.trim().parse::<f64>().ok()).sum::<f64>() as u64
}

#[cfg(test)]
mod tests {
    #[test]
    fn live_blocks_are_summed_over_models() {
        let page = "# HELP foggara_kv_blocks x\nfoggara_kv_blocks{model=\"a\",state=\"live\"} 3\n\
            foggara_kv_blocks{model=\"a\",state=\"free\"} 100\nfoggara_kv_blocks{model=\"b\",state=\"live\"} 4\n";
        assert_eq!(super::live_blocks(page), 7);
        assert_eq!(super::live_blocks(""), 0);
    }
}
