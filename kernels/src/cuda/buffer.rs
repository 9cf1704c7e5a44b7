//! Memory of a device, and parts of it.

use std::marker::PhantomData;
use std::ops::Range;

use bytemuck::Pod;

use super::device::Fetched;
use super::{Device, DeviceError};

/// Elements on a device, given back when dropped.
#[derive(Debug)]
pub struct Buffer<T> {
    device: Device,
    address: u64,
    len: usize,
    elements: PhantomData<T>,
}

/// Elements on a device, to be read.
#[derive(Debug, Clone, Copy)]
pub struct View<'a, T> {
    device: &'a Device,
    address: u64,
    len: usize,
    elements: PhantomData<T>,
}

/// Elements on a device, to be written.
#[derive(Debug)]
pub struct ViewMut<'a, T> {
    device: &'a Device,
    address: u64,
    len: usize,
    elements: PhantomData<T>,
}

impl<T: Pod> Buffer<T> {
    pub(super) fn new(device: &Device, len: usize) -> Result<Self, DeviceError> {
        // At least something, so that every buffer has an address.
        let bytes = (len * size_of::<T>()).max(1);
        let address = device.driver().alloc(bytes)?;
        Ok(Self { device: device.clone(), address, len, elements: PhantomData })
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// All of it, to be read.
    pub fn view(&self) -> View<'_, T> {
        View { device: &self.device, address: self.address, len: self.len, elements: PhantomData }
    }

    /// All of it, to be written.
    pub fn view_mut(&mut self) -> ViewMut<'_, T> {
        ViewMut { device: &self.device, address: self.address, len: self.len, elements: PhantomData }
    }

    /// Everything in it; waits for what writes it.
    ///
    /// # Errors
    /// If the device fails.
    pub fn download(&self) -> Result<Vec<T>, DeviceError> {
        let mut values = vec![T::zeroed(); self.len];
        self.view().download(&mut values)?;
        Ok(values)
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        // SAFETY: given by `alloc`, given back once, and no view outlives the buffer.
        unsafe { self.device.free(self.address) }
    }
}

impl<'a, T: Pod> View<'a, T> {
    /// Its device.
    pub fn device(&self) -> &'a Device {
        self.device
    }

    /// Where it begins.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A part.
    ///
    /// # Panics
    /// If it is not inside.
    pub fn slice(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        Self { address: self.address + (range.start * size_of::<T>()) as u64, len: range.len(), ..*self }
    }

    /// Copies all of it to the host; waits for what writes it.
    ///
    /// # Errors
    /// If the device fails.
    ///
    /// # Panics
    /// If `to` has another length.
    pub fn download(&self, to: &mut [T]) -> Result<(), DeviceError> {
        assert_eq!(self.len, to.len(), "elements to download");
        // SAFETY: the view's memory has so many bytes.
        unsafe { self.device.driver().download(self.address, bytemuck::cast_slice_mut(to)) }
    }
}

impl<T: Pod> View<'_, T> {
    /// Starts to copy all of it to the host, as it is after everything that was asked for so far.
    ///
    /// # Errors
    /// If the device fails.
    pub fn fetch(&self) -> Result<Coming<T>, DeviceError> {
        // SAFETY: the view's memory has so many bytes.
        let fetched = unsafe { self.device.driver().fetch(self.address, self.len * size_of::<T>())? };
        Ok(Coming { fetched, len: self.len, elements: PhantomData })
    }
}

/// Elements on their way to the host.
pub struct Coming<T> {
    fetched: Box<dyn Fetched>,
    len: usize,
    elements: PhantomData<fn() -> T>,
}

impl<T: Pod> Coming<T> {
    /// Whether they are there.
    ///
    /// # Errors
    /// If the device failed meanwhile.
    pub fn is_here(&self) -> Result<bool, DeviceError> {
        self.fetched.is_here()
    }

    /// Waits for them.
    ///
    /// # Errors
    /// If the device failed meanwhile.
    pub fn take(self) -> Result<Vec<T>, DeviceError> {
        let mut values = vec![T::zeroed(); self.len];
        self.fetched.take(bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }
}

impl<'a> View<'a, u8> {
    /// The same as `f32`.
    ///
    /// # Panics
    /// If it does not begin or end with a whole one.
    pub fn as_floats(&self) -> View<'a, f32> {
        let whole = self.address.is_multiple_of(4) && self.len.is_multiple_of(4);
        assert!(whole, "{} bytes as f32", self.len);
        View { device: self.device, address: self.address, len: self.len / 4, elements: PhantomData }
    }
}

impl<'a> ViewMut<'a, f32> {
    /// The same memory as bf16: twice as many.
    pub fn as_bf16(self) -> ViewMut<'a, u16> {
        ViewMut { device: self.device, address: self.address, len: self.len * 2, elements: PhantomData }
    }

    /// The same memory as bytes: four times as many.
    pub fn as_bytes(self) -> ViewMut<'a, u8> {
        ViewMut { device: self.device, address: self.address, len: self.len * 4, elements: PhantomData }
    }
}

impl<'a, T: Pod> ViewMut<'a, T> {
    /// Its device.
    pub fn device(&self) -> &'a Device {
        self.device
    }

    /// Where it begins.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The same, for a while.
    pub fn reborrow(&mut self) -> ViewMut<'_, T> {
        ViewMut { device: self.device, address: self.address, len: self.len, elements: PhantomData }
    }

    /// The same, to be read.
    pub fn as_view(&self) -> View<'_, T> {
        View { device: self.device, address: self.address, len: self.len, elements: PhantomData }
    }

    /// The same, only to be read from here on.
    pub fn into_view(self) -> View<'a, T> {
        View { device: self.device, address: self.address, len: self.len, elements: PhantomData }
    }

    /// A part.
    ///
    /// # Panics
    /// If it is not inside.
    pub fn slice(self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        Self { address: self.address + (range.start * size_of::<T>()) as u64, len: range.len(), ..self }
    }

    /// Copies `values` into it.
    ///
    /// # Errors
    /// If the device fails.
    ///
    /// # Panics
    /// If there are fewer or more of them.
    pub fn upload(&mut self, values: &[T]) -> Result<(), DeviceError> {
        assert_eq!(self.len, values.len(), "elements to upload");
        // SAFETY: the view's memory has so many bytes.
        unsafe { self.device.driver().upload(self.address, bytemuck::cast_slice(values)) }
    }

    /// Copies the elements of another buffer of this device.
    ///
    /// # Errors
    /// If the device fails.
    ///
    /// # Panics
    /// If there are fewer or more of them.
    pub fn copy_from(&mut self, from: View<'_, T>) -> Result<(), DeviceError> {
        assert_eq!(self.len, from.len(), "elements to copy");
        // SAFETY: both views have so many bytes; what is written to cannot be read from at once.
        unsafe { self.device.driver().copy(self.address, from.address, self.len * size_of::<T>()) }
    }

    /// Sets every byte.
    ///
    /// # Errors
    /// If the device fails.
    pub fn fill(&mut self, byte: u8) -> Result<(), DeviceError> {
        // SAFETY: the view's memory has so many bytes.
        unsafe { self.device.driver().fill(self.address, byte, self.len * size_of::<T>()) }
    }
}
