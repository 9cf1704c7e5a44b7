//! Asking for memory before it is needed.

/// Bytes that come together.
const LINE: usize = 64;

/// Asks for the line at `address`, whatever is there.
#[inline(always)]
pub(crate) fn prefetch_line(address: *const u8) {
    ask::<true>(address);
}

/// Asks for the line at `address`, whatever is there, into a cache that is not the nearest: for what is needed later.
#[inline(always)]
pub(crate) fn prefetch_far(address: *const u8) {
    ask::<false>(address);
}

/// Nothing happens where the machine cannot.
#[inline(always)]
fn ask<const NEAREST: bool>(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
        // SAFETY: a hint reads nothing, whatever the address.
        unsafe {
            match NEAREST {
                true => _mm_prefetch::<_MM_HINT_T0>(address.cast()),
                false => _mm_prefetch::<_MM_HINT_T1>(address.cast()),
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Asks for all of `ahead`, into a cache that is not the nearest, which it may fill: it comes while something else is computed.
#[inline(always)]
pub(crate) fn prefetch<T>(ahead: &[T]) {
    for line in 0..size_of_val(ahead).div_ceil(LINE) {
        prefetch_far(ahead.as_ptr().cast::<u8>().wrapping_add(line * LINE));
    }
}

/// Asks for `size` bytes of `bytes` from `at` on, and no more than there are.
#[inline(always)]
pub(crate) fn prefetch_part(bytes: &[u8], at: usize, size: usize) {
    for line in (0..size).step_by(LINE) {
        if at + line < bytes.len() {
            prefetch_line(bytes.as_ptr().wrapping_add(at + line));
        }
    }
}
