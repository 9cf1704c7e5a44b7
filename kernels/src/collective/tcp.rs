//! Collectives over TCP, for ranks on different hosts.
//!
//! Every pair of ranks has one connection: rank i dials every j < i. Two ranks exchange whole vectors; more reduce a part
//! each (everyone sends rank j its part j, rank j adds them in rank order and sends the sum back), so a rank sends at most
//! twice the vector however many they are.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::tcp_exchange::{Exchange, Incoming, Outgoing};
use super::{AbortHandle, Collective, CollectiveError, CollectiveStats, MAX_BROADCAST, SpinPolicy, part_of};

const HELLO_MAGIC: [u8; 8] = *b"foggaraC";
const HELLO_BYTES: usize = 8 + 16 + 4 + 4;
/// A stranger on the port may not hold up the group.
const HELLO_TIMEOUT: Duration = Duration::from_secs(2);

/// How to join a group.
#[derive(Debug)]
pub struct TcpConfig {
    /// This rank.
    pub rank: usize,
    /// The group's secret: given to its ranks only, by the coordinator. Connections that do not know it are dropped.
    pub group_key: [u8; 16],
    /// Where each rank listens.
    pub peers: Vec<SocketAddr>,
    /// Where this rank listens.
    pub listener: TcpListener,
    /// How to wait.
    pub spin: SpinPolicy,
    /// How long to wait for the other ranks.
    pub connect_timeout: Duration,
}

/// Joins the group; returns once this rank is connected to every other.
///
/// # Errors
/// If a rank cannot be reached in time.
pub fn connect(config: &TcpConfig) -> Result<Box<dyn Collective>, CollectiveError> {
    let size = config.peers.len();
    let deadline = Instant::now() + config.connect_timeout;
    let mut streams: Vec<Option<TcpStream>> = (0..size).map(|_| None).collect();
    for (peer, address) in config.peers.iter().enumerate().take(config.rank) {
        streams[peer] = Some(dial(config, peer, *address, deadline)?);
    }
    accept_all(config, &mut streams, deadline)?;
    for (peer, stream) in streams.iter().enumerate().filter_map(|(peer, s)| s.as_ref().map(|s| (peer, s))) {
        let set = stream.set_nodelay(true).and_then(|()| stream.set_nonblocking(true));
        set.map_err(|e| CollectiveError::io(format!("connection to rank {peer}"), e))?;
    }
    let reason = Arc::new(Mutex::new(None));
    let exchange = Exchange::new(streams, config.spin.duration(), Arc::clone(&reason))?;
    Ok(Box::new(Tcp {
        rank: config.rank,
        size,
        exchange,
        scratch: Vec::new(),
        stats: CollectiveStats::default(),
        reason,
    }))
}

fn hello(config: &TcpConfig) -> [u8; HELLO_BYTES] {
    let mut bytes = [0; HELLO_BYTES];
    bytes[..8].copy_from_slice(&HELLO_MAGIC);
    bytes[8..24].copy_from_slice(&config.group_key);
    bytes[24..28].copy_from_slice(&(config.rank as u32).to_le_bytes());
    bytes[28..].copy_from_slice(&(config.peers.len() as u32).to_le_bytes());
    bytes
}

