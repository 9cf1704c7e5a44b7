//! Frequencies of the rotary embedding, with the scalings for longer contexts.

use crate::spec::MAX_HEAD_DIM;

/// How a model stretches its positions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum RopeScaling {
    /// Not at all.
    None,
    /// Positions divided by `factor` (Chen et al., "Extending Context Window of LLMs via Position Interpolation", 2023).
    Linear {
        /// How much longer the context is.
        factor: f64,
    },
    /// Llama 3.1's: low frequencies divided by `factor`, high ones kept, a smooth step between (the model's own
    /// reference implementation, `apply_scaling`).
    Llama3 {
        /// Divisor of low frequencies.
        factor: f64,
        /// Wavelengths longer than original / this are stretched fully.
        low: f64,
        /// Wavelengths shorter than original / this are kept.
        high: f64,
        /// Positions before stretching.
        original: f64,
    },
    /// Frequencies that turn often within the original positions kept, those that turn rarely divided by `factor`, a ramp
    /// between (Peng et al., "YaRN", 2023, section 3.2).
    Yarn {
        /// Divisor of low frequencies.
        factor: f64,
        /// Positions before stretching.
        original: f64,
        /// Turns within these from which on a frequency is kept.
        fast: f64,
        /// Turns up to which it is divided.
        slow: f64,
        /// The ramp's ends are rounded outwards to whole frequencies.
        truncate: bool,
    },
}

/// What YaRN multiplies sines and cosines with (its equation 22, with the multiplier some models give).
pub(crate) fn yarn_scale(factor: f64, multiplier: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * multiplier * factor.ln() + 1.0 }
}

/// Radians per position of each pair of `dims` rotated elements, computed in f64.
///
/// # Errors
/// If there can be no such elements, or theta or the scaling make no frequencies.
pub(crate) fn inv_freq(theta: f64, dims: usize, scaling: RopeScaling) -> Result<Vec<f32>, String> {
    // Before anything is allocated: the number comes from a file.
    if dims > MAX_HEAD_DIM || !dims.is_multiple_of(2) {
        return Err(format!("{dims} rotated elements; they must be an even number up to {MAX_HEAD_DIM}"));
    }
    let frequencies: Vec<f32> = (0..dims / 2)
        .map(|pair| {
            let frequency = theta.powf(-((2 * pair) as f64) / dims as f64);
            match scaling {
                RopeScaling::Yarn { .. } => yarn(frequency, pair, theta, dims, scaling) as f32,
                _ => scaled(frequency, scaling) as f32,
            }
        })
        .collect();
    if !theta.is_finite() || theta <= 0.0 || frequencies.iter().any(|frequency| !frequency.is_finite()) {
        return Err(format!("rotation with theta {theta} and scaling {scaling:?} has no finite frequencies"));
    }
    Ok(frequencies)
}

/// Pair `pair`'s frequency between its own and the divided one.
fn yarn(frequency: f64, pair: usize, theta: f64, dims: usize, scaling: RopeScaling) -> f64 {
    let RopeScaling::Yarn { factor, original, fast, slow, truncate } = scaling else { return frequency };
    // The pair that makes so many turns within the original positions.
    let pair_of =
        |turns: f64| dims as f64 * (original / (turns * std::f64::consts::TAU)).ln() / (2.0 * theta.ln());
    let (mut low, mut high) = (pair_of(fast), pair_of(slow));
    if truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    (low, high) = (low.max(0.0), high.min(dims as f64 - 1.0));
    let width = if low == high { 0.001 } else { high - low };
    let ramp = ((pair as f64 - low) / width).clamp(0.0, 1.0);
    frequency / factor * ramp + frequency * (1.0 - ramp)
}

fn scaled(frequency: f64, scaling: RopeScaling) -> f64 {
    match scaling {
        RopeScaling::None | RopeScaling::Yarn { .. } => frequency,
        RopeScaling::Linear { factor } => frequency / factor,
        RopeScaling::Llama3 { factor, low, high, original } => {
            let wavelength = std::f64::consts::TAU / frequency;
            if wavelength < original / high {
                frequency
            } else if wavelength > original / low {
                frequency / factor
            } else {
                let smooth = (original / wavelength - low) / (high - low);
                (1.0 - smooth) * frequency / factor + smooth * frequency
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalings_do_what_they_say() {
        let inv_freq = |scaling| inv_freq(10_000.0, 8, scaling).expect("eight elements can be rotated");
        let plain = inv_freq(RopeScaling::None);
        assert_eq!(plain, [1.0, 0.1, 0.01, 0.001]);
        assert_eq!(inv_freq(RopeScaling::Linear { factor: 4.0 })[1], 0.025);
        let llama3 = RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 64.0 };
        let scaled = inv_freq(llama3);
        assert_eq!(scaled[0], 1.0, "a wavelength of 6 positions is kept");
        assert_eq!(scaled[3], 0.001 / 8.0, "one of 6,283 is stretched");
        // Wavelength 62.8 lies between 16 and 64: smooth = (64/62.83 - 1) / 3.
        assert!(
            (f64::from(scaled[1])
                - 0.1 * (0.125 + 0.875 * (64.0 / (std::f64::consts::TAU * 10.0) - 1.0) / 3.0))
                .abs()
                < 1e-8
        );
    }

    #[test]
    fn yarn_keeps_the_fast_and_divides_the_slow() {
        let yarn =
            |truncate| RopeScaling::Yarn { factor: 32.0, original: 4096.0, fast: 32.0, slow: 1.0, truncate };
        let plain = inv_freq(150_000.0, 64, RopeScaling::None).expect("rotates");
        for truncate in [false, true] {
            let stretched = inv_freq(150_000.0, 64, yarn(truncate)).expect("rotates");
            // 32 turns in 4,096 positions are made by pair 8.1, one turn by pair 17.4.
            assert_eq!(stretched[..8], plain[..8]);
            assert!(stretched[18..].iter().zip(&plain[18..]).all(|(a, b)| (a * 32.0 - b).abs() < 1e-9));
            let ends = if truncate { (8.0, 18.0) } else { (8.0928, 17.3980) };
            let ramp = (12.0 - ends.0) / (ends.1 - ends.0);
            let expected = plain[12] * (1.0 - ramp + ramp / 32.0);
            assert!((stretched[12] - expected).abs() < 2e-5 * expected, "{} {expected}", stretched[12]);
        }
        assert!((yarn_scale(32.0, 1.0) - 1.346_573_6).abs() < 1e-6);
        assert_eq!(yarn_scale(1.0, 1.0), 1.0);
    }

    #[test]
    fn what_cannot_be_rotated_is_refused() {
        let none = RopeScaling::None;
        for (theta, dims, scaling) in [
            (10_000.0, 7, none),
            (10_000.0, MAX_HEAD_DIM + 2, none),
            (10_000.0, usize::MAX - 1, none),
            (0.0, 8, none),
            (-1.0, 8, none),
            (f64::NAN, 8, none),
            (10_000.0, 8, RopeScaling::Linear { factor: 0.0 }),
        ] {
            assert!(inv_freq(theta, dims, scaling).is_err(), "{theta} {dims} {scaling:?}");
        }
    }
}
