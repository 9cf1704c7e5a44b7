//! Rows of activations in E4M3 (OCP 8-bit floating point, 2023), each with a scale: what products with weights in E4M3 take where
//! tensor cores multiply both as they are ([`Device::multiplies_f8`]).

use std::ops::Range;

use super::{Buffer, Device, DeviceError, View, ViewMut, from_f8, to_f8};

/// Rows begin at multiples of so many codes.
const ALIGN: usize = 16;
/// Of rows whose largest number is smaller, all become 0.
const LEAST: f32 = f32::from_bits((127 - 100) << 23);
/// The largest number of E4M3.
const LARGEST: f32 = 448.0;

/// Codes from one row of `width` to the next.
pub const fn f8_stride(width: usize) -> usize {
    width.next_multiple_of(ALIGN)
}

/// Adds the codes of a row to `codes`, and says what the numbers that they stand for are to be multiplied by: what the kernels that
/// write such rows do. The largest number becomes 448, others the nearest, ties to even. If all are below 2^-100, the scale and all
/// codes are 0; if one is infinite or none, the scale is NaN and all codes are 0.
pub fn activations_to_f8(row: &[f32], codes: &mut Vec<u8>) -> f32 {
    let sizes = row.iter().map(|value| value.abs().to_bits());
    let largest = f32::from_bits(sizes.max().unwrap_or(0));
    if !largest.is_finite() || largest < LEAST {
        codes.extend(row.iter().map(|_| 0));
        return if largest.is_finite() { 0.0 } else { f32::NAN };
    }
    let by = LARGEST / largest;
    codes.extend(row.iter().map(|value| to_f8(value * by)));
    largest / LARGEST
}

/// Room on a device for rows in E4M3, now of one width and now of another.
#[derive(Debug)]
pub struct F8Room {
    codes: Buffer<u8>,
    scales: Buffer<f32>,
}

/// Rows in E4M3: `x[r][i] = scale[r] · code[r][i]`.
#[derive(Debug)]
pub struct F8Rows {
    /// `[rows][f8_stride(width)]`; behind each row zeros.
    room: F8Room,
    width: usize,
}

/// Rows in E4M3, to be read.
#[derive(Debug, Clone, Copy)]
pub struct F8View<'a> {
    codes: View<'a, u8>,
    scales: View<'a, f32>,
    width: usize,
}

/// Rows in E4M3, to be written: what writes a row writes zeros behind it, up to the next one, and its scale.
#[derive(Debug)]
pub struct F8ViewMut<'a> {
    codes: ViewMut<'a, u8>,
    scales: ViewMut<'a, f32>,
    width: usize,
}

impl F8Room {
    /// Room for any of these: rows, and their width.
    ///
    /// # Errors
    /// If there is no such memory.
    pub fn alloc(device: &Device, any: &[(usize, usize)]) -> Result<Self, DeviceError> {
        let codes = any.iter().map(|(rows, width)| rows * f8_stride(*width)).max();
        let rows = any.iter().map(|(rows, _)| *rows).max();
        Ok(Self { codes: device.alloc(codes.unwrap_or(0))?, scales: device.alloc(rows.unwrap_or(0))? })
    }

    /// Its first `rows` rows of `width`.
    ///
    /// # Panics
    /// If there is no room for them.
    pub fn view(&self, rows: usize, width: usize) -> F8View<'_> {
        let codes = self.codes.view().slice(0..rows * f8_stride(width));
        F8View { codes, scales: self.scales.view().slice(0..rows), width }
    }

    /// The same, to be written.
    ///
    /// # Panics
    /// If there is no room for them.
    pub fn view_mut(&mut self, rows: usize, width: usize) -> F8ViewMut<'_> {
        let codes = self.codes.view_mut().slice(0..rows * f8_stride(width));
        F8ViewMut { codes, scales: self.scales.view_mut().slice(0..rows), width }
    }
}

impl F8Rows {
    /// Room for `rows` rows of `width`; what is in it is anything.
    ///
    /// # Errors
    /// If there is no such memory.
    ///
    /// # Panics
    /// If rows are of no width.
    pub fn alloc(device: &Device, rows: usize, width: usize) -> Result<Self, DeviceError> {
        assert!(width > 0, "rows of nothing");
        Ok(Self { room: F8Room::alloc(device, &[(rows, width)])?, width })
    }

