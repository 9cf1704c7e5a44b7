//! Activations on a device: rows of numbers that products take.

use super::{Buffer, Device, DeviceError, View, ViewMut};

/// The type of activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ActType {
    /// `f32`: models stored so.
    F32,
    /// `bf16`: all others.
    Bf16,
}

/// Activations.
#[derive(Debug)]
pub enum Acts {
    /// In `f32`.
    F32(Buffer<f32>),
    /// In `bf16`, as bits.
    Bf16(Buffer<u16>),
}

/// Activations, to be read.
#[derive(Debug, Clone, Copy)]
pub enum ActsView<'a> {
    /// In `f32`.
    F32(View<'a, f32>),
    /// In `bf16`, as bits.
    Bf16(View<'a, u16>),
}

/// Activations, to be written.
#[derive(Debug)]
pub enum ActsViewMut<'a> {
    /// In `f32`.
    F32(ViewMut<'a, f32>),
    /// In `bf16`, as bits.
    Bf16(ViewMut<'a, u16>),
}

/// The same expression on whichever is inside.
macro_rules! either {
    ($value:expr, $inner:ident => $result:expr) => {
        match $value {
            Self::F32($inner) => $result,
            Self::Bf16($inner) => $result,
        }
    };
}

impl Acts {
    /// `len` elements; what is in them is anything.
    ///
    /// # Errors
    /// If there is no such memory.
    pub fn alloc(device: &Device, ty: ActType, len: usize) -> Result<Self, DeviceError> {
        Ok(match ty {
            ActType::F32 => Self::F32(device.alloc(len)?),
            ActType::Bf16 => Self::Bf16(device.alloc(len)?),
        })
    }

    /// Their type.
    pub fn ty(&self) -> ActType {
        self.view().ty()
    }

    /// Elements.
    pub fn len(&self) -> usize {
        either!(self, inner => inner.len())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of them, to be read.
    pub fn view(&self) -> ActsView<'_> {
        match self {
            Self::F32(inner) => ActsView::F32(inner.view()),
            Self::Bf16(inner) => ActsView::Bf16(inner.view()),
        }
    }

    /// All of them, to be written.
    pub fn view_mut(&mut self) -> ActsViewMut<'_> {
        match self {
            Self::F32(inner) => ActsViewMut::F32(inner.view_mut()),
            Self::Bf16(inner) => ActsViewMut::Bf16(inner.view_mut()),
        }
    }
}

impl<'a> ActsView<'a> {
    /// Their type.
    pub fn ty(&self) -> ActType {
        match self {
            Self::F32(_) => ActType::F32,
            Self::Bf16(_) => ActType::Bf16,
        }
    }

    /// Elements.
    pub fn len(&self) -> usize {
        either!(self, inner => inner.len())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where they begin.
    pub fn address(&self) -> u64 {
        either!(self, inner => inner.address())
    }

    /// Their device.
    pub fn device(&self) -> &'a Device {
        either!(self, inner => inner.device())
    }

    /// A part.
    ///
    /// # Panics
    /// If it is not inside.
    pub fn slice(&self, range: std::ops::Range<usize>) -> Self {
        match self {
            Self::F32(inner) => Self::F32(inner.slice(range)),
            Self::Bf16(inner) => Self::Bf16(inner.slice(range)),
        }
    }
}

impl<'a> ActsViewMut<'a> {
    /// Their type.
    pub fn ty(&self) -> ActType {
        self.as_view().ty()
    }

    /// Elements.
    pub fn len(&self) -> usize {
        either!(self, inner => inner.len())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where they begin.
    pub fn address(&self) -> u64 {
        either!(self, inner => inner.address())
    }

    /// Their device.
    pub fn device(&self) -> &'a Device {
        either!(self, inner => inner.device())
    }

    /// The same, for a while.
    pub fn reborrow(&mut self) -> ActsViewMut<'_> {
        match self {
            Self::F32(inner) => ActsViewMut::F32(inner.reborrow()),
            Self::Bf16(inner) => ActsViewMut::Bf16(inner.reborrow()),
        }
    }

    /// The same, to be read.
    pub fn as_view(&self) -> ActsView<'_> {
        match self {
            Self::F32(inner) => ActsView::F32(inner.as_view()),
            Self::Bf16(inner) => ActsView::Bf16(inner.as_view()),
        }
    }

    /// A part.
    ///
    /// # Panics
    /// If it is not inside.
    pub fn slice(self, range: std::ops::Range<usize>) -> Self {
        match self {
            Self::F32(inner) => Self::F32(inner.slice(range)),
            Self::Bf16(inner) => Self::Bf16(inner.slice(range)),
        }
    }
}
