//! Points that look arbitrary and are the same in every run.

/// A source of numbers (SplitMix64).
#[derive(Debug, Clone)]
pub struct Choice(u64);

impl Choice {
    /// Everything it says follows from `seed`.
    pub fn seeded(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `end`, which must not be 0.
    pub fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = self.0;
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % end as u64) as usize
    }

    /// `len` tokens of the tiny checkpoints.
    pub fn tiny_prompt(&mut self, len: usize) -> Vec<u32> {
        (0..len).map(|_| 3 + self.below(300) as u32).collect()
    }
}
