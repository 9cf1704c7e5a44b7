//! A front door without a cluster behind it: the generator says what it is told to.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use foggara_proto::auth::ClusterToken;
use foggara_proto::sequence::{SequenceEnd, SequenceEvent, SequenceRequest, TokenOutput};
use foggara_proto::shape::Shape;
use futures::StreamExt;

use super::{FrontDoor, ServedModel, ServedModels};
use crate::cluster::state::Deployment;
use crate::cluster::transport::GrpcTransport;
use crate::cluster::{self, ClusterConfig};
use crate::driver::Drivers;
use crate::metrics::Metrics;
use crate::router::{GenerateError, Generator, SequenceStream};
use crate::text::fixture::{END, byte_tokenizer};
use crate::text::{ChatTemplate, Tokenizer};

/// Says `text`, a byte a token, and then `<|end|>` for ever.
pub(super) struct FakeGenerator {
    pub(super) text: String,
    /// Fails after so many tokens.
    pub(super) fails: Option<(usize, GenerateError)>,
    /// The request id that alone fails; `None`: every one does.
    pub(super) failing: Option<String>,
    /// Says nothing more after so many tokens.
    pub(super) hangs: Option<usize>,
    /// What it was asked.
    pub(super) asked: Mutex<Vec<SequenceRequest>>,
    /// Sequences that have not ended and that somebody listens to.
    pub(super) open: Arc<AtomicUsize>,
}

impl Default for FakeGenerator {
    fn default() -> Self {
        let text = "hello world".into();
        Self { text, fails: None, failing: None, hangs: None, asked: Mutex::default(), open: Arc::default() }
    }
}

struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn output(token: u32, logprobs: Option<u32>) -> TokenOutput {
    let top = (0..logprobs.unwrap_or(0)).map(|i| (token + i, -0.5 - i as f32)).collect();
    TokenOutput { token, logprob: logprobs.map(|_| -0.5), top }
}

/// The events of a whole sequence.
fn events(text: &str, request: &SequenceRequest) -> Vec<SequenceEvent> {
    let params = &request.params;
    let mut list = Vec::new();
    if params.prompt_logprobs {
        let mut prompt: Vec<TokenOutput> =
            request.tokens.iter().map(|token| output(*token, Some(params.prompt_top_logprobs))).collect();
        prompt[0] = output(prompt[0].token, None);
        // In two parts, as a long prompt comes.
        let rest = prompt.split_off(prompt.len() / 2);
        list.extend([prompt, rest].map(|prompt| SequenceEvent { prompt, ..SequenceEvent::default() }));
    }
    let said = text.bytes().map(u32::from).chain(std::iter::repeat(END)).take(params.max_tokens as usize);
    for token in said {
        let stops = params.stop_token_ids.contains(&token);
        let end = stops.then_some(SequenceEnd::StopToken);
        list.push(SequenceEvent {
            tokens: vec![output(token, params.logprobs)],
            end,
            ..SequenceEvent::default()
        });
        if stops {
            return list;
        }
    }
    match list.last_mut() {
        Some(last) => last.end = Some(SequenceEnd::Length),
        None => list.push(SequenceEvent { end: Some(SequenceEnd::Length), ..SequenceEvent::default() }),
    }
    list
}

impl Generator for FakeGenerator {
    fn generate(&self, deployment: &str, request: SequenceRequest) -> SequenceStream {
        assert_eq!(deployment, "m");
        let (mut list, mut failure) = (events(&self.text, &request), None);
        let mut hangs = false;
        let failing = self.failing.as_ref().is_none_or(|id| *id == request.request_id);
        if let Some((after, error)) = self.fails.as_ref().filter(|_| failing) {
            list.truncate(*after);
            failure = Some(Err(error.clone()));
        }
        if let Some(after) = self.hangs {
            list.truncate(after);
            hangs = true;
        }
        self.asked.lock().expect("no panic").push(request);
        self.open.fetch_add(1, Ordering::SeqCst);
        let counted = Counted(Arc::clone(&self.open));
        async_stream::stream! {
            let _counted = counted;
            for event in list {
                yield Ok(event);
            }
            if let Some(failure) = failure {
                yield failure;
            }
            if hangs {
                std::future::pending::<()>().await;
            }
        }
        .boxed()
    }
}

/// The model "m", with room for 100 tokens.
pub(super) fn model(tokenizer: Option<Tokenizer>) -> ServedModel {
    let template = "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}\
                    [{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}";
    ServedModel {
        name: "m".into(),
        deployment: "m".into(),
        adapter: None,
        created: 7,
        context: 100,
        vocab: 257,
        template: tokenizer
            .is_some()
            .then(|| Arc::new(ChatTemplate::compile(template, "", "").expect("valid"))),
        tokenizer,
        eos: vec![END],
    }
}

pub(super) fn deployment() -> Deployment {
    Deployment {
        model_path: "/m".into(),
        shape: Shape::tensor(1),
        replicas: 1,
        kv_tokens: 0,
        kv_dtype: "auto".into(),
        collective: "auto".into(),
        quantize: "none".into(),
        created: 7,
        manifest: String::new(),
    }
}

/// A front door that serves "m".
pub(super) struct Fixture {
    pub(super) door: FrontDoor,
    pub(super) generator: Arc<FakeGenerator>,
    _dir: tempfile::TempDir,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.door.cluster.stop();
    }
}

impl Fixture {
    pub(super) fn new(generator: FakeGenerator) -> Self {
        Self::with_token(generator, ClusterToken::default())
    }

    pub(super) fn with_token(generator: FakeGenerator, token: ClusterToken) -> Self {
        let dir = cluster::test_dir();
        let peers = [(1, "127.0.0.1:1".to_owned())].into();
        let transport =
            Arc::new(GrpcTransport::new("test", 1, &peers, &token, &Default::default()).expect("valid"));
        let config = ClusterConfig::new("test", 1, vec![1], dir.path().into());
        let generator = Arc::new(generator);
        let models = ServedModels::default();
        models.insert(deployment(), model(Some(byte_tokenizer())));
        let door = FrontDoor {
            cluster: cluster::start(&config, transport).expect("it starts"),
            generator: generator.clone(),
            metrics: Arc::new(Metrics::new()),
            models,
            library: crate::library::Library::new(
                1,
                Vec::new(),
                dir.path(),
                None,
                ClusterToken::default(),
                Default::default(),
            ),
            drivers: Drivers::default(),
            registry: crate::control::Registry::default(),
            token,
            dialer: Default::default(),
            draining: Arc::default(),
            tokenizing: Arc::new(tokio::sync::Semaphore::new(1)),
        };
        Self { door, generator, _dir: dir }
    }
}
