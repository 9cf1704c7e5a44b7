//! Prompts that have nothing in common, so that no prefix cache flatters a figure.

use std::cell::Cell;
use std::time::{SystemTime, UNIX_EPOCH};

/// Ordinary tokens of any vocabulary worth serving: past the control tokens, below the smallest vocabularies in use.
const TOKENS: std::ops::Range<u64> = 300..20_000;

/// A source of random token ids. Each prompt differs from all others, also from those of earlier runs.
pub(crate) struct Prompts(Cell<u64>);

impl Prompts {
    /// Seeded by the clock.
    pub(crate) fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self::seeded(now.as_nanos() as u64)
    }

    fn seeded(seed: u64) -> Self {
        Self(Cell::new(seed))
    }

    /// A prompt of `len` tokens.
    pub(crate) fn next(&self, len: usize) -> Vec<u32> {
        (0..len).map(|_| (TOKENS.start + self.random() % (TOKENS.end - TOKENS.start)) as u32).collect()
    }

    /// Puts things into any order.
    pub(crate) fn shuffle<T>(&self, things: &mut [T]) {
        for place in (1..things.len()).rev() {
            things.swap(place, (self.random() % (place as u64 + 1)) as usize);
        }
    }

    /// A fraction in (0, 1], all alike.
    pub(crate) fn fraction(&self) -> f64 {
        ((self.random() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// SplitMix64.
    fn random(&self) -> u64 {
        self.0.set(self.0.get().wrapping_add(0x9e37_79b9_7f4a_7c15));
        let z = self.0.get();
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shuffling_loses_nothing() {
        let mut things: Vec<usize> = (0..50).collect();
        Prompts::seeded(3).shuffle(&mut things);
        assert_ne!(things, (0..50).collect::<Vec<_>>());
        things.sort_unstable();
        assert_eq!(things, (0..50).collect::<Vec<_>>());
    }

    #[test]
    fn prompts_differ_from_the_first_tokens_on() {
        let prompts = Prompts::seeded(7);
        let mut beginnings: Vec<Vec<u32>> = (0..200).map(|_| prompts.next(64)[..4].to_vec()).collect();
        assert!(beginnings.iter().flatten().all(|token| TOKENS.contains(&u64::from(*token))));
        beginnings.sort();
        beginnings.dedup();
        assert_eq!(beginnings.len(), 200);
    }
}
