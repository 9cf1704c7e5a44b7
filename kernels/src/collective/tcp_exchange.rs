//! Messages to and from several peers at once over non-blocking sockets.
//!
//! Sends and receives make progress together, so two ranks that send each other more than their sockets hold do not wait
//! for each other.

use std::io::{ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::{CollectiveError, Limit, MAX_BROADCAST, MAX_PART, nanos_since};

const HEADER_BYTES: usize = 16;

/// A message to a peer.
pub(super) struct Outgoing<'a> {
    peer: usize,
    payload: &'a [u8],
    header: [u8; HEADER_BYTES],
    sent: usize,
}

impl<'a> Outgoing<'a> {
    pub(super) fn new(peer: usize, payload: &'a [u8]) -> Self {
        Self { peer, payload, header: [0; HEADER_BYTES], sent: 0 }
    }

    fn is_done(&self) -> bool {
        self.sent == HEADER_BYTES + self.payload.len()
    }
}

/// Where a peer's message goes.
enum Target<'a> {
    Exact(&'a mut [u8]),
    Any(&'a mut Vec<u8>),
    Floats(&'a mut Vec<f32>),
}

/// A message expected from a peer.
pub(super) struct Incoming<'a> {
    peer: usize,
    target: Target<'a>,
    header: [u8; HEADER_BYTES],
    received: usize,
    /// Payload length, once the header is complete.
    len: Option<usize>,
}

impl<'a> Incoming<'a> {
    /// A message of just this length.
    pub(super) fn exact(peer: usize, into: &'a mut [u8]) -> Self {
        Self { peer, target: Target::Exact(into), header: [0; HEADER_BYTES], received: 0, len: None }
    }

    /// A message of any length up to [`MAX_BROADCAST`].
    pub(super) fn any(peer: usize, into: &'a mut Vec<u8>) -> Self {
        Self { peer, target: Target::Any(into), header: [0; HEADER_BYTES], received: 0, len: None }
    }

    /// Floats, up to [`MAX_PART`].
    pub(super) fn floats(peer: usize, into: &'a mut Vec<f32>) -> Self {
        Self { peer, target: Target::Floats(into), header: [0; HEADER_BYTES], received: 0, len: None }
    }

    fn is_done(&self) -> bool {
        self.len.is_some_and(|len| self.received == HEADER_BYTES + len)
    }
}

/// Wakes a rank that sleeps in `poll`.
#[derive(Clone)]
pub(super) struct Wake(Arc<OwnedFd>);

impl Wake {
    pub(super) fn wake(&self) {
        // The counter is never read: once written, the descriptor stays ready for ever.
        rustix::io::write(&*self.0, &1u64.to_ne_bytes()).ok();
    }
}

/// The connections of one rank.
pub(super) struct Exchange {
    streams: Arc<Vec<TcpStream>>,
    /// Index into `streams`, for each peer.
    place: Vec<Option<usize>>,
    wake: Wake,
    spin: Duration,
    /// How long the call under way may take.
    limit: Limit,
    waited_nanos: u64,
    sequence: u32,
    reason: Arc<Mutex<Option<String>>>,
}

impl Exchange {
    pub(super) fn new(
        streams: Vec<Option<TcpStream>>,
        spin: Duration,
        reason: Arc<Mutex<Option<String>>>,
    ) -> Result<Self, CollectiveError> {
        let mut place = Vec::with_capacity(streams.len());
        let mut connected = Vec::with_capacity(streams.len());
        for stream in streams {
            place.push(stream.is_some().then_some(connected.len()));
            connected.extend(stream);
        }
        let wake = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC);
        let wake = Wake(Arc::new(wake.map_err(|e| CollectiveError::io("eventfd", e))?));
        Ok(Self {
            streams: Arc::new(connected),
            place,
            wake,
            spin,
            limit: Limit::start(None),
            waited_nanos: 0,
            sequence: 0,
            reason,
        })
    }

    /// Starts a call, which may take `deadline` for all its messages.
    pub(super) fn begin(&mut self, deadline: Option<Duration>) -> Result<Limit, CollectiveError> {
        self.limit = Limit::start(deadline);
        self.aborted().map_or(Ok(self.limit), Err)
    }

    /// Time in which nothing could be sent or received, so far.
    pub(super) fn waited_nanos(&self) -> u64 {
        self.waited_nanos
    }

    pub(super) fn wake_handle(&self) -> Wake {
        self.wake.clone()
    }

    pub(super) fn sockets(&self) -> Arc<Vec<TcpStream>> {
        Arc::clone(&self.streams)
    }

    fn stream(&self, peer: usize) -> &TcpStream {
        &self.streams[self.place[peer].expect("a rank does not send to itself")]
    }

    fn aborted(&self) -> Option<CollectiveError> {
        let reason = self.reason.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        reason.as_ref().map(|reason| CollectiveError::Aborted(reason.clone()))
    }

    /// Sends and receives everything; returns when all is done.
    pub(super) fn run(
        &mut self,
        name: &'static str,
        op: u8,
        mut out: Vec<Outgoing<'_>>,
        mut into: Vec<Incoming<'_>>,
    ) -> Result<(), CollectiveError> {
        self.sequence = self.sequence.wrapping_add(1);
        for message in &mut out {
            message.header = header(op, self.sequence, message.payload.len());
        }
        let mut quiet_since = None;
        loop {
            if let Some(error) = self.aborted() {
                return Err(error);
            }
            let mut progress = false;
            for message in out.iter_mut().filter(|message| !message.is_done()) {
                progress |= self.send(message)?;
            }
            for message in into.iter_mut().filter(|message| !message.is_done()) {
                progress |= self.receive(message, name, op)?;
            }
            if progress && let Some(since) = quiet_since.take() {
                self.waited_nanos += nanos_since(since);
            }
            let unsent = out.iter().find(|m| !m.is_done()).map(|m| m.peer);
            let Some(peer) = unsent.or_else(|| into.iter().find(|m| !m.is_done()).map(|m| m.peer)) else {
                return Ok(());
            };
            // Also while bytes trickle: the deadline is for the whole call.
            if self.limit.passed() {
                return Err(self.limit.timeout(name, peer));
            }
            if progress {
                continue;
            }
            if quiet_since.get_or_insert_with(Instant::now).elapsed() < self.spin {
                std::hint::spin_loop();
            } else {
                self.sleep(&out, &into)?;
            }
        }
    }

    /// Waits until a socket is ready, the deadline has passed or the group is aborted.
    fn sleep(&self, out: &[Outgoing<'_>], into: &[Incoming<'_>]) -> Result<(), CollectiveError> {
        let sends = out.iter().filter(|m| !m.is_done()).map(|m| (m.peer, PollFlags::OUT));
        let receives = into.iter().filter(|m| !m.is_done()).map(|m| (m.peer, PollFlags::IN));
        let mut fds: Vec<PollFd<'_>> =
            sends.chain(receives).map(|(peer, flags)| PollFd::new(self.stream(peer), flags)).collect();
        let wake = self.wake.0.as_fd();
        fds.push(PollFd::new(&wake, PollFlags::IN));
        let timeout = self.limit.allowed.map(|allowed| {
            let left = self.limit.left(allowed);
            Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(left.subsec_nanos()),
            }
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(e) => Err(CollectiveError::io("poll", e)),
        }
    }

    fn send(&self, message: &mut Outgoing<'_>) -> Result<bool, CollectiveError> {
        let mut stream = self.stream(message.peer);
        let mut progress = false;
        while !message.is_done() {
            let written = match message.sent.checked_sub(HEADER_BYTES) {
                Some(sent) => stream.write(&message.payload[sent..]),
                // Header and payload in one packet where they fit.
                None => {
                    let parts =
                        [IoSlice::new(&message.header[message.sent..]), IoSlice::new(message.payload)];
                    stream.write_vectored(&parts)
                }
            };
            match written {
                Ok(0) => return Err(self.lost(message.peer, "it takes no more bytes")),
                Ok(bytes) => {
                    message.sent += bytes;
                    progress = true;
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(self.lost(message.peer, &e.to_string())),
            }
        }
        Ok(progress)
    }

    fn receive(
        &self,
        message: &mut Incoming<'_>,
        name: &'static str,
        op: u8,
    ) -> Result<bool, CollectiveError> {
        let mut stream = self.stream(message.peer);
        let mut progress = false;
        while !message.is_done() {
            let read = match (message.received.checked_sub(HEADER_BYTES), &mut message.target) {
                (Some(at), Target::Exact(into)) => stream.read(&mut into[at..]),
                (Some(at), Target::Any(into)) => stream.read(&mut into[at..]),
                (Some(at), Target::Floats(into)) => stream.read(&mut bytemuck::cast_slice_mut(into)[at..]),
                // A message of this length or none: header and payload at once. More is not taken, the next is not ours.
                (None, Target::Exact(into)) => stream.read_vectored(&mut [
                    IoSliceMut::new(&mut message.header[message.received..]),
                    IoSliceMut::new(into),
                ]),
                (None, Target::Any(_) | Target::Floats(_)) => {
                    stream.read(&mut message.header[message.received..])
                }
            };
            match read {
                Ok(0) => return Err(self.lost(message.peer, "it closed the connection")),
                Ok(bytes) => {
                    message.received += bytes;
                    progress = true;
                    if message.received >= HEADER_BYTES && message.len.is_none() {
                        self.accept_header(message, name, op)?;
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(self.lost(message.peer, &e.to_string())),
            }
        }
        Ok(progress)
    }

    fn accept_header(
        &self,
        message: &mut Incoming<'_>,
        name: &'static str,
        op: u8,
    ) -> Result<(), CollectiveError> {
        let len = u64::from_le_bytes(std::array::from_fn(|i| message.header[8 + i]));
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        // The header first: room is made only for what belongs here.
        let fits = message.header == header(op, self.sequence, len)
            && match &mut message.target {
                Target::Exact(into) => len == into.len(),
                Target::Any(into) => {
                    let fits = len <= MAX_BROADCAST;
                    if fits {
                        into.clear();
                        into.resize(len, 0);
                    }
                    fits
                }
                Target::Floats(into) => {
                    let fits = len.is_multiple_of(4) && len / 4 <= MAX_PART;
                    if fits {
                        into.resize(len / 4, 0.0);
                    }
                    fits
                }
            };
        if !fits {
            let reason =
                format!("{name} {} here, {:?} of {len} bytes there", self.sequence, &message.header[..8]);
            return Err(CollectiveError::Mismatch { rank: message.peer, reason });
        }
        message.len = Some(len);
        Ok(())
    }

    fn lost(&self, peer: usize, reason: &str) -> CollectiveError {
        self.aborted().unwrap_or_else(|| CollectiveError::PeerLost { rank: peer, reason: reason.to_owned() })
    }
}

/// op, three zeros, the call's number, the payload's length.
fn header(op: u8, sequence: u32, len: usize) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[0] = op;
    bytes[4..8].copy_from_slice(&sequence.to_le_bytes());
    bytes[8..].copy_from_slice(&(len as u64).to_le_bytes());
    bytes
}
