//! y = x Wᵀ for a batch of rows: the op nearly all the time goes into.
//!
//! The contract, for each output feature r and each activation row t, whatever the batch, the threads and the lanes:
//! - quantized weights, runs b of 32 columns in increasing order:
//!   `acc = fma(scale_w[r,b] · scale_x[t,b], Σ code_w · code_x, acc)` with an exact integer sum, then, for formats with a
//!   minimum, `acc = fma(min_w[r,b], sum_x[t,b], acc)` (Q6_K: two half runs, each with its scale);
//! - float weights: even and odd columns are summed apart, `acc = fma(w, x, acc)` in increasing order, then added;
//! - bf16 weights that are multiplied in bf16 (`WeightMatrix::multiplied_in_bf16`): activations are rounded to bf16; even and odd
//!   pairs of columns are summed apart, of each pair `acc = fma(w_even, x_even, fma(w_odd, x_odd, acc))` in increasing order, then
//!   added.
//!
//! So a row's result depends on no other row. Weights are read from memory once for the whole batch: panels outside, tiles
//! of activation rows inside, as many as there are registers for.

mod pairs;
mod rows;
#[cfg(target_arch = "x86_64")]
mod tiles;

#[cfg(target_arch = "x86_64")]
use self::tiles::rows_of as rows_in_tiles;
use super::activations::{ActBlock, Activations};
use super::panels::{LEAD, Min, PANEL_ROWS, PanelFormat, WeightMatrix};
use crate::cpu::lanes::PanelLanes;
use crate::cpu::pairs::Widened;
use crate::cpu::pool::ThreadPool;
use crate::cpu::prefetch::prefetch_part;
use crate::cpu::shared_slice::SharedSlice;
use crate::cpu::{simd, simd_panels};
use crate::dtype::WeightType;

/// Panels of one task: small enough to balance threads, large enough to be worth claiming. An even number: some lanes hold two.
const TASK_PANELS: usize = 8;

/// Tasks of each thread where there are panels enough.
const TASKS_EACH: usize = 4;

/// `y[t · y_stride + r] = Σ_k w[r, k] · x[t, k]` for every row `t` of `x`; overwrites.
///
/// Quantized weights take the 8-bit form of `x`, and those that are multiplied in bf16 its pairs: [`Activations::prepare`] must have been called since it
/// changed.
///
/// # Panics
/// If the shapes do not agree, or `x` has not been prepared.
pub fn matmul(pool: &ThreadPool, w: &WeightMatrix, x: &Activations, y: &mut [f32], y_stride: usize) {
    let (rows, batch) = (w.rows(), x.rows());
    if rows == 0 || batch == 0 {
        return;
    }
    assert_eq!(w.cols(), x.cols(), "matmul: columns of the weights and of the activations");
    assert!(
        y_stride >= rows && y.len() >= (batch - 1) * y_stride + rows,
        "matmul: {batch} × {rows} do not fit y"
    );
    assert!(x.is_prepared_for(w), "matmul: activations for weights of {}", w.weight_type());
    let panels = rows.div_ceil(PANEL_ROWS);
    let out = SharedSlice::new(y);
    let in_tiles = rows_in_tiles(w, batch);
    let of_task = task_panels(panels, pool.threads());
    pool.run(panels.div_ceil(of_task), |task| {
        let from = task * of_task;
        let to = panels.min(from + of_task);
        if w.is_multiplied_in_bf16() && (batch > 1 || w.stored().is_some()) {
            return pairs::run(w, x, (from, to), &out, y_stride);
        }
        if let Some(stored) = w.stored() {
            return rows::run(w, stored, x, (from, to), &out, y_stride);
        }
        #[cfg(target_arch = "x86_64")]
        if in_tiles > 0 {
            tiles::run(w, x, in_tiles, (from, to), &out, y_stride);
        }
        if batch == 1 {
            return run_one_row(w, x, from, to, &out, y_stride);
        }
        run_panels(w, x, in_tiles, from, to, &out, y_stride);
    });
}

/// Panels of each task; all, for a thread that is alone. With tiles, what a task does before its first panel (scales of all blocks
/// of all rows are put in order) is as much as a panel or two; without, a task's first panels are not asked for by its own thread:
/// so tasks are few, and large.
fn task_panels(panels: usize, threads: usize) -> usize {
    let each = if threads == 1 { panels } else { panels / (TASKS_EACH * threads) };
    each.next_multiple_of(2).max(TASK_PANELS)
}

