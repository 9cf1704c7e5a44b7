//! Rotary position embedding, together with what happens to queries, keys and values between their product and attention.

use super::kv_cache::{DeviceKv, KvKind, u32_of};
use super::step_rows::StepRows;
use crate::cuda::{Arg, Buffer, Device, DeviceError, Launch, View, ViewMut};
use crate::op::kv_cache::Values;
use crate::op::rope::RopeStyle;

/// Frequencies of a model's rotation, on a device.
#[derive(Debug)]
pub struct DeviceRope {
    inv_freq: Buffer<f32>,
    style: RopeStyle,
    scale: f32,
}

impl DeviceRope {
    /// `inv_freq`: radians per position for each pair; `scale` multiplies both cosine and sine.
    ///
    /// # Errors
    /// If there is no memory, or the device fails.
    pub fn new(device: &Device, inv_freq: &[f32], style: RopeStyle, scale: f32) -> Result<Self, DeviceError> {
        Ok(Self { inv_freq: device.upload(inv_freq)?, style, scale })
    }

    /// Elements of a head that are rotated.
    pub fn dims(&self) -> usize {
        self.inv_freq.len() * 2
    }
}

/// Cosines and sines of one step's rows, made once and used in every layer.
#[derive(Debug)]
pub struct DeviceAngles {
    /// For each row, for each pair: cosine and sine.
    turns: Buffer<f32>,
    pairs: usize,
    style: RopeStyle,
}

impl DeviceAngles {
    /// Room for those of so many rows.
    ///
    /// # Errors
    /// If there is no memory.
    pub fn new(device: &Device, rope: &DeviceRope, rows: usize) -> Result<Self, DeviceError> {
        let pairs = rope.inv_freq.len();
        Ok(Self { turns: device.alloc(rows * pairs * 2)?, pairs, style: rope.style })
    }

    /// Rows it has room for.
    pub fn capacity(&self) -> usize {
        self.turns.len() / (2 * self.pairs).max(1)
    }

    /// Those of the rows of this step. The angle is a f32 product, as the models were trained with; its sine and cosine are
    /// taken in f64.
    ///
    /// # Errors
    /// If the device fails.
    ///
    /// # Panics
    /// If there is no room for so many rows, or `rope` has another number of pairs.
    pub fn set(&mut self, rope: &DeviceRope, rows: &StepRows) -> Result<(), DeviceError> {
        let pairs = rope.inv_freq.len();
        assert!(
            pairs == self.pairs && rows.rows() * pairs * 2 <= self.turns.len(),
            "angles of {} rows",
            rows.rows()
        );
        let launch = Launch {
            kernel: "rope_angles",
            grid: [u32_of((rows.rows() * pairs).div_ceil(256)), 1, 1],
            threads: 256,
            shared: 0,
        };
        let args = [
            Arg::Ptr(self.turns.view_mut().address()),
            rows.address(),
            Arg::Ptr(rope.inv_freq.view().address()),
            Arg::U32(u32_of(rows.rows())),
            Arg::U32(u32_of(pairs)),
            Arg::F32(rope.scale),
        ];
        // SAFETY: room for all rows was checked.
        unsafe { self.turns.device().launch(&launch, &args) }
    }

    /// Turns, pairs and style, as kernels take them.
    pub(super) fn args(&self) -> [Arg; 3] {
        let half = u32::from(self.style == RopeStyle::Half);
        [Arg::Ptr(self.turns.view().address()), Arg::U32(u32_of(self.pairs)), Arg::U32(half)]
    }
}

/// What happens to queries and keys besides rotation.
#[derive(Debug, Clone, Copy)]
pub struct Grouped<'a> {
    /// Added to a row of queries, keys and values first.
    pub bias: Option<View<'a, f32>>,
    /// Weights (dim) of a norm of each query head, before rotation.
    pub q_norm: Option<View<'a, f32>>,
    /// The same of each key head.
    pub k_norm: Option<View<'a, f32>>,
    /// Of both norms.
    pub eps: f32,
    /// Query heads.
    pub heads: usize,
}

impl Grouped<'_> {
    /// # Panics
    /// If the shapes do not agree, or more than a head is rotated.
    pub(super) fn check(&self, q: &ViewMut<'_, f32>, kv: &DeviceKv, rows: &StepRows, angles: &DeviceAngles) {
        let sizes = kv.sizes();
        let (dim, all) = (sizes.key_dim, self.heads + 2 * sizes.kv_heads);
        assert!(sizes.values == Values::Own(dim), "rope_and_write: {sizes:?}");
        assert!(q.len() >= rows.rows() * self.heads * dim, "rope_and_write: q");
        assert!(self.bias.is_none_or(|bias| bias.len() == all * dim), "rope_and_write: bias");
        let norms = [self.q_norm, self.k_norm];
        assert!(norms.iter().flatten().all(|norm| norm.len() == dim), "rope_and_write: norms");
        check_angles(angles, rows, dim);
    }
}

