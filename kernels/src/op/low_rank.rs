//! The wide half of a low-rank product: `y += scale · B·t` for short vectors `t`, where a low-rank adapter adds to a matrix's product.
//!
//! A matrix product takes its rows a few at a time, each a sum over columns; here the sums are so short that starting them is most of
//! the work. So B lies the other way round: of 32 outputs, the weights of the first element of `t`, of the second … and sums of 32
//! outputs grow side by side.

use crate::KernelError;
use crate::cpu::lanes::Lanes;
use crate::cpu::pool::ThreadPool;
use crate::cpu::shared_slice::SharedSlice;
use crate::cpu::simd;
use crate::dtype::WeightType;
use crate::op::dequantize::dequantize;

/// Outputs of a block.
const BLOCK: usize = 32;
/// Multiplications that are worth another thread.
const WORTH_A_THREAD: usize = 1 << 17;

/// A matrix B of output features × rank, its rows in blocks of 32.
#[derive(Debug)]
pub struct UpMatrix {
    features: usize,
    rank: usize,
    values: Values,
}

/// Block after block, in each of them rank × 32; after the last output come zeros.
#[derive(Debug)]
enum Values {
    /// Given as bf16, by their bits.
    BF16(Vec<u16>),
    /// Given as anything else.
    F32(Vec<f32>),
}

impl UpMatrix {
    /// Repacks `rows`: `features` rows of `rank` floats of type `ty`. bf16 stays as it is, f16 becomes f32.
    ///
    /// # Errors
    /// If the sizes do not agree, or the type is no float.
    pub fn pack(ty: WeightType, features: usize, rank: usize, rows: &[u8]) -> Result<Self, KernelError> {
        let row_bytes = ty.row_bytes(rank);
        let floats = matches!(ty, WeightType::F32 | WeightType::F16 | WeightType::BF16);
        if !floats || rank == 0 || rows.len() != features * row_bytes {
            let reason = format!("{features} × {rank} of {ty} in {} bytes", rows.len());
            return Err(KernelError::new("low_rank", reason));
        }
        let size = features.next_multiple_of(BLOCK) * rank;
        let place = |feature: usize, k: usize| (feature / BLOCK * rank + k) * BLOCK + feature % BLOCK;
        let each = rows.chunks_exact(row_bytes).enumerate();
        let values = if ty == WeightType::BF16 {
            let mut values = vec![0; size];
            for (feature, row) in each {
                for (k, bits) in row.as_chunks::<2>().0.iter().enumerate() {
                    values[place(feature, k)] = u16::from_le_bytes(*bits);
                }
            }
            Values::BF16(values)
        } else {
            let (mut values, mut row_values) = (vec![0.0; size], vec![0.0; rank]);
            for (feature, row) in each {
                dequantize(ty, row, &mut row_values)?;
                row_values.iter().enumerate().for_each(|(k, value)| values[place(feature, k)] = *value);
            }
            Values::F32(values)
        };
        Ok(Self { features, rank, values })
    }

    /// Output features.
    pub fn features(&self) -> usize {
        self.features
    }

