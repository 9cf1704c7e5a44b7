//! How two ranks find out over a new connection that they belong to the same group.
//!
//! Both prove that they know the group's key without sending it: each sends a number used once and answers the other's with
//! its SipHash-2-4 under the key (Aumasson and Bernstein, 2012), a keyed hash made for short messages. The acceptor begins,
//! so a stranger learns one random number and nothing else. This authenticates ranks; it does not encrypt what follows.

use std::hash::Hasher;
use std::io::{Error, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::tcp::TcpConfig;
use super::{CollectiveError, Joining, Limit};

const MAGIC: [u8; 8] = *b"foggara2";
type Nonce = [u8; 16];
/// Magic, rank, size, the dialler's nonce, its proof.
const HELLO_BYTES: usize = 8 + 4 + 4 + 16 + 8;
/// How long a connection may take to show that it belongs here.
const HELLO_TIMEOUT: Duration = Duration::from_secs(2);
/// Connections that have not shown it yet; beyond that the oldest is dropped.
const MAX_PENDING: usize = 64;
const REDIAL_INTERVAL: Duration = Duration::from_millis(10);
/// Longest sleep while waiting for connections.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Who proves: so that one side's proof can never be sent back as the other's.
#[derive(Clone, Copy)]
enum Role {
    Dialler = 1,
    Acceptor = 2,
}

fn number(n: usize) -> [u8; 4] {
    u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes()
}

/// SipHash-2-4 of `message` under `key`.
#[expect(
    deprecated,
    reason = "the standard library's only hash with a fixed algorithm and a key of one's own"
)]
fn sip_hash(key: &[u8; 16], message: &[u8]) -> u64 {
    let half = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| key[at + i]));
    let mut hasher = std::hash::SipHasher::new_with_keys(half(0), half(8));
    hasher.write(message);
    hasher.finish()
}

/// A key for part `part` of a group, made from the group's: ranks that are in several parts tell them apart by it.
pub(super) fn key_of_part(key: &[u8; 16], part: u64) -> [u8; 16] {
    let half = |which: u8| {
        let mut message = [0; 17];
        message[..8].copy_from_slice(&MAGIC);
        message[8..16].copy_from_slice(&part.to_le_bytes());
        message[16] = which;
        sip_hash(key, &message).to_le_bytes()
    };
    let (low, high) = (half(0), half(1));
    std::array::from_fn(|i| if i < 8 { low[i] } else { high[i - 8] })
}

/// Proof of `role` that it knows the key, for this connection only.
fn proof(config: &TcpConfig, role: Role, dialler: usize, acceptor: usize, nonces: [&Nonce; 2]) -> [u8; 8] {
    let mut message = Vec::with_capacity(64);
    message.extend(MAGIC);
    message.push(role as u8);
    for n in [dialler, acceptor, config.peers.len()] {
        message.extend(number(n));
    }
    nonces.into_iter().for_each(|nonce| message.extend(nonce));
    sip_hash(&config.group_key, &message).to_le_bytes()
}

/// Compared without an early exit, so that timing tells nothing of the proof.
fn is_same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

fn new_nonce() -> std::io::Result<Nonce> {
    let mut nonce = [0; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut nonce)?;
    Ok(nonce)
}

/// Dials `peer` until it answers as a member of this group.
pub(super) fn dial(
    config: &TcpConfig,
    peer: usize,
    joining: Joining<'_>,
) -> Result<TcpStream, CollectiveError> {
    loop {
        joining.go_on()?;
        match dial_once(config, peer, joining) {
            Ok(stream) => return Ok(stream),
            Err(error) if joining.limit.passed() => {
                let reason = format!("connecting to {}: {error}", config.peers[peer]);
                return Err(CollectiveError::PeerLost { rank: peer, reason });
            }
            Err(_) => std::thread::sleep(joining.limit.left(REDIAL_INTERVAL)),
        }
    }
}

/// What is left of the time, but not more than `at_most`, as sockets take it: a timeout of zero would be refused.
fn left(joining: Joining<'_>, at_most: Duration) -> Option<Duration> {
    Some(joining.limit.left(at_most).max(Duration::from_millis(1)))
}

