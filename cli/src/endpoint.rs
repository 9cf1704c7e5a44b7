//! Connecting to a cluster: any of its coordinators will do.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use foggara_proto::wire::admin::StatusRequest;
use foggara_proto::wire::admin::admin_client::AdminClient;
use foggara_proto::wire::inference::inference_client::InferenceClient;
use foggara_tls::Dialer;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};

use crate::exit::UsageError;
use crate::secret::TokenArguments;
use crate::tls::TrustArguments;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A machine that vanishes closes no connection: one that answers no ping is gone.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a coordinator may take to say which others there are.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);
/// Answers may carry the log-probabilities of a whole prompt.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// Which cluster to talk to.
#[derive(Debug, Clone, Args)]
pub(crate) struct EndpointArguments {
    /// A coordinator, or several to be tried in turn; the others go on with an answer when the one that gives it dies. Without
    /// http:// or https:// it is https:// if --tls-ca is given
    #[arg(
        long,
        env = "FOGGARA_ENDPOINT",
        value_name = "URL",
        value_delimiter = ',',
        default_value = "127.0.0.1:8081,127.0.0.1:8091,127.0.0.1:8101"
    )]
    endpoint: Vec<String>,
    #[command(flatten)]
    trust: TrustArguments,
    #[command(flatten)]
    token: TokenArguments,
}

impl EndpointArguments {
    /// Connects to the first coordinator that answers.
    ///
    /// # Errors
    /// If none does.
    pub(crate) async fn connect(&self) -> anyhow::Result<Channel> {
        let mut first_failure = None;
        let caller = self.caller();
        for url in &self.endpoint {
            match caller.connect(url).await {
                Ok(channel) => return Ok(channel),
                Err(error) => first_failure = first_failure.or(Some(error)),
            }
        }
        let failure = first_failure.unwrap_or_else(|| anyhow::anyhow!("no endpoint is given"));
        Err(failure.context("no coordinator answers (is the cluster up? start one with `foggara up`)"))
    }

    /// One coordinator, with the same token.
    pub(crate) fn only(&self, url: &str) -> Self {
        let url = self.caller().learned(url);
        Self { endpoint: vec![url], token: self.token.clone(), trust: self.trust.clone() }
    }

    /// How its coordinators are called.
    pub(crate) fn caller(&self) -> Caller {
        let ca = self.trust.ca();
        let secure = ca.is_some() || self.endpoint.iter().any(|url| url.starts_with("https://"));
        Caller { ca, secure }
    }

    /// The coordinators that are named.
    pub(crate) fn urls(&self) -> Vec<String> {
        self.endpoint.clone()
    }

    /// Those that one of them knows; none if it does not tell, which is no reason to fail.
    pub(crate) async fn others(&self, channel: Channel) -> Vec<String> {
        let token = self.token.token().unwrap_or_default();
        let mut admin = AdminClient::with_interceptor(channel, token.shown());
        let status = tokio::time::timeout(STATUS_TIMEOUT, admin.status(StatusRequest {})).await;
        let status = status.ok().and_then(Result::ok).map(tonic::Response::into_inner).unwrap_or_default();
        let caller = self.caller();
        status.coordinators.into_iter().map(|coordinator| caller.learned(&coordinator.addr)).collect()
    }

    /// These coordinators.
    #[cfg(test)]
    pub(crate) fn of(urls: &[&str]) -> Self {
        let (endpoint, token) = (urls.iter().map(ToString::to_string).collect(), TokenArguments::None);
        Self { endpoint, token, trust: TrustArguments::default() }
    }

    /// The service of clients.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub(crate) async fn inference(&self) -> anyhow::Result<InferenceClient<Channel>> {
        Ok(inference(self.connect().await?))
    }

    /// The service of operators.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub(crate) async fn admin(
        &self,
    ) -> anyhow::Result<AdminClient<InterceptedService<Channel, impl Interceptor + use<>>>> {
        let token = self.token.token()?;
        Ok(AdminClient::with_interceptor(self.connect().await?, token.shown()))
    }
}

