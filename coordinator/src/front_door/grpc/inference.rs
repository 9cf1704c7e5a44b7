//! `foggara.inference.v1`.

use foggara_proto::wire::inference as wire;
use futures::StreamExt;
use futures::stream::BoxStream;
use tonic::{Request, Response, Status};

use super::attach;
use crate::cluster::state::Group;
use crate::cluster::state::adapters::Presence;
use crate::front_door::api_error::ApiError;
use crate::front_door::generation::{Event, FinishReason, Token};
use crate::front_door::request::{self, Ask, GenerationRequest, Prompt};
use crate::front_door::{FrontDoor, TRACERESPONSE};
use crate::text::ChatMessage;
use crate::traces::Arrival;

/// The service.
pub(super) struct Service {
    pub(super) door: FrontDoor,
}

type Responses = BoxStream<'static, Result<wire::GenerateResponse, Status>>;

/// Its name in metrics.
const API: &str = "grpc";
/// That of going on with a request.
const ATTACH: &str = "attach";

impl Service {
    /// A call arrives now; its metadata may say what trace it is part of.
    fn arrival<T>(&self, request: &Request<T>) -> Arrival {
        self.door.arrival(|name| request.metadata().get(name).map(|value| value.as_bytes()))
    }

    async fn generate_request(
        &self,
        mut r: wire::GenerateRequest,
        arrival: &Arrival,
    ) -> Result<GenerationRequest, ApiError> {
        let (id, named) = (request::request_id(&r.request_id)?, !r.request_id.is_empty());
        let model = self.door.model(&r.model).await?;
        let prompt = match r.prompt.take() {
            Some(wire::generate_request::Prompt::Text(text)) => Prompt::Text(text),
            Some(wire::generate_request::Prompt::Tokens(tokens)) => Prompt::Tokens(tokens.ids),
            None => Prompt::Tokens(Vec::new()),
        };
        let ask = Ask { request_id: id, ..Ask::from(r) };
        let mut run = self.door.check(model, prompt, ask, true).await?;
        run.came(arrival, named);
        Ok(run)
    }

    async fn chat_request(
        &self,
        mut r: wire::ChatRequest,
        arrival: &Arrival,
    ) -> Result<GenerationRequest, ApiError> {
        let (id, named) = (request::request_id(&r.request_id)?, !r.request_id.is_empty());
        let model = self.door.model(&r.model).await?;
        let messages: Vec<ChatMessage> = std::mem::take(&mut r.messages)
            .into_iter()
            .map(|m| ChatMessage { role: m.role, content: m.content })
            .collect();
        let prompt = request::chat_prompt(&model, &messages, true, &serde_json::Map::new())?;
        let ask = Ask { request_id: id, ..Ask::from(r) };
        // The template writes what begins a sequence itself.
        let mut run = self.door.check(model, prompt, ask, false).await?;
        run.came(arrival, named);
        Ok(run)
    }

    fn run(&self, api: &'static str, run: GenerationRequest) -> Response<Responses> {
        let started = wire::Started {
            request_id: run.sequence.request_id.clone(),
            model: run.model.name.clone(),
            prompt_token_ids: run.sequence.tokens.clone(),
            n: u32::try_from(run.n).unwrap_or(u32::MAX),
        };
        let with_logprobs = run.sequence.params.logprobs.is_some();
        let first = wire::generate_response::Event::Started(started);
        let first = wire::GenerateResponse { event: Some(first) };
        let trace = run.arrival.trace.as_ref().and_then(|trace| trace.to_string().parse().ok());
        let events = self.door.run(api, run);
        let rest = events.map(move |event| {
            let (index, event) = event?;
            Ok(response(index, event, with_logprobs))
        });
        let mut response = Response::new(futures::stream::iter([Ok(first)]).chain(rest).boxed());
        if let Some(trace) = trace {
            response.metadata_mut().insert(TRACERESPONSE, trace);
        }
        response
    }
}

#[tonic::async_trait]
impl wire::inference_server::Inference for Service {
    type GenerateStream = Responses;
    type ChatStream = Responses;
    type AttachStream = Responses;

    async fn generate(&self, request: Request<wire::GenerateRequest>) -> Result<Response<Responses>, Status> {
        let (arrival, request) = (self.arrival(&request), request.into_inner());
        let name = request.model.clone();
        let run = self.generate_request(request, &arrival).await;
        let run = run.map_err(|error| self.door.refused(API, &name, error))?;
        Ok(self.run(API, run))
    }

