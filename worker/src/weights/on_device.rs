//! Weights on a device: rows as they are stored where they are floats, or blocks of a type that a device meets as they are; else
//! rounded to bf16; or all of them in E4M3, where that is asked for.

use std::sync::OnceLock;

use foggara_kernels::cuda::{Device, DeviceMatrix, WeightKind, pack_row, row_to_f8};
use foggara_kernels::op::dequantize::dequantize;
use foggara_kernels::op::stored::RowRun;
use foggara_kernels::{KernelError, ThreadPool, WeightType};

use super::LoadError;
use super::store::{Held, Hold, Store, Stored};

/// Rows that one task converts.
const ROWS_AT_ONCE: usize = 16;

/// Holds matrices on a device.
#[derive(Debug, Clone)]
pub struct OnDevice(pub Device);

/// A matrix that comes to a device.
#[derive(Debug)]
pub struct DevicePacker {
    matrix: DeviceMatrix,
    stored: Stored,
    next: usize,
}

impl Held for DeviceMatrix {
    fn rows(&self) -> usize {
        self.rows()
    }

    fn bytes(&self) -> usize {
        self.bytes()
    }
}

/// The type a stored one is held in.
fn kind(stored: Stored) -> WeightKind {
    match (stored.hold, stored.ty) {
        (Hold::F8, _) => WeightKind::F8,
        (Hold::Blocks, ty) if blocks_are_whole(stored) => {
            WeightKind::of_blocks(ty).unwrap_or(WeightKind::Bf16)
        }
        (_, WeightType::F32) => WeightKind::F32,
        (_, WeightType::F16) => WeightKind::F16,
        (_, _) => WeightKind::Bf16,
    }
}

#[cfg(test)]
thread_local! {
    /// Blocks that this thread loads are held in bf16, as those are that no kernel meets.
    pub(crate) static AS_FLOATS: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Whether the wanted columns are whole blocks of those that are stored.
fn blocks_are_whole(s: Stored) -> bool {
    #[cfg(test)]
    if AS_FLOATS.get() {
        return false;
    }
    [s.col_skip, s.cols].iter().all(|columns| columns.is_multiple_of(s.ty.block_elems()))
}

/// Some rows as they are held.
#[derive(Default)]
struct Rows {
    bytes: Vec<u8>,
    /// One a row where there are any.
    scales: Vec<f32>,
}

impl Store for OnDevice {
    type Matrix = DeviceMatrix;
    type Packer = DevicePacker;

    fn begin(&self, stored: Stored) -> Result<DevicePacker, LoadError> {
        let matrix = DeviceMatrix::empty(&self.0, kind(stored), stored.rows, stored.cols)?;
        Ok(DevicePacker { matrix, stored, next: 0 })
    }

    fn push<'r>(
        &self,
        packer: &mut DevicePacker,
        pool: &ThreadPool,
        count: usize,
        row: impl Fn(usize) -> &'r [u8] + Sync,
    ) -> Result<(), LoadError> {
        let stored = packer.stored;
        let kind = packer.matrix.kind();
        let row_bytes = kind.tight_bytes(stored.cols);
        if row_bytes == 0 {
            packer.next += count;
            return Ok(());
        }
        if packer.next + count > stored.rows {
            let reason = format!("{count} rows after {} of {}", packer.next, stored.rows);
            return Err(KernelError::new("upload", reason).into());
        }
        let runs = count.div_ceil(ROWS_AT_ONCE);
        let made: Vec<OnceLock<Result<Rows, KernelError>>> = (0..runs).map(|_| OnceLock::new()).collect();
        pool.run(runs, |run| {
            let rows = run * ROWS_AT_ONCE..count.min((run + 1) * ROWS_AT_ONCE);
            let mut held = Rows { bytes: Vec::with_capacity(rows.len() * row_bytes), scales: Vec::new() };
            let converted = rows.into_iter().try_for_each(|i| convert(stored, kind, row(i), &mut held));
            // Each run is made once.
            made[run].set(converted.map(|()| held)).ok();
        });
        let (first, mut scales) = (packer.next, Vec::new());
        for held in made.into_iter().filter_map(OnceLock::into_inner) {
            let held = held?;
            packer.matrix.put_rows(packer.next, &held.bytes)?;
            packer.next += held.bytes.len() / row_bytes;
            scales.extend(held.scales);
        }
        if !scales.is_empty() {
            packer.matrix.put_scales(first, &scales)?;
        }
        Ok(())
    }

    fn place(&self, _: WeightType, _: Hold, _: usize, _: Vec<RowRun>) -> Result<DeviceMatrix, LoadError> {
        Err(KernelError::new("upload", "a device has memory of its own").into())
    }

    fn finish(&self, packer: DevicePacker) -> Result<DeviceMatrix, LoadError> {
        let (got, rows) = (packer.next, packer.stored.rows);
        if got != rows && packer.stored.cols_stored > 0 {
            return Err(KernelError::new("upload", format!("{got} of {rows} rows were given")).into());
        }
        Ok(packer.matrix)
    }
}

/// Adds the wanted columns of a stored row, as they are held.
fn convert(s: Stored, kind: WeightKind, row: &[u8], held: &mut Rows) -> Result<(), KernelError> {
    if row.len() != s.ty.row_bytes(s.cols_stored) {
        let reason = format!("a row of {} bytes for {} columns of {:?}", row.len(), s.cols_stored, s.ty);
        return Err(KernelError::new("upload", reason));
    }
    if kind.blocks().is_some() && WeightKind::of_blocks(s.ty) == Some(kind) {
        let wanted = s.ty.row_bytes(s.col_skip)..s.ty.row_bytes(s.col_skip + s.cols);
        return pack_row(s.ty, &row[wanted], &mut held.bytes);
    }
    if s.hold != Hold::F8 && matches!(s.ty, WeightType::F32 | WeightType::F16 | WeightType::BF16) {
        let size = s.ty.row_bytes(1);
        held.bytes.extend_from_slice(&row[s.col_skip * size..][..s.cols * size]);
        return Ok(());
    }
    let mut values = vec![0.0; s.cols_stored];
    dequantize(s.ty, row, &mut values)?;
    let wanted = &values[s.col_skip..][..s.cols];
    match s.hold {
        Hold::AsGiven | Hold::Blocks | Hold::InBf16 => {
            held.bytes.extend(wanted.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()));
        }
        // What is not a number has no place in E4M3: its scale would take every other element of the row along.
        Hold::F8 => match wanted.iter().position(|v| !v.is_finite()) {
            Some(i) => {
                return Err(KernelError::new("quantize", format!("element {i} of a row is {}", wanted[i])));
            }
            None => held.scales.push(row_to_f8(wanted, &mut held.bytes)),
        },
    }
    Ok(())
}

#[cfg(test)]
#[path = "on_device_tests.rs"]
mod tests;
