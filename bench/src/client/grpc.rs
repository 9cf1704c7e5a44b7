//! `foggara.inference.v1`.

use std::cell::RefCell;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use foggara_proto::wire::inference::generate_request::Prompt;
use foggara_proto::wire::inference::generate_response::Event;
use foggara_proto::wire::inference::inference_client::InferenceClient;
use foggara_proto::wire::inference::{GenerateRequest, ListModelsRequest, SamplingParams, TokenIds};
use tonic::transport::{Channel, Endpoint};

use super::{Ask, Trace};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A channel to `url`.
pub(crate) async fn channel(url: &str) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(url.to_owned()).with_context(|| format!("the address {url}"))?;
    let endpoint = endpoint.connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true);
    let channel = super::trust::dialer(url)?.connect(&endpoint).await;
    channel.map_err(|error| anyhow!("connecting to {url}: {}", foggara_tls::cause(&error)))
}

#[derive(Clone)]
pub(crate) struct GrpcClient {
    inference: InferenceClient<Channel>,
    model: String,
}

impl GrpcClient {
    pub(crate) async fn connect(url: &str, model: &str) -> Result<Self> {
        Ok(Self { inference: InferenceClient::new(channel(url).await?), model: model.to_owned() })
    }

    pub(super) async fn generate(&mut self, ask: Ask) -> Result<Trace> {
        let trace = RefCell::new(Trace::start());
        self.follow(ask, &trace).await?;
        Ok(trace.into_inner())
    }

    /// Sends `ask` and notes in `trace` what comes, as it comes.
    pub(crate) async fn follow(&mut self, ask: Ask, trace: &RefCell<Trace>) -> Result<()> {
        let sampling = SamplingParams {
            max_tokens: Some(u32::try_from(ask.max_tokens).context("too many tokens")?),
            temperature: Some(0.0),
            ignore_eos: true,
            ..SamplingParams::default()
        };
        self.send(Prompt::Tokens(TokenIds { ids: ask.prompt }), sampling, trace).await
    }

    /// Continues a text as `sampling` says.
    pub(crate) async fn continue_text(&mut self, text: &str, sampling: SamplingParams) -> Result<Trace> {
        let trace = RefCell::new(Trace::start());
        self.send(Prompt::Text(text.to_owned()), sampling, &trace).await?;
        Ok(trace.into_inner())
    }

    async fn send(&mut self, prompt: Prompt, sampling: SamplingParams, trace: &RefCell<Trace>) -> Result<()> {
        let request = GenerateRequest {
            model: self.model.clone(),
            prompt: Some(prompt),
            sampling: Some(sampling),
            ..GenerateRequest::default()
        };
        trace.replace(Trace::start());
        let mut answer = self.inference.generate(request).await.context("Generate")?.into_inner();
        while let Some(message) = answer.message().await.context("Generate")? {
            match message.event {
                Some(Event::Delta(delta)) => trace.borrow_mut().arrived(delta.token_ids.len()),
                Some(Event::Finished(finished)) => {
                    if let Some(usage) = finished.usage {
                        trace.borrow_mut().counted(usage.completion_tokens as usize);
                    }
                    return Ok(());
                }
                Some(Event::Started(_)) | None => {}
            }
        }
        bail!("the stream ended without `finished`")
    }
}

/// The models served at `url`.
pub(crate) async fn models(url: &str) -> Result<Vec<String>> {
    let mut inference = InferenceClient::new(channel(url).await?);
    let listed = inference.list_models(ListModelsRequest {}).await.context("ListModels")?.into_inner();
    Ok(listed.models.into_iter().map(|model| model.name).collect())
}
