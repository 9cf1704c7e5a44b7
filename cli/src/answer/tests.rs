//! Coordinators that die in the middle of an answer.

use std::sync::{Arc, Mutex};

use foggara_proto::wire::inference::generate_response::Event;
use foggara_proto::wire::inference::inference_server::{Inference, InferenceServer};
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::runtime::Runtime;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response};

use super::*;

type Responses = BoxStream<'static, Result<wire::GenerateResponse, Status>>;

/// A coordinator that answers every request with the same text, a token a letter.
#[derive(Clone)]
struct Coordinator {
    /// Letters after which it says nothing more.
    hangs: Option<usize>,
    /// What it knows of requests that others took.
    knows: bool,
    asked: Arc<Mutex<Vec<String>>>,
}

const TEXT: &str = "hello";

impl Coordinator {
    fn answer(&self, received: usize) -> Response<Responses> {
        let event = |event| Ok(wire::GenerateResponse { event: Some(event) });
        let started =
            event(Event::Started(wire::Started { request_id: "r".into(), n: 1, ..Default::default() }));
        let letters = TEXT.chars().take(self.hangs.unwrap_or(usize::MAX)).skip(received).map(move |letter| {
            let (text, token_ids) = (letter.to_string(), vec![u32::from(letter)]);
            event(Event::Delta(wire::Delta { text, token_ids, ..Default::default() }))
        });
        let told = futures::stream::iter(std::iter::once(started).chain(letters));
        Response::new(match self.hangs {
            Some(_) => told.chain(futures::stream::pending()).boxed(),
            None => {
                let finished = event(Event::Finished(wire::Finished::default()));
                told.chain(futures::stream::iter([finished])).boxed()
            }
        })
    }

    fn note(&self, what: String) {
        self.asked.lock().expect("no panic").push(what);
    }
}

#[tonic::async_trait]
impl Inference for Coordinator {
    type GenerateStream = Responses;
    type ChatStream = Responses;
    type AttachStream = Responses;

    async fn generate(&self, request: Request<wire::GenerateRequest>) -> Result<Response<Responses>, Status> {
        self.note(format!("generate {}", request.into_inner().request_id));
        Ok(self.answer(0))
    }

    async fn chat(&self, _request: Request<wire::ChatRequest>) -> Result<Response<Responses>, Status> {
        Err(Status::unimplemented("a fake"))
    }

    async fn attach(&self, request: Request<wire::AttachRequest>) -> Result<Response<Responses>, Status> {
        let wire::AttachRequest { request_id, tokens_received } = request.into_inner();
        self.note(format!("attach {request_id} {tokens_received:?}"));
        match self.knows {
            true => Ok(self.answer(tokens_received.first().map_or(0, |count| *count as usize))),
            false => Err(Status::not_found("nobody has it")),
        }
    }

    async fn list_models(
        &self,
        _request: Request<wire::ListModelsRequest>,
    ) -> Result<Response<wire::ListModelsResponse>, Status> {
        Err(Status::unimplemented("a fake"))
    }

    async fn tokenize(
        &self,
        _request: Request<wire::TokenizeRequest>,
    ) -> Result<Response<wire::TokenizeResponse>, Status> {
        Err(Status::unimplemented("a fake"))
    }
}

/// A coordinator in a process of its own, as far as a test can have one: all of it ends at once.
struct Process {
    url: String,
    asked: Arc<Mutex<Vec<String>>>,
    runtime: Option<Runtime>,
}

impl Process {
    fn start(hangs: Option<usize>, knows: bool) -> Self {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let coordinator = Coordinator { hangs, knows, asked: Arc::clone(&asked) };
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("a socket");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let builder = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = builder.expect("a runtime");
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a socket");
            let server = tonic::transport::Server::builder().add_service(InferenceServer::new(coordinator));
            server.serve_with_incoming(TcpListenerStream::new(listener)).await
        });
        Self { url, asked, runtime: Some(runtime) }
    }

    fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("no panic").clone()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn request() -> Asked {
    Asked::Generate(wire::GenerateRequest { request_id: "r".into(), ..Default::default() })
}

/// Text and tokens until the end, or until so many tokens have come.
async fn read(stream: &mut AnswerStream, most: usize) -> anyhow::Result<(String, usize)> {
    let (mut text, mut tokens) = (String::new(), 0);
    while tokens < most
        && let Some(message) = stream.message().await?
    {
        if let Some(Event::Delta(delta)) = message.event {
            text.push_str(&delta.text);
            tokens += delta.token_ids.len();
        }
    }
    Ok((text, tokens))
}

#[tokio::test]
async fn another_coordinator_goes_on_where_the_first_has_died() {
    for (knows, asked) in [(true, vec!["attach r [2]"]), (false, vec!["attach r [2]", "generate r"])] {
        let (mut first, second) = (Process::start(Some(2), true), Process::start(None, knows));
        let endpoint = EndpointArguments::of(&[&first.url, &second.url]);
        let mut stream = AnswerStream::start(&endpoint, request()).await.expect("it answers");
        assert_eq!(read(&mut stream, 2).await.expect("no error"), ("he".to_owned(), 2));
        first.kill();
        assert_eq!(read(&mut stream, usize::MAX).await.expect("no error"), ("llo".to_owned(), 3));
        assert_eq!(
            (first.asked(), second.asked()),
            (vec!["generate r".to_owned()], asked.iter().map(ToString::to_string).collect())
        );
    }
}

#[tokio::test]
async fn what_somebody_else_asked_for_is_not_asked_for_again() {
    let (mut first, second) = (Process::start(Some(3), true), Process::start(None, false));
    let endpoint = EndpointArguments::of(&[&first.url, &second.url]);
    let asked = Asked::Attach(wire::AttachRequest { request_id: "r".into(), tokens_received: vec![1] });
    let mut stream = AnswerStream::start(&endpoint, asked).await.expect("it answers");
    assert_eq!(read(&mut stream, 2).await.expect("no error"), ("el".to_owned(), 2));
    first.kill();
    let error = read(&mut stream, 1).await.expect_err("nobody has it");
    assert!(error.to_string().contains("nobody has it"), "{error}");
    assert_eq!(second.asked(), ["attach r [3]"]);
}
