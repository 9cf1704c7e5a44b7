//! Rotary position embedding (Su et al., "RoFormer", 2021).

use crate::cpu::lanes::Wide;
use crate::cpu::simd_wide;

/// Which elements of a head form the pairs that are rotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeStyle {
    /// (0, 1), (2, 3) … as GGUF stores Llama's query and key rows.
    Interleaved,
    /// (0, n/2), (1, n/2 + 1) … as Hugging Face stores them.
    Half,
}

/// Frequencies of a model's rotation.
#[derive(Debug, Clone)]
pub struct RopeTable {
    inv_freq: Vec<f32>,
    style: RopeStyle,
    scale: f32,
}

/// Cosines and sines of one step's rows, made once and used in every layer.
#[derive(Debug, Clone, Default)]
pub struct RopeAngles {
    /// For each row, for each pair: cosine and sine.
    turns: Vec<(f32, f32)>,
    rows: usize,
}

impl RopeTable {
    /// `inv_freq`: radians per position for each pair; `scale` multiplies both cosine and sine (YaRN's attention factor).
    pub fn new(inv_freq: Vec<f32>, style: RopeStyle, scale: f32) -> Self {
        Self { inv_freq, style, scale }
    }

    /// Elements of a head that are rotated.
    pub fn dims(&self) -> usize {
        self.inv_freq.len() * 2
    }

    /// Fills `angles` for rows at `positions`. The angle is a f32 product, as the models were trained with; its sine and
    /// cosine are taken in f64.
    pub fn angles(&self, positions: &[u32], angles: &mut RopeAngles) {
        angles.rows = positions.len();
        angles.turns.clear();
        for position in positions {
            angles.turns.extend(self.inv_freq.iter().map(|inv_freq| {
                let (sin, cos) = f64::from(*position as f32 * inv_freq).sin_cos();
                (cos as f32 * self.scale, sin as f32 * self.scale)
            }));
        }
    }

    /// Rotates the first [`dims`](Self::dims) elements of each of `heads` heads of every row: head `h` of row `t` begins at
    /// `x[t · row_stride + h · head_dim]`.
    ///
    /// # Panics
    /// If `x` is too short.
    pub fn rotate(
        &self,
        angles: &RopeAngles,
        x: &mut [f32],
        row_stride: usize,
        heads: usize,
        head_dim: usize,
    ) {
        let pairs = self.inv_freq.len();
        for t in 0..angles.rows {
            let turns = &angles.turns[t * pairs..][..pairs];
            rotate_row(self.style, turns, &mut x[t * row_stride..][..heads * head_dim], head_dim);
        }
    }
}

simd_wide! { fn rotate_row(style: RopeStyle, turns: &[(f32, f32)], row: &mut [f32], head_dim: usize) => rotate_body }

/// Each pair by itself: the compiler makes vectors of them, as wide as there are.
#[inline(always)]
#[allow(clippy::extra_unused_type_parameters)]
fn rotate_body<W: Wide>(style: RopeStyle, turns: &[(f32, f32)], row: &mut [f32], head_dim: usize) {
    for head in row.chunks_exact_mut(head_dim) {
        match style {
            RopeStyle::Interleaved => {
                for (pair, (cos, sin)) in head.as_chunks_mut::<2>().0.iter_mut().zip(turns) {
                    *pair = turn(*pair, *cos, *sin);
                }
            }
            RopeStyle::Half => {
                let (first, second) = head[..2 * turns.len()].split_at_mut(turns.len());
                for ((a, b), (cos, sin)) in first.iter_mut().zip(second).zip(turns) {
                    [*a, *b] = turn([*a, *b], *cos, *sin);
                }
            }
        }
    }
}

#[inline(always)]
fn turn([a, b]: [f32; 2], cos: f32, sin: f32) -> [f32; 2] {
    [a * cos - b * sin, a * sin + b * cos]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_styles_rotate_by_position_times_frequency() {
        let inv_freq = vec![1.0, 0.01];
        for (style, pairs) in
            [(RopeStyle::Interleaved, [(0, 1), (2, 3)]), (RopeStyle::Half, [(0, 2), (1, 3)])]
        {
            let table = RopeTable::new(inv_freq.clone(), style, 1.0);
            let mut angles = RopeAngles::default();
            table.angles(&[0, 1000], &mut angles);
            let x = [0.5, -1.0, 2.0, 0.25, 9.0, 9.0];
            let mut rotated = [x, x].concat();
            table.rotate(&angles, &mut rotated, 6, 1, 6);
            assert_eq!(rotated[..6], x, "position 0 does nothing");
            assert_eq!(rotated[10..], [9.0, 9.0], "the rest of the head is left alone");
            for ((a, b), frequency) in pairs.into_iter().zip(&inv_freq) {
                let (sin, cos) = (1000.0 * f64::from(*frequency)).sin_cos();
                let (xa, xb) = (f64::from(x[a]), f64::from(x[b]));
                assert!((f64::from(rotated[6 + a]) - (xa * cos - xb * sin)).abs() < 1e-5);
                assert!((f64::from(rotated[6 + b]) - (xa * sin + xb * cos)).abs() < 1e-5);
            }
        }
    }
}
