//! Activations: what products take.

use std::ops::Range;

use half::bf16;

use super::f8_rows::{F8Rows, F8View, F8ViewMut};
use super::{Buffer, Device, DeviceError, View, ViewMut};

/// The type of activations: that of a checkpoint's numbers, or the one its products are done in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActType {
    /// 32 bits.
    F32,
    /// The upper half of an `F32`.
    Bf16,
    /// E4M3, with a scale for each row.
    F8,
}

impl ActType {
    /// Bytes of one.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
            Self::F8 => 1,
        }
    }
}

/// Activations on a device.
#[derive(Debug)]
pub enum Acts {
    /// As they are.
    F32(Buffer<f32>),
    /// The bits of bf16.
    Bf16(Buffer<u16>),
    /// Rows of codes.
    F8(F8Rows),
}

/// Activations, to be read.
#[derive(Debug, Clone, Copy)]
pub enum ActsView<'a> {
    /// As they are.
    F32(View<'a, f32>),
    /// The bits of bf16.
    Bf16(View<'a, u16>),
    /// Rows of codes.
    F8(F8View<'a>),
}

/// Activations, to be written.
#[derive(Debug)]
pub enum ActsViewMut<'a> {
    /// As they are.
    F32(ViewMut<'a, f32>),
    /// The bits of bf16.
    Bf16(ViewMut<'a, u16>),
    /// Rows of codes.
    F8(F8ViewMut<'a>),
}

/// The same for every type.
macro_rules! each {
    ($kind:ident, $value:expr, $inner:ident => $body:expr) => {
        match $value {
            $kind::F32($inner) => $body,
            $kind::Bf16($inner) => $body,
            $kind::F8($inner) => $body,
        }
    };
}

impl Acts {
    /// Room for `len`, in E4M3 for one row; what is in it is anything.
    ///
    /// # Errors
    /// If there is no such memory.
    pub fn alloc(device: &Device, ty: ActType, len: usize) -> Result<Self, DeviceError> {
        Self::alloc_rows(device, ty, 1, len)
    }

    /// Room for `rows` rows of `width`; what is in it is anything.
    ///
    /// # Errors
    /// If there is no such memory.
    pub fn alloc_rows(device: &Device, ty: ActType, rows: usize, width: usize) -> Result<Self, DeviceError> {
        Ok(match ty {
            ActType::F32 => Self::F32(device.alloc(rows * width)?),
            ActType::Bf16 => Self::Bf16(device.alloc(rows * width)?),
            ActType::F8 => Self::F8(F8Rows::alloc(device, rows, width)?),
        })
    }

    /// `values`, rounded to `ty`; in E4M3 one row.
    ///
    /// # Errors
    /// If there is no memory, or the device fails.
    pub fn upload(device: &Device, ty: ActType, values: &[f32]) -> Result<Self, DeviceError> {
        Self::upload_rows(device, ty, values.len().max(1), values)
    }

    /// `values`, in rows of `width`, rounded to `ty`.
    ///
    /// # Errors
    /// If there is no memory, or the device fails.
    pub fn upload_rows(
        device: &Device,
        ty: ActType,
        width: usize,
        values: &[f32],
    ) -> Result<Self, DeviceError> {
        Ok(match ty {
            ActType::F32 => Self::F32(device.upload(values)?),
            ActType::Bf16 => {
                let bits: Vec<u16> = values.iter().map(|&value| bf16::from_f32(value).to_bits()).collect();
                Self::Bf16(device.upload(&bits)?)
            }
            ActType::F8 => Self::F8(F8Rows::upload(device, width, values)?),
        })
    }

    /// Their type.
    pub fn ty(&self) -> ActType {
        self.view().ty()
    }

    /// How many, without what is behind rows in E4M3.
    pub fn len(&self) -> usize {
        each!(Self, self, buffer => buffer.len())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All, to be read.
    pub fn view(&self) -> ActsView<'_> {
        match self {
            Self::F32(buffer) => ActsView::F32(buffer.view()),
            Self::Bf16(buffer) => ActsView::Bf16(buffer.view()),
            Self::F8(rows) => ActsView::F8(rows.view()),
        }
    }

    /// All, to be written.
    pub fn view_mut(&mut self) -> ActsViewMut<'_> {
        match self {
            Self::F32(buffer) => ActsViewMut::F32(buffer.view_mut()),
            Self::Bf16(buffer) => ActsViewMut::Bf16(buffer.view_mut()),
            Self::F8(rows) => ActsViewMut::F8(rows.view_mut()),
        }
    }

    /// All of them, as `f32`; waits for what writes them.
    ///
    /// # Errors
    /// If the device fails.
    pub fn download(&self) -> Result<Vec<f32>, DeviceError> {
        Ok(match self {
            Self::F32(buffer) => buffer.download()?,
            Self::Bf16(buffer) => {
                buffer.download()?.into_iter().map(|bits| bf16::from_bits(bits).to_f32()).collect()
            }
            Self::F8(rows) => rows.download()?,
        })
    }
}

impl<'a> ActsView<'a> {
    /// Their device.
    pub fn device(&self) -> &'a Device {
        each!(Self, self, view => view.device())
    }

    /// Their type.
    pub fn ty(&self) -> ActType {
        match self {
            Self::F32(_) => ActType::F32,
            Self::Bf16(_) => ActType::Bf16,
            Self::F8(_) => ActType::F8,
        }
    }

    /// Where they begin.
    pub fn address(&self) -> u64 {
        each!(Self, self, view => view.address())
    }

    /// How many, without what is behind rows in E4M3.
    pub fn len(&self) -> usize {
        each!(Self, self, view => view.len())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A part; in E4M3 whole rows.
    ///
    /// # Panics
    /// If it is not inside.
    pub fn slice(&self, range: Range<usize>) -> Self {
        match self {
            Self::F32(view) => Self::F32(view.slice(range)),
            Self::Bf16(view) => Self::Bf16(view.slice(range)),
            Self::F8(view) => Self::F8(view.slice(range)),
        }
    }
}

impl<'a> ActsViewMut<'a> {
    /// Their device.
    pub fn device(&self) -> &'a Device {
        each!(Self, self, view => view.device())
    }

    /// Their type.
    pub fn ty(&self) -> ActType {
        match self {
            Self::F32(_) => ActType::F32,
            Self::Bf16(_) => ActType::Bf16,
            Self::F8(_) => ActType::F8,
        }
    }

    /// Where they begin.
    pub fn address(&self) -> u64 {
        each!(Self, self, view => view.address())
    }

    /// How many, without what is behind rows in E4M3.
    pub fn len(&self) -> usize {
        each!(Self, self, view => view.len())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The same, for a while.
    pub fn reborrow(&mut self) -> ActsViewMut<'_> {
        match self {
            Self::F32(view) => ActsViewMut::F32(view.reborrow()),
            Self::Bf16(view) => ActsViewMut::Bf16(view.reborrow()),
            Self::F8(view) => ActsViewMut::F8(view.reborrow()),
        }
    }

    /// The same, to be read.
    pub fn as_view(&self) -> ActsView<'_> {
        match self {
            Self::F32(view) => ActsView::F32(view.as_view()),
            Self::Bf16(view) => ActsView::Bf16(view.as_view()),
            Self::F8(view) => ActsView::F8(view.as_view()),
        }
    }

    /// A part; in E4M3 whole rows.
    ///
    /// # Panics
    /// If it is not inside.
    pub fn slice(self, range: Range<usize>) -> Self {
        match self {
            Self::F32(view) => Self::F32(view.slice(range)),
            Self::Bf16(view) => Self::Bf16(view.slice(range)),
            Self::F8(view) => Self::F8(view.slice(range)),
        }
    }

    /// Sets every byte.
    ///
    /// # Errors
    /// If the device fails.
    pub fn fill(&mut self, byte: u8) -> Result<(), DeviceError> {
        each!(Self, self, view => view.fill(byte))
    }
}
