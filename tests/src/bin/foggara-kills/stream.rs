//! Following one stream, also from one coordinator to another.

use std::time::{Duration, Instant};

use foggara_proto::wire::inference::generate_response::Event;
use foggara_proto::wire::inference::{Finished, GenerateRequest, GenerateResponse};
use foggara_tests::answer::{TokenBits, bits};
use foggara_tests::client::Client;
use foggara_tests::wait::PATIENCE;
use tonic::{Code, Request, Status, Streaming};

/// Between two attempts to attach.
const PAUSE: Duration = Duration::from_millis(50);

/// What has come of a stream, and when.
#[derive(Debug, Clone, Default)]
pub struct Heard {
    pub tokens: Vec<u32>,
    pub logprobs: Vec<TokenBits>,
    pub text: String,
    pub finished: Option<Finished>,
    arrivals: Vec<Instant>,
    /// How often another coordinator was attached to, and how often the request had to be sent again.
    pub attached: usize,
    pub sent_again: usize,
}

impl Heard {
    fn take(&mut self, message: GenerateResponse, skip: &mut usize) -> usize {
        match message.event {
            Some(Event::Delta(delta)) => {
                // Of an answer that began anew: what is there already.
                let known = delta.token_ids.len().min(*skip);
                *skip -= known;
                let new = delta.token_ids.len() - known;
                if new > 0 {
                    self.arrivals.push(Instant::now());
                }
                self.tokens.extend(&delta.token_ids[known..]);
                self.logprobs.extend(delta.logprobs.iter().skip(known).map(bits));
                self.text.push_str(&delta.text);
                new
            }
            Some(Event::Finished(finished)) => {
                self.finished = Some(finished);
                0
            }
            Some(Event::Started(_)) | None => 0,
        }
    }

    /// The longest time between two messages with tokens.
    pub fn stall(&self) -> Duration {
        self.arrivals.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }

    /// Whether it is the same answer, whoever computed it and whatever lay in the prefix cache.
    pub fn is(&self, other: &Self) -> bool {
        let usage = |heard: &Self| {
            let mut finished = heard.finished.clone();
            finished.iter_mut().flat_map(|end| &mut end.usage).for_each(|usage| usage.cached_tokens = 0);
            finished
        };
        let same_text = self.sent_again > 0 || self.text == other.text;
        self.tokens == other.tokens
            && self.logprobs == other.logprobs
            && same_text
            && usage(self) == usage(other)
    }
}

/// Follows `request` through `client` to its end. When the stream breaks off, goes on through one of `others`, if there is one.
/// `told` hears of every new token.
pub async fn follow(
    client: &Client,
    others: &[Client],
    request: GenerateRequest,
    mut told: impl FnMut(usize),
) -> Result<Heard, String> {
    let mut heard = Heard::default();
    let mut stream = client.stream(request.clone()).await.map_err(|status| describe(&status))?;
    let mut skip = 0;
    loop {
        match stream.message().await {
            Ok(Some(message)) => told(heard.take(message, &mut skip)),
            Ok(None) if heard.finished.is_some() => return Ok(heard),
            Ok(None) => return Err("the stream ended without `finished`".into()),
            Err(status) if others.is_empty() => return Err(describe(&status)),
            Err(_) => (stream, skip) = elsewhere(others, &request, &mut heard).await?,
        }
    }
}

/// The rest of a stream, through the first of `others` that can give it; and how many of its tokens are known.
async fn elsewhere(
    others: &[Client],
    request: &GenerateRequest,
    heard: &mut Heard,
) -> Result<(Streaming<GenerateResponse>, usize), String> {
    let since = Instant::now();
    for other in others.iter().cycle() {
        let received = u32::try_from(heard.tokens.len()).unwrap_or(u32::MAX);
        let failed = match attach(other, &request.request_id, received).await {
            Ok(stream) => {
                heard.attached += 1;
                return Ok((stream, 0));
            }
            // Nobody knows it: under the same id the same tokens come once more.
            Err(status) if status.code() == Code::NotFound => match other.stream(request.clone()).await {
                Ok(stream) => {
                    heard.sent_again += 1;
                    return Ok((stream, heard.tokens.len()));
                }
                Err(status) => status,
            },
            Err(status) => status,
        };
        if since.elapsed() > PATIENCE {
            return Err(format!("no coordinator could be attached to: {}", describe(&failed)));
        }
        tokio::time::sleep(PAUSE).await;
    }
    Err("there is no other coordinator".into())
}

/// `Inference.Attach`'s request: the stream of a request goes on after so many tokens.
#[derive(Clone, PartialEq, prost::Message)]
struct AttachRequest {
    #[prost(string, tag = "1")]
    request_id: String,
    /// Of each answer; there is one.
    #[prost(uint32, repeated, tag = "2")]
    tokens_received: Vec<u32>,
}

async fn attach(
    client: &Client,
    request_id: &str,
    tokens_received: u32,
) -> Result<Streaming<GenerateResponse>, Status> {
    let mut grpc = tonic::client::Grpc::new(client.channel()).max_decoding_message_size(64 << 20);
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let codec = tonic_prost::ProstCodec::<AttachRequest, GenerateResponse>::default();
    let path = "/foggara.inference.v1.Inference/Attach".parse().expect("a path");
    let request = AttachRequest { request_id: request_id.into(), tokens_received: vec![tokens_received] };
    Ok(grpc.server_streaming(Request::new(request), path, codec).await?.into_inner())
}

/// Whether coordinators know how to attach: one that does not find this request says so.
pub async fn attach_is_there(client: &Client) -> bool {
    let said = match attach(client, "nobody-has-asked-for-this", 0).await {
        Ok(mut stream) => stream.message().await.err(),
        Err(status) => Some(status),
    };
    said.is_none_or(|status| status.code() != Code::Unimplemented)
}

fn describe(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}
