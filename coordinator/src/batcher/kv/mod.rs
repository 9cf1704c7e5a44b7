//! The KV blocks of a group, as the batcher accounts for them.
//!
//! A group has a pool for each data-parallel index ([`pool`]). Full blocks whose content is known are called by a hash of it
//! ([`hash`]) and stay, when nobody holds them any more, until somebody wants their memory: `evict` says which go first, by
//! what they would cost ([`cost`]). Nothing here knows sequences.

pub(super) mod cost;
mod evict;
pub mod hash;
mod pool;
#[cfg(test)]
mod tests;

pub(super) use pool::{Name, Pool};

/// The pools of a group: of `count` blocks each, pool `p` has those numbered `p · count` and up. The same number is valid in
/// the cache of every rank of that index.
pub(super) fn pools(pools: u32, count: u32) -> Vec<Pool> {
    (0..pools).map(|pool| Pool::new(pool * count, count)).collect()
}