/// How many of the first rows are left to tiles: none here.
#[cfg(not(target_arch = "x86_64"))]
fn rows_in_tiles(_: &WeightMatrix, _: usize) -> usize {
    0
}

simd_panels! {
    fn run_panels(
        w: &WeightMatrix,
        x: &Activations,
        first_row: usize,
        from: usize,
        to: usize,
        out: &SharedSlice<'_, f32>,
        stride: usize,
    ) => run_panels_body
}

simd! {
    fn run_one_row(
        w: &WeightMatrix,
        x: &Activations,
        from: usize,
        to: usize,
        out: &SharedSlice<'_, f32>,
        stride: usize,
    ) => run_one_row_body
}

/// Panel by panel, whatever the machine has: one row waits for memory, which gives most when it is read from end to end.
#[inline(always)]
fn run_one_row_body<L: PanelLanes<1>>(
    w: &WeightMatrix,
    x: &Activations,
    from: usize,
    to: usize,
    out: &SharedSlice<'_, f32>,
    stride: usize,
) {
    run_panels_body::<L, 1>(w, x, 0, from, to, out, stride);
}

#[inline(always)]
fn run_panels_body<L: PanelLanes<P>, const P: usize>(
    w: &WeightMatrix,
    x: &Activations,
    first_row: usize,
    from: usize,
    to: usize,
    out: &SharedSlice<'_, f32>,
    stride: usize,
) {
    use WeightType as T;
    let out = Output { out, stride, rows: w.rows() };
    match w.weight_type() {
        T::Q4_0 => each_panel::<L, P, Quantized<{ T::Q4_0 as u8 }>>(w, x, first_row, from, to, &out),
        T::Q4_1 => each_panel::<L, P, Quantized<{ T::Q4_1 as u8 }>>(w, x, first_row, from, to, &out),
        T::Q4_K => each_panel::<L, P, Quantized<{ T::Q4_K as u8 }>>(w, x, first_row, from, to, &out),
        T::Q5_0 | T::Q8_0 => {
            each_panel::<L, P, Quantized<{ T::Q8_0 as u8 }>>(w, x, first_row, from, to, &out)
        }
        T::Q5_1 => each_panel::<L, P, Quantized<{ T::Q5_1 as u8 }>>(w, x, first_row, from, to, &out),
        T::Q5_K => each_panel::<L, P, Quantized<{ T::Q5_K as u8 }>>(w, x, first_row, from, to, &out),
        T::Q6_K => each_panel::<L, P, Quantized<{ T::Q6_K as u8 }>>(w, x, first_row, from, to, &out),
        T::F32 => each_panel::<L, P, FloatF32>(w, x, first_row, from, to, &out),
        T::F16 => each_panel::<L, P, FloatF16>(w, x, first_row, from, to, &out),
        T::BF16 if w.is_multiplied_in_bf16() => {
            each_panel::<L, P, pairs::InPairs<Widened>>(w, x, first_row, from, to, &out)
        }
        T::BF16 => each_panel::<L, P, FloatBf16>(w, x, first_row, from, to, &out),
    }
}

/// How one kind of panel is multiplied with `T` activation rows.
trait PanelProduct<L: PanelLanes<P>, const P: usize> {
    /// Rows of activations at a time.
    fn tile() -> usize;

    /// What is `ahead` is asked for meanwhile, a part with each block: in the order of memory, although two panels are read at a
    /// time, so that the machine, too, sees what comes next.
    fn product<const T: usize>(
        panels: [&[u8]; P],
        ahead: Option<&[u8]>,
        x: &Activations,
        first: usize,
    ) -> [L; T];
}

impl WeightMatrix {
    /// What is to be asked for while the `P` panels from `first` on are read, in that order: as many bytes as they have, the first of
    /// which are needed [`LEAD`] after the beginning of the last panel. It goes on into the next task's.
    #[inline(always)]
    fn ahead<const P: usize>(&self, first: usize) -> &[u8] {
        let from = (first + P - 1) * self.panel_bytes + LEAD;
        self.bytes_between(from, from + P * self.panel_bytes)
    }
}