    /// `values`, in rows of `width`, rounded as [`activations_to_f8`] says.
    ///
    /// # Errors
    /// If there is no memory, or the device fails.
    ///
    /// # Panics
    /// If they are not whole rows.
    pub fn upload(device: &Device, width: usize, values: &[f32]) -> Result<Self, DeviceError> {
        let rows = whole_rows(values.len(), width);
        let mut made = Self::alloc(device, rows, width)?;
        let (mut codes, mut scales) = (Vec::new(), Vec::new());
        for row in values.chunks_exact(width) {
            scales.push(activations_to_f8(row, &mut codes));
            codes.resize(codes.len().next_multiple_of(ALIGN), 0);
        }
        made.room.codes.view_mut().upload(&codes)?;
        made.room.scales.view_mut().upload(&scales)?;
        Ok(made)
    }

    /// Numbers, without what is behind rows.
    pub fn len(&self) -> usize {
        self.room.scales.len() * self.width
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.room.scales.is_empty()
    }

    /// All, to be read.
    pub fn view(&self) -> F8View<'_> {
        self.room.view(self.room.scales.len(), self.width)
    }

    /// All, to be written.
    pub fn view_mut(&mut self) -> F8ViewMut<'_> {
        self.room.view_mut(self.room.scales.len(), self.width)
    }

    /// What all rows stand for; waits for what writes them.
    ///
    /// # Errors
    /// If the device fails.
    pub fn download(&self) -> Result<Vec<f32>, DeviceError> {
        let (codes, scales) = (self.room.codes.download()?, self.room.scales.download()?);
        let rows = codes.chunks_exact(f8_stride(self.width)).zip(scales);
        let row = |(codes, scale): (&[u8], f32)| -> Vec<f32> {
            codes[..self.width].iter().map(|code| from_f8(*code) * scale).collect()
        };
        Ok(rows.flat_map(row).collect())
    }

    /// The codes, with what is behind each row, and the scales; waits for what writes them.
    ///
    /// # Errors
    /// If the device fails.
    pub fn download_codes(&self) -> Result<(Vec<u8>, Vec<f32>), DeviceError> {
        Ok((self.room.codes.download()?, self.room.scales.download()?))
    }
}

impl<'a> F8View<'a> {
    /// `rows` rows of `width` in other memory: all codes, and behind them the scales.
    ///
    /// # Panics
    /// If there is no room for them.
    pub(crate) fn inside(room: View<'a, u8>, rows: usize, width: usize) -> Self {
        let codes = rows * f8_stride(width);
        let scales = room.slice(codes..codes + rows * size_of::<f32>()).as_floats();
        Self { codes: room.slice(0..codes), scales, width }
    }

    /// Their device.
    pub fn device(&self) -> &'a Device {
        self.codes.device()
    }

    /// Where the first row's codes begin.
    pub fn address(&self) -> u64 {
        self.codes.address()
    }

    /// What each row is to be multiplied by.
    pub fn scales(&self) -> View<'a, f32> {
        self.scales
    }

    /// Numbers of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Codes from one row to the next.
    pub fn stride(&self) -> usize {
        f8_stride(self.width)
    }

    /// Numbers, without what is behind rows.
    pub fn len(&self) -> usize {
        self.scales.len() * self.width
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.scales.is_empty()
    }

    /// The rows of these numbers.
    ///
    /// # Panics
    /// If they are not whole rows, or not inside.
    pub fn slice(&self, range: Range<usize>) -> Self {
        let rows = rows_of(range, self.width);
        let codes = self.codes.slice(rows.start * self.stride()..rows.end * self.stride());
        Self { codes, scales: self.scales.slice(rows), width: self.width }
    }
}

