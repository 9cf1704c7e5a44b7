//! Provisional: `matrix.rs` has these.

use crate::cuda::{Device, ViewMut};

/// Rows in f32 or bf16, to be written.
#[derive(Debug)]
pub enum ActsViewMut<'a> {
    /// f32.
    F32(ViewMut<'a, f32>),
    /// bf16.
    Bf16(ViewMut<'a, u16>),
}

impl<'a> ActsViewMut<'a> {
    /// Its device.
    pub fn device(&self) -> &'a Device {
        match self {
            Self::F32(view) => view.device(),
            Self::Bf16(view) => view.device(),
        }
    }

    /// Where it begins.
    pub fn address(&self) -> u64 {
        match self {
            Self::F32(view) => view.address(),
            Self::Bf16(view) => view.address(),
        }
    }

    /// Elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(view) => view.len(),
            Self::Bf16(view) => view.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
