//! Softmax attention of each row over its own cached keys and values, on a device.

use super::kv_cache::DeviceKv;
use super::step_rows::StepRows;
use crate::cuda::ActsViewMut;
use crate::cuda::{Buffer, Device, DeviceError, View};

/// Which head of the cache each query head attends to.
#[derive(Debug)]
pub struct HeadMap {
    heads: usize,
}

impl HeadMap {
    /// `kv_head_of`: for each query head, the cache's head (non-decreasing).
    ///
    /// # Errors
    /// If there is no memory, or the device fails.
    pub fn new(device: &Device, kv_head_of: &[u32]) -> Result<Self, DeviceError> {
        todo!()
    }

    /// Query heads.
    pub fn heads(&self) -> usize {
        self.heads
    }
}

/// Where parts of a row's result wait for each other: one for all layers.
#[derive(Debug)]
pub struct AttentionScratch {
    parts: Buffer<f32>,
}

impl AttentionScratch {
    /// Room for `rows` rows that are taken alone, of `heads` heads; with more rows, attention takes several rounds.
    ///
    /// # Errors
    /// If there is no memory.
    pub fn new(
        device: &Device,
        rows: usize,
        heads: usize,
        value_dim: usize,
        context: usize,
    ) -> Result<Self, DeviceError> {
        todo!()
    }
}

/// What all rows of a layer have in common.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// Query heads.
    pub heads: &'a HeadMap,
    /// What scores are multiplied by.
    pub scale: f32,
    /// `Some(cap)`: a scaled score becomes `cap · tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// A row sees so many positions, its own among them; all up to its own without.
    pub window: Option<usize>,
    /// For each query head, a logit that takes part in the softmax and has no value.
    pub sinks: Option<View<'a, f32>>,
}

/// Attention of the rows of a step: `q` is rows × (heads · key width), `out` rows × (heads · value width). Each row sees the
/// cached positions up to its own. Rows that do not exist get anything finite.
///
/// # Errors
/// If the device fails.
///
/// # Panics
/// If the shapes do not agree, or a key or value has more than 768 (f32: 640) elements.
pub fn attention(
    out: ActsViewMut<'_>,
    q: View<'_, f32>,
    kv: &DeviceKv,
    layer: usize,
    rows: &StepRows,
    a: &Attention<'_>,
    scratch: &mut AttentionScratch,
) -> Result<(), DeviceError> {
    todo!()
}
