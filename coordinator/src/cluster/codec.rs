//! How commands and snapshots are written down: a byte for the format, a checksum, then bincode.
//!
//! Which formats a program writes is in [`foggara_proto::version`]; in which of them a cluster writes, [`super::format`] decides.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The oldest format that is still read.
const OLDEST: u8 = 1;
/// Of bodies that look the same in every format, such as raft's own messages. It stays as it is, so that a program that was
/// upgraded can be replaced by the one before.
const CONTAINER: u8 = 4;
const HEADER_BYTES: usize = 9;
/// Largest value that is read or written: above any snapshot, below what could hurt.
pub(super) const MAX_BYTES: usize = 64 << 20;

/// Bytes that cannot be read back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum CodecError {
    #[error(
        "it is in format {found} of the replicated state, of which this program, foggara {}, reads {OLDEST} to {newest}: upgrade it \
         to the version that the other coordinators have",
        foggara_proto::version::Build::own().version
    )]
    Newer { found: u8, newest: u8 },
    #[error(
        "it needs format {since} of the replicated state, and the cluster writes {format} until all coordinators are upgraded"
    )]
    NotYet { since: u8, format: u8 },
    #[error("damaged: {0}")]
    Damaged(String),
    #[error("{0} bytes, more than {MAX_BYTES}")]
    TooLarge(usize),
}

/// What is written down, and how it looked before.
///
/// A program writes more formats than one while the release before it reads only an older one: what looks different in that one
/// overrides `encoded`.
pub(super) trait Stored: Serialize + DeserializeOwned {
    /// Its layout in version 1 of the format.
    type V1: DeserializeOwned + Into<Self>;
    /// In version 2.
    type V2: DeserializeOwned + Into<Self>;
    /// In version 3.
    type V3: DeserializeOwned + Into<Self>;
    /// In version 4.
    type V4: DeserializeOwned + Into<Self>;

    /// The first format that can say this.
    fn since(&self) -> u8 {
        OLDEST
    }

    /// In `format`, one of those that this program writes.
    fn encoded(&self, _format: u8) -> Result<Vec<u8>, bincode::error::EncodeError> {
        as_it_is(self)
    }
}

/// In the layout that `value` has.
pub(super) fn as_it_is<T: Serialize>(value: &T) -> Result<Vec<u8>, bincode::error::EncodeError> {
    bincode::serde::encode_to_vec(value, bincode::config::standard())
}

