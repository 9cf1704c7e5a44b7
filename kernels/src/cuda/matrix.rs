//! Weight matrices on a device.

use half::{bf16, f16};

use super::blocks::{self, pack_row};
use super::{Buffer, Device, DeviceError, View};
use crate::dtype::WeightType;
use crate::op::quantize_weights::quantize_row;

/// Rows begin at multiples of so many bytes: what one load of a kernel takes.
const ROW_ALIGN: usize = 16;

/// How the elements of a matrix are stored on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types)]
pub enum WeightKind {
    /// `f32`.
    F32,
    /// `bf16`.
    Bf16,
    /// `f16`.
    F16,
    /// E4M3 (OCP 8-bit floating point, 2023), with one `f32` a row that its elements are to be multiplied by.
    F8,
    /// Blocks of 32 numbers of 8 bits with a scale in f16 each. Products are those with its elements in bf16, bit by bit.
    Q8_0,
    /// The same of 4 bits.
    Q4_0,
    /// The same of 4 bits from 0 on, each block with another number in f16 that is added.
    Q4_1,
    /// The same of 5 bits.
    Q5_1,
    /// Of 4 bits from 0 on, each block of 32 with steps of 6 bits of a scale and a number that is taken away, which eight share.
    Q4_K,
    /// The same of 5 bits.
    Q5_K,
    /// Of 6 bits, each 16 with steps of 8 bits of a scale that sixteen share.
    Q6_K,
}

impl WeightKind {
    /// Those whose rows may have any number of elements.
    pub const WITHOUT_BLOCKS: [Self; 4] = [Self::F32, Self::Bf16, Self::F16, Self::F8];
    /// Those whose rows are whole blocks.
    pub const BLOCKS: [Self; 7] =
        [Self::Q8_0, Self::Q4_0, Self::Q4_1, Self::Q5_1, Self::Q4_K, Self::Q5_K, Self::Q6_K];

    /// The kind that holds blocks of this type with the numbers they have; `None` of floats.
    pub const fn of_blocks(ty: WeightType) -> Option<Self> {
        match ty {
            // Few files have Q5_0, and its codes are numbers of 8 bits as well.
            WeightType::Q8_0 | WeightType::Q5_0 => Some(Self::Q8_0),
            WeightType::Q4_0 => Some(Self::Q4_0),
            WeightType::Q4_1 => Some(Self::Q4_1),
            WeightType::Q5_1 => Some(Self::Q5_1),
            WeightType::Q4_K => Some(Self::Q4_K),
            WeightType::Q5_K => Some(Self::Q5_K),
            WeightType::Q6_K => Some(Self::Q6_K),
            WeightType::F32 | WeightType::F16 | WeightType::BF16 => None,
        }
    }

    /// Its blocks' type, if it has blocks.
    pub const fn blocks(self) -> Option<WeightType> {
        match self {
            Self::Q8_0 => Some(WeightType::Q8_0),
            Self::Q4_0 => Some(WeightType::Q4_0),
            Self::Q4_1 => Some(WeightType::Q4_1),
            Self::Q5_1 => Some(WeightType::Q5_1),
            Self::Q4_K => Some(WeightType::Q4_K),
            Self::Q5_K => Some(WeightType::Q5_K),
            Self::Q6_K => Some(WeightType::Q6_K),
            Self::F32 | Self::Bf16 | Self::F16 | Self::F8 => None,
        }
    }

    /// Its name, in logs and on command lines.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::F8 => "fp8",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
            Self::Q4_1 => "q4_1",
            Self::Q5_1 => "q5_1",
            Self::Q4_K => "q4_k",
            Self::Q5_K => "q5_k",
            Self::Q6_K => "q6_k",
        }
    }

    /// Bits of an element, without scales.
    pub const fn bits(self) -> usize {
        match self {
            Self::F32 => 32,
            Self::Bf16 | Self::F16 => 16,
            Self::F8 | Self::Q8_0 => 8,
            Self::Q6_K => 6,
            Self::Q5_1 | Self::Q5_K => 5,
            Self::Q4_0 | Self::Q4_1 | Self::Q4_K => 4,
        }
    }

    /// Bytes of a row of `cols` elements, with the scales of its blocks.
    pub const fn tight_bytes(self, cols: usize) -> usize {
        match blocks::Layout::of(self) {
            Some(layout) => layout.row_bytes(cols),
            None => cols * self.bits() / 8,
        }
    }

    /// Elements that rows are whole blocks of: 1 without blocks.
    pub const fn block_elems(self) -> usize {
        match self.blocks() {
            Some(ty) => ty.block_elems(),
            None => 1,
        }
    }

    /// Bytes from one row of `cols` elements to the next.
    pub const fn row_bytes(self, cols: usize) -> usize {
        self.tight_bytes(cols).next_multiple_of(ROW_ALIGN)
    }
}

