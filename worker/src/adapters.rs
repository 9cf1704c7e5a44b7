//! The low-rank adapters that a rank holds beside its weights, by number. They come while the rank runs; whoever has got one keeps
//! it for as long as it computes with it.

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};

use crate::weights::RankAdapter;

/// Shared by who loads them and who computes with them. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Adapters(Arc<RwLock<BTreeMap<u64, Arc<RankAdapter>>>>);

impl Adapters {
    /// The adapter of that number.
    pub fn get(&self, number: u64) -> Option<Arc<RankAdapter>> {
        self.0.read().unwrap_or_else(|poisoned| poisoned.into_inner()).get(&number).cloned()
    }

    /// Whether it is here.
    pub fn has(&self, number: u64) -> bool {
        self.get(number).is_some()
    }

    /// Takes one in.
    pub fn insert(&self, number: u64, adapter: RankAdapter) {
        self.0.write().unwrap_or_else(|poisoned| poisoned.into_inner()).insert(number, Arc::new(adapter));
    }
}
