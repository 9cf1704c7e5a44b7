//! An answer that outlives the coordinator it comes from: another one is asked to go on with it.

#[cfg(test)]
mod tests;
mod told;

use std::time::{Duration, Instant};

use foggara_proto::wire::inference as wire;
use foggara_proto::wire::inference::inference_client::InferenceClient;
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use crate::endpoint::{self, Caller, EndpointArguments};
use crate::output::status_text;
use told::Told;

/// How long somebody is looked for who goes on with an answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two rounds of asking everybody.
const RETRY: Duration = Duration::from_millis(500);

/// What is asked for. The request id is the client's, so that the request can be found again.
pub(crate) enum Asked {
    Generate(wire::GenerateRequest),
    Chat(wire::ChatRequest),
    /// What somebody has asked for already.
    Attach(wire::AttachRequest),
}

impl Asked {
    /// A name for a new request.
    pub(crate) fn new_id() -> String {
        uuid::Uuid::new_v4().to_string()
    }

    fn request_id(&self) -> &str {
        match self {
            Self::Generate(request) => &request.request_id,
            Self::Chat(request) => &request.request_id,
            Self::Attach(request) => &request.request_id,
        }
    }

    async fn send(
        &self,
        client: &mut InferenceClient<Channel>,
    ) -> Result<Streaming<wire::GenerateResponse>, Status> {
        let response = match self {
            Self::Generate(request) => client.generate(request.clone()).await?,
            Self::Chat(request) => client.chat(request.clone()).await?,
            Self::Attach(request) => client.attach(request.clone()).await?,
        };
        Ok(response.into_inner())
    }
}

/// The messages of an answer, each once, whoever they come from.
pub(crate) struct AnswerStream {
    asked: Asked,
    caller: Caller,
    /// Coordinators that nobody named but that the first one knew.
    others: Option<JoinHandle<Vec<String>>>,
    known: Vec<String>,
    messages: Streaming<wire::GenerateResponse>,
    told: Told,
    /// Since when nothing new has come because the stream broke off.
    broken: Option<Instant>,
}

/// Why a coordinator does not go on with an answer.
enum Refusal {
    /// It or another one may, now or later.
    NotHere(String),
    /// Nobody will.
    Never(Status),
}

impl AnswerStream {
    /// Asks the first coordinator that can be reached.
    ///
    /// # Errors
    /// If none can, or it refuses.
    pub(crate) async fn start(endpoint: &EndpointArguments, asked: Asked) -> anyhow::Result<Self> {
        let channel = endpoint.connect().await?;
        let messages = asked.send(&mut endpoint::inference(channel.clone())).await?;
        let told = match &asked {
            Asked::Attach(request) => Told::beyond(&request.tokens_received),
            Asked::Generate(_) | Asked::Chat(_) => Told::default(),
        };
        // Not before the answer: it need not wait for that.
        let (known, named) = (endpoint.urls(), endpoint.clone());
        let others = tokio::spawn(async move { named.others(channel).await });
        let caller = endpoint.caller();
        Ok(Self { asked, caller, others: Some(others), known, messages, told, broken: None })
    }

    /// The next message; `None` when every answer has ended.
    ///
    /// # Errors
    /// What the cluster says, or that nobody goes on with the answer.
    pub(crate) async fn message(&mut self) -> anyhow::Result<Option<wire::GenerateResponse>> {
        loop {
            match self.messages.message().await {
                Ok(Some(message)) => {
                    if let Some(new) = self.told.take(message)? {
                        self.broken = None;
                        return Ok(Some(new));
                    }
                }
                Ok(None) if self.told.is_whole() => return Ok(None),
                Ok(None) => self.go_on("it ended early").await?,
                Err(status) if self.told.has_started() && is_broken(&status) => {
                    self.go_on(&reason(&status)).await?;
                }
                Err(status) => return Err(status.into()),
            }
        }
    }

    /// Finds somebody who goes on with the answer.
    async fn go_on(&mut self, lost: &str) -> anyhow::Result<()> {
        if let Some(others) = self.others.take() {
            let learned = others.await.unwrap_or_default();
            self.known = endpoint::distinct(std::mem::take(&mut self.known), learned);
        }
        // A second time without anything new: not at once.
        if self.broken.is_some() {
            tokio::time::sleep(RETRY).await;
        }
        let since = *self.broken.get_or_insert_with(Instant::now);
        loop {
            let mut last = String::new();
            for url in self.known.clone() {
                match self.ask(&url).await {
                    Ok(messages) => {
                        self.messages = messages;
                        eprintln!("[the coordinator was lost; {url} goes on]");
                        return Ok(());
                    }
                    Err(Refusal::NotHere(why)) => last = why,
                    Err(Refusal::Never(status)) => return Err(status.into()),
                }
            }
            if since.elapsed() > PATIENCE {
                let id = self.asked.request_id();
                anyhow::bail!("the answer broke off ({lost}) and nobody goes on with request `{id}`: {last}");
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Asks one coordinator for what is left; for the whole answer again, if nobody has it any more.
    async fn ask(&mut self, url: &str) -> Result<Streaming<wire::GenerateResponse>, Refusal> {
        let channel = self.caller.connect(url).await.map_err(|e| Refusal::NotHere(e.to_string()))?;
        let mut client = endpoint::inference(channel);
        let request_id = self.asked.request_id().to_owned();
        let attach = wire::AttachRequest { request_id, tokens_received: self.told.received() };
        match client.attach(attach).await {
            Ok(response) => {
                self.told.goes_on();
                return Ok(response.into_inner());
            }
            Err(status) if status.code() == Code::NotFound && !matches!(self.asked, Asked::Attach(_)) => {}
            Err(status) => return Err(refusal(url, status)),
        }
        // The same request under the same id: the same tokens.
        let messages = self.asked.send(&mut client).await.map_err(|status| refusal(url, status))?;
        self.told.begins_again();
        Ok(messages)
    }
}

fn refusal(url: &str, status: Status) -> Refusal {
    match status.code() {
        Code::Unavailable | Code::ResourceExhausted | Code::AlreadyExists => {
            Refusal::NotHere(format!("{url}: {}", reason(&status)))
        }
        _ if is_broken(&status) => Refusal::NotHere(format!("{url}: {}", reason(&status))),
        _ => Refusal::Never(status),
    }
}

/// Whether it is the connection that failed: what a server says itself has no cause here, and none says "unknown".
pub(crate) fn is_broken(status: &Status) -> bool {
    std::error::Error::source(status).is_some() || matches!(status.code(), Code::Unknown | Code::Cancelled)
}

/// What a status says, or what caused it.
fn reason(status: &Status) -> String {
    let mut text = status_text(status);
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        text = error.to_string();
        cause = error.source();
    }
    text
}