impl<'a> F8ViewMut<'a> {
    /// Their device.
    pub fn device(&self) -> &'a Device {
        self.codes.device()
    }

    /// Where the first row's codes begin.
    pub fn address(&self) -> u64 {
        self.codes.address()
    }

    /// Where the scales begin.
    pub fn scales_address(&self) -> u64 {
        self.scales.address()
    }

    /// Numbers of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Codes from one row to the next.
    pub fn stride(&self) -> usize {
        f8_stride(self.width)
    }

    /// Numbers, without what is behind rows.
    pub fn len(&self) -> usize {
        self.scales.len() * self.width
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.scales.is_empty()
    }

    /// The same, for a while.
    pub fn reborrow(&mut self) -> F8ViewMut<'_> {
        F8ViewMut { codes: self.codes.reborrow(), scales: self.scales.reborrow(), width: self.width }
    }

    /// The same, to be read.
    pub fn as_view(&self) -> F8View<'_> {
        F8View { codes: self.codes.as_view(), scales: self.scales.as_view(), width: self.width }
    }

    /// The rows of these numbers.
    ///
    /// # Panics
    /// If they are not whole rows, or not inside.
    pub fn slice(self, range: Range<usize>) -> Self {
        let (rows, stride) = (rows_of(range, self.width), self.stride());
        let codes = self.codes.slice(rows.start * stride..rows.end * stride);
        Self { codes, scales: self.scales.slice(rows), width: self.width }
    }

    /// Sets every byte, of codes and scales.
    ///
    /// # Errors
    /// If the device fails.
    pub fn fill(&mut self, byte: u8) -> Result<(), DeviceError> {
        self.codes.fill(byte)?;
        self.scales.fill(byte)
    }
}

fn whole_rows(len: usize, width: usize) -> usize {
    assert!(width > 0 && len.is_multiple_of(width), "{len} numbers in rows of {width}");
    len / width
}

fn rows_of(range: Range<usize>, width: usize) -> Range<usize> {
    whole_rows(range.start, width)..whole_rows(range.end, width)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::testing::devices;

    #[test]
    fn a_row_is_scaled_so_that_its_largest_number_is_448() {
        let mut codes = Vec::new();
        let scale = activations_to_f8(&[0.0, 3.5, -7.0, 0.015_625 * 0.015_625], &mut codes);
        assert_eq!((scale, &codes[..]), (0.015_625, &[0, to_f8(224.0), to_f8(-448.0), to_f8(0.015_625)][..]));
    }

    #[test]
    fn rows_of_nothing_and_of_what_is_no_number_are_seen() {
        let of = |row: &[f32]| {
            let mut codes = Vec::new();
            (activations_to_f8(row, &mut codes), codes)
        };
        assert_eq!(of(&[0.0, -0.0]), (0.0, vec![0, 0]));
        assert_eq!(of(&[1e-38, -1e-40]), (0.0, vec![0, 0]), "too small");
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let (scale, codes) = of(&[1.0, bad, 2.0]);
            assert!(scale.is_nan() && codes == [0; 3], "{bad}: {scale} {codes:?}");
        }
        let (scale, codes) = of(&[f32::MAX, -f32::MAX, 1.0]);
        assert_eq!((scale, codes), (f32::MAX / 448.0, vec![0x7e, 0xfe, 0]));
    }

    #[test]
    fn rows_come_back_whole_and_in_parts() {
        for device in devices() {
            let values: Vec<f32> = (0..5 * 20).map(|i| (i as f32 - 50.0) * 0.37).collect();
            let rows = F8Rows::upload(&device, 20, &values).expect("uploads");
            assert_eq!(rows.view().stride(), 32);
            let found = rows.download().expect("downloads");
            for (row, found) in values.chunks_exact(20).zip(found.chunks_exact(20)) {
                let largest = row.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
                for (value, found) in row.iter().zip(found) {
                    // Half a step: a sixteenth of the number, or of the smallest normal one.
                    let most = (value.abs() / 16.0).max(largest / 448.0 / 1024.0);
                    assert!((value - found).abs() <= most * 1.001, "{found} in place of {value}");
                }
            }
            let part = rows.view().slice(40..80);
            assert_eq!((part.len(), part.address() - rows.view().address()), (40, 64));
            assert_eq!(part.scales().address() - rows.view().scales().address(), 8);
        }
    }

    #[test]
    #[should_panic(expected = "30 numbers in rows of 20")]
    fn parts_are_whole_rows() {
        let device = &devices()[0];
        let rows = F8Rows::alloc(device, 5, 20).expect("allocates");
        rows.view().slice(20..30);
    }
}
