//! Eight rows become the lanes of vectors.

/// `to[column][row] = from[row][column]` for 8 rows of as many elements of `N` bytes (2 or 4), all the rows of one length: a
/// multiple of 16 bytes.
///
/// What is written is not read again soon, so it goes past the caches where it can: [`written`] tells when others may read.
///
/// # Panics
/// If the lengths do not agree.
pub(crate) fn rows<const N: usize>(from: [&[u8]; 8], to: &mut [u8]) {
    let len = from[0].len();
    let agree = from.iter().all(|row| row.len() == len) && len.is_multiple_of(16) && to.len() == 8 * len;
    assert!(agree && (N == 2 || N == 4), "eight rows of {len} bytes into {}", to.len());
    #[cfg(target_arch = "x86_64")]
    {
        let from = from.each_ref().map(|row| row.as_ptr());
        let aligned = to.as_ptr().addr().is_multiple_of(16);
        for at in (0..len).step_by(16) {
            // SAFETY: sixteen bytes from `at` on are in every row, 128 from `8 · at` on in `to`, whose alignment is known.
            unsafe { x86::run::<N>(&from, at, to.as_mut_ptr().add(8 * at), aligned) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    for (i, to) in to.as_chunks_mut::<128>().0.iter_mut().enumerate() {
        plain::<N>(from.each_ref().map(|row| row[i * 16..].first_chunk().expect("checked above")), to);
    }
}

/// After this, what [`rows`] wrote on this thread is seen by whoever is told of it.
pub(crate) fn written() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 has SSE.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

/// `to[column][row] = from[row][column]` for 8 rows of 4 elements of 4 bytes.
#[inline(always)]
pub(crate) fn quads(from: [&[u8; 16]; 8], to: &mut [u8; 128]) {
    #[cfg(target_arch = "x86_64")]
    {
        let from = from.each_ref().map(|row| row.as_ptr());
        // SAFETY: each row has the sixteen bytes, `to` the 128; nothing is said of its alignment.
        unsafe { x86::run::<4>(&from, 0, to.as_mut_ptr(), false) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    plain::<4>(from, to);
}

/// The specification, for 16 bytes of each row.
#[cfg(any(test, not(target_arch = "x86_64")))]
fn plain<const N: usize>(from: [&[u8; 16]; 8], to: &mut [u8; 128]) {
    for (row, from) in from.into_iter().enumerate() {
        for (column, element) in from.chunks_exact(N).enumerate() {
            to[(column * 8 + row) * N..][..N].copy_from_slice(element);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    /// Sixteen bytes at `at` of each row, to 128 bytes at `to`; past the caches if `to` is aligned to 16 and `stream`.
    ///
    /// # Safety
    /// Those bytes exist, and `to` is aligned if `stream`. (Every x86-64 has SSE2.)
    #[inline(always)]
    pub(super) unsafe fn run<const N: usize>(from: &[*const u8; 8], at: usize, to: *mut u8, stream: bool) {
        // SAFETY: the caller's promises are those of the loads and stores.
        unsafe {
            let load = |row: usize| _mm_loadu_si128(from[row].add(at).cast());
            let rows = [load(0), load(1), load(2), load(3), load(4), load(5), load(6), load(7)];
            let columns = if N == 2 { pairs(&rows) } else { quads(&rows) };
            let to: *mut __m128i = to.cast();
            if stream {
                for (i, column) in columns.into_iter().enumerate() {
                    _mm_stream_si128(to.add(i), column);
                }
            } else {
                for (i, column) in columns.into_iter().enumerate() {
                    _mm_storeu_si128(to.add(i), column);
                }
            }
        }
    }

    /// Eight columns of pairs of bytes. Rows r and r + 4, then r, r + 2, r + 4 and r + 6, then all: after each step a register
    /// holds half as many columns of twice as many rows.
    #[inline(always)]
    fn pairs(r: &[__m128i; 8]) -> [__m128i; 8] {
        // SAFETY: every x86-64 has SSE2.
        unsafe {
            let low = |a, b| _mm_unpacklo_epi16(r[a], r[b]);
            let high = |a, b| _mm_unpackhi_epi16(r[a], r[b]);
            let (first, second) = (
                [low(0, 4), low(1, 5), low(2, 6), low(3, 7)],
                [high(0, 4), high(1, 5), high(2, 6), high(3, 7)],
            );
            let four = |r: [__m128i; 4]| {
                let (even, odd) = (_mm_unpacklo_epi16(r[0], r[2]), _mm_unpacklo_epi16(r[1], r[3]));
                let (even_2, odd_2) = (_mm_unpackhi_epi16(r[0], r[2]), _mm_unpackhi_epi16(r[1], r[3]));
                [
                    _mm_unpacklo_epi16(even, odd),
                    _mm_unpackhi_epi16(even, odd),
                    _mm_unpacklo_epi16(even_2, odd_2),
                    _mm_unpackhi_epi16(even_2, odd_2),
                ]
            };
            let ([a, b, c, d], [e, f, g, h]) = (four(first), four(second));
            [a, b, c, d, e, f, g, h]
        }
    }

    /// Four columns of four bytes, each in two halves: of rows 0 to 3, then of rows 4 to 7.
    #[inline(always)]
    fn quads(r: &[__m128i; 8]) -> [__m128i; 8] {
        // SAFETY: every x86-64 has SSE2.
        unsafe {
            let four = |a: usize| {
                let (low, low_2) =
                    (_mm_unpacklo_epi32(r[a], r[a + 1]), _mm_unpacklo_epi32(r[a + 2], r[a + 3]));
                let (high, high_2) =
                    (_mm_unpackhi_epi32(r[a], r[a + 1]), _mm_unpackhi_epi32(r[a + 2], r[a + 3]));
                [
                    _mm_unpacklo_epi64(low, low_2),
                    _mm_unpackhi_epi64(low, low_2),
                    _mm_unpacklo_epi64(high, high_2),
                    _mm_unpackhi_epi64(high, high_2),
                ]
            };
            let ([a, b, c, d], [e, f, g, h]) = (four(0), four(4));
            [a, e, b, f, c, g, d, h]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transposes_as_specified() {
        let bytes: [[u8; 48]; 8] =
            std::array::from_fn(|r| std::array::from_fn(|i| (r * 48 + i).wrapping_mul(37) as u8));
        let chunk =
            |i: usize| bytes.each_ref().map(|row| row[i * 16..].first_chunk::<16>().expect("16 of 48"));
        let mut got = [0; 128];
        let mut expected = [[0; 128]; 3];
        for (i, expected) in expected.iter_mut().enumerate() {
            plain::<4>(chunk(i), expected);
            quads(chunk(i), &mut got);
            assert_eq!(got, *expected);
        }
        let whole = bytes.each_ref().map(|row| &row[..]);
        // At every alignment.
        for skip in 0..16 {
            let mut memory = [0; 3 * 128 + 16];
            rows::<4>(whole, &mut memory[skip..][..3 * 128]);
            written();
            assert_eq!(memory[skip..][..3 * 128], *expected.as_flattened());
        }
        for (i, expected) in expected.iter_mut().enumerate() {
            plain::<2>(chunk(i), expected);
        }
        let mut memory = [0; 3 * 128];
        rows::<2>(whole, &mut memory);
        written();
        assert_eq!(memory, *expected.as_flattened());
    }
}
