//! One output slice, written by several threads at places that do not overlap.

/// A `&mut [f32]` that tasks of a [`ThreadPool`](super::pool::ThreadPool) may write to at once.
pub(crate) struct SharedSlice<'a, T> {
    start: *mut T,
    len: usize,
    slice: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: it is a `&mut [T]` in disguise; `part` obliges its callers to stay apart.
unsafe impl<T: Send> Sync for SharedSlice<'_, T> {}

impl<'a, T> SharedSlice<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: std::marker::PhantomData }
    }

    /// The elements `from..from + len`.
    ///
    /// # Safety
    /// No two living parts may overlap.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn part(&self, from: usize, len: usize) -> &mut [T] {
        assert!(from <= self.len && len <= self.len - from, "part {from}+{len} of {}", self.len);
        // SAFETY: inside the slice (checked above); apart from the others (the caller's promise).
        unsafe { std::slice::from_raw_parts_mut(self.start.add(from), len) }
    }
}
