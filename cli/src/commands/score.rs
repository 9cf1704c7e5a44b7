//! `foggara score`

mod report;
mod texts;
mod windows;

use std::io::Write;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use foggara_proto::wire::inference as wire;
use foggara_proto::wire::inference::inference_client::InferenceClient;
use futures::{StreamExt, TryStreamExt};
use tonic::Code;
use tonic::transport::Channel;

use crate::answer::is_broken;
use crate::endpoint::EndpointArguments;
use report::{Scored, Token};
use windows::windows;

/// Windows that are with the cluster at once.
const AT_ONCE: usize = 4;
/// A window that the cluster cannot take at the moment is sent again so often, after this time.
const ATTEMPTS: u32 = 30;
const RETRY: Duration = Duration::from_secs(1);

/// Print how likely a model finds a text: the negative log-likelihood of its tokens (in nats, their mean) and the
/// perplexity.
///
/// A text longer than the window is cut: each window is --stride tokens further on than the one before, and of its tokens
/// only those count that no window before it held. The others are context, at least window - stride tokens of it. So every
/// token but the text's first counts exactly once. A smaller stride gives every token more context, for more work.
/// Windows are slices of the text's tokens as they are: what begins a sequence (BOS) stands at the text's beginning only.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  foggara score book.txt\n  foggara score --json --window 512 --stride 256 a.txt b.txt\n  \
    echo '[504, 2933, 18]' | foggara score --tokens -"
)]
pub(crate) struct Arguments {
    /// Texts in UTF-8; `-` is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<String>,
    /// Model to ask [default: the only one served]
    #[arg(long, default_value = "", hide_default_value = true, value_name = "NAME")]
    model: String,
    /// The files hold token ids: a JSON list, or numbers with spaces, commas or line ends between
    #[arg(long)]
    tokens: bool,
    /// Tokens of a window [default: the model's context, as far as the KV cache holds it]
    #[arg(long, value_name = "N")]
    window: Option<usize>,
    /// How far each window is from the one before: below the window [default: half of it]
    #[arg(long, value_name = "N")]
    stride: Option<usize>,
    /// Print a row for each window too
    #[arg(long)]
    each_window: bool,
    /// Print JSON, with each token's id, text and log-probability
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    endpoint: EndpointArguments,
}

/// Scores the files, one after the other.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = arguments.endpoint.inference().await?;
        let model = model(client.clone(), &arguments.model).await?;
        let (window, stride) = arguments.cut(&model)?;
        let scorer = Scorer { client, model: model.name, window, stride };
        let mut scored = Vec::new();
        for file in &arguments.files {
            let text = texts::read(file)?;
            let ids = match arguments.tokens {
                true => texts::token_ids(&text),
                false => scorer.tokenize(&text).await,
            };
            let ids = ids.with_context(|| file.clone())?;
            scored.push(scorer.score(file, &ids).await.with_context(|| file.clone())?);
        }
        let mut out = std::io::stdout().lock();
        if arguments.json {
            let value = report::as_json(&scorer.model, window, stride, &scored);
            writeln!(out, "{}", serde_json::to_string(&value)?)?;
        } else {
            report::print(&mut out, &scored, arguments.each_window)?;
        }
        Ok(out.flush()?)
    })
}

impl Arguments {
    /// Window and stride.
    fn cut(&self, model: &wire::Model) -> anyhow::Result<(usize, usize)> {
        let cache = usize::try_from(model.kv_tokens).unwrap_or(usize::MAX);
        let most = (model.context as usize).min(if cache == 0 { usize::MAX } else { cache });
        let window = self.window.unwrap_or(most);
        anyhow::ensure!(
            (2..=most).contains(&window),
            "window: {window}, must be within 2..={most} (the context is {}, the KV cache holds {cache})",
            model.context
        );
        let stride = self.stride.unwrap_or(window / 2);
        anyhow::ensure!(
            (1..window).contains(&stride),
            "stride: {stride}, must be at least 1 and below the window of {window}"
        );
        Ok((window, stride))
    }
}