/// The service of clients, over a connection.
pub(crate) fn inference(channel: Channel) -> InferenceClient<Channel> {
    InferenceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

/// All of `urls`, then those of `more` that are not among them.
pub(crate) fn distinct(mut urls: Vec<String>, more: Vec<String>) -> Vec<String> {
    let address = |url: &str| bare(url).to_owned();
    for url in more {
        if urls.iter().all(|known| address(known) != address(&url)) {
            urls.push(url);
        }
    }
    urls
}

/// HOST:PORT of a URL.
pub(crate) fn bare(url: &str) -> &str {
    url.trim_start_matches("http://").trim_start_matches("https://").trim_end_matches('/')
}

/// Whether `text` is HOST:PORT. Whether there is such a host is not asked.
pub(crate) fn is_address(text: &str) -> bool {
    let parts = text.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
    parts.is_some_and(|(host, port)| port > 0 && !host.is_empty() && !host.contains(['/', ' ', '=']))
}

/// How coordinators are called: in plain text, or over TLS.
#[derive(Debug, Clone, Default)]
pub(crate) struct Caller {
    /// Who signs for them; none: whoever this system trusts.
    ca: Option<PathBuf>,
    /// Whether an address without http:// or https:// speaks TLS.
    secure: bool,
}

impl Caller {
    /// Over TLS by the authorities of `ca`, if there are some.
    pub(crate) fn trusting(ca: Option<PathBuf>) -> Self {
        Self { secure: ca.is_some(), ca }
    }

    /// The URL of an address that a coordinator has told.
    fn learned(&self, address: &str) -> String {
        match (address.contains("://"), self.secure) {
            (true, _) => address.to_owned(),
            (false, true) => format!("https://{address}"),
            (false, false) => format!("http://{address}"),
        }
    }

    /// How the coordinator at `url` is called.
    ///
    /// # Errors
    /// If there is nobody to check it by.
    pub(crate) fn dialer(&self, url: &str) -> Result<Dialer, UsageError> {
        Ok(Dialer::for_url(&self.learned(url), self.ca.as_deref())?)
    }

    /// Connects to one coordinator.
    ///
    /// # Errors
    /// If the address is none, nobody listens there, or it is not who it should be.
    pub(crate) async fn connect(&self, url: &str) -> anyhow::Result<Channel> {
        let dialer = self.dialer(url)?;
        let url = self.learned(url);
        let endpoint = Endpoint::from_shared(url.clone()).with_context(|| format!("endpoint `{url}`"))?;
        let endpoint = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
        let channel = dialer.connect(&endpoint).await;
        channel.map_err(|error| anyhow::anyhow!("{url}: {}", foggara_tls::cause(&error)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_a_host_and_a_port() {
        for good in ["a:1", "10.0.0.1:8081", "[::1]:8081", "node-1.example:65535"] {
            assert!(is_address(good), "{good}");
        }
        for bad in ["", "a", "a:", ":1", "a:0", "a:70000", "http://a:1", "1=a:1", "a b:1"] {
            assert!(!is_address(bad), "{bad}");
        }
    }

    #[test]
    fn a_coordinator_is_known_once() {
        let urls = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        let named = urls(&["http://a:1/", "b:2"]);
        let all = distinct(named, urls(&["http://b:2", "http://a:1", "http://c:3"]));
        assert_eq!(all, urls(&["http://a:1/", "b:2", "http://c:3"]));
    }

    #[test]
    fn what_has_no_scheme_speaks_as_the_others_do() {
        let learned = |urls: &[&str], ca: bool| {
            let mut endpoint = EndpointArguments::of(urls);
            endpoint.trust = TrustArguments::of(ca.then(|| "/ca".into()));
            let caller = endpoint.caller();
            ["a:1", "http://a:1", "https://a:1"].map(|address| caller.learned(address))
        };
        for (urls, ca, expected) in [
            (&["b:2"][..], false, "http://a:1"),
            (&["http://b:2"], false, "http://a:1"),
            (&["https://b:2"], false, "https://a:1"),
            (&["b:2"], true, "https://a:1"),
        ] {
            assert_eq!(learned(urls, ca), [expected, "http://a:1", "https://a:1"], "{urls:?}");
        }
    }
}
