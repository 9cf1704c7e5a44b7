//! Panels of rows that are used as stored, made beside the products that use them: a start has not to wait for them, and results
//! have the same bits before and after.

use std::sync::{Arc, OnceLock, Weak};

use super::panels::WeightMatrix;
use super::stored::StoredRows;
use crate::cpu::lines::Lines;
use crate::cpu::pool::ThreadPool;
use crate::dtype::WeightType;
use crate::error::KernelError;

/// Rows as they are stored, and the panels that are made of them meanwhile.
#[derive(Debug)]
pub(crate) struct Placed {
    stored: StoredRows,
    panels: OnceLock<Lines>,
}

impl Placed {
    pub(super) fn new(stored: StoredRows) -> Self {
        Self { stored, panels: OnceLock::new() }
    }

    pub(super) fn stored(&self) -> &StoredRows {
        &self.stored
    }

    /// The panels, if they have been made.
    pub(super) fn panels(&self) -> Option<&Lines> {
        self.panels.get()
    }
}

/// A matrix of rows as stored, of which panels can be made; it may be gone by then.
#[derive(Debug)]
pub struct Repacking {
    placed: Weak<Placed>,
    ty: WeightType,
    rows: usize,
    cols: usize,
}

impl Repacking {
    pub(super) fn new(placed: &Arc<Placed>, ty: WeightType, rows: usize, cols: usize) -> Self {
        Self { placed: Arc::downgrade(placed), ty, rows, cols }
    }

    /// Bytes that the panels take.
    pub fn bytes(&self) -> usize {
        self.rows * self.ty.row_bytes(self.cols)
    }

    /// Makes the panels; products that begin from now on use them. `false`: nobody has the matrix any more.
    ///
    /// # Errors
    /// If rows are not as they were said to be.
    pub fn run(&self, pool: &ThreadPool) -> Result<bool, KernelError> {
        let Some(placed) = self.placed.upgrade() else { return Ok(false) };
        let mut packer = WeightMatrix::packer(self.ty, self.rows, self.cols, 0, self.cols)?;
        packer.push_with(pool, self.rows, |row| placed.stored.row(row))?;
        if let Some(panels) = packer.finish()?.into_panels() {
            // Whoever was first has made the same.
            placed.panels.set(panels).ok();
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::activations::Activations;
    use crate::op::matmul::matmul;
    use crate::op::stored::RowRun;

    /// Numbers of bf16 that are small and different.
    fn rows_of(rows: usize, cols: usize) -> Vec<u8> {
        (0..rows * cols).flat_map(|i| (0x3d80 + (i * 37 % 509) as u16).to_le_bytes()).collect()
    }

    fn product(w: &WeightMatrix, batch: usize) -> Vec<u32> {
        let pool = ThreadPool::new(1);
        let mut x = Activations::new(batch, w.cols());
        for (i, x) in x.f32_rows_mut().iter_mut().enumerate() {
            *x = (i * 131 % 257) as f32 / 64.0 - 2.0;
        }
        x.prepare(&pool, w);
        let mut y = vec![0.0; batch * w.rows()];
        matmul(&pool, w, &x, &mut y, w.rows());
        y.into_iter().map(f32::to_bits).collect()
    }

    #[test]
    fn panels_take_the_place_of_rows_and_change_no_bit() {
        let (rows, cols) = (37, 83);
        for in_bf16 in [false, true] {
            let bytes = rows_of(rows, cols);
            let run = RowRun::new(Arc::new(bytes), 0, 2 * cols, rows);
            let w = WeightMatrix::of_stored(WeightType::BF16, cols, vec![run]).expect("all there");
            let w = if in_bf16 { w.multiplied_in_bf16() } else { w };
            let before: Vec<_> = [1, 3, 8, 40].into_iter().map(|batch| product(&w, batch)).collect();
            let mut row = vec![0.0; cols];
            w.dequantize_row(36, &mut row);
            assert!(w.stored().is_some() && w.panel(0).is_empty());

            let repacking = w.repacking().expect("rows as stored");
            assert_eq!(repacking.bytes(), 2 * rows * cols);
            assert_eq!(repacking.run(&ThreadPool::new(2)), Ok(true));
            assert!(w.stored().is_none() && !w.panel(4).is_empty());
            for (batch, before) in [1, 3, 8, 40].into_iter().zip(before) {
                assert_eq!(product(&w, batch), before, "{batch} rows, in bf16: {in_bf16}");
            }
            let mut again = vec![0.0; cols];
            w.dequantize_row(36, &mut again);
            assert_eq!(again, row);
            assert_eq!(repacking.run(&ThreadPool::new(1)), Ok(true), "once more changes nothing");
            drop(w);
            assert_eq!(repacking.run(&ThreadPool::new(1)), Ok(false), "it is gone");
        }
    }

    #[test]
    fn products_go_on_while_panels_are_made() {
        let (rows, cols) = (512, 256);
        let run = RowRun::new(Arc::new(rows_of(rows, cols)), 0, 2 * cols, rows);
        let w = WeightMatrix::of_stored(WeightType::BF16, cols, vec![run]).expect("all there");
        let (expected, repacking) = (product(&w, 5), w.repacking().expect("rows as stored"));
        std::thread::scope(|scope| {
            let packing = scope.spawn(|| repacking.run(&ThreadPool::new(1)));
            while !packing.is_finished() {
                assert_eq!(product(&w, 5), expected);
            }
            assert_eq!(packing.join().expect("it ends"), Ok(true));
        });
        assert!(w.stored().is_none());
        assert_eq!(product(&w, 5), expected);
    }

    #[test]
    fn panels_are_not_made_again() {
        let w = WeightMatrix::pack(WeightType::BF16, 8, 4, 0, 4, &rows_of(8, 4)).expect("sizes agree");
        assert!(w.repacking().is_none());
    }
}