/// The model of that name, or the only one.
async fn model(mut client: InferenceClient<Channel>, name: &str) -> anyhow::Result<wire::Model> {
    let models = client.list_models(wire::ListModelsRequest {}).await?.into_inner().models;
    let names: Vec<&str> = models.iter().map(|model| model.name.as_str()).collect();
    let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let mut deployments = models.iter().filter(|model| model.parent.is_empty());
    let found = match name {
        "" if deployments.clone().count() == 1 => deployments.next().cloned(),
        "" => anyhow::bail!("name one of the models served with --model ({names})"),
        name => models.into_iter().find(|model| model.name == name),
    };
    found.with_context(|| format!("model `{name}` is not served here (served: {names})"))
}

/// Asks one model.
struct Scorer {
    client: InferenceClient<Channel>,
    model: String,
    window: usize,
    stride: usize,
}

impl Scorer {
    async fn tokenize(&self, text: &str) -> anyhow::Result<Vec<u32>> {
        let mut ids = Vec::new();
        for (number, piece) in texts::pieces(text).into_iter().enumerate() {
            let (model, text) = (self.model.clone(), piece.to_owned());
            let request = wire::TokenizeRequest { model, text, no_special: number > 0 };
            ids.extend(self.client.clone().tokenize(request).await?.into_inner().ids);
        }
        Ok(ids)
    }

    async fn score(&self, name: &str, ids: &[u32]) -> anyhow::Result<Scored> {
        let windows = windows(ids.len(), self.window, self.stride);
        // A single token is scored by nothing, but shown.
        let first = ids.first().map(|id| Token { id: *id, text: String::new(), logprob: None });
        let mut tokens: Vec<Token> = first.into_iter().collect();
        let asked = windows.iter().map(|window| self.patiently(&ids[window.tokens.clone()]));
        let mut answers = futures::stream::iter(asked).buffered(AT_ONCE).enumerate();
        while let Some((number, answer)) = answers.next().await {
            let window = &windows[number];
            let mut answer = answer?;
            anyhow::ensure!(answer.len() == window.tokens.len(), "{} tokens came back", answer.len());
            let counted = answer.split_off(window.scored_from - window.tokens.start);
            if number == 0 {
                tokens = answer;
            }
            tokens.extend(counted);
        }
        drop(answers);
        Ok(Scored { name: name.into(), tokens, windows })
    }

    /// The tokens of a window with their log-probabilities, when the cluster can.
    async fn patiently(&self, ids: &[u32]) -> anyhow::Result<Vec<Token>> {
        let mut attempt = 1;
        loop {
            match self.ask(ids).await {
                Err(status)
                    if attempt < ATTEMPTS
                        && (is_broken(&status)
                            || matches!(status.code(), Code::Unavailable | Code::ResourceExhausted)) =>
                {
                    attempt += 1;
                    tokio::time::sleep(RETRY).await;
                }
                outcome => return Ok(outcome?),
            }
        }
    }

    async fn ask(&self, ids: &[u32]) -> Result<Vec<Token>, tonic::Status> {
        let request = wire::GenerateRequest {
            model: self.model.clone(),
            prompt: Some(wire::generate_request::Prompt::Tokens(wire::TokenIds { ids: ids.to_vec() })),
            sampling: Some(wire::SamplingParams { max_tokens: Some(0), ..Default::default() }),
            output: Some(wire::OutputOptions { logprobs: Some(0), echo: true, ..Default::default() }),
            ..Default::default()
        };
        let mut stream = self.client.clone().generate(request).await?.into_inner();
        let mut tokens = Vec::new();
        while let Some(message) = stream.try_next().await? {
            if let Some(wire::generate_response::Event::Delta(delta)) = message.event {
                let token =
                    |t: wire::TokenLogprob| Token { id: t.token_id, text: t.token, logprob: t.logprob };
                tokens.extend(delta.logprobs.into_iter().map(token));
            }
        }
        Ok(tokens)
    }
}
