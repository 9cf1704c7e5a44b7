//! Connections that arrive where TLS is spoken.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderMap, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::transport::server::Connected;

use super::Tls;
use super::words::SPEAKS_TLS;

/// How long a client may take to begin, and again for its handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a client that speaks plain text is listened to.
const REFUSAL: Duration = Duration::from_secs(5);
/// What every TLS connection begins with: a record of the handshake.
const HANDSHAKE_RECORD: u8 = 0x16;
/// Handshakes at once on a listener of [`incoming`]; more connections wait.
const MAX_HANDSHAKES: usize = 256;
/// Connections that wait to be taken.
const WAITING: usize = 16;
/// After a connection could not be accepted: most likely there are too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A connection over TLS.
pub type ServerStream = tokio_rustls::server::TlsStream<TcpStream>;

/// Makes TLS of a connection. A client that speaks plain text is told so, in what it speaks.
pub async fn arrive(stream: TcpStream, tls: &Tls) -> Option<ServerStream> {
    // A token is a small packet that should leave at once.
    stream.set_nodelay(true).ok();
    let mut first = [0];
    let begins = timeout(HANDSHAKE, stream.peek(&mut first)).await.ok()?.ok()? == 1;
    if !begins {
        return None;
    }
    if first[0] != HANDSHAKE_RECORD {
        refuse(stream).await;
        return None;
    }
    match timeout(HANDSHAKE, TlsAcceptor::from(tls.server()).accept(stream)).await {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(error)) => {
            tracing::debug!(%error, "a TLS handshake failed");
            None
        }
        Err(_) => None,
    }
}

/// Answers whatever is asked in plain text by what should have been spoken.
async fn refuse(stream: TcpStream) {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().keep_alive(false).timer(TokioTimer::new()).header_read_timeout(REFUSAL);
    let service = TowerToHyperService::new(tower::service_fn(|request: Request<_>| async move {
        Ok::<_, Infallible>(refusal(request.headers()))
    }));
    timeout(REFUSAL, builder.serve_connection(TokioIo::new(stream), service)).await.ok();
}

fn refusal(asked: &HeaderMap) -> Response<Body> {
    let kind = asked.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    if kind.is_some_and(|kind| kind.starts_with("application/grpc")) {
        return tonic::Status::unavailable(SPEAKS_TLS).into_http();
    }
    let mut response = Response::new(Body::new(format!("{SPEAKS_TLS}\n")));
    *response.status_mut() = StatusCode::BAD_REQUEST;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain"));
    response
}

/// A connection over TLS, as tonic's server takes it.
#[derive(Debug)]
pub struct Accepted(ServerStream);

impl Connected for Accepted {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, into)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// The connections of a listener, as soon as each speaks TLS; one that is slow keeps no other waiting.
pub fn incoming(listener: TcpListener, tls: Tls) -> ReceiverStream<io::Result<Accepted>> {
    let (sender, receiver) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        let mut arriving = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept(), if arriving.len() < MAX_HANDSHAKES => match accepted {
                    Ok((stream, _)) => {
                        let (tls, sender) = (tls.clone(), sender.clone());
                        arriving.spawn(async move {
                            if let Some(stream) = arrive(stream, &tls).await {
                                sender.send(Ok(Accepted(stream))).await.ok();
                            }
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a connection was not accepted");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(_) = arriving.join_next() => {}
                () = sender.closed() => return,
            }
        }
    });
    ReceiverStream::new(receiver)
}