/// Bias, norms and rotation of each row's queries, keys and values (`qkv`, rows × ((heads + 2 · kv_heads) · dim)); queries go to `q`
/// (rows × (heads · dim)), keys and values into the cache at each row's position. Rows that do not exist get zeros as their queries, and
/// nothing is cached.
///
/// # Errors
/// If the device fails.
///
/// # Panics
/// If the shapes do not agree, or more than a head is rotated.
pub fn rope_and_write(
    q: ViewMut<'_, f32>,
    kv: &mut DeviceKv,
    layer: usize,
    rows: &StepRows,
    qkv: View<'_, f32>,
    x: &Grouped<'_>,
    angles: &DeviceAngles,
) -> Result<(), DeviceError> {
    let sizes = *kv.sizes();
    let (dim, kv_heads, heads) = (sizes.key_dim, sizes.kv_heads, x.heads);
    let all = heads + 2 * kv_heads;
    x.check(&q, kv, rows, angles);
    assert!(qkv.len() >= rows.rows() * all * dim, "rope_and_write: qkv");
    let launch = Launch {
        kernel: match kv.kind() {
            KvKind::F32 => "rope_and_write_f32",
            KvKind::F16 => "rope_and_write_f16",
            KvKind::F8 => "rope_and_write_f8",
        },
        grid: [u32_of(rows.rows()), u32_of(all.div_ceil(4)), 1],
        threads: 128,
        shared: u32_of(4 * dim * size_of::<f32>()),
    };
    let [keys, values] = kv.layer(layer);
    let [turns, pairs, half] = angles.args();
    let args = [
        Arg::Ptr(q.address()),
        keys,
        values,
        rows.address(),
        Arg::Ptr(qkv.address()),
        or_none(x.bias),
        or_none(x.q_norm),
        or_none(x.k_norm),
        turns,
        Arg::F32(x.eps),
        pairs,
        half,
        Arg::U32(u32_of(heads)),
        Arg::U32(u32_of(kv_heads)),
        Arg::U32(u32_of(dim)),
        Arg::U32(u32_of(kv.key_stride)),
        Arg::U32(u32_of(sizes.block_size)),
    ];
    // SAFETY: lengths were checked; blocks of the rows are blocks of the cache, as whoever made the rows says.
    unsafe { q.device().launch(&launch, &args) }
}

/// Where heads are in a matrix: head `h` of row `r` begins at `offset + r · row_stride + h · head_stride`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadsAt {
    /// Of the first.
    pub offset: usize,
    /// Between rows.
    pub row_stride: usize,
    /// Between heads.
    pub head_stride: usize,
}

/// Rotates vectors of 2 · pairs elements of `x`, into `out`.
///
/// # Errors
/// If the device fails.
///
/// # Panics
/// If one of them is outside.
pub fn rope_rows(
    out: ViewMut<'_, f32>,
    out_at: HeadsAt,
    x: View<'_, f32>,
    x_at: HeadsAt,
    heads: usize,
    rows: &StepRows,
    angles: &DeviceAngles,
) -> Result<(), DeviceError> {
    rotate((&out, out_at), (x, x_at), heads, rows, angles)
}

/// As [`rope_rows`], in place.
///
/// # Errors
/// If the device fails.
///
/// # Panics
/// If a vector is outside.
pub fn rope_in_place(
    x: ViewMut<'_, f32>,
    at: HeadsAt,
    heads: usize,
    rows: &StepRows,
    angles: &DeviceAngles,
) -> Result<(), DeviceError> {
    rotate((&x, at), (x.as_view(), at), heads, rows, angles)
}

