//! Random numbers without a state.

/// A number in [0, 1) from a seed and a position: SplitMix64's output function (Steele, Lea and Flood, 2014) of both.
pub(super) fn uniform(seed: u64, position: usize) -> f64 {
    let mix = |mut z: u64| {
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let state = mix(seed.wrapping_add(0x9e37_79b9_7f4a_7c15))
        .wrapping_add((position as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    (mix(state) >> 11) as f64 / (1u64 << 53) as f64
}
