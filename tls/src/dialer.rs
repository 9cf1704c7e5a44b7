//! Opening connections: over TLS where there is TLS.

use std::io;
use std::path::Path;
use std::sync::Arc;

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint, Error};
use tower::Service;

use super::files::FileError;
use super::{Trust, words};

/// How other processes are called: in plain text, or over TLS by those that are trusted.
#[derive(Clone, Default)]
pub struct Dialer(Option<Trust>);

impl std::fmt::Debug for Dialer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Dialer({})", self.scheme())
    }
}

impl Dialer {
    /// In plain text, unless somebody is trusted.
    pub fn new(trust: Option<Trust>) -> Self {
        Self(trust)
    }

    /// As a URL asks for: over TLS if it begins with `https://`, by the authorities of `ca` or those of the system.
    ///
    /// # Errors
    /// If there are none.
    pub fn for_url(url: &str, ca: Option<&Path>) -> Result<Self, FileError> {
        let secure = url.starts_with("https://");
        Ok(Self(secure.then(|| Trust::of_client(ca)).transpose()?))
    }

    /// `http` or `https`.
    pub fn scheme(&self) -> &'static str {
        if self.0.is_some() { "https" } else { "http" }
    }

    /// The process at `address` (HOST:PORT).
    ///
    /// # Errors
    /// If it is no address.
    pub fn endpoint(&self, address: &str) -> Result<Endpoint, Error> {
        Ok(Endpoint::from_shared(format!("{}://{address}", self.scheme()))?.tcp_nodelay(true))
    }

    /// A connection that is made when it is first used, and again when it is lost.
    pub fn lazy(&self, endpoint: &Endpoint) -> Channel {
        match &self.0 {
            None => endpoint.connect_lazy(),
            Some(trust) => endpoint.connect_with_connector_lazy(connector(trust.clone())),
        }
    }

    /// A connection.
    ///
    /// # Errors
    /// Why there is none. The innermost cause says it in words.
    pub async fn connect(&self, endpoint: &Endpoint) -> Result<Channel, Error> {
        match &self.0 {
            None => endpoint.connect().await,
            Some(trust) => endpoint.connect_with_connector(connector(trust.clone())).await,
        }
    }

    /// A connection to `address` as it is to be spoken over, in HTTP/1.
    ///
    /// # Errors
    /// Why there is no TLS, in words.
    pub async fn over(&self, stream: TcpStream, address: &str) -> Result<Over, String> {
        let Some(trust) = &self.0 else { return Ok(Over::Plain(stream)) };
        let config = Arc::new(trust.config_for(&[super::HTTP_1]));
        let secured = handshake(stream, config, trust, address, super::host_of(address)).await?;
        Ok(Over::Tls(Box::new(secured)))
    }
}

/// A connection, as it is spoken over.
#[derive(Debug)]
pub enum Over {
    /// In plain text.
    Plain(TcpStream),
    /// Over TLS.
    Tls(Box<TlsStream<TcpStream>>),
}

fn connector(
    trust: Trust,
) -> impl Service<Uri, Response = TokioIo<TlsStream<TcpStream>>, Error = io::Error, Future: Send + 'static>
+ Send
+ 'static {
    tower::service_fn(move |uri: Uri| {
        let trust = trust.clone();
        async move {
            let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
            let port = uri.port_u16().unwrap_or(443);
            let address = uri.authority().map(ToString::to_string).unwrap_or_default();
            let stream = TcpStream::connect((host.as_str(), port)).await?;
            stream.set_nodelay(true)?;
            let config = trust.config();
            let secured = handshake(stream, config, &trust, &address, &host).await;
            secured.map(TokioIo::new).map_err(io::Error::other)
        }
    })
}

async fn handshake(
    stream: TcpStream,
    config: Arc<rustls::ClientConfig>,
    trust: &Trust,
    address: &str,
    host: &str,
) -> Result<TlsStream<TcpStream>, String> {
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| format!("`{host}` is no host that a certificate could be for"))?;
    let secured = TlsConnector::from(config).connect(name, stream).await;
    secured.map_err(|error| words::of_handshake(&error, address, host, &trust.signers()))
}
