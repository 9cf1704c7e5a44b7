//! Connecting to a cluster: any of its coordinators will do.

use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use foggara_proto::auth::ClusterToken;
use foggara_proto::wire::admin::admin_client::AdminClient;
use foggara_proto::wire::inference::inference_client::InferenceClient;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Answers may carry the log-probabilities of a whole prompt.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// Which cluster to talk to.
#[derive(Debug, Clone, Args)]
pub(crate) struct EndpointArguments {
    /// A coordinator, or several to be tried in turn
    #[arg(
        long,
        env = "FOGGARA_ENDPOINT",
        value_name = "URL",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:8081,http://127.0.0.1:8091,http://127.0.0.1:8101"
    )]
    endpoint: Vec<String>,
    /// What operators of a cluster beyond one machine show
    #[arg(long, env = "FOGGARA_CLUSTER_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    cluster_token: Option<String>,
}

impl EndpointArguments {
    /// Connects to the first coordinator that answers.
    ///
    /// # Errors
    /// If none does.
    pub(crate) async fn connect(&self) -> anyhow::Result<Channel> {
        let mut first_failure = None;
        for url in &self.endpoint {
            match connect(url).await {
                Ok(channel) => return Ok(channel),
                Err(error) => first_failure = first_failure.or(Some(error)),
            }
        }
        let failure = first_failure.unwrap_or_else(|| anyhow::anyhow!("no endpoint is given"));
        Err(failure.context("no coordinator answers (is the cluster up? start one with `foggara up`)"))
    }

    /// The service of clients.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub(crate) async fn inference(&self) -> anyhow::Result<InferenceClient<Channel>> {
        Ok(InferenceClient::new(self.connect().await?).max_decoding_message_size(MAX_MESSAGE_BYTES))
    }

    /// The service of operators.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub(crate) async fn admin(
        &self,
    ) -> anyhow::Result<AdminClient<InterceptedService<Channel, impl Interceptor + use<>>>> {
        let token = ClusterToken::new(self.cluster_token.as_deref());
        Ok(AdminClient::with_interceptor(self.connect().await?, token.shown()))
    }
}

/// Connects to one coordinator.
///
/// # Errors
/// If the address is none, or nobody listens there.
pub(crate) async fn connect(url: &str) -> anyhow::Result<Channel> {
    let url = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
    let endpoint = Endpoint::from_shared(url.clone()).with_context(|| format!("endpoint `{url}`"))?;
    let endpoint = endpoint.connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true);
    endpoint.connect().await.map_err(|error| {
        let mut cause: &dyn std::error::Error = &error;
        while let Some(source) = cause.source() {
            cause = source;
        }
        anyhow::anyhow!("{url}: {cause}")
    })
}
