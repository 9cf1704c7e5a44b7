//! What blocks are called: a hash of all tokens up to their end.

use foggara_proto::sequence::SequenceRequest;

/// Names the content of a full block: its tokens, all tokens before them, and who may share them.
///
/// 128 bits of BLAKE3: nobody finds a prompt whose blocks are called like another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockHash([u8; 16]);

/// Separates these hashes from all others that BLAKE3 is used for.
const CONTEXT: &str = "foggara 2026 content of a block of keys and values";
/// The same, for what the first block of a sequence with an adapter continues.
const ADAPTER_CONTEXT: &str = "foggara 2026 adapter that computes keys and values";

impl BlockHash {
    /// What the first block of a request continues. A salt is its tenant's: tenants with the same salt share nothing. Without a
    /// salt a sequence shares with all others without. What an adapter computes is shared under that adapter alone.
    pub fn root_of(request: &SequenceRequest) -> Self {
        Self::root(&request.tenant, request.cache_salt.as_deref(), request.params.adapter)
    }

    /// The same, of what it depends on.
    pub fn root(tenant: &str, salt: Option<&str>, adapter: Option<u64>) -> Self {
        let context = if adapter.is_some() { ADAPTER_CONTEXT } else { CONTEXT };
        let mut hasher = blake3::Hasher::new_derive_key(context);
        if let Some(adapter) = adapter {
            hasher.update(&adapter.to_le_bytes());
        }
        if let Some(salt) = salt {
            hasher.update(&(tenant.len() as u64).to_le_bytes()).update(tenant.as_bytes());
            hasher.update(salt.as_bytes());
        }
        Self::of(&hasher)
    }

    /// The hash of the block of `tokens` that follows this one.
    #[must_use]
    pub fn followed_by(self, tokens: &[u32]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
        hasher.update(&self.0);
        for token in tokens {
            hasher.update(&token.to_le_bytes());
        }
        Self::of(&hasher)
    }

    fn of(hasher: &blake3::Hasher) -> Self {
        let mut short = [0; 16];
        hasher.finalize_xof().fill(&mut short);
        Self(short)
    }
}

/// The hashes of a sequence's full blocks, one after the other, as far as its tokens are known.
#[derive(Debug, Clone)]
pub struct HashChain {
    root: BlockHash,
    hashes: Vec<BlockHash>,
}

impl HashChain {
    /// Of a sequence of no tokens yet.
    pub fn new(root: BlockHash) -> Self {
        Self { root, hashes: Vec::new() }
    }

    /// Goes on to the last full block of `tokens`, which begin as they did before.
    pub fn extend(&mut self, tokens: &[u32], block_size: usize) {
        let mut last = self.hashes.last().copied().unwrap_or(self.root);
        for block in tokens.chunks_exact(block_size).skip(self.hashes.len()) {
            last = last.followed_by(block);
            self.hashes.push(last);
        }
    }

    /// What it begins with: equal for sequences that may share.
    pub fn root(&self) -> BlockHash {
        self.root
    }

    /// The hashes, in order.
    pub fn hashes(&self) -> &[BlockHash] {
        &self.hashes
    }

    /// What block `index` continues.
    pub fn parent(&self, index: usize) -> BlockHash {
        index.checked_sub(1).map_or(self.root, |before| self.hashes[before])
    }
}
