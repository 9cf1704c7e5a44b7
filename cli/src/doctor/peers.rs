//! What other coordinators say: whether they are there, their version, their time, and whether they take our token.

use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime};

use foggara_proto::auth::ClusterToken;
use foggara_proto::version::{Build, Range};
use foggara_proto::wire::admin::StatusRequest;
use foggara_proto::wire::admin::admin_client::AdminClient;
use foggara_tls::{Dialer, Over};
use futures::future::join_all;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::Code;

use super::http;
use crate::endpoint::{Caller, bare};

/// How long a coordinator may take for each thing it is asked.
const PATIENCE: Duration = Duration::from_secs(3);

/// What came of asking a coordinator.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Peer {
    /// HOST:PORT.
    pub(super) address: String,
    pub(super) answer: Result<Answer, Silence>,
}

/// What it said.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Answer {
    /// Of a connection.
    pub(super) round_trip: Duration,
    /// This host's address towards it.
    pub(super) from: Option<IpAddr>,
    /// What it is; or why it did not tell.
    pub(super) version: Result<Told, String>,
    /// How far its clock is ahead of ours, in seconds.
    pub(super) ahead: Option<f64>,
    /// What it made of our token.
    pub(super) admission: Admission,
}

/// What a coordinator says that it is.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Told {
    pub(super) version: String,
    /// All of it, if it says so much.
    pub(super) build: Option<Build>,
}

impl Told {
    fn parse(body: &[u8]) -> Option<Self> {
        let body: serde_json::Value = serde_json::from_slice(body).ok()?;
        let version = body.get("version")?.as_str()?.to_owned();
        let range = |name: &str| {
            let number = |end: &str| u32::try_from(body.get(name)?.get(end)?.as_u64()?).ok();
            Some(Range { oldest: number("oldest")?, newest: number("newest")? })
        };
        let build = range("protocols").zip(range("formats"));
        let build = build.map(|(protocols, formats)| Build { version: version.clone(), protocols, formats });
        Some(Self { version, build })
    }
}

/// Whether operators' calls are taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Admission {
    Taken,
    /// Not with this token.
    Refused,
    /// No answer that says so.
    Failed(String),
}

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Silence {
    /// The host says that nobody listens there.
    Refused,
    /// Nothing came back.
    TimedOut,
    /// It cannot even be tried.
    Failed(String),
    /// Somebody is there, but there is no TLS with them: why.
    Insecure(String),
}

/// Asks all of `addresses` at once.
pub(super) async fn ask(addresses: &[String], token: &ClusterToken, caller: &Caller) -> Vec<Peer> {
    join_all(addresses.iter().map(|address| async move {
        let answer = one(bare(address), token, caller).await;
        Peer { address: bare(address).to_owned(), answer }
    }))
    .await
}

async fn one(address: &str, token: &ClusterToken, caller: &Caller) -> Result<Answer, Silence> {
    let dialer = caller.dialer(address).map_err(|error| Silence::Insecure(error.to_string()))?;
    let started = Instant::now();
    let stream = match timeout(PATIENCE, TcpStream::connect(address)).await {
        Err(_) => return Err(Silence::TimedOut),
        Ok(Err(error)) => return Err(silence(&error)),
        Ok(Ok(stream)) => stream,
    };
    let round_trip = started.elapsed();
    let from = stream.local_addr().ok().map(|own| own.ip());
    let before = SystemTime::now();
    let told = timeout(PATIENCE, version(stream, address, &dialer)).await;
    let told = match told {
        Ok(Err(silence)) => return Err(silence),
        Ok(Ok(told)) => Ok(told),
        Err(late) => Err(late),
    };
    let after = SystemTime::now();
    let told = told.unwrap_or_else(|_| Err(format!("no answer within {} s", PATIENCE.as_secs())));
    let ahead = told.as_ref().ok().and_then(|reply| Some(super::clock::ahead(reply.date?, before, after)));
    let version = told.and_then(|reply| {
        Told::parse(&reply.body).ok_or_else(|| "it is no coordinator: it does not say its version".to_owned())
    });
    Ok(Answer { round_trip, from, version, ahead, admission: admission(address, token, caller).await })
}

/// Asks for the version, over TLS where that is spoken.
async fn version(
    stream: TcpStream,
    address: &str,
    dialer: &Dialer,
) -> Result<Result<http::Reply, String>, Silence> {
    const PATH: &str = "/version";
    match dialer.over(stream, address).await.map_err(Silence::Insecure)? {
        Over::Tls(secured) => Ok(http::get(secured, address, PATH).await),
        Over::Plain(stream) => Ok(http::get(stream, address, PATH).await),
    }
}

fn silence(error: &io::Error) -> Silence {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Silence::Refused,
        io::ErrorKind::TimedOut => Silence::TimedOut,
        _ => Silence::Failed(error.to_string()),
    }
}

/// Asks for the status, as operators do.
async fn admission(address: &str, token: &ClusterToken, caller: &Caller) -> Admission {
    let call = async {
        let channel = caller.connect(address).await.map_err(|error| Admission::Failed(error.to_string()))?;
        let mut admin = AdminClient::with_interceptor(channel, token.shown());
        admin.status(StatusRequest {}).await.map(drop).map_err(|status| match status.code() {
            Code::Unauthenticated => Admission::Refused,
            _ => Admission::Failed(crate::output::status_text(&status)),
        })
    };
    match timeout(PATIENCE, call).await {
        Ok(Ok(())) => Admission::Taken,
        Ok(Err(admission)) => admission,
        Err(_) => Admission::Failed(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}

/// A coordinator that answers, for tests.
#[cfg(test)]
pub(super) fn answering(address: &str) -> Peer {
    let answer = Answer {
        round_trip: Duration::from_micros(300),
        from: None,
        version: Ok(Told { version: Build::own().version, build: Some(Build::own()) }),
        ahead: Some(0.2),
        admission: Admission::Taken,
    };
    Peer { address: address.into(), answer: Ok(answer) }
}
