//! How a running supervisor is told what to do: a line over a Unix socket, that only its owner can open.
//!
//! The answer is text that ends with a line `ok`, or with a line `error: …`.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};

/// A request's length: that of a long name.
const MAX_REQUEST_BYTES: u64 = 512;

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Request {
    List,
    Pid,
    Reload,
    Restart(String),
    Stop,
}

impl Request {
    fn line(&self) -> String {
        match self {
            Self::List => "list".into(),
            Self::Pid => "pid".into(),
            Self::Reload => "reload".into(),
            Self::Restart(name) => format!("restart {name}"),
            Self::Stop => "stop".into(),
        }
    }

    fn parse(line: &str) -> Option<Self> {
        match line.trim_end().split_once(' ') {
            Some(("restart", name)) => Some(Self::Restart(name.into())),
            Some(_) => None,
            None => match line.trim_end() {
                "list" => Some(Self::List),
                "pid" => Some(Self::Pid),
                "reload" => Some(Self::Reload),
                "stop" => Some(Self::Stop),
                _ => None,
            },
        }
    }
}

/// Where an answer goes, and how to know that it has gone there.
pub(super) struct Answer {
    answer: oneshot::Sender<Result<String, String>>,
    written: oneshot::Receiver<()>,
}

impl Answer {
    /// Sends it. Fails if whoever asked has gone.
    pub(super) fn send(self, answer: Result<String, String>) -> Result<(), Result<String, String>> {
        self.answer.send(answer)
    }

    /// Sends it, and completes when it is written.
    pub(super) async fn send_and_wait(self, answer: Result<String, String>) {
        self.answer.send(answer).ok();
        // An error says that nobody will write it.
        self.written.await.ok();
    }
}

fn socket(run_dir: &Path) -> PathBuf {
    run_dir.join("supervise.sock")
}

/// Takes requests from now on. The caller holds the folder's lock: a socket that is there is that of an earlier life.
///
/// # Errors
/// If the socket cannot be made.
pub(super) fn listen(run_dir: &Path) -> anyhow::Result<mpsc::Receiver<(Request, Answer)>> {
    let path = socket(run_dir);
    std::fs::remove_file(&path).ok();
    // Nobody else gets in between: it takes its place when only its owner can open it.
    let fresh = run_dir.join("supervise.sock.new");
    std::fs::remove_file(&fresh).ok();
    let listener = UnixListener::bind(&fresh).with_context(|| format!("listening at {}", fresh.display()))?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&fresh, &path)?;
    let (requests, received) = mpsc::channel(1);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, requests.clone()));
        }
    });
    Ok(received)
}

async fn serve(stream: tokio::net::UnixStream, requests: mpsc::Sender<(Request, Answer)>) {
    let (reader, mut writer) = stream.into_split();
    let mut line = String::new();
    let mut reader = tokio::io::BufReader::new(reader.take(MAX_REQUEST_BYTES));
    if reader.read_line(&mut line).await.is_err() {
        return;
    }
    let (answer, answered) = oneshot::channel();
    let (done, written) = oneshot::channel();
    let text = match Request::parse(&line) {
        None => "error: no such request\n".to_owned(),
        Some(request) => {
            if requests.send((request, Answer { answer, written })).await.is_err() {
                return;
            }
            match answered.await {
                Ok(Ok(text)) => format!("{text}ok\n"),
                Ok(Err(reason)) => format!("error: {reason}\n"),
                Err(_) => return,
            }
        }
    };
    // Whoever asked may have gone.
    writer.write_all(text.as_bytes()).await.ok();
    done.send(()).ok();
}

/// Asks the supervisor of `run_dir`; gives what it answered.
///
/// # Errors
/// If none runs there, or it refuses.
pub(super) fn tell(run_dir: &Path, request: &Request) -> anyhow::Result<String> {
    let path = socket(run_dir);
    let mut stream = UnixStream::connect(&path)
        .with_context(|| format!("no supervisor answers at {} (is it running?)", path.display()))?;
    writeln!(stream, "{}", request.line())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let last = answer.lines().last().unwrap_or_default().to_owned();
    if last == "ok" {
        let end = answer.len() - "ok\n".len();
        answer.truncate(end);
        return Ok(answer);
    }
    match last.strip_prefix("error: ") {
        Some(reason) => bail!("{reason}"),
        None => bail!("the supervisor has ended"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_lines() {
        for request in
            [Request::List, Request::Pid, Request::Reload, Request::Restart("worker-2".into()), Request::Stop]
        {
            assert_eq!(Request::parse(&format!("{}\n", request.line())), Some(request));
        }
        for bad in ["", "halt", "restart", "stop now"] {
            assert_eq!(Request::parse(bad), None, "{bad}");
        }
    }
}
