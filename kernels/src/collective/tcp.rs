//! Collectives over TCP, for ranks on different hosts.
//!
//! Every pair of ranks has one connection: rank i dials every j < i. Two ranks exchange whole vectors; more reduce a part
//! each (everyone sends rank j its part j, rank j adds them in rank order and sends the sum back), so a rank sends at most
//! twice the vector however many they are.

use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::net::sockopt;

use super::tcp_exchange::{Exchange, Incoming, Outgoing};
use super::tcp_handshake::{accept_all, dial};
use super::{
    AbortHandle, Collective, CollectiveError, CollectiveStats, Joining, SpinPolicy, check_all_to_all,
    check_broadcast, check_gather, check_pass, part_of, sent_to_peers,
};

/// A host that vanishes closes no connection. An idle rank finds out by asking: first after this long …
const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);
/// … then this often …
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
/// … and after so many questions without an answer the peer is lost.
const KEEPALIVE_PROBES: u32 = 3;

/// How to join a group.
#[derive(Debug)]
pub struct TcpConfig {
    /// This rank.
    pub rank: usize,
    /// The group's secret: given to its ranks only, by the coordinator, and never sent between them. Connections that do
    /// not prove that they know it are dropped.
    pub group_key: [u8; 16],
    /// Where each rank listens.
    pub peers: Vec<SocketAddr>,
    /// Where this rank listens.
    pub listener: TcpListener,
    /// How to wait.
    pub spin: SpinPolicy,
    /// How long to wait for the other ranks.
    pub connect_timeout: Duration,
    /// Set from another thread: gives up joining.
    pub cancelled: Arc<AtomicBool>,
}

/// A key for part `part` of a group (any number that the part's ranks agree on), made from the group's key. A process may
/// be in several groups over one listener: a connection meant for another group is dropped, and its dialler tries again.
/// Ranks that are in several groups must join them in one order.
pub fn key_of_part(group_key: &[u8; 16], part: u64) -> [u8; 16] {
    super::tcp_handshake::key_of_part(group_key, part)
}

/// Joins the group; returns once this rank is connected to every other.
///
/// # Errors
/// If a rank cannot be reached in time.
pub fn connect(config: &TcpConfig) -> Result<Box<dyn Collective>, CollectiveError> {
    let size = config.peers.len();
    if config.rank >= size {
        let reason = format!("rank {} of {size}; ranks count from 0", config.rank);
        return Err(CollectiveError::io("connecting a group over TCP", reason));
    }
    let joining = Joining::start(config.connect_timeout, &config.cancelled);
    let mut streams: Vec<Option<TcpStream>> = (0..size).map(|_| None).collect();
    for (peer, stream) in streams.iter_mut().enumerate().take(config.rank) {
        *stream = Some(dial(config, peer, joining)?);
    }
    accept_all(config, &mut streams, joining)?;
    for (peer, stream) in streams.iter().enumerate().filter_map(|(peer, s)| s.as_ref().map(|s| (peer, s))) {
        prepare(stream).map_err(|e| CollectiveError::io(format!("connection to rank {peer}"), e))?;
    }
    let reason = Arc::new(Mutex::new(None));
    let exchange = Exchange::new(streams, config.spin.duration(), Arc::clone(&reason))?;
    Ok(Box::new(Tcp {
        rank: config.rank,
        size,
        exchange,
        deadline: None,
        scratch: Vec::new(),
        stats: CollectiveStats::default(),
        reason,
    }))
}

fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(stream, KEEPALIVE_PROBES)?;
    sockopt::set_socket_keepalive(stream, true)?;
    Ok(())
}

struct Tcp {
    rank: usize,
    size: usize,
    exchange: Exchange,
    deadline: Option<Duration>,
    /// The others' parts of this rank's part, in rank order. Only grows.
    scratch: Vec<f32>,
    stats: CollectiveStats,
    reason: Arc<Mutex<Option<String>>>,
}

/// `own = ((r0 + r1) + r2) + …`, where `own` is the part of `rank` and `others` holds the rest, in rank order.
fn sum_in_rank_order(own: &mut [f32], rank: usize, others: &mut [f32]) {
    use crate::op::rms_norm::add_assign;
    if own.is_empty() {
        return;
    }
    let len = own.len();
    if rank == 0 {
        others.chunks_exact(len).for_each(|theirs| add_assign(own, theirs));
        return;
    }
    // Rank 0's part comes first, so the sum grows there.
    let (sum, rest) = others.split_at_mut(len);
    let (before, after) = rest.split_at((rank - 1) * len);
    before.chunks_exact(len).for_each(|theirs| add_assign(sum, theirs));
    add_assign(sum, own);
    after.chunks_exact(len).for_each(|theirs| add_assign(sum, theirs));
    own.copy_from_slice(sum);
}

