//! Which group takes a sequence: policies behind one trait, a file each. Pure.

mod least_loaded;
mod prefix_aware;
mod round_robin;
#[cfg(test)]
mod tests;

use std::fmt::{self, Debug};
use std::str::FromStr;

use foggara_proto::sequence::SequenceRequest;

use crate::batcher::{BlockHash, HashChain};

use least_loaded::LeastLoaded;
use prefix_aware::PrefixAware;
use round_robin::RoundRobin;

/// A group that can take a sequence, as a front door sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupView {
    /// Its id.
    pub group: u64,
    /// Its driver's lease: under another one the cache is empty.
    pub driver_epoch: u64,
    /// Sequences that this front door has there.
    pub load: usize,
    /// Blocks of its KV cache, in all pools.
    pub blocks: usize,
    /// Tokens in a block.
    pub block_size: usize,
}

/// A sequence that looks for a group.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// All of it that is known.
    pub tokens: &'a [u32],
    /// What its blocks' hashes begin with.
    pub root: BlockHash,
    /// Sequences with the same key are sent to the same group, if it is all the same.
    pub session: Option<&'a str>,
}

impl<'a> From<&'a SequenceRequest> for Asked<'a> {
    fn from(request: &'a SequenceRequest) -> Self {
        let root = BlockHash::root_of(request);
        Self { tokens: &request.tokens, root, session: request.session.as_deref() }
    }
}

impl Asked<'_> {
    /// What its full blocks are called.
    fn chain(&self, block_size: usize) -> HashChain {
        let mut chain = HashChain::new(self.root);
        chain.extend(self.tokens, block_size);
        chain
    }
}

/// Picks a group for each sequence.
pub trait Policy: Debug + Send {
    /// The place in `groups` of the one that takes `asked`. There is at least one group.
    fn choose(&mut self, asked: &Asked<'_>, groups: &[GroupView]) -> usize;

    /// `group` has, or will soon have, all of `asked` in its cache.
    fn placed(&mut self, asked: &Asked<'_>, group: &GroupView) {
        let _ = (asked, group);
    }
}

/// The policies there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PolicyKind {
    /// To the group with the fewest sequences.
    LeastLoaded,
    /// To one group after the other.
    RoundRobin,
    /// To where most of the prompt is cached, unless there is too much to do there.
    #[default]
    PrefixAware,
}

impl PolicyKind {
    /// All of them, with their names.
    pub const ALL: [(&'static str, Self); 3] = [
        ("prefix-aware", Self::PrefixAware),
        ("least-loaded", Self::LeastLoaded),
        ("round-robin", Self::RoundRobin),
    ];

    /// A policy that has seen nothing yet.
    pub fn build(self) -> Box<dyn Policy> {
        match self {
            Self::LeastLoaded => Box::new(LeastLoaded),
            Self::RoundRobin => Box::<RoundRobin>::default(),
            Self::PrefixAware => Box::<PrefixAware>::default(),
        }
    }
}

impl fmt::Display for PolicyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = Self::ALL.iter().find(|(_, kind)| kind == self);
        f.write_str(named.map_or("", |(name, _)| name))
    }
}

impl FromStr for PolicyKind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().find(|(known, _)| *known == name);
        found.map(|(_, kind)| *kind).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|(name, _)| *name).collect();
            format!("`{name}` is not one of {}", names.join(", "))
        })
    }
}