/// The peer begins when it is ready to, which may take until the end.
fn read_nonce(stream: &mut TcpStream, joining: Joining<'_>) -> std::io::Result<Nonce> {
    let mut nonce = [0; 16];
    let mut received = 0;
    while received < nonce.len() {
        stream.set_read_timeout(left(joining, LOOK_INTERVAL))?;
        match stream.read(&mut nonce[received..]) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(bytes) => received += bytes,
            Err(e) if joining.limit.passed() || joining.is_cancelled() => return Err(e),
            Err(e)
                if matches!(
                    e.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                ) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(nonce)
}

fn dial_once(config: &TcpConfig, peer: usize, joining: Joining<'_>) -> std::io::Result<TcpStream> {
    let connect_timeout = joining.limit.left(HELLO_TIMEOUT).max(Duration::from_millis(1));
    let mut stream = TcpStream::connect_timeout(&config.peers[peer], connect_timeout)?;
    let theirs = read_nonce(&mut stream, joining)?;
    let ours = new_nonce()?;
    let nonces = [&ours, &theirs];
    let mut hello = Vec::with_capacity(HELLO_BYTES);
    hello.extend(MAGIC);
    hello.extend(number(config.rank));
    hello.extend(number(config.peers.len()));
    hello.extend(ours);
    hello.extend(proof(config, Role::Dialler, config.rank, peer, nonces));
    stream.write_all(&hello)?;
    stream.set_read_timeout(left(joining, HELLO_TIMEOUT))?;
    let mut answer = [0; 8];
    stream.read_exact(&mut answer)?;
    if !is_same(&answer, &proof(config, Role::Acceptor, config.rank, peer, nonces)) {
        return Err(Error::other("what answers there is not a member of this group"));
    }
    Ok(stream)
}

/// A connection that has not shown yet that it belongs here.
struct Pending {
    stream: TcpStream,
    nonce: Nonce,
    hello: [u8; HELLO_BYTES],
    received: usize,
    limit: Limit,
}

/// What came of a look at a pending connection.
enum Greeting {
    Waiting,
    Stranger,
    Rank(usize),
}

impl Pending {
    fn new(stream: TcpStream) -> std::io::Result<Self> {
        stream.set_nonblocking(true)?;
        let nonce = new_nonce()?;
        // A fresh connection takes so few bytes at once.
        (&stream).write_all(&nonce)?;
        let limit = Limit::start(Some(HELLO_TIMEOUT));
        Ok(Self { stream, nonce, hello: [0; HELLO_BYTES], received: 0, limit })
    }

    fn look(&mut self, config: &TcpConfig) -> Greeting {
        while self.received < HELLO_BYTES {
            match (&self.stream).read(&mut self.hello[self.received..]) {
                Ok(0) => return Greeting::Stranger,
                Ok(bytes) => self.received += bytes,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock && !self.limit.passed() => {
                    return Greeting::Waiting;
                }
                Err(_) => return Greeting::Stranger,
            }
        }
        self.answer(config).map_or(Greeting::Stranger, Greeting::Rank)
    }

    /// The rank that dialled, if it belongs here and could be told so.
    fn answer(&self, config: &TcpConfig) -> Option<usize> {
        let hello = &self.hello;
        let rank = usize::try_from(u32::from_le_bytes(std::array::from_fn(|i| hello[8 + i]))).ok()?;
        let nonce: Nonce = std::array::from_fn(|i| hello[16 + i]);
        let nonces = [&nonce, &self.nonce];
        let belongs = hello[..8] == MAGIC
            && hello[12..16] == number(config.peers.len())
            && (config.rank + 1..config.peers.len()).contains(&rank)
            && is_same(&hello[32..], &proof(config, Role::Dialler, rank, config.rank, nonces));
        let answer = proof(config, Role::Acceptor, rank, config.rank, nonces);
        (belongs && (&self.stream).write_all(&answer).is_ok()).then_some(rank)
    }
}

/// Accepts the connections of every higher rank; strangers are dropped and hold up nobody.
pub(super) fn accept_all(
    config: &TcpConfig,
    streams: &mut [Option<TcpStream>],
    joining: Joining<'_>,
) -> Result<(), CollectiveError> {
    let io = |e: Error| CollectiveError::io("accepting ranks", e);
    config.listener.set_nonblocking(true).map_err(io)?;
    let mut pending: Vec<Pending> = Vec::new();
    while let Some(missing) = (config.rank + 1..streams.len()).find(|peer| streams[*peer].is_none()) {
        joining.go_on()?;
        if joining.limit.passed() {
            return Err(joining.limit.timeout("connect", missing));
        }
        match config.listener.accept() {
            Ok((stream, _)) => {
                if pending.len() == MAX_PENDING {
                    pending.remove(0);
                }
                pending.extend(Pending::new(stream).ok());
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => sleep(config, &pending, joining.limit)?,
            // Some dialler's trouble, not ours.
            Err(e) if matches!(e.kind(), ErrorKind::ConnectionAborted | ErrorKind::Interrupted) => {}
            Err(e) => return Err(io(e)),
        }
        let mut at = 0;
        while at < pending.len() {
            match pending[at].look(config) {
                Greeting::Waiting => at += 1,
                Greeting::Stranger => drop(pending.remove(at)),
                // Later connections of a rank replace earlier ones: it has given those up.
                Greeting::Rank(rank) => streams[rank] = Some(pending.remove(at).stream),
            }
        }
    }
    Ok(())
}

/// Until something arrives, or a while has passed.
fn sleep(config: &TcpConfig, pending: &[Pending], limit: Limit) -> Result<(), CollectiveError> {
    let mut fds = vec![PollFd::new(&config.listener, PollFlags::IN)];
    fds.extend(pending.iter().map(|pending| PollFd::new(&pending.stream, PollFlags::IN)));
    let nanos = limit.left(LOOK_INTERVAL).subsec_nanos();
    match poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: i64::from(nanos) })) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(e) => Err(CollectiveError::io("poll", e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_siphash_2_4() {
        // The example of the paper's appendix A.
        let key = std::array::from_fn(|i| i as u8);
        let message: Vec<u8> = (0..15).collect();
        assert_eq!(sip_hash(&key, &message), 0xa129_ca61_49be_45e5);
    }

    #[test]
    fn parts_have_keys_of_their_own() {
        let keys: std::collections::BTreeSet<_> =
            (0..4).flat_map(|part| [key_of_part(&[1; 16], part), key_of_part(&[2; 16], part)]).collect();
        assert_eq!(keys.len(), 8);
        assert!(keys.iter().all(|key| key[..8] != key[8..]));
    }

    #[test]
    fn a_proof_depends_on_everything_it_is_for() {
        let config = |key: u8, size: usize| TcpConfig {
            rank: 1,
            group_key: [key; 16],
            peers: vec![([127, 0, 0, 1], 1).into(); size],
            listener: std::net::TcpListener::bind("127.0.0.1:0").expect("a free port"),
            spin: super::super::SpinPolicy::Park,
            connect_timeout: Duration::ZERO,
            cancelled: Default::default(),
        };
        let (c, a, b) = (config(7, 3), [1; 16], [2; 16]);
        let first = proof(&c, Role::Dialler, 1, 0, [&a, &b]);
        assert_eq!(first, proof(&c, Role::Dialler, 1, 0, [&a, &b]));
        for (what, other) in [
            ("key", proof(&config(8, 3), Role::Dialler, 1, 0, [&a, &b])),
            ("size", proof(&config(7, 4), Role::Dialler, 1, 0, [&a, &b])),
            ("role", proof(&c, Role::Acceptor, 1, 0, [&a, &b])),
            ("dialler", proof(&c, Role::Dialler, 2, 0, [&a, &b])),
            ("acceptor", proof(&c, Role::Dialler, 1, 2, [&a, &b])),
            ("nonces", proof(&c, Role::Dialler, 1, 0, [&b, &a])),
        ] {
            assert_ne!(first, other, "{what}");
        }
    }
}
