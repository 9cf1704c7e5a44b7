//! How commands and snapshots are written down: a version byte, a checksum, then bincode.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Changes whenever the layout of [`super::state`]'s types does.
const VERSION: u8 = 4;
/// The oldest version that is still read.
const OLDEST: u8 = 1;
const HEADER_BYTES: usize = 9;
/// Largest value that is read or written: above any snapshot, below what could hurt.
pub(super) const MAX_BYTES: usize = 64 << 20;

/// Bytes that cannot be read back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum CodecError {
    #[error("written by version {0} of the format, this is version {VERSION} and reads back to {OLDEST}")]
    Version(u8),
    #[error("damaged: {0}")]
    Damaged(String),
    #[error("{0} bytes, more than {MAX_BYTES}")]
    TooLarge(usize),
}

/// What is written down, and how it looked before.
pub(super) trait Stored: Serialize + DeserializeOwned {
    /// Its layout in version 1 of the format.
    type V1: DeserializeOwned + Into<Self>;
    /// In version 2.
    type V2: DeserializeOwned + Into<Self>;
    /// In version 3.
    type V3: DeserializeOwned + Into<Self>;
}

/// FNV-1a, 64 bits (Fowler, Noll and Vo): finds bit flips; not meant against an enemy.
///
/// From version 3 on of the version, too: with more of them than one, a bit may make one of another.
fn checksum(version: u8, body: &[u8]) -> u64 {
    let version = Some(&version).filter(|version| **version > 2);
    let bytes = version.into_iter().chain(body);
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

pub(super) fn encode<T: Stored>(value: &T) -> Result<Vec<u8>, CodecError> {
    let body = bincode::serde::encode_to_vec(value, bincode::config::standard())
        .map_err(|e| CodecError::Damaged(e.to_string()))?;
    // What is written must be readable.
    if body.len() + HEADER_BYTES > MAX_BYTES {
        return Err(CodecError::TooLarge(body.len()));
    }
    Ok(seal(&body))
}

pub(super) fn decode<T: Stored>(bytes: &[u8]) -> Result<T, CodecError> {
    let (version, body) = open_versioned(bytes)?;
    match version {
        1 => decode_body::<T::V1>(body).map(Into::into),
        2 => decode_body::<T::V2>(body).map(Into::into),
        3 => decode_body::<T::V3>(body).map(Into::into),
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

/// Version and checksum before `body`.
pub(super) fn seal(body: &[u8]) -> Vec<u8> {
    seal_as(VERSION, body)
}

fn seal_as(version: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
    bytes.push(version);
    bytes.extend_from_slice(&checksum(version, body).to_le_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// The body of what [`seal`] made, for bodies that are the same in every version.
pub(super) fn open(bytes: &[u8]) -> Result<&[u8], CodecError> {
    open_versioned(bytes).map(|(_, body)| body)
}

fn open_versioned(bytes: &[u8]) -> Result<(u8, &[u8]), CodecError> {
    if bytes.len() > MAX_BYTES {
        return Err(CodecError::TooLarge(bytes.len()));
    }
    let Some((header, body)) = bytes.split_at_checked(HEADER_BYTES) else {
        return Err(CodecError::Damaged(format!("{} bytes", bytes.len())));
    };
    if !(OLDEST..=VERSION).contains(&header[0]) {
        return Err(CodecError::Version(header[0]));
    }
    let expected = u64::from_le_bytes(std::array::from_fn(|i| header[1 + i]));
    if checksum(header[0], body) != expected {
        return Err(CodecError::Damaged("its checksum does not match".into()));
    }
    Ok((header[0], body))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::state::{Capabilities, ClusterState, Command, DeviceKind, Envelope};

    impl Stored for (String, u64) {
        type V1 = Self;
        type V2 = Self;
        type V3 = Self;
    }

    /// Bytes as an older version wrote them.
    fn written_by<T: Serialize>(version: u8, value: &T) -> Vec<u8> {
        let body = bincode::serde::encode_to_vec(value, bincode::config::standard()).expect("small");
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
        for version in [0, VERSION + 1] {
            bytes[0] = version;
            assert_eq!(decode::<Envelope>(&bytes), Err(CodecError::Version(version)));
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
