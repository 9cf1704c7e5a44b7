//! Weights where they lie: rows of floats in memory that someone else holds, such as a mapped file.

use std::fmt;
use std::sync::Arc;

use crate::dtype::WeightType;
use crate::error::KernelError;

/// Keeps the bytes there for as long as it is held; they must stay the same.
pub type Holder = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// Rows that lie at equal distances.
#[derive(Clone)]
pub struct RowRun {
    holder: Holder,
    start: usize,
    stride: usize,
    rows: usize,
}

impl RowRun {
    /// `rows` of them in `holder`'s bytes: the first begins at `start`, each next one `stride` bytes further on.
    pub fn new(holder: Holder, start: usize, stride: usize, rows: usize) -> Self {
        Self { holder, start, stride, rows }
    }

    /// Whether all its rows of `row_bytes` are inside of what is held.
    fn fits(&self, row_bytes: usize) -> bool {
        let last = self.rows.saturating_sub(1).checked_mul(self.stride);
        let end = last.and_then(|last| last.checked_add(self.start)?.checked_add(row_bytes));
        self.rows == 0 || end.is_some_and(|end| end <= (*self.holder).as_ref().len())
    }
}

impl fmt::Debug for RowRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rows from {} every {} bytes", self.rows, self.start, self.stride)
    }
}

/// A matrix of such rows, run after run. Little endian, at any alignment.
#[derive(Debug)]
pub(crate) struct StoredRows {
    runs: Vec<RowRun>,
    row_bytes: usize,
}

impl StoredRows {
    /// Rows of `cols` elements of `ty`.
    pub(super) fn new(ty: WeightType, cols: usize, runs: Vec<RowRun>) -> Result<Self, KernelError> {
        let wrong = |reason: String| KernelError::new("rows as stored", reason);
        if ty.is_quantized() || cfg!(target_endian = "big") {
            return Err(wrong(format!("{ty} is used in panels only")));
        }
        let row_bytes = ty.row_bytes(cols);
        match runs.iter().find(|run| !run.fits(row_bytes)) {
            Some(run) => Err(wrong(format!("{run:?} of {row_bytes} are not all there"))),
            None => Ok(Self { runs, row_bytes }),
        }
    }

    /// Rows in all.
    pub(super) fn rows(&self) -> usize {
        self.runs.iter().map(|run| run.rows).sum()
    }

    /// The bytes of row `row`, which must exist.
    #[inline]
    pub(super) fn row(&self, mut row: usize) -> &[u8] {
        for run in &self.runs {
            if row < run.rows {
                return &(*run.holder).as_ref()[run.start + row * run.stride..][..self.row_bytes];
            }
            row -= run.rows;
        }
        panic!("no such row")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_found_run_by_run_and_what_is_not_there_is_refused() {
        let bytes: Holder = Arc::new((0..64).collect::<Vec<u8>>());
        let run = |start, stride, rows| RowRun::new(Arc::clone(&bytes), start, stride, rows);
        let of = |runs| StoredRows::new(WeightType::BF16, 2, runs);
        let rows = of(vec![run(3, 10, 2), run(0, 0, 0), run(60, 99, 1)]).expect("all there");
        assert_eq!(rows.rows(), 3);
        assert_eq!(rows.row(0), [3, 4, 5, 6]);
        assert_eq!(rows.row(1), [13, 14, 15, 16]);
        assert_eq!(rows.row(2), [60, 61, 62, 63]);
        for runs in [vec![run(61, 4, 1)], vec![run(0, 4, 1), run(0, 31, 3)], vec![run(8, usize::MAX, 2)]] {
            assert!(of(runs).is_err());
        }
        assert!(StoredRows::new(WeightType::Q8_0, 32, vec![run(0, 34, 1)]).is_err(), "in panels only");
    }
}