/// A matrix of weights, a row an output: `out[o] = Σ_i x[i] · w[o][i]`. Rows are padded with zeros to 16 bytes.
#[derive(Debug)]
pub struct DeviceMatrix {
    kind: WeightKind,
    rows: usize,
    cols: usize,
    data: Buffer<u8>,
    scales: Option<Buffer<f32>>,
}

impl DeviceMatrix {
    /// A matrix of `rows` × `cols` zeros, to be filled by [`put_rows`](Self::put_rows); the scales of F8 are 1.
    ///
    /// # Errors
    /// If there is no such memory.
    ///
    /// # Panics
    /// If rows of a kind with blocks are not whole blocks.
    pub fn empty(device: &Device, kind: WeightKind, rows: usize, cols: usize) -> Result<Self, DeviceError> {
        let block = kind.block_elems();
        assert!(cols.is_multiple_of(block), "rows of {cols} in blocks of {block}");
        let data = device.zeros(rows * kind.row_bytes(cols))?;
        let scales = match kind {
            WeightKind::F8 => Some(device.upload(&vec![1.0_f32; rows])?),
            _ => None,
        };
        Ok(Self { kind, rows, cols, data, scales })
    }

    /// A matrix of the elements `bytes`, row after row without gaps, little-endian. Of a kind with blocks as
    /// [`pack_row`] makes rows.
    ///
    /// # Errors
    /// If there is no such memory.
    ///
    /// # Panics
    /// If there are fewer or more bytes.
    pub fn from_rows(
        device: &Device,
        kind: WeightKind,
        rows: usize,
        cols: usize,
        bytes: &[u8],
    ) -> Result<Self, DeviceError> {
        let mut matrix = Self::empty(device, kind, rows, cols)?;
        assert_eq!(bytes.len(), rows * kind.tight_bytes(cols), "bytes of a matrix of {rows} × {cols}");
        matrix.put_rows(0, bytes)?;
        Ok(matrix)
    }

    /// A matrix of the numbers `values` (row after row), rounded to `kind`. F8 gets the scale of each row that makes its largest
    /// element 448; blocks are those of [`quantize_row`].
    ///
    /// # Errors
    /// If there is no such memory.
    ///
    /// # Panics
    /// If there are fewer or more values, or one that is not finite goes into a block, or blocks are of a type that it does not make.
    pub fn from_f32(
        device: &Device,
        kind: WeightKind,
        rows: usize,
        cols: usize,
        values: &[f32],
    ) -> Result<Self, DeviceError> {
        assert_eq!(values.len(), rows * cols, "values of a matrix of {rows} × {cols}");
        let mut matrix = Self::empty(device, kind, rows, cols)?;
        matrix.put_f32(0, values)?;
        Ok(matrix)
    }

    /// A matrix in F8 of the numbers `values`: [`from_f32`](Self::from_f32).
    ///
    /// # Errors
    /// If there is no such memory.
    pub fn quantize_f8(
        device: &Device,
        rows: usize,
        cols: usize,
        values: &[f32],
    ) -> Result<Self, DeviceError> {
        Self::from_f32(device, WeightKind::F8, rows, cols, values)
    }

    /// Overwrites rows `from..` with the elements `bytes`, row after row without gaps: see [`from_rows`](Self::from_rows).
    ///
    /// # Errors
    /// If the device fails.
    ///
    /// # Panics
    /// If they are not whole rows, or not inside.
    pub fn put_rows(&mut self, from: usize, bytes: &[u8]) -> Result<(), DeviceError> {
        let (tight, padded) = (self.kind.tight_bytes(self.cols), self.row_bytes());
        assert!(tight > 0 && bytes.len().is_multiple_of(tight), "{} bytes in rows of {tight}", bytes.len());
        let rows = bytes.len() / tight;
        assert!(from + rows <= self.rows, "rows {from}..{} of {}", from + rows, self.rows);
        let mut to = self.data.view_mut().slice(from * padded..(from + rows) * padded);
        if tight == padded {
            return to.upload(bytes);
        }
        let mut spaced = vec![0_u8; rows * padded];
        for (to, from) in spaced.chunks_exact_mut(padded).zip(bytes.chunks_exact(tight)) {
            to[..tight].copy_from_slice(from);
        }
        to.upload(&spaced)
    }

