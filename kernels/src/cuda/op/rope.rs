//! Rotary position embedding, together with what happens to queries, keys and values between their product and attention.

use super::kv_cache::DeviceKv;
use super::step_rows::StepRows;
use crate::cuda::{Buffer, Device, DeviceError, View, ViewMut};
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
        todo!()
    }
}

/// What [`rope_and_write`] reads.
#[derive(Debug, Clone, Copy)]
pub struct Grouped<'a> {
    /// rows × ((heads + 2 · kv_heads) · dim): queries, keys, values.
    pub qkv: View<'a, f32>,
    /// Added to a row of `qkv` first.
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

/// Bias, norms and rotation of each row's queries, keys and values; queries go to `q` (rows × (heads · dim)), keys and values
/// into the cache at each row's position. Rows that do not exist get zeros as their queries, and nothing is cached.
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
    x: &Grouped<'_>,
    angles: &DeviceAngles,
) -> Result<(), DeviceError> {
    todo!()
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

/// Rotates the whole head vectors (2 · pairs elements) of `x`, into `out`.
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
    todo!()
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
    todo!()
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
    todo!()
}