#[inline(always)]
fn each_panel<L: PanelLanes<P>, const P: usize, F: PanelProduct<L, P>>(
    w: &WeightMatrix,
    x: &Activations,
    first_row: usize,
    from: usize,
    to: usize,
    out: &Output<'_>,
) {
    for first in (from..to).step_by(P) {
        // Where there is no second panel, the first stands in for it; nothing of it is written.
        let mut panels = [w.panel(first); P];
        for (p, panel) in panels.iter_mut().enumerate().skip(1) {
            if first + p < to {
                *panel = w.panel(first + p);
            }
        }
        // What is next comes while the first rows meet this: memory is further away than the machine looks ahead by itself.
        let mut ahead = ((P > 1 || x.rows() == 1) && first_row == 0).then(|| w.ahead::<P>(first));
        let mut t = first_row;
        while t < x.rows() {
            let count = next_tile(x.rows() - t, F::tile());
            let ahead = ahead.take();
            match count {
                1 => out.put(first, t, F::product::<1>(panels, ahead, x, t)),
                2 => out.put(first, t, F::product::<2>(panels, ahead, x, t)),
                3 => out.put(first, t, F::product::<3>(panels, ahead, x, t)),
                4 => out.put(first, t, F::product::<4>(panels, ahead, x, t)),
                8 if L::TILE == 8 => out.put(first, t, F::product::<8>(panels, ahead, x, t)),
                _ => unreachable!("a tile of {count} rows"),
            }
            t += count;
        }
    }
}

/// Rows of the next tile, of `left` that there are and `most` (3, 4 or 8) that there may be: 1 to 4, or 8.
#[inline(always)]
fn next_tile(left: usize, most: usize) -> usize {
    match (left, most) {
        // Not three and one: one alone has too little to do between two loads.
        (4, 3) => 2,
        (4..8, 8) => 4,
        _ => left.min(most),
    }
}

/// Where results go.
struct Output<'a> {
    out: &'a SharedSlice<'a, f32>,
    stride: usize,
    /// Output features.
    rows: usize,
}

impl Output<'_> {
    /// Those of `P` panels from `panel` on, for activation rows from `first` on.
    #[inline(always)]
    fn put<L: PanelLanes<P>, const P: usize, const T: usize>(
        &self,
        panel: usize,
        first: usize,
        sums: [L; T],
    ) {
        for (i, sum) in sums.into_iter().enumerate() {
            for p in 0..P {
                let begin = (panel + p) * PANEL_ROWS;
                if begin >= self.rows {
                    break;
                }
                let rows = PANEL_ROWS.min(self.rows - begin);
                // SAFETY: a panel belongs to one task, and its output features to no other panel.
                let out = unsafe { self.out.part((first + i) * self.stride + begin, rows) };
                if let Ok(out) = out.try_into() {
                    sum.store(p, out);
                } else {
                    let mut lanes = [0.0; PANEL_ROWS];
                    sum.store(p, &mut lanes);
                    out.copy_from_slice(&lanes[..rows]);
                }
            }
        }
    }
}

/// A quantized type, by its number.
struct Quantized<const TY: u8>;

impl<const TY: u8> Quantized<TY> {
    const FORMAT: PanelFormat = {
        let mut i = 0;
        loop {
            if WeightType::ALL[i] as u8 == TY {
                break match PanelFormat::of(WeightType::ALL[i]) {
                    Some(format) => format,
                    None => panic!("not a quantized type"),
                };
            }
            i += 1;
        }
    };
}

/// Eight scales of each panel's block.
#[inline(always)]
fn scales<L: PanelLanes<P>, const P: usize>(format: PanelFormat, blocks: [&[u8]; P], at: usize) -> L {
    if format.wide_scales { L::load_bytes(part(blocks, at)) } else { L::load_f16_bytes(part(blocks, at)) }
}

/// `N` bytes of each panel's block.
#[inline(always)]
fn part<const P: usize, const N: usize>(blocks: [&[u8]; P], at: usize) -> [&[u8; N]; P] {
    // (A closure may be left as a function that does not know the instructions it may use: a call for each block.)
    let mut parts = [const { &[0; N] }; P];
    for p in 0..P {
        parts[p] = blocks[p][at..].first_chunk().expect("a block holds its codes and scales");
    }
    parts
}

impl<L: PanelLanes<P>, const P: usize, const TY: u8> PanelProduct<L, P> for Quantized<TY> {
    #[inline(always)]
    fn tile() -> usize {
        L::TILE
    }

