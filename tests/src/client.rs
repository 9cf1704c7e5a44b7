//! A gRPC client of one coordinator.

use std::time::Duration;

use foggara_proto::auth::ClusterToken;
use foggara_proto::wire::admin::admin_client::AdminClient;
use foggara_proto::wire::admin::{Deployment, PutDeploymentRequest, StatusRequest, StatusResponse};
use foggara_proto::wire::inference::inference_client::InferenceClient;
use foggara_proto::wire::inference::{AttachRequest, GenerateRequest, GenerateResponse};
use foggara_tls::Dialer;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use crate::answer::Answer;
use crate::ask::Ask;

/// Answers may carry the log-probabilities of whole prompts.
const MAX_MESSAGE_BYTES: usize = 64 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Connects when it is first used, and again when the connection is lost.
#[derive(Debug, Clone)]
pub struct Client {
    channel: Channel,
    token: ClusterToken,
}

impl Client {
    /// A client of the coordinator at `addr` (host:port). Must be called inside a runtime.
    pub fn new(addr: &str) -> Self {
        Self::with_token(addr, None)
    }

    /// The same, showing a cluster token.
    pub fn with_token(addr: &str, token: Option<&str>) -> Self {
        Self::by(&Dialer::default(), addr, token)
    }

    /// The same, over TLS if that is how it calls.
    pub fn by(dialer: &Dialer, addr: &str, token: Option<&str>) -> Self {
        let endpoint = dialer.endpoint(addr).expect("an address").connect_timeout(CONNECT_TIMEOUT);
        let channel = dialer.lazy(&endpoint);
        Self { channel, token: ClusterToken::new(token) }
    }

    /// The connection itself.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// The clients' service.
    pub fn inference(&self) -> InferenceClient<Channel> {
        InferenceClient::new(self.channel()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// The operators' service.
    pub fn admin(&self) -> AdminClient<InterceptedService<Channel, impl Interceptor + use<>>> {
        AdminClient::with_interceptor(self.channel(), self.token.shown())
    }

    /// Starts a request.
    ///
    /// # Errors
    /// What the server says before it begins to answer.
    pub async fn stream(&self, request: GenerateRequest) -> Result<Streaming<GenerateResponse>, Status> {
        Ok(self.inference().generate(request).await?.into_inner())
    }

    /// Goes on with a request that another coordinator may have taken, after so many tokens of each of its answers.
    ///
    /// # Errors
    /// What the server says before it begins to answer.
    pub async fn attach(
        &self,
        request_id: &str,
        tokens_received: &[u32],
    ) -> Result<Streaming<GenerateResponse>, Status> {
        let request =
            AttachRequest { request_id: request_id.into(), tokens_received: tokens_received.into() };
        Ok(self.inference().attach(request).await?.into_inner())
    }

    /// Runs a request to its end.
    ///
    /// # Errors
    /// What the server says; [`is_cut_off`] tells whether it is the connection that failed.
    pub async fn try_ask(&self, ask: Ask) -> Result<Answer, Status> {
        Answer::collect(self.stream(ask.build()).await?).await
    }

    /// Runs a request that must succeed.
    pub async fn ask(&self, ask: Ask) -> Answer {
        let outcome = crate::wait::for_end("an answer", self.try_ask(ask)).await;
        outcome.unwrap_or_else(|status| panic!("{:?}: {}", status.code(), status.message()))
    }

    /// What the cluster is.
    ///
    /// # Errors
    /// If the coordinator does not answer.
    pub async fn try_status(&self) -> Result<StatusResponse, Status> {
        let asked = tokio::time::timeout(CONNECT_TIMEOUT, self.admin().status(StatusRequest {})).await;
        Ok(asked.map_err(|_| Status::deadline_exceeded("status took too long"))??.into_inner())
    }

    /// What the cluster is, from a coordinator that must answer.
    pub async fn status(&self) -> StatusResponse {
        self.try_status().await.unwrap_or_else(|status| panic!("status: {}", status.message()))
    }

    /// Serves a model, and waits until it is ready.
    pub async fn deploy(&self, deployment: Deployment) {
        let name = deployment.name.clone();
        let request = PutDeploymentRequest { deployment: Some(deployment), request_id: String::new() };
        let put = self.admin().put_deployment(request).await;
        put.unwrap_or_else(|status| panic!("deploying {name}: {}", status.message()));
        crate::wait::until(&format!("{name} is ready"), async || {
            let status = self.try_status().await.ok()?;
            status.deployments.iter().find(|d| d.name == name && d.state == "ready").map(drop)
        })
        .await;
    }
}

/// Whether it is the connection that failed, not the server that refused: what a server says itself has no cause here.
pub fn is_cut_off(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}
