//! Products of many rows where there are AMX tiles. Sums of codes come from tiles, all else is as everywhere, so the results are
//! the same.

use std::cell::RefCell;

use super::{Output, Quantized, part, scales};
use crate::cpu::amx::{ROWS, SETS, Sums, Tiles, WEIGHT_BYTES, Weights};
use crate::cpu::avx512::{F32x16, unpack_i8, unpack_u4};
use crate::cpu::detect::{Widest, features};
use crate::cpu::lanes::PanelLanes;
use crate::cpu::prefetch::prefetch_part;
use crate::cpu::shared_slice::SharedSlice;
use crate::dtype::WeightType;
use crate::op::activations::{ActBlock, Activations};
use crate::op::panels::{Min, PanelFormat, WeightMatrix};

/// With fewer rows, unpacking the codes takes what tiles save.
const FEWEST: usize = 2 * ROWS;

thread_local! {
    static MEMORY: RefCell<Memory> = const {
        RefCell::new(Memory { unpacked: Vec::new(), factors: Vec::new(), sums: [Sums([[0; 16]; ROWS]); SETS] })
    };
}

/// A thread's working memory.
struct Memory {
    /// The codes of two panels, block by block.
    unpacked: Vec<Weights>,
    /// Of each tile of rows, block by block.
    factors: Vec<Factors>,
    /// Of the blocks under way.
    sums: [Sums; SETS],
}

/// What a block's sums and minima are multiplied with, for each row.
#[derive(Debug, Clone, Copy)]
struct Factors {
    scales: [f32; ROWS],
    sums: [f32; ROWS],
}

/// How many of `batch` rows tiles take: the first so many.
pub(super) fn rows_of(w: &WeightMatrix, batch: usize) -> usize {
    let fits = PanelFormat::of(w.weight_type()).is_some_and(|format| !format.two_scales);
    if batch >= FEWEST && w.cols() > 0 && fits && features().lanes() == Widest::Amx {
        batch / ROWS * ROWS
    } else {
        0
    }
}

/// Panels `from..to` times the first `rows` rows of `x`, as [`rows_of`] says.
pub(super) fn run(
    w: &WeightMatrix,
    x: &Activations,
    rows: usize,
    (from, to): (usize, usize),
    out: &SharedSlice<'_, f32>,
    stride: usize,
) {
    use WeightType as T;
    let Some(tiles) = Tiles::configured() else { unreachable!("rows_of says whether there are tiles") };
    let out = Output { out, stride, rows: w.rows() };
    MEMORY.with_borrow_mut(|memory| {
        let work = Work { tiles: &tiles, w, x, rows, from, to, out: &out };
        // SAFETY: tiles are used only where these features are.
        unsafe {
            match w.weight_type() {
                T::Q4_0 => work.run::<{ T::Q4_0 as u8 }>(memory),
                T::Q4_1 => work.run::<{ T::Q4_1 as u8 }>(memory),
                T::Q4_K => work.run::<{ T::Q4_K as u8 }>(memory),
                T::Q5_0 | T::Q8_0 => work.run::<{ T::Q8_0 as u8 }>(memory),
                T::Q5_1 => work.run::<{ T::Q5_1 as u8 }>(memory),
                T::Q5_K => work.run::<{ T::Q5_K as u8 }>(memory),
                ty => unreachable!("{ty} has no tiles"),
            }
        }
    });
}

/// One task.
struct Work<'a> {
    tiles: &'a Tiles,
    w: &'a WeightMatrix,
    x: &'a Activations,
    rows: usize,
    from: usize,
    to: usize,
    out: &'a Output<'a>,
}