    /// Overwrites the scales of rows `from..`.
    ///
    /// # Errors
    /// If the device fails.
    ///
    /// # Panics
    /// If the matrix has none, or they are not inside.
    pub fn put_scales(&mut self, from: usize, scales: &[f32]) -> Result<(), DeviceError> {
        assert!(self.scales.is_some(), "a matrix of {:?} has no scales", self.kind);
        let Some(own) = &mut self.scales else { return Ok(()) };
        own.view_mut().slice(from..from + scales.len()).upload(scales)
    }

    /// Overwrites rows `from..` with the numbers `values`, rounded as [`from_f32`](Self::from_f32) says.
    ///
    /// # Errors
    /// If the device fails.
    ///
    /// # Panics
    /// If they are not whole rows, or not inside; of blocks, if one is not finite, or [`quantize_row`] does not make them.
    pub fn put_f32(&mut self, from: usize, values: &[f32]) -> Result<(), DeviceError> {
        let bytes: Vec<u8> = match self.kind {
            WeightKind::F32 => bytemuck::cast_slice(values).to_vec(),
            WeightKind::Bf16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
            WeightKind::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
            WeightKind::F8 => {
                let mut bytes = Vec::with_capacity(values.len());
                let rows = values.chunks_exact(self.cols.max(1));
                let scales: Vec<f32> = rows.map(|row| row_to_f8(row, &mut bytes)).collect();
                self.put_scales(from, &scales)?;
                bytes
            }
            _ => rows_of_blocks(self.kind, self.cols, values),
        };
        self.put_rows(from, &bytes)
    }

    /// How it is stored.
    pub fn kind(&self) -> WeightKind {
        self.kind
    }

    /// Rows: outputs of a product.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns: inputs of a product.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes from one row to the next.
    pub fn row_bytes(&self) -> usize {
        self.kind.row_bytes(self.cols)
    }

    /// Bytes it takes on the device.
    pub fn bytes(&self) -> usize {
        self.data.len() + self.scales.as_ref().map_or(0, |scales| scales.len() * 4)
    }

    /// Its device.
    pub fn device(&self) -> &Device {
        self.data.device()
    }

    /// Its elements.
    pub fn data(&self) -> View<'_, u8> {
        self.data.view()
    }

    /// What each row is to be multiplied by; `None` for 1.
    pub fn scales(&self) -> Option<View<'_, f32>> {
        self.scales.as_ref().map(Buffer::view)
    }
}

/// Rows of `cols` values as a kind with blocks has them.
fn rows_of_blocks(kind: WeightKind, cols: usize, values: &[f32]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(values.len());
    let Some(ty) = kind.blocks() else { return bytes };
    for row in values.chunks_exact(cols.max(1)) {
        let mut stored = Vec::new();
        let packed = quantize_row(ty, row, &mut stored).and_then(|()| pack_row(ty, &stored, &mut bytes));
        packed.unwrap_or_else(|reason| panic!("{reason}"));
    }
    bytes
}

/// Several matrices of one kind and size, which a kernel picks from on the device.
#[derive(Debug)]
pub struct MatrixTable {
    matrices: Vec<DeviceMatrix>,
    data: Buffer<u64>,
    scales: Option<Buffer<u64>>,
}

impl MatrixTable {
    /// Of `matrices`, in order.
    ///
    /// # Errors
    /// If the device fails.
    ///
    /// # Panics
    /// If there are none, or they differ in kind or size.
    pub fn new(matrices: Vec<DeviceMatrix>) -> Result<Self, DeviceError> {
        let first = &matrices[0];
        for matrix in &matrices {
            let same = matrix.kind == first.kind && matrix.rows == first.rows && matrix.cols == first.cols;
            assert!(same, "matrices of a table have one kind and size");
        }
        let device = first.device().clone();
        let data: Vec<u64> = matrices.iter().map(|matrix| matrix.data.view().address()).collect();
        let data = device.upload(&data)?;
        let scales: Option<Vec<u64>> =
            matrices.iter().map(|matrix| matrix.scales().map(|scales| scales.address())).collect();
        let scales = scales.map(|scales| device.upload(&scales)).transpose()?;
        Ok(Self { matrices, data, scales })
    }

