//! Eight rows become the lanes of vectors.

/// `to[column][row] = from[row][column]` for 8 rows of 8 elements of 2 bytes.
#[inline(always)]
pub(crate) fn pairs(from: [&[u8; 16]; 8], to: &mut [u8; 128]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::*;
        // Rows r and r + 4, then r, r + 2, r + 4 and r + 6, then all: after each step a register holds half as many columns
        // of twice as many rows.
        // SAFETY: every x86-64 has SSE2.
        unsafe {
            let rows = from.map(load);
            let twos: [__m128i; 8] = std::array::from_fn(|i| match i {
                0..4 => _mm_unpacklo_epi16(rows[i], rows[i + 4]),
                _ => _mm_unpackhi_epi16(rows[i - 4], rows[i]),
            });
            for half in 0..2 {
                let r = &twos[half * 4..][..4];
                let even = [_mm_unpacklo_epi16(r[0], r[2]), _mm_unpackhi_epi16(r[0], r[2])];
                let odd = [_mm_unpacklo_epi16(r[1], r[3]), _mm_unpackhi_epi16(r[1], r[3])];
                for pair in 0..2 {
                    let column = half * 4 + pair * 2;
                    store(_mm_unpacklo_epi16(even[pair], odd[pair]), to, column);
                    store(_mm_unpackhi_epi16(even[pair], odd[pair]), to, column + 1);
                }
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    plain::<2>(from, to);
}

/// `to[column][row] = from[row][column]` for 8 rows of 4 elements of 4 bytes.
#[inline(always)]
pub(crate) fn quads(from: [&[u8; 16]; 8], to: &mut [u8; 128]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::*;
        // SAFETY: every x86-64 has SSE2.
        unsafe {
            let rows = from.map(load);
            for half in 0..2 {
                let r = &rows[half * 4..][..4];
                let low = [_mm_unpacklo_epi32(r[0], r[1]), _mm_unpacklo_epi32(r[2], r[3])];
                let high = [_mm_unpackhi_epi32(r[0], r[1]), _mm_unpackhi_epi32(r[2], r[3])];
                for (pair, [first, second]) in [low, high].into_iter().enumerate() {
                    let column = pair * 2;
                    store(_mm_unpacklo_epi64(first, second), to, column * 2 + half);
                    store(_mm_unpackhi_epi64(first, second), to, (column + 1) * 2 + half);
                }
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    plain::<4>(from, to);
}

/// The specification of both, for elements of `N` bytes.
#[cfg(any(test, not(target_arch = "x86_64")))]
fn plain<const N: usize>(from: [&[u8; 16]; 8], to: &mut [u8; 128]) {
    for (row, from) in from.into_iter().enumerate() {
        for (column, element) in from.chunks_exact(N).enumerate() {
            to[(column * 8 + row) * N..][..N].copy_from_slice(element);
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn load(from: &[u8; 16]) -> std::arch::x86_64::__m128i {
    // SAFETY: sixteen bytes are read, at any alignment; every x86-64 has SSE2.
    unsafe { std::arch::x86_64::_mm_loadu_si128(from.as_ptr().cast()) }
}

/// Stores the sixteen bytes number `at`.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn store(x: std::arch::x86_64::__m128i, to: &mut [u8; 128], at: usize) {
    let to = &mut to[at * 16..][..16];
    // SAFETY: as in `load`, sixteen bytes are written.
    unsafe { std::arch::x86_64::_mm_storeu_si128(to.as_mut_ptr().cast(), x) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transposes_as_specified() {
        let rows: [[u8; 16]; 8] = std::array::from_fn(|r| std::array::from_fn(|i| (r * 16 + i) as u8));
        let from = rows.each_ref();
        let (mut got, mut expected) = ([0; 128], [0; 128]);
        pairs(from, &mut got);
        plain::<2>(from, &mut expected);
        assert_eq!(got, expected);
        quads(from, &mut got);
        plain::<4>(from, &mut expected);
        assert_eq!(got, expected);
    }
}