const ALL_REDUCE: u8 = 1;
const SPREAD: u8 = 2;
const GATHER: u8 = 3;
const BROADCAST: u8 = 4;
const BARRIER: u8 = 5;
const ALL_TO_ALL: u8 = 6;
const PASS: u8 = 7;

impl Tcp {
    fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let rank = self.rank;
        (0..self.size).filter(move |peer| *peer != rank)
    }

    fn counted(
        &mut self,
        bytes: usize,
        f: impl FnOnce(&mut Self) -> Result<(), CollectiveError>,
    ) -> Result<(), CollectiveError> {
        let limit = self.exchange.begin(self.deadline)?;
        let outcome = f(self);
        self.stats.count(bytes, limit.started);
        self.stats.wait_nanos = self.exchange.waited_nanos();
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
        self.deadline = deadline;
    }

    fn all_reduce(&mut self, data: &mut [f32]) -> Result<(), CollectiveError> {
        let (rank, size) = (self.rank, self.size);
        // Two ranks: everyone gets everything, in one exchange. More: each reduces its part.
        let part = |peer: usize| if size == 2 { 0..data.len() } else { part_of(data.len(), size, peer) };
        let parts: Vec<_> = (0..size).map(part).collect();
        let mine = parts[rank].clone();
        let sent: usize =
            self.others().map(|peer| (parts[peer].len() + if size == 2 { 0 } else { mine.len() }) * 4).sum();
        self.counted(sent, |this| {
            if data.is_empty() || size == 1 {
                return Ok(());
            }
            let room = (size - 1) * mine.len();
            if this.scratch.len() < room {
                this.scratch.resize(room, 0.0);
            }
            let out = this
                .others()
                .map(|peer| Outgoing::new(peer, bytemuck::cast_slice(&data[parts[peer].clone()])))
                .collect();
            // An empty part is still received: its message shows that the ranks agree.
            let (mut rest, mut into) = (&mut this.scratch[..room], Vec::with_capacity(size - 1));
            for peer in (0..size).filter(|peer| *peer != rank) {
                let (theirs, after) = rest.split_at_mut(mine.len());
                rest = after;
                into.push(Incoming::exact(peer, bytemuck::cast_slice_mut(theirs)));
            }
            this.exchange.run("all_reduce", ALL_REDUCE, out, into)?;
            sum_in_rank_order(&mut data[mine.clone()], rank, &mut this.scratch[..room]);
            if size == 2 {
                return Ok(());
            }
            // Everyone's parts lie side by side in `data`: cut it so that each can be received in place.
            let (mut own, mut into): (&[f32], Vec<_>) = (&[], Vec::with_capacity(size - 1));
            let mut rest = &mut data[..];
            for (peer, part) in parts.iter().enumerate() {
                let (theirs, after) = rest.split_at_mut(part.len());
                rest = after;
                if peer == rank {
                    own = theirs;
                } else {
                    into.push(Incoming::exact(peer, bytemuck::cast_slice_mut(theirs)));
                }
            }
            let out = this.others().map(|peer| Outgoing::new(peer, bytemuck::cast_slice(own))).collect();
            this.exchange.run("all_reduce", SPREAD, out, into)
        })
    }

    fn gather(&mut self, send: &[f32], counts: &[usize], recv: &mut [f32]) -> Result<(), CollectiveError> {
        let rank = self.rank;
        check_gather(rank, self.size, send, counts, recv)?;
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
        if self.rank == 0 {
            check_broadcast(bytes)?;
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

    fn all_to_all(&mut self, send: &[&[f32]], recv: &mut [Vec<f32>]) -> Result<(), CollectiveError> {
        check_all_to_all(self.size, send, recv)?;
        let rank = self.rank;
        self.counted(sent_to_peers(rank, send), |this| {
            recv[rank].clear();
            recv[rank].extend_from_slice(send[rank]);
            let out =
                this.others().map(|peer| Outgoing::new(peer, bytemuck::cast_slice(send[peer]))).collect();
            let into = recv.iter_mut().enumerate().filter(|(peer, _)| *peer != rank);
            let into = into.map(|(peer, part)| Incoming::floats(peer, part)).collect();
            this.exchange.run("all_to_all", ALL_TO_ALL, out, into)
        })
    }

    fn pass(&mut self, data: &mut [f32]) -> Result<(), CollectiveError> {
        check_pass(self.size)?;
        let sent = if self.rank == 0 { size_of_val(data) } else { 0 };
        self.counted(sent, |this| {
            let (mut out, mut into) = (Vec::new(), Vec::new());
            match this.rank {
                0 => out.push(Outgoing::new(1, bytemuck::cast_slice(data))),
                _ => into.push(Incoming::exact(0, bytemuck::cast_slice_mut(data))),
            }
            this.exchange.run("pass", PASS, out, into)
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