    /// Elements of the short vectors.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> usize {
        match &self.values {
            Values::BF16(values) => values.len() * 2,
            Values::F32(values) => values.len() * 4,
        }
    }

    /// `out[rows[i] · width + at + j] += scale · Σ_k B[j, k] · low[i][k]`, where `low[i]` are [`rank`](Self::rank) elements of the
    /// `i`-th of `low`'s rows, which are `stride` apart. Each output is one sum in the order of `k`, whatever the other rows are.
    ///
    /// # Panics
    /// If the shapes do not agree, or a row is named twice or out of order.
    pub fn add(
        &self,
        pool: &ThreadPool,
        scale: f32,
        (low, stride): (&[f32], usize),
        rows: &[usize],
        out: &mut [f32],
        (width, at): (usize, usize),
    ) {
        let fits = |row: &usize| row * width + at + self.features <= out.len();
        assert!(
            at + self.features <= width && rows.iter().all(fits) && rows.is_sorted_by(|a, b| a < b),
            "low_rank: {rows:?} of {width}, from {at} on {} features",
            self.features
        );
        assert!(
            rows.is_empty() || low.len() >= (rows.len() - 1) * stride + self.rank,
            "low_rank: {} rows, {stride} apart, in {}",
            rows.len(),
            low.len()
        );
        let (blocks, shared) = (self.features.div_ceil(BLOCK), SharedSlice::new(out));
        let work = rows.len() * self.features * self.rank;
        let tasks = (work / WORTH_A_THREAD).clamp(1, pool.threads()).min(blocks.max(1));
        let of_task = blocks.div_ceil(tasks);
        pool.run(tasks, |task| {
            let (from, to) = ((task * of_task).min(blocks), ((task + 1) * of_task).min(blocks));
            let first = from * BLOCK;
            let len = (to * BLOCK).min(self.features).saturating_sub(first);
            for (i, row) in rows.iter().enumerate() {
                let t = &low[i * stride..][..self.rank];
                // SAFETY: rows are apart (checked above: they are in order), and so are tasks' features within a row.
                let out = unsafe { shared.part(row * width + at + first, len) };
                let values = from * self.rank * BLOCK..to * self.rank * BLOCK;
                match &self.values {
                    Values::BF16(b) => add_bf16(&b[values], t, scale, out),
                    Values::F32(b) => add_f32(&b[values], t, scale, out),
                }
            }
        });
    }
}

simd! { fn add_bf16(b: &[u16], t: &[f32], scale: f32, out: &mut [f32]) => bf16_body }
simd! { fn add_f32(b: &[f32], t: &[f32], scale: f32, out: &mut [f32]) => f32_body }

#[inline(always)]
fn bf16_body<L: Lanes>(b: &[u16], t: &[f32], scale: f32, out: &mut [f32]) {
    blocks::<L, u16>(b, t, scale, out, |eight| L::load_bf16(eight));
}

#[inline(always)]
fn f32_body<L: Lanes>(b: &[f32], t: &[f32], scale: f32, out: &mut [f32]) {
    blocks::<L, f32>(b, t, scale, out, |eight| L::load(eight));
}