    async fn chat(&self, request: Request<wire::ChatRequest>) -> Result<Response<Responses>, Status> {
        let (arrival, request) = (self.arrival(&request), request.into_inner());
        let name = request.model.clone();
        let run = self.chat_request(request, &arrival).await;
        let run = run.map_err(|error| self.door.refused(API, &name, error))?;
        Ok(self.run(API, run))
    }

    async fn attach(&self, request: Request<wire::AttachRequest>) -> Result<Response<Responses>, Status> {
        let arrival = self.arrival(&request);
        let attached = attach::request(&self.door, request.into_inner(), attach::PATIENCE).await;
        let mut run = attached.map_err(|refused| self.door.refused(ATTACH, &refused.model, refused.error))?;
        // Its client knows its name.
        run.came(&arrival, true);
        Ok(self.run(ATTACH, run))
    }

    async fn list_models(
        &self,
        _request: Request<wire::ListModelsRequest>,
    ) -> Result<Response<wire::ListModelsResponse>, Status> {
        let state = self.door.cluster.state();
        let model = |model: std::sync::Arc<crate::front_door::ServedModel>| {
            let has = |id: u64, group: &Group| {
                let Some(adapter) = &model.adapter else { return true };
                state.presence(id, group, adapter.id) == Presence::Ready
            };
            let groups =
                state.groups.iter().filter(|(_, g)| g.deployment == model.deployment && g.is_ready());
            let ready = groups.filter(|(id, group)| has(**id, group)).count();
            wire::Model {
                name: model.name.clone(),
                context: u32::try_from(model.context).unwrap_or(u32::MAX),
                ready_replicas: u32::try_from(ready).unwrap_or(u32::MAX),
                created: model.created,
                kv_tokens: self.door.kv_tokens(&model.deployment).unwrap_or(0) as u64,
                parent: model.adapter.as_ref().map(|adapter| adapter.deployment.clone()).unwrap_or_default(),
            }
        };
        let models = self.door.models.all().into_iter().map(model).collect();
        Ok(Response::new(wire::ListModelsResponse { models }))
    }

    async fn tokenize(
        &self,
        request: Request<wire::TokenizeRequest>,
    ) -> Result<Response<wire::TokenizeResponse>, Status> {
        let wire::TokenizeRequest { model, text, no_special } = request.into_inner();
        let model = self.door.model(&model).await?;
        let ids = self.door.tokenize(model, "text", text, !no_special).await?;
        Ok(Response::new(wire::TokenizeResponse { ids }))
    }
}

fn response(index: usize, event: Event, with_logprobs: bool) -> wire::GenerateResponse {
    use wire::generate_response::Event as Out;
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let index = count(index);
    let delta = |text: String, tokens: Vec<Token>, scored: Vec<Token>| wire::Delta {
        text,
        token_ids: tokens.iter().map(|token| token.id).collect(),
        logprobs: if with_logprobs { tokens.into_iter().map(logprob).collect() } else { Vec::new() },
        index,
        prompt_logprobs: scored.into_iter().map(logprob).collect(),
    };
    let event = match event {
        Event::Prompt { text, tokens, scored } => Out::Delta(delta(text, tokens, scored)),
        Event::Delta { text, tokens } => Out::Delta(delta(text, tokens, Vec::new())),
        Event::Finished { reason, stop_string, stop_token, usage } => Out::Finished(wire::Finished {
            reason: match reason {
                FinishReason::Stop => wire::FinishReason::Stop.into(),
                FinishReason::Length => wire::FinishReason::Length.into(),
            },
            stop_string,
            stop_token_id: stop_token,
            usage: Some(wire::Usage {
                prompt_tokens: count(usage.prompt_tokens),
                cached_tokens: count(usage.cached_tokens),
                completion_tokens: count(usage.completion_tokens),
            }),
            index,
        }),
    };
    wire::GenerateResponse { event: Some(event) }
}

fn logprob(token: Token) -> wire::TokenLogprob {
    let top = |(token_id, bytes, logprob): (u32, Vec<u8>, f32)| wire::TopLogprob {
        token_id,
        token: String::from_utf8_lossy(&bytes).into_owned(),
        bytes,
        logprob,
    };
    wire::TokenLogprob {
        token_id: token.id,
        token: token.text(),
        bytes: token.bytes,
        logprob: token.logprob,
        top: token.top.into_iter().map(top).collect(),
    }
}