/// One thread has a pair: what is read and what is written may be the same.
fn rotate(
    (out, out_at): (&ViewMut<'_, f32>, HeadsAt),
    (x, x_at): (View<'_, f32>, HeadsAt),
    heads: usize,
    rows: &StepRows,
    angles: &DeviceAngles,
) -> Result<(), DeviceError> {
    let (count, pairs) = (rows.rows(), angles.pairs);
    check_angles(angles, rows, 2 * pairs);
    let last = |at: &HeadsAt| {
        let (row, head) = (count.saturating_sub(1), heads.saturating_sub(1));
        at.offset + row * at.row_stride + head * at.head_stride + 2 * pairs
    };
    if count == 0 || heads == 0 || pairs == 0 {
        return Ok(());
    }
    assert!(last(&out_at) <= out.len() && last(&x_at) <= x.len(), "rope_rows: {out_at:?} and {x_at:?}");
    let launch = Launch {
        kernel: "rope_rows",
        grid: [u32_of(count), u32_of((heads * pairs).div_ceil(128)), 1],
        threads: 128,
        shared: 0,
    };
    let [turns, pairs, half] = angles.args();
    let args = [
        Arg::Ptr(out.address() + (out_at.offset * size_of::<f32>()) as u64),
        Arg::Ptr(x.address() + (x_at.offset * size_of::<f32>()) as u64),
        turns,
        pairs,
        half,
        Arg::U32(u32_of(heads)),
        Arg::U64(out_at.row_stride as u64),
        Arg::U64(out_at.head_stride as u64),
        Arg::U64(x_at.row_stride as u64),
        Arg::U64(x_at.head_stride as u64),
    ];
    // SAFETY: the last element of both was checked to be inside.
    unsafe { out.device().launch(&launch, &args) }
}

/// What [`latent_write`] reads.
#[derive(Debug, Clone, Copy)]
pub struct LatentKeys<'a> {
    /// rows × key width: the short vector, then what is rotated (2 · pairs elements).
    pub x: View<'a, f32>,
    /// Added to a row first.
    pub bias: Option<View<'a, f32>>,
    /// Weights of the norm of the short vector.
    pub norm: View<'a, f32>,
    /// Of the norm.
    pub eps: f32,
}

/// Keys of latent attention: bias, norm of the short vector, rotation of the rest; into the cache at each row's position.
///
/// # Errors
/// If the device fails.
///
/// # Panics
/// If the shapes do not agree.
pub fn latent_write(
    kv: &mut DeviceKv,
    layer: usize,
    rows: &StepRows,
    x: &LatentKeys<'_>,
    angles: &DeviceAngles,
) -> Result<(), DeviceError> {
    let sizes = *kv.sizes();
    let width = sizes.key_dim;
    assert!(kv.in_keys() && sizes.kv_heads == 1, "latent_write: {sizes:?}");
    check_angles(angles, rows, width);
    assert!(x.x.len() >= rows.rows() * width, "latent_write: x");
    assert!(x.norm.len() == width - 2 * angles.pairs, "latent_write: {} of {width}", x.norm.len());
    assert!(x.bias.is_none_or(|bias| bias.len() == width), "latent_write: bias");
    let launch = Launch {
        kernel: match kv.kind() {
            KvKind::F32 => "latent_write_f32",
            KvKind::F16 => "latent_write_f16",
            KvKind::F8 => "latent_write_f8",
        },
        grid: [u32_of(rows.rows()), 1, 1],
        threads: 128,
        shared: u32_of(width * size_of::<f32>()),
    };
    let [keys, _] = kv.layer(layer);
    let [turns, pairs, half] = angles.args();
    let args = [
        keys,
        rows.address(),
        Arg::Ptr(x.x.address()),
        or_none(x.bias),
        Arg::Ptr(x.norm.address()),
        turns,
        Arg::F32(x.eps),
        pairs,
        half,
        Arg::U32(u32_of(width)),
        Arg::U32(u32_of(kv.key_stride)),
        Arg::U32(u32_of(sizes.block_size)),
    ];
    // SAFETY: lengths were checked; blocks of the rows are blocks of the cache, as whoever made the rows says.
    unsafe { x.x.device().launch(&launch, &args) }
}

/// In place: the first `weight.len()` elements of each row, divided by their root mean square and times `weight`.
///
/// # Errors
/// If the device fails.
///
/// # Panics
/// If `x` is too short.
pub fn norm_heads(
    x: ViewMut<'_, f32>,
    row_stride: usize,
    rows: usize,
    weight: View<'_, f32>,
    eps: f32,
) -> Result<(), DeviceError> {
    let width = weight.len();
    if rows == 0 {
        return Ok(());
    }
    assert!(width <= row_stride || rows == 1, "norm_heads: {width} of {row_stride}");
    assert!((rows - 1) * row_stride + width <= x.len(), "norm_heads: {rows} rows");
    let launch = Launch { kernel: "norm_heads", grid: [u32_of(rows), 1, 1], threads: 256, shared: 0 };
    let args = [
        Arg::Ptr(x.address()),
        Arg::Ptr(weight.address()),
        Arg::U32(u32_of(width)),
        Arg::U64(row_stride as u64),
        Arg::F32(eps),
    ];
    // SAFETY: the last element was checked to be inside.
    unsafe { x.device().launch(&launch, &args) }
}

fn or_none(view: Option<View<'_, f32>>) -> Arg {
    Arg::Ptr(view.map_or(0, |view| view.address()))
}

fn check_angles(angles: &DeviceAngles, rows: &StepRows, dim: usize) {
    let pairs = angles.pairs;
    assert!(
        rows.rows() * pairs * 2 <= angles.turns.len() && 2 * pairs <= dim,
        "{} angles for {} rows of {dim}",
        angles.turns.len(),
        rows.rows()
    );
}

#[cfg(test)]
#[path = "rope_tests.rs"]
mod tests;