/// FNV-1a, 64 bits (Fowler, Noll and Vo): finds bit flips; not meant against an enemy.
///
/// From version 3 on of the version, too: with more of them than one, a bit may make one of another.
fn checksum(version: u8, body: &[u8]) -> u64 {
    let version = Some(&version).filter(|version| **version > 2);
    let bytes = version.into_iter().chain(body);
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// `value` in `format`, one of those that this program writes.
pub(super) fn encode<T: Stored>(value: &T, format: u8) -> Result<Vec<u8>, CodecError> {
    let since = value.since();
    if since > format {
        return Err(CodecError::NotYet { since, format });
    }
    let body = value.encoded(format).map_err(|e| CodecError::Damaged(e.to_string()))?;
    // What is written must be readable.
    if body.len() + HEADER_BYTES > MAX_BYTES {
        return Err(CodecError::TooLarge(body.len()));
    }
    Ok(seal_as(format, &body))
}

/// What [`encode`] made, in `newest` or a format before it.
pub(super) fn decode<T: Stored>(bytes: &[u8], newest: u8) -> Result<T, CodecError> {
    let (version, body) = open_as(bytes, newest)?;
    match version {
        1 => decode_body::<T::V1>(body).map(Into::into),
        2 => decode_body::<T::V2>(body).map(Into::into),
        3 => decode_body::<T::V3>(body).map(Into::into),
        4 => decode_body::<T::V4>(body).map(Into::into),
        _ => decode_body(body),
    }
}

fn decode_body<T: DeserializeOwned>(body: &[u8]) -> Result<T, CodecError> {
    let config = bincode::config::standard().with_limit::<MAX_BYTES>();
    let (value, read) =
        bincode::serde::decode_from_slice(body, config).map_err(|e| CodecError::Damaged(e.to_string()))?;
    if read != body.len() {
        return Err(CodecError::Damaged(format!("{} bytes too many", body.len() - read)));
    }
    Ok(value)
}

/// Whether `bytes` are whole, and in `newest` or a format before it.
pub(super) fn check_format(bytes: &[u8], newest: u8) -> Result<(), CodecError> {
    open_as(bytes, newest).map(drop)
}

/// The format of what [`encode`] made.
pub(super) fn format_of(bytes: &[u8]) -> Option<u8> {
    bytes.first().copied()
}

/// A format and a checksum before `body`, which looks the same in every format.
pub(super) fn seal(body: &[u8]) -> Vec<u8> {
    seal_as(CONTAINER, body)
}

fn seal_as(version: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
    bytes.push(version);
    bytes.extend_from_slice(&checksum(version, body).to_le_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// The body of what [`seal`] made.
pub(super) fn open(bytes: &[u8]) -> Result<&[u8], CodecError> {
    open_as(bytes, CONTAINER).map(|(_, body)| body)
}

fn open_as(bytes: &[u8], newest: u8) -> Result<(u8, &[u8]), CodecError> {
    if bytes.len() > MAX_BYTES {
        return Err(CodecError::TooLarge(bytes.len()));
    }
    let Some((header, body)) = bytes.split_at_checked(HEADER_BYTES) else {
        return Err(CodecError::Damaged(format!("{} bytes", bytes.len())));
    };
    let expected = u64::from_le_bytes(std::array::from_fn(|i| header[1 + i]));
    if checksum(header[0], body) != expected || header[0] < OLDEST {
        return Err(CodecError::Damaged("its checksum does not match".into()));
    }
    // Only now: a bit that has flipped is no newer format.
    match header[0] > newest {
        true => Err(CodecError::Newer { found: header[0], newest }),
        false => Ok((header[0], body)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::state::adapters::Adapter;
    use crate::cluster::state::{Capabilities, ClusterState, Command, DeviceKind, Envelope, Worker};

    impl Stored for (String, u64) {
        type V1 = Self;
        type V2 = Self;
        type V3 = Self;
        type V4 = Self;
    }

    /// The newest layout there is.
    const NEWEST: u8 = 5;

    fn decode<T: Stored>(bytes: &[u8]) -> Result<T, CodecError> {
        super::decode(bytes, NEWEST)
    }

    fn encode<T: Stored>(value: &T) -> Result<Vec<u8>, CodecError> {
        super::encode(value, NEWEST)
    }

    /// Bytes as an older version wrote them.
    fn written_by<T: Serialize>(version: u8, value: &T) -> Vec<u8> {
        let body = as_it_is(value).expect("small");
        seal_as(version, &body)
    }

    #[test]
    fn what_version_1_wrote_is_read() {
        // A deployment "m" of two ranks, as it lay in a log of version 1.
        let put: &[u8] =
            &[&[1, b'r', 4, 1, b'm', 2, b'/', b'm', 2, 1, 0, 4][..], b"auto", &[4], b"auto", &[10]].concat();
        let mut bytes = seal_as(1, put);
        let mut state = ClusterState::default();
        state.apply(&decode::<Envelope>(&bytes).expect("readable"));
        assert_eq!(state.deployments["m"].shape, foggara_proto::shape::Shape::tensor(2));
        let snapshot = written_by(1, &state.to_v1());
        assert_eq!(decode::<ClusterState>(&snapshot), Ok(state.clone()));
        let note = Command::PutNote { key: "k".into(), value: "v".into() };
        let note = Envelope { request_id: "r".into(), command: note };
        assert_eq!(decode::<Envelope>(&written_by(1, &note)), Ok(note));
        let newer = CodecError::Newer { found: NEWEST + 1, newest: NEWEST };
        assert_eq!(decode::<Envelope>(&seal_as(NEWEST + 1, put)), Err(newer));
        assert!(matches!(decode::<Envelope>(&seal_as(0, put)), Err(CodecError::Damaged(_))));
        bytes[0] = NEWEST + 1;
        assert!(matches!(decode::<Envelope>(&bytes), Err(CodecError::Damaged(_))), "its number alone");
    }

    #[test]
    fn what_a_format_cannot_say_is_not_written_in_it() {
        let worker = Worker {
            addr: "a".into(),
            collective_addr: "c".into(),
            host: "h".into(),
            pid: 1,
            incarnation: "i".into(),
            capabilities: Capabilities::default(),
            group: None,
        };
        let join = Envelope { request_id: "r".into(), command: Command::RegisterWorker(Box::new(worker)) };
        assert_eq!(super::encode(&join, 3), Err(CodecError::NotYet { since: 4, format: 3 }));
        for (written, read, ok) in [(4, 4, true), (4, 5, true), (5, 5, true), (5, 4, false)] {
            let bytes = super::encode(&join, written).expect("it can say this");
            assert_eq!(format_of(&bytes), Some(written));
            let expected = match ok {
                true => Ok(join.clone()),
                false => Err(CodecError::Newer { found: written, newest: read }),
            };
            assert_eq!(super::decode(&bytes, read), expected, "{written} read by {read}");
        }
    }

    #[test]
    fn what_version_2_wrote_is_read() {
        // A worker of two threads that joins, as it lay in a log of version 2: it computes on its CPU.
        let join = &[
            &[1, b'r', 1, 1, b'a', 1, b'c', 1, b'h', 7, 1, b'i', 2, 100, 30, 40][..],
            &[1, b'x', 1, b'v', 0],
        ];
        let bytes = seal_as(2, &join.concat());
        let mut state = ClusterState::default();
        state.apply(&decode::<Envelope>(&bytes).expect("readable"));
        let worker = state.workers.values().next().expect("it has joined");
        let capabilities = Capabilities {
            threads: 2,
            memory_bytes: 100,
            read_bytes_per_second: 30,
            flops: 40,
            cpu: "x".into(),
            version: "v".into(),
            ..Capabilities::default()
        };
        assert_eq!((&worker.capabilities, worker.pid), (&capabilities, 7));
        let older =
            [written_by(3, &state.to_v3()), written_by(2, &state.to_v2()), written_by(1, &state.to_v1())];
        for snapshot in older {
            assert_eq!(decode::<ClusterState>(&snapshot), Ok(state.clone()));
        }
        assert_eq!(decode::<ClusterState>(&encode(&state).expect("small")), Ok(state));
    }

    #[test]
    fn what_version_3_wrote_is_read() {
        // A worker of a GPU that joins, as it lay in a log of version 3: nothing of caches.
        let join = &[
            &[1, b'r', 14, 1, b'a', 1, b'c', 1, b'h', 7, 1, b'i', 2, 100, 30, 40][..],
            &[1, b'x', 1, b'v', 1, 1, b'G', 1, b'u', 200, 1, 3, b'f', b'1', b'6', 0, 0, 0],
        ];
        let bytes = seal_as(3, &join.concat());
        let mut state = ClusterState::default();
        state.apply(&decode::<Envelope>(&bytes).expect("readable"));
        let worker = state.workers.values().next().expect("it has joined");
        let capabilities = &worker.capabilities;
        assert_eq!((capabilities.flops, capabilities.device.total_bytes), (40, 200));
        assert_eq!((capabilities.device.kind, capabilities.device.name.as_str()), (DeviceKind::Cuda, "G"));
        assert_eq!((capabilities.cache_bytes, capabilities.int8_ops_per_second), (0, 0), "not known");
        assert_eq!(decode::<ClusterState>(&written_by(3, &state.to_v3())), Ok(state));
    }

    #[test]
    fn version_4_is_read_and_still_written_as_long_as_there_are_no_adapters() {
        // A worker that joins and an operator's note, as they lay in a log of version 4.
        let join = &[
            &[1, b'r', 15, 1, b'a', 1, b'c', 1, b'h', 7, 1, b'i', 2, 100, 30, 40][..],
            &[1, b'x', 1, b'v', 0, 0, 0, 0, 0, 0, 1, 8, 9, 10, 0],
        ];
        let note = [1, b'n', 11, 1, b'k', 1, b'v'];
        let mut state = ClusterState::default();
        for body in [&join.concat()[..], &note[..]] {
            state.apply(&decode::<Envelope>(&seal_as(4, body)).expect("readable"));
        }
        let worker = state.workers.values().next().expect("it has joined");
        assert_eq!((worker.capabilities.cache_bytes, worker.capabilities.device.data_parallel), (8, true));
        let written = super::encode(&state, 4).expect("without adapters");
        assert_eq!(written, written_by(4, &state.to_v4()));
        assert_eq!(super::decode::<ClusterState>(&written, 4), Ok(state.clone()), "an older coordinator");
        let newer = encode(&state).expect("small");
        assert_ne!(newer[HEADER_BYTES..], written[HEADER_BYTES..]);
        assert_eq!(decode::<ClusterState>(&newer), Ok(state.clone()));
        // With an adapter nothing can be said in version 4 any more.
        let adapter =
            Adapter { id: 0, deployment: "m".into(), path: "/a".into(), manifest: String::new(), created: 1 };
        let put = Envelope {
            request_id: "p".into(),
            command: Command::PutAdapter { name: "a".into(), adapter: adapter.clone() },
        };
        assert_eq!(super::encode(&put, 4), Err(CodecError::NotYet { since: 5, format: 4 }));
        assert_eq!(decode::<Envelope>(&encode(&put).expect("small")), Ok(put));
        state.adapters.insert("a".into(), adapter);
        assert_eq!(super::encode(&state, 4), Err(CodecError::NotYet { since: 5, format: 4 }));
        assert_eq!(decode::<ClusterState>(&encode(&state).expect("small")), Ok(state));
    }

    #[test]
    fn every_single_bit_flip_and_every_cut_is_found() {
        let bytes = encode(&("a key".to_string(), 7u64)).expect("small");
        assert_eq!(decode::<(String, u64)>(&bytes), Ok(("a key".to_string(), 7)));
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(decode::<(String, u64)>(&flipped).is_err(), "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert!(decode::<(String, u64)>(&bytes[..len]).is_err(), "{len} bytes");
        }
    }
}