    /// Matrices.
    pub fn count(&self) -> usize {
        self.matrices.len()
    }

    /// How they are stored.
    pub fn kind(&self) -> WeightKind {
        self.matrices[0].kind
    }

    /// Rows of each: outputs of a product.
    pub fn rows(&self) -> usize {
        self.matrices[0].rows
    }

    /// Columns of each: inputs of a product.
    pub fn cols(&self) -> usize {
        self.matrices[0].cols
    }

    /// Bytes they take on the device.
    pub fn bytes(&self) -> usize {
        self.matrices.iter().map(DeviceMatrix::bytes).sum()
    }

    /// The matrices.
    pub fn matrices(&self) -> &[DeviceMatrix] {
        &self.matrices
    }

    /// The matrices, to be filled; they stay where they are.
    pub fn matrix_mut(&mut self, index: usize) -> &mut DeviceMatrix {
        &mut self.matrices[index]
    }

    /// Where each one's elements are.
    pub fn data_addresses(&self) -> View<'_, u64> {
        self.data.view()
    }

    /// Where each one's scales are; `None` if they have none.
    pub fn scale_addresses(&self) -> Option<View<'_, u64>> {
        self.scales.as_ref().map(Buffer::view)
    }
}

/// Adds a row in E4M3 to `bytes`, and says what its elements are to be multiplied by.
pub fn row_to_f8(row: &[f32], bytes: &mut Vec<u8>) -> f32 {
    let scale = scale_of(row);
    bytes.extend(row.iter().map(|value| to_f8(*value / scale)));
    scale
}

/// What the largest element of a row is to be divided by to become 448.
fn scale_of(row: &[f32]) -> f32 {
    let largest = row.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    let scale = largest / F8_MAX;
    if scale > f32::MIN_POSITIVE && scale.is_finite() { scale } else { 1.0 }
}

/// The largest number of E4M3.
const F8_MAX: f32 = 448.0;

/// The nearest number of E4M3, ties to even; beyond the largest, the largest.
pub fn to_f8(value: f32) -> u8 {
    let sign = ((value.to_bits() >> 24) & 0x80) as u8;
    let size = value.abs();
    if size.is_nan() {
        return sign | 0x7f;
    }
    if size >= F8_MAX {
        return sign | 0x7e;
    }
    if size < 0.015_625 {
        // Below 2^-6 steps are 2^-9; 8 of them are the first normal number, whose code is 8 too.
        return sign | (size * 512.0).round_ties_even() as u8;
    }
    // Rounded at the fourth bit of the mantissa; a carry runs into the exponent, as it should.
    let bits = size.to_bits();
    let rounded = (bits + 0x7_ffff + ((bits >> 20) & 1)) >> 20;
    sign | (rounded - (120 << 3)).min(0x7e) as u8
}

/// What a number of E4M3 is; its NaN is NaN.
pub fn from_f8(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let size = match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 512.0,
        _ => (1.0 + mantissa / 8.0) * 2.0_f32.powi(exponent - 7),
    };
    if code & 0x80 == 0 { size } else { -size }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_of_f8_comes_back_and_what_lies_between_goes_to_the_nearest() {
        for code in 0..=0x7e_u8 {
            assert_eq!(to_f8(from_f8(code)), code);
            assert_eq!(to_f8(-from_f8(code)), code | 0x80);
        }
        for code in 0..0x7e_u8 {
            let (low, high) = (from_f8(code), from_f8(code + 1));
            let middle = f32::midpoint(low, high);
            assert_eq!(
                to_f8(middle),
                if code % 2 == 0 { code } else { code + 1 },
                "between {low} and {high}"
            );
            assert_eq!(to_f8(f32::midpoint(low, middle)), code);
            assert_eq!(to_f8(f32::midpoint(middle, high)), code + 1);
        }
        assert_eq!(to_f8(1e9), 0x7e);
        assert_eq!(to_f8(f32::NAN) & 0x7f, 0x7f);
    }
}
