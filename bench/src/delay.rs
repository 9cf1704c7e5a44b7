//! Distance, made of two sockets: every byte is kept for some time on its way.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// Bytes on their way in one direction of one connection: beyond so many pieces the sender waits.
const PIECES: usize = 4096;
const PIECE: usize = 64 << 10;

/// Passes connections on. Ends when dropped.
#[derive(Debug)]
pub(crate) struct Delay {
    one_way_millis: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Delay {
    /// Listens at `at` and passes everything on to `to`, without delay at first.
    pub(crate) async fn between(at: SocketAddr, to: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(at).await.with_context(|| format!("listening on {at}"))?;
        let one_way_millis = Arc::new(AtomicU64::new(0));
        let delay = Arc::clone(&one_way_millis);
        let task = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let delay = Arc::clone(&delay);
                tokio::spawn(async move { join(near, to, delay).await.ok() });
            }
        });
        Ok(Self { one_way_millis, task })
    }

    /// From now on a byte takes so many milliseconds in each direction.
    pub(crate) fn set(&self, one_way_millis: u64) {
        self.one_way_millis.store(one_way_millis, Ordering::Relaxed);
    }
}

impl Drop for Delay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn join(near: TcpStream, to: SocketAddr, delay: Arc<AtomicU64>) -> Result<()> {
    let far = TcpStream::connect(to).await?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    tokio::join!(pass(near_in, far_out, &delay), pass(far_in, near_out, &delay));
    Ok(())
}

/// One direction, until its end.
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay: &AtomicU64) {
    let (sender, mut pieces) = mpsc::channel::<(Instant, Vec<u8>)>(PIECES);
    let read = async move {
        let mut piece = vec![0; PIECE];
        while let Ok(count @ 1..) = from.read(&mut piece).await {
            let due = Instant::now() + Duration::from_millis(delay.load(Ordering::Relaxed));
            if sender.send((due, piece[..count].to_vec())).await.is_err() {
                return;
            }
        }
    };
    let write = async {
        // In order: a later piece never overtakes, also when the delay has just become shorter.
        while let Some((due, piece)) = pieces.recv().await {
            tokio::time::sleep_until(due.into()).await;
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
        to.shutdown().await.ok();
    };
    tokio::join!(read, write);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_come_late_in_order_and_whole() {
        let echo = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let to = echo.local_addr().expect("bound");
        tokio::spawn(async move {
            let (mut stream, _) = echo.accept().await.expect("connected to");
            let (mut from, mut back) = stream.split();
            tokio::io::copy(&mut from, &mut back).await.ok();
        });
        let free = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let at = free.local_addr().expect("bound");
        drop(free);
        let delay = Delay::between(at, to).await.expect("it listens");
        delay.set(20);
        let mut stream = TcpStream::connect(at).await.expect("it listens");
        let sent: Vec<u8> = (0..200_000).map(|i: u32| (i % 251) as u8).collect();
        let started = Instant::now();
        stream.write_all(&sent).await.expect("sent");
        let mut back = vec![0; sent.len()];
        stream.read_exact(&mut back).await.expect("comes back");
        // There and back.
        assert!(started.elapsed() >= Duration::from_millis(40));
        assert!(back == sent);
    }
}