/// Dials `peer` until it answers as a member of this group.
fn dial(
    config: &TcpConfig,
    peer: usize,
    address: SocketAddr,
    deadline: Instant,
) -> Result<TcpStream, CollectiveError> {
    loop {
        let attempt = || -> std::io::Result<TcpStream> {
            let mut stream = TcpStream::connect_timeout(&address, HELLO_TIMEOUT)?;
            stream.write_all(&hello(config))?;
            // The answer says that the peer took us for a member. It accepts when it is ready to, which may take a while.
            stream.set_read_timeout(Some(
                deadline.saturating_duration_since(Instant::now()).max(HELLO_TIMEOUT),
            ))?;
            let mut answer = [0; 8];
            stream.read_exact(&mut answer)?;
            if answer != HELLO_MAGIC {
                return Err(std::io::Error::other("not a member of this group"));
            }
            Ok(stream)
        };
        match attempt() {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() > deadline => {
                return Err(CollectiveError::PeerLost {
                    rank: peer,
                    reason: format!("connecting to {address}: {error}"),
                });
            }
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// Accepts the connections of every higher rank; strangers are dropped.
fn accept_all(
    config: &TcpConfig,
    streams: &mut [Option<TcpStream>],
    deadline: Instant,
) -> Result<(), CollectiveError> {
    let io = |e: std::io::Error| CollectiveError::io("accepting ranks", e);
    config.listener.set_nonblocking(true).map_err(io)?;
    while let Some(missing) = (config.rank + 1..streams.len()).find(|peer| streams[*peer].is_none()) {
        match config.listener.accept() {
            Ok((stream, _)) => {
                if let Some((peer, stream)) = greet(config, stream)
                    && peer > config.rank
                    && peer < streams.len()
                {
                    streams[peer] = Some(stream);
                }
            }
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                if Instant::now() > deadline {
                    return Err(CollectiveError::Timeout {
                        op: "connect",
                        rank: missing,
                        waited: config.connect_timeout,
                    });
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(e) => return Err(io(e)),
        }
    }
    Ok(())
}

/// Reads a dialler's greeting; `None` if it does not belong here.
fn greet(config: &TcpConfig, mut stream: TcpStream) -> Option<(usize, TcpStream)> {
    stream.set_nonblocking(false).ok()?;
    stream.set_read_timeout(Some(HELLO_TIMEOUT)).ok()?;
    let mut bytes = [0; HELLO_BYTES];
    stream.read_exact(&mut bytes).ok()?;
    let ours = hello(config);
    let number =
        |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]) as usize;
    // Compared without an early exit, so that timing tells nothing of the key.
    let difference = bytes[..24].iter().zip(&ours[..24]).fold(0, |acc, (a, b)| acc | (a ^ b));
    if difference != 0 || number(28) != config.peers.len() {
        return None;
    }
    stream.write_all(&HELLO_MAGIC).ok()?;
    Some((number(24), stream))
}

struct Tcp {
    rank: usize,
    size: usize,
    exchange: Exchange,
    scratch: Vec<f32>,
    stats: CollectiveStats,
    reason: Arc<Mutex<Option<String>>>,
}

const ALL_REDUCE: u8 = 1;
const SPREAD: u8 = 2;
const GATHER: u8 = 3;
const BROADCAST: u8 = 4;
const BARRIER: u8 = 5;

impl Tcp {
    fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let rank = self.rank;
        (0..self.size).filter(move |peer| *peer != rank)
    }

    /// Adds everyone's `data[part]` of this rank's part, in rank order. `scratch` holds the others' in rank order.
    fn reduce_part(&mut self, data: &mut [f32], mine: &std::ops::Range<usize>) {
        let len = mine.len();
        let mut theirs = self.scratch.chunks_exact(len.max(1));
        let own = data[mine.clone()].to_vec();
        for rank in 0..self.size {
            let part = if rank == self.rank { &own[..] } else { theirs.next().unwrap_or(&[]) };
            if rank == 0 {
                data[mine.clone()].copy_from_slice(part);
            } else {
                crate::op::rms_norm::add_assign(&mut data[mine.clone()], part);
            }
        }
    }

    fn counted(
        &mut self,
        bytes: usize,
        f: impl FnOnce(&mut Self) -> Result<(), CollectiveError>,
    ) -> Result<(), CollectiveError> {
        let started = Instant::now();
        let outcome = f(self);
        self.stats.calls += 1;
        self.stats.bytes += bytes as u64;
        self.stats.nanos += u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        outcome
    }
}

impl Collective for Tcp {
    fn rank(&self) -> usize {
        self.rank
    }
    fn size(&self) -> usize {
        self.size
    }
    fn kind(&self) -> &'static str {
        "tcp"
    }
    fn set_deadline(&mut self, deadline: Option<Duration>) {
        self.exchange.set_deadline(deadline);
    }

    fn all_reduce(&mut self, data: &mut [f32]) -> Result<(), CollectiveError> {
        let (rank, size) = (self.rank, self.size);
        if data.is_empty() {
            return Ok(());
        }
        // Two ranks: everyone gets everything, in one exchange. More: each reduces its part.
        let part = |peer: usize| if size == 2 { 0..data.len() } else { part_of(data.len(), size, peer) };
        let parts: Vec<_> = (0..size).map(part).collect();
        let mine = parts[rank].clone();
        let sent: usize =
            self.others().map(|peer| (parts[peer].len() + if size == 2 { 0 } else { mine.len() }) * 4).sum();
        self.counted(sent, |this| {
            let mut scratch = std::mem::take(&mut this.scratch);
            scratch.clear();
            scratch.resize((size - 1) * mine.len(), 0.0);
            let out: Vec<_> = this
                .others()
                .map(|peer| Outgoing::new(peer, bytemuck::cast_slice(&data[parts[peer].clone()])))
                .collect();
            let into: Vec<_> = match mine.len() {
                0 => this.others().map(|peer| Incoming::exact(peer, &mut [])).collect(),
                len => this
                    .others()
                    .zip(scratch.chunks_exact_mut(len))
                    .map(|(peer, part)| Incoming::exact(peer, bytemuck::cast_slice_mut(part)))
                    .collect(),
            };
            this.exchange.run("all_reduce", ALL_REDUCE, out, into)?;
            this.scratch = scratch;
            this.reduce_part(data, &mine);
            if size == 2 {
                return Ok(());
            }
            // Everyone's parts lie side by side in `data`: cut it so that each can be received in place.
            let own = data[mine.clone()].to_vec();
            let out: Vec<_> =
                this.others().map(|peer| Outgoing::new(peer, bytemuck::cast_slice(&own))).collect();
            let mut into = Vec::with_capacity(size - 1);
            let mut rest = &mut data[..];
            for (peer, part) in parts.iter().enumerate() {
                let (this_part, after) = rest.split_at_mut(part.len());
                rest = after;
                if peer != rank {
                    into.push(Incoming::exact(peer, bytemuck::cast_slice_mut(this_part)));
                }
            }
            this.exchange.run("all_reduce", SPREAD, out, into)
        })
    }

    fn gather(&mut self, send: &[f32], counts: &[usize], recv: &mut [f32]) -> Result<(), CollectiveError> {
        let rank = self.rank;
        let sent = if rank == 0 { 0 } else { size_of_val(send) };
        self.counted(sent, |this| {
            if rank != 0 {
                let out = vec![Outgoing::new(0, bytemuck::cast_slice(send))];
                return this.exchange.run("gather", GATHER, out, Vec::new());
            }
            let (own, mut rest) = recv.split_at_mut(send.len());
            own.copy_from_slice(send);
            let mut into = Vec::with_capacity(counts.len());
            for (peer, count) in counts.iter().enumerate().skip(1) {
                let (part, after) = rest.split_at_mut(*count);
                rest = after;
                into.push(Incoming::exact(peer, bytemuck::cast_slice_mut(part)));
            }
            this.exchange.run("gather", GATHER, Vec::new(), into)
        })
    }

    fn broadcast(&mut self, bytes: &mut Vec<u8>) -> Result<(), CollectiveError> {
        if self.rank == 0 && bytes.len() > MAX_BROADCAST {
            return Err(CollectiveError::io(
                "broadcast",
                format!("{} bytes, at most {MAX_BROADCAST}", bytes.len()),
            ));
        }
        let sent = if self.rank == 0 { bytes.len() * (self.size - 1) } else { 0 };
        self.counted(sent, |this| {
            if this.rank == 0 {
                let out = this.others().map(|peer| Outgoing::new(peer, bytes)).collect();
                return this.exchange.run("broadcast", BROADCAST, out, Vec::new());
            }
            this.exchange.run("broadcast", BROADCAST, Vec::new(), vec![Incoming::any(0, bytes)])
        })
    }

    fn barrier(&mut self) -> Result<(), CollectiveError> {
        self.counted(0, |this| {
            let out = this.others().map(|peer| Outgoing::new(peer, &[])).collect();
            let into = this.others().map(|peer| Incoming::exact(peer, &mut [])).collect();
            this.exchange.run("barrier", BARRIER, out, into)
        })
    }

    fn abort_handle(&self) -> AbortHandle {
        let (wake, sockets, reason) =
            (self.exchange.wake_handle(), self.exchange.sockets(), Arc::clone(&self.reason));
        AbortHandle::new(move |why| {
            reason
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner())
                .get_or_insert_with(|| why.to_owned());
            wake.wake();
            for socket in sockets.iter() {
                // Already closed is closed enough.
                drop(socket.shutdown(Shutdown::Both));
            }
        })
    }

    fn stats(&self) -> CollectiveStats {
        self.stats
    }
}

impl Drop for Tcp {
    fn drop(&mut self) {
        // Peers must see the end at once, also while an abort handle keeps the sockets open.
        for socket in self.exchange.sockets().iter() {
            drop(socket.shutdown(Shutdown::Both));
        }
    }
}
