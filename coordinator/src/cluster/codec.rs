//! How commands and snapshots are written down: a version byte, a checksum, then bincode.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Changes whenever the layout of [`super::state`]'s types does.
const VERSION: u8 = 1;
const HEADER_BYTES: usize = 9;
/// Largest value that is read or written: above any snapshot, below what could hurt.
pub(super) const MAX_BYTES: usize = 64 << 20;

/// Bytes that cannot be read back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum CodecError {
    #[error("written by version {0} of the format, this is version {VERSION}")]
    Version(u8),
    #[error("damaged: {0}")]
    Damaged(String),
    #[error("{0} bytes, more than {MAX_BYTES}")]
    TooLarge(usize),
}

/// FNV-1a, 64 bits (Fowler, Noll and Vo): finds bit flips; not meant against an enemy.
fn checksum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

pub(super) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    let body = bincode::serde::encode_to_vec(value, bincode::config::standard())
        .map_err(|e| CodecError::Damaged(e.to_string()))?;
    // What is written must be readable.
    if body.len() + HEADER_BYTES > MAX_BYTES {
        return Err(CodecError::TooLarge(body.len()));
    }
    Ok(seal(&body))
}

pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    let body = open(bytes)?;
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
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
    bytes.push(VERSION);
    bytes.extend_from_slice(&checksum(body).to_le_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// The body of what [`seal`] made.
pub(super) fn open(bytes: &[u8]) -> Result<&[u8], CodecError> {
    if bytes.len() > MAX_BYTES {
        return Err(CodecError::TooLarge(bytes.len()));
    }
    let Some((header, body)) = bytes.split_at_checked(HEADER_BYTES) else {
        return Err(CodecError::Damaged(format!("{} bytes", bytes.len())));
    };
    if header[0] != VERSION {
        return Err(CodecError::Version(header[0]));
    }
    let expected = u64::from_le_bytes(std::array::from_fn(|i| header[1 + i]));
    if checksum(body) != expected {
        return Err(CodecError::Damaged("its checksum does not match".into()));
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

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
