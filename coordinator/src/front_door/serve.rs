//! Connections: accepted, bounded, and ended in good order.

use std::convert::Infallible;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response};
use foggara_tls::Tls;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tower::ServiceExt;

use super::gathered::Gathered;

/// Calls at once on one HTTP/2 connection: another coordinator sends all its clients' sequences through one.
const MAX_STREAMS: u32 = 16_384;
/// Bytes that a client may send on all of them ahead of what has been read. h2 ends a connection (ENHANCE_YOUR_CALM) when small pieces
/// that nobody has read yet come to half of it, each counted as 256 bytes at most: as many as there may be calls.
const CONNECTION_WINDOW: u32 = 2 * 256 * MAX_STREAMS;
/// How long a client may take to say what it wants.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// An HTTP/2 client that answers no ping within this long, twice, is gone, and what it asked for is cancelled.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// After a connection could not be accepted: most likely there are too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `stopped` is true and every connection has ended. Dropping the future ends all of them at once.
/// With `tls` it answers over TLS alone; whoever speaks plain text is told.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    tls: Option<Tls>,
    mut stopped: watch::Receiver<bool>,
) {
    let stop = stopped.clone();
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let connection = connection(stream, tls.clone(), router.clone(), stop.clone());
                    connections.spawn(Gathered::new(connection));
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection was not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
            () = told(&mut stopped) => break,
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn connection(stream: TcpStream, tls: Option<Tls>, router: Router, mut stopped: watch::Receiver<bool>) {
    let Some(tls) = tls else {
        // A token is a small packet that should leave at once.
        stream.set_nodelay(true).ok();
        return speak(stream, router, stopped).await;
    };
    let arrived = tokio::select! {
        arrived = foggara_tls::arrive(stream, &tls) => arrived,
        () = told(&mut stopped) => return,
    };
    if let Some(stream) = arrived {
        // On the heap, so that connections in plain text need no room for it.
        Box::pin(speak(stream, router, stopped)).await;
    }
}

async fn speak(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    mut stopped: watch::Receiver<bool>,
) {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE);
    let service = TowerToHyperService::new(tower::service_fn(move |request: Request<_>| {
        let router = router.clone();
        async move { answer(router, request.map(Body::new)).await }
    }));
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        // Whatever a client does to its connection is its own business; who looks for what happened to it asks for these words.
        ended = connection.as_mut() => {
            if let Err(error) = ended {
                tracing::debug!(?error, "a client's connection broke");
            }
            return;
        }
        () = told(&mut stopped) => connection.as_mut().graceful_shutdown(),
    }
    connection.await.ok();
}

async fn told(stopped: &mut watch::Receiver<bool>) {
    // A sender that has gone says the same.
    stopped.wait_for(|stopped| *stopped).await.ok();
}

async fn answer(router: Router, request: Request<Body>) -> Result<Response<Body>, Infallible> {
    router.oneshot(request).await
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn stopping_answers_what_was_asked_and_takes_nothing_new() {
        let go = std::sync::Arc::new(tokio::sync::Notify::new());
        let waits = go.clone();
        let slow = move || {
            let go = waits.clone();
            async move {
                go.notified().await;
                "late"
            }
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("bound");
        let (stop, stopped) = watch::channel(false);
        let server = tokio::spawn(serve(listener, Router::new().route("/", get(slow)), None, stopped));
        let mut asked = TcpStream::connect(addr).await.expect("it listens");
        let mut idle = TcpStream::connect(addr).await.expect("it listens");
        asked.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("sent");
        // The first request is being answered once the second connection has been.
        idle.write_all(b"GET /none HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("sent");
        let mut some = [0; 12];
        idle.read_exact(&mut some).await.expect("answered");
        assert_eq!(&some, b"HTTP/1.1 404");
        stop.send(true).expect("it runs");
        let mut rest = Vec::new();
        idle.read_to_end(&mut rest).await.expect("closed");
        go.notify_one();
        let mut answer = String::new();
        asked.read_to_string(&mut answer).await.expect("closed after the answer");
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("late"), "{answer}");
        tokio::time::timeout(Duration::from_secs(60), server).await.expect("ended").expect("no panic");
        assert!(TcpStream::connect(addr).await.is_err());
    }
}