    #[inline(always)]
    fn product<const T: usize>(
        panels: [&[u8]; P],
        ahead: Option<&[u8]>,
        x: &Activations,
        first: usize,
    ) -> [L; T] {
        let f = Self::FORMAT;
        let count = panels[0].len() / f.block_bytes();
        let rows: [&[ActBlock]; T] = std::array::from_fn(|t| &x.blocks(first + t)[..count]);
        let mut whole = panels;
        for p in 0..P {
            whole[p] = &panels[p][..count * f.block_bytes()];
        }
        let mut acc = [L::splat(0.0); T];
        for b in 0..count {
            if let Some(ahead) = ahead {
                prefetch_part(ahead, b * P * f.block_bytes(), P * f.block_bytes());
            }
            let mut block = whole;
            for p in 0..P {
                block[p] = &whole[p][b * f.block_bytes()..][..f.block_bytes()];
            }
            let scale: L = scales(f, block, f.code_bytes());
            let mut a = [&rows[0][b]; T];
            let mut codes = [&a[0].coded; T];
            for t in 0..T {
                a[t] = &rows[t][b];
                codes[t] = &a[t].coded;
            }
            if f.two_scales {
                let [low, high] = L::halves_i8(part(block, 0), codes);
                let second: L = scales(f, block, f.code_bytes() + f.scale_bytes());
                for t in 0..T {
                    let scale_x = L::splat(a[t].scale);
                    acc[t] = scale.mul(scale_x).fma(low[t], acc[t]);
                    acc[t] = second.mul(scale_x).fma(high[t], acc[t]);
                }
            } else {
                let dots = if f.four_bit {
                    L::dots_u4(part(block, 0), codes)
                } else {
                    L::dots_i8(part(block, 0), codes)
                };
                for t in 0..T {
                    acc[t] = scale.mul(L::splat(a[t].scale)).fma(dots[t], acc[t]);
                }
            }
            let min = match f.min {
                Min::None => continue,
                Min::Minus8Scales => scale.mul(L::splat(-8.0)),
                Min::Stored => scales(f, block, f.min_at()),
            };
            for t in 0..T {
                acc[t] = min.fma(L::splat(a[t].sum), acc[t]);
            }
        }
        acc
    }
}

macro_rules! float_product {
    ($name:ident, $unit:ty, $load:ident) => {
        struct $name;
        impl<L: PanelLanes<P>, const P: usize> PanelProduct<L, P> for $name {
            #[inline(always)]
            fn tile() -> usize {
                L::FLOAT_TILE
            }

            #[inline(always)]
            fn product<const T: usize>(
                panels: [&[u8]; P],
                ahead: Option<&[u8]>,
                x: &Activations,
                first: usize,
            ) -> [L; T] {
                let columns: [&[[$unit; PANEL_ROWS]]; P] = panels.map(bytemuck::cast_slice);
                let count = columns[0].len();
                let pairs = columns.map(|columns| &columns.as_chunks::<2>().0[..count / 2]);
                let mut rows: [&[[f32; 2]]; T] = [&[]; T];
                for t in 0..T {
                    rows[t] = &x.row(first + t).as_chunks().0[..count / 2];
                }
                let (mut even, mut odd) = ([L::splat(0.0); T], [L::splat(0.0); T]);
                let bytes = P * size_of::<[[$unit; PANEL_ROWS]; 2]>();
                for pair in 0..count / 2 {
                    if let Some(ahead) = ahead {
                        prefetch_part(ahead, pair * bytes, bytes);
                    }
                    let w0 = L::$load(pairs.map(|pairs| &pairs[pair][0]));
                    let w1 = L::$load(pairs.map(|pairs| &pairs[pair][1]));
                    for t in 0..T {
                        let [x0, x1] = rows[t][pair];
                        even[t] = w0.fma(L::splat(x0), even[t]);
                        odd[t] = w1.fma(L::splat(x1), odd[t]);
                    }
                }
                if count % 2 == 1 {
                    let last = L::$load(columns.map(|columns| &columns[count - 1]));
                    for t in 0..T {
                        even[t] = last.fma(L::splat(x.row(first + t)[count - 1]), even[t]);
                    }
                }
                for t in 0..T {
                    even[t] = even[t].add(odd[t]);
                }
                even
            }
        }
    };
}

float_product!(FloatF32, f32, load);
float_product!(FloatF16, u16, load_f16);
float_product!(FloatBf16, u16, load_bf16);

#[cfg(test)]
#[path = "matmul_tests.rs"]
mod tests;
