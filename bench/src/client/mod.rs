//! One client for both protocols: sends a prompt, notes when tokens come back.

pub(crate) mod grpc;
pub(crate) mod http;
pub(crate) mod trace;
pub(crate) mod trust;

use anyhow::{Context, Result, ensure};

pub(crate) use trace::Trace;

/// Where a server listens and by which protocol it is asked.
#[derive(Debug, Clone)]
pub(crate) enum Address {
    /// Foggara's own `foggara.inference.v1`.
    Grpc(String),
    /// `/v1/completions` with server-sent events.
    Http(String),
}

/// A greedy continuation of some tokens, to exactly `max_tokens`.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    pub(crate) prompt: Vec<u32>,
    pub(crate) max_tokens: usize,
}

/// A connection of its own to a server.
pub(crate) enum Client {
    Grpc(grpc::GrpcClient),
    Http(http::HttpClient),
}

impl Client {
    /// Connects; requests will name `model`.
    pub(crate) async fn connect(address: &Address, model: &str) -> Result<Self> {
        Ok(match address {
            Address::Grpc(url) => Self::Grpc(grpc::GrpcClient::connect(url, model).await?),
            Address::Http(url) => Self::Http(http::HttpClient::new(url, model)?),
        })
    }

    /// Sends `ask` and follows the answer to its end.
    pub(crate) async fn generate(&mut self, ask: Ask) -> Result<Trace> {
        let wanted = ask.max_tokens;
        let trace = match self {
            Self::Grpc(client) => client.generate(ask).await,
            Self::Http(client) => client.generate(ask).await,
        }?;
        ensure!(
            trace.tokens() == wanted,
            "asked for {wanted} tokens, got {} (does the server know `ignore_eos`?)",
            trace.tokens()
        );
        Ok(trace)
    }
}

/// The first model the server at `address` lists.
pub(crate) async fn first_model(address: &Address) -> Result<String> {
    let (models, url) = match address {
        Address::Grpc(url) => (grpc::models(url).await?, url),
        Address::Http(url) => (http::models(url).await?, url),
    };
    models.into_iter().next().with_context(|| format!("{url} lists no model"))
}
