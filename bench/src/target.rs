//! The server under test: one started here, or one that runs already.

use anyhow::{Context, Result, bail};

use crate::args::TargetArgs;
use crate::client::{Address, Client, first_model};
use crate::cluster::Cluster;
use crate::members::{Kind, Member, Members};

/// Where the load goes.
pub(crate) struct Target {
    /// Present if it was started here.
    cluster: Option<Cluster>,
    main: Address,
    /// For the workload that compares HTTP with gRPC.
    http: Option<Address>,
    model: String,
    one_connection: bool,
}

impl Target {
    /// The server that `args` name, or `cluster`.
    pub(crate) async fn open(args: &TargetArgs, cluster: Option<Cluster>) -> Result<Self> {
        let grpc = cluster.as_ref().map(|cluster| cluster.grpc.clone()).or_else(|| args.endpoint.clone());
        let http = args.http.clone().map(Address::Http);
        let (main, http) = match (grpc, http) {
            (Some(grpc), http) => {
                let own = Members::ask(&grpc).await?.http().map(|url| Address::Http(url.to_owned()));
                (Address::Grpc(grpc), http.or(own))
            }
            (None, http) => (http.context("neither a cluster nor an address")?, None),
        };
        let model = match &args.model_name {
            Some(name) => name.clone(),
            None => first_model(&main).await?,
        };
        Ok(Self { cluster, main, http, model, one_connection: args.one_connection })
    }

    /// Another server, which runs already: by HTTP, with the first model that it lists.
    pub(crate) async fn other(url: &str) -> Result<Self> {
        let main = Address::Http(url.to_owned());
        let model = first_model(&main).await?;
        Ok(Self { cluster: None, main, http: None, model, one_connection: false })
    }

    /// A new connection.
    pub(crate) async fn client(&self) -> Result<Client> {
        Client::connect(&self.main, &self.model).await
    }

    /// `count` clients, each with a new connection unless they are to share one.
    pub(crate) async fn clients(&self, count: usize) -> Result<Vec<Client>> {
        let first = self.client().await?;
        if let (Client::Grpc(first), true) = (&first, self.one_connection) {
            return Ok((0..count).map(|_| Client::Grpc(first.clone())).collect());
        }
        let others = (1..count).map(|_| self.client());
        let others = futures::future::try_join_all(others).await?;
        Ok(std::iter::once(first).chain(others).take(count).collect())
    }

    /// A new connection by HTTP, where the others are by gRPC.
    pub(crate) async fn http_client(&self) -> Result<Option<Client>> {
        match &self.http {
            Some(address) => Client::connect(address, &self.model).await.map(Some),
            None => Ok(None),
        }
    }

    /// "gRPC http://127.0.0.1:8081".
    pub(crate) fn describe(&self) -> String {
        let started = if self.cluster.is_some() { "a cluster started here" } else { "a running server" };
        match &self.main {
            Address::Grpc(url) => format!("{started}, through gRPC at {url}"),
            Address::Http(url) => format!("{started}, through HTTP at {url}"),
        }
    }

    /// The gRPC address, where what is measured needs one.
    pub(crate) fn grpc(&self) -> Result<&str> {
        match &self.main {
            Address::Grpc(url) => Ok(url),
            Address::Http(_) => bail!("this measurement goes through gRPC: give an --endpoint, or none"),
        }
    }

    /// The model's name in requests.
    pub(crate) fn model(&self) -> &str {
        &self.model
    }

    /// The processes on this host that serve it; `None` for a server that does not say.
    pub(crate) async fn members(&self) -> Result<Option<Members>> {
        let Address::Grpc(url) = &self.main else { return Ok(None) };
        let mut members = Members::ask(url).await?;
        if let Some(pid) = self.cluster.as_ref().and_then(Cluster::pid) {
            members.list.push(Member { kind: Kind::Supervisor, label: "foggara up".to_owned(), pid });
        }
        Ok(Some(members))
    }

    /// Stops what was started here.
    pub(crate) async fn close(self) -> Result<()> {
        match self.cluster {
            Some(cluster) => cluster.stop().await,
            None => Ok(()),
        }
    }
}