impl Work<'_> {
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2,fma,f16c")]
    fn run<const TY: u8>(&self, Memory { unpacked, factors, sums }: &mut Memory) {
        let f = Quantized::<TY>::FORMAT;
        let count = self.w.cols() / 32;
        unpacked.resize(unpacked.len().max(count), Weights([0; WEIGHT_BYTES]));
        factors.clear();
        for row in (0..self.rows).step_by(ROWS) {
            let a = self.x.block_rows(row, ROWS);
            factors.extend((0..count).map(|b| Factors {
                scales: std::array::from_fn(|t| a[t * count + b].scale),
                sums: std::array::from_fn(|t| a[t * count + b].sum),
            }));
        }
        for first in (self.from..self.to).step_by(2) {
            let second = if first + 1 < self.to { first + 1 } else { first };
            let panels = [self.w.panel(first), self.w.panel(second)];
            for (b, to) in unpacked[..count].iter_mut().enumerate() {
                unpack(f, block_of(f, panels, b), to);
            }
            let mut ahead = Some(self.w.ahead::<2>(first));
            for (tile, factors) in factors.chunks_exact(count).enumerate() {
                let row = tile * ROWS;
                let products =
                    self.product::<TY>(panels, ahead.take(), &unpacked[..count], row, factors, sums);
                self.out.put(first, row, products);
            }
        }
    }

    /// Two panels times [`ROWS`] rows from `row` on. Tiles sum the codes of three blocks ahead of the one whose sums meet
    /// their scales. The panels `ahead` are asked for, block by block.
    #[inline(always)]
    fn product<const TY: u8>(
        &self,
        panels: [&[u8]; 2],
        ahead: Option<&[u8]>,
        unpacked: &[Weights],
        row: usize,
        factors: &[Factors],
        sums: &mut [Sums; SETS],
    ) -> [F32x16; ROWS] {
        let f = Quantized::<TY>::FORMAT;
        let count = unpacked.len();
        let a = self.x.block_rows(row, ROWS);
        let mut acc = [F32x16::splat(0.0); ROWS];
        macro_rules! ask {
            ($b:expr, $which:literal) => {
                if $b < count {
                    if let Some(ahead) = ahead {
                        prefetch_part(ahead, $b * 2 * f.block_bytes(), 2 * f.block_bytes());
                    }
                    self.dots::<TY, $which>(a, count, $b, &unpacked[$b], &mut sums[$which]);
                }
            };
        }
        macro_rules! answer {
            ($b:expr, $which:literal) => {
                if $b < count {
                    acc = scale(f, block_of(f, panels, $b), &factors[$b], &sums[$which], acc);
                }
            };
        }
        ask!(0, 0);
        ask!(1, 1);
        ask!(2, 2);
        for b in (0..count).step_by(SETS) {
            ask!(b + 3, 3);
            answer!(b, 0);
            ask!(b + 4, 0);
            answer!(b + 1, 1);
            ask!(b + 5, 1);
            answer!(b + 2, 2);
            ask!(b + 6, 2);
            answer!(b + 3, 3);
        }
        acc
    }

    #[inline(always)]
    fn dots<const TY: u8, const WHICH: u8>(
        &self,
        a: &[ActBlock],
        count: usize,
        b: usize,
        weights: &Weights,
        sums: &mut Sums,
    ) {
        let a = &bytemuck::cast_slice(a)[b * size_of::<ActBlock>() + ActBlock::CODES_AT..];
        let stride = count * size_of::<ActBlock>();
        if Quantized::<TY>::FORMAT.four_bit {
            self.tiles.dots::<false, WHICH>(a, stride, weights, sums);
        } else {
            self.tiles.dots::<true, WHICH>(a, stride, weights, sums);
        }
    }
}

/// The `b`-th block of both panels.
#[inline(always)]
fn block_of(f: PanelFormat, panels: [&[u8]; 2], b: usize) -> [&[u8]; 2] {
    let at = b * f.block_bytes()..(b + 1) * f.block_bytes();
    [&panels[0][at.clone()], &panels[1][at]]
}

/// Codes as tiles take them: both panels' vectors beside each other, a byte to a code.
#[inline(always)]
fn unpack(f: PanelFormat, blocks: [&[u8]; 2], to: &mut Weights) {
    if f.four_bit {
        unpack_u4(part(blocks, 0), &mut to.0);
    } else {
        unpack_i8(part(blocks, 0), &mut to.0);
    }
}

/// Adds a block's sums, times their scales, and its minima.
#[inline(always)]
fn scale(
    f: PanelFormat,
    block: [&[u8]; 2],
    factors: &Factors,
    sums: &Sums,
    mut acc: [F32x16; ROWS],
) -> [F32x16; ROWS] {
    let scale: F32x16 = scales(f, block, f.code_bytes());
    let min: F32x16 = match f.min {
        Min::None => F32x16::splat(0.0),
        Min::Minus8Scales => scale.mul(F32x16::splat(-8.0)),
        Min::Stored => scales(f, block, f.min_at()),
    };
    for (t, acc) in acc.iter_mut().enumerate() {
        let dots = F32x16::from_integers(&sums.0[t]);
        *acc = scale.mul(F32x16::splat(factors.scales[t])).fma(dots, *acc);
        if !matches!(f.min, Min::None) {
            *acc = min.fma(F32x16::splat(factors.sums[t]), *acc);
        }
    }
    acc
}