/// Block by block of `out`, the last of which may be short.
#[inline(always)]
fn blocks<L: Lanes, T>(b: &[T], t: &[f32], scale: f32, out: &mut [f32], load: impl Fn(&[T; 8]) -> L) {
    let scale = L::splat(scale);
    for (out, b) in out.chunks_mut(BLOCK).zip(b.chunks_exact(t.len() * BLOCK)) {
        let mut sums = [L::splat(0.0); BLOCK / 8];
        for (t, weights) in t.iter().zip(b.as_chunks::<BLOCK>().0) {
            let t = L::splat(*t);
            for (sum, eight) in sums.iter_mut().zip(weights.as_chunks::<8>().0) {
                *sum = load(eight).fma(t, *sum);
            }
        }
        let mut whole = [0.0; BLOCK];
        let short = out.len() < BLOCK;
        if short {
            whole[..out.len()].copy_from_slice(out);
        }
        let place: &mut [f32] = if short { &mut whole } else { &mut *out };
        for (sum, eight) in sums.iter().zip(place.as_chunks_mut::<8>().0) {
            sum.fma(scale, L::load(eight)).store(eight);
        }
        if short {
            let len = out.len();
            out.copy_from_slice(&whole[..len]);
        }
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;
    use crate::cpu::portable;

    fn value(i: usize) -> f32 {
        ((i * 37 % 113) as f32 - 56.0) / 64.0
    }

    fn bytes(ty: WeightType, count: usize) -> Vec<u8> {
        let one = |i: usize| match ty {
            WeightType::F32 => value(i).to_le_bytes().to_vec(),
            WeightType::F16 => f16::from_f32(value(i)).to_le_bytes().to_vec(),
            _ => bf16::from_f32(value(i)).to_le_bytes().to_vec(),
        };
        (0..count).flat_map(one).collect()
    }

    #[test]
    fn it_adds_the_scaled_product_to_the_rows_that_are_named_and_to_no_other() {
        for ty in [WeightType::F32, WeightType::F16, WeightType::BF16] {
            for (features, rank) in [(1, 1), (31, 3), (32, 16), (33, 7), (1000, 64)] {
                let b = UpMatrix::pack(ty, features, rank, &bytes(ty, features * rank)).expect("sizes agree");
                assert_eq!((b.features(), b.rank()), (features, rank));
                // Beside other results, of every other row.
                let (width, at, stride, rows) = (features + 9, 4, rank + 2, [1, 2, 5]);
                let low: Vec<f32> = (0..3 * stride).map(|i| value(i * 7 + 1)).collect();
                let before: Vec<f32> = (0..6 * width).map(|i| value(i * 3)).collect();
                let run = |threads: usize, only: &[usize]| {
                    let mut out = before.clone();
                    let first = rows.iter().position(|row| *row == only[0]).expect("one of them");
                    let low = (&low[first * stride..], stride);
                    b.add(&ThreadPool::new(threads), 0.75, low, only, &mut out, (width, at));
                    out
                };
                let out = run(1, &rows);
                assert_eq!(out, run(3, &rows), "threads change nothing");
                assert_eq!(out[5 * width..], run(1, &[5])[5 * width..], "nor do other rows");
                for (i, (out, before)) in out.iter().zip(&before).enumerate() {
                    let (row, column) = (i / width, i % width);
                    let place = rows.iter().position(|named| *named == row);
                    let (Some(place), true) = (place, (at..at + features).contains(&column)) else {
                        assert_eq!(out, before, "{ty} {features} × {rank}: {row}, {column}");
                        continue;
                    };
                    let held = |k: usize| match ty {
                        WeightType::F16 => f16::from_f32(value((column - at) * rank + k)).to_f32(),
                        WeightType::BF16 => bf16::from_f32(value((column - at) * rank + k)).to_f32(),
                        _ => value((column - at) * rank + k),
                    };
                    let sum: f64 = (0..rank).map(|k| f64::from(held(k) * low[place * stride + k])).sum();
                    let expected = f64::from(*before) + 0.75 * sum;
                    let error = (f64::from(*out) - expected).abs();
                    assert!(error < 1e-5 * (1.0 + rank as f64), "{ty}: {out} for {expected}");
                }
            }
        }
    }

    #[test]
    fn lanes_have_the_bits_of_plain_rust() {
        let (rank, features) = (5, 61);
        let b: Vec<u16> = (0..64 * rank).map(|i| bf16::from_f32(value(i)).to_bits()).collect();
        let t: Vec<f32> = (0..rank).map(|i| value(i + 3)).collect();
        let mut out: Vec<f32> = (0..features).map(value).collect();
        let mut plain = out.clone();
        add_bf16(&b, &t, 1.5, &mut out);
        bf16_body::<portable::F32x8>(&b, &t, 1.5, &mut plain);
        assert_eq!(out, plain);
    }

    #[test]
    fn sizes_that_do_not_agree_are_refused() {
        let pack = |ty, features, rank, len| UpMatrix::pack(ty, features, rank, &vec![0; len]).map(drop);
        assert!(pack(WeightType::BF16, 3, 2, 12).is_ok());
        for (ty, features, rank, len) in [
            (WeightType::BF16, 3, 2, 11),
            (WeightType::F32, 3, 2, 12),
            (WeightType::F32, 3, 0, 0),
            (WeightType::Q8_0, 1, 32, 34),
        ] {
            assert!(pack(ty, features, rank, len).is_err(), "{ty} {features} × {rank} in {len}");
        }
    }
}
