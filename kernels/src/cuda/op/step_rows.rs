//! The rows of a step, as kernels find them on the device.

use super::attention::span_change;
use super::kv_cache::u32_of;
use crate::cuda::{Arg, Buffer, Device, DeviceError};

/// Rows of a step that follow each other, of one sequence and at positions that follow each other.
#[derive(Debug, Clone, Copy)]
pub struct Run<'a> {
    /// The sequence's blocks, in order, as far as the last of these rows sees.
    pub blocks: &'a [u32],
    /// Position of the first row.
    pub position: usize,
    /// How many rows.
    pub rows: usize,
}

/// From so many rows of a sequence on, they share what they read of the cache; fewer are taken one by one.
const SHARED: usize = 16;
/// Position of a row that does not exist.
const NO_ROW: u32 = u32::MAX;

/// The rows of a step: one buffer, filled with one copy.
///
/// In 32-bit words: for each row (position, where its blocks begin); then for each row that is taken alone, and for each run of
/// rows that are taken together, (first row, rows, position of the first, where its blocks begin), with 0 rows for none; then
/// the blocks of all sequences. Rows that are taken together agree on the length of attention's spans: runs are cut where it changes.
///
/// The *fixed* form always has the same number of rows at the same addresses, of which the last may be missing: what was
/// recorded with one step's rows can be done again with another's.
#[derive(Debug)]
pub struct StepRows {
    words: Buffer<u32>,
    staged: Vec<u32>,
    fixed: Option<Fixed>,
    rows: usize,
    /// Rows that are taken one by one (in the fixed form, all there can be).
    alone: usize,
    /// (Rows, positions that the last sees) of each run that is taken together.
    together: Vec<(usize, usize)>,
    /// No row that is taken alone sees more positions.
    context: usize,
}

/// Rows of a run; whether they are taken together.
#[derive(Debug, Clone, Copy)]
struct Piece {
    position: usize,
    rows: usize,
    shared: bool,
}

#[derive(Debug, Clone, Copy)]
struct Fixed {
    rows: usize,
    context: usize,
}

impl StepRows {
    /// No rows yet. It grows as needed, and is at another address then.
    ///
    /// # Errors
    /// If there is no memory.
    pub fn new(device: &Device) -> Result<Self, DeviceError> {
        Ok(Self {
            words: device.alloc(0)?,
            staged: Vec::new(),
            fixed: None,
            rows: 0,
            alone: 0,
            together: Vec::new(),
            context: 0,
        })
    }

    /// The fixed form: `rows` rows, each alone, with `blocks` blocks altogether, none of which sees more than `context`
    /// positions. Attention starts blocks for `context` positions of every row, and those that find nothing there end at once: a bound
    /// of many times what rows see costs time.
    ///
    /// # Errors
    /// If there is no memory, or the device fails.
    pub fn fixed(device: &Device, rows: usize, blocks: usize, context: usize) -> Result<Self, DeviceError> {
        let words = device.alloc(rows_words(rows, rows, 0) + blocks)?;
        let fixed = Some(Fixed { rows, context });
        let mut step =
            Self { words, staged: Vec::new(), fixed, rows, alone: rows, together: Vec::new(), context };
        step.set(&[])?;
        Ok(step)
    }

    /// The fixed form becomes that of so many rows, none of which sees more than `context` positions, at the same address and with no
    /// rows yet: what was recorded with a form can be done whenever it is the same again.
    ///
    /// # Panics
    /// If it is not the fixed form, or has no room for so many.
    pub fn refit(&mut self, rows: usize, context: usize) {
        assert!(
            self.fixed.is_some() && rows_words(rows, rows, 0) <= self.words.len(),
            "a step of {rows} rows"
        );
        self.fixed = Some(Fixed { rows, context });
        (self.rows, self.alone, self.context) = (rows, rows, context);
    }

    /// Whether the fixed form has room for these.
    pub fn fits(&self, runs: &[Run<'_>]) -> bool {
        self.fixed.is_none_or(|fixed| {
            let rows: usize = runs.iter().map(|run| run.rows).sum();
            let blocks: usize = runs.iter().map(|run| run.blocks.len()).sum();
            rows <= fixed.rows
                && rows_words(fixed.rows, fixed.rows, 0) + blocks <= self.words.len()
                && runs.iter().all(|run| run.position + run.rows <= fixed.context)
        })
    }

    /// These rows from here on.
    ///
    /// # Errors
    /// If there is no memory, or the device fails.
    ///
    /// # Panics
    /// If they do not fit a fixed form ([`fits`](Self::fits)).
    pub fn set(&mut self, runs: &[Run<'_>]) -> Result<(), DeviceError> {
        assert!(self.fits(runs), "rows of a step: {} runs", runs.len());
        let live: usize = runs.iter().map(|run| run.rows).sum();
        let pieces: Vec<Vec<Piece>> = runs.iter().map(|run| self.pieces(run)).collect();
        let shared = pieces.iter().flatten().filter(|piece| piece.shared);
        self.together = shared.map(|piece| (piece.rows, piece.position + piece.rows)).collect();
        match self.fixed {
            Some(fixed) => (self.rows, self.alone, self.context) = (fixed.rows, fixed.rows, fixed.context),
            None => {
                let alone = pieces.iter().flatten().filter(|piece| !piece.shared);
                self.rows = live;
                self.alone = alone.clone().map(|piece| piece.rows).sum();
                self.context = alone.map(|piece| piece.position + piece.rows).max().unwrap_or(0);
            }
        }
        let mut blocks_at = rows_words(self.rows, self.alone, self.together.len());
        let (mut places, mut alone, mut together, mut blocks) = (vec![], vec![], vec![], vec![]);
        for (run, pieces) in runs.iter().zip(pieces) {
            let at = word(blocks_at);
            for Piece { position, rows, shared } in pieces {
                let first = places.len() / 2;
                for i in 0..rows {
                    places.extend([word(position + i), at]);
                    if !shared {
                        alone.extend([word(first + i), 1, word(position + i), at]);
                    }
                }
                if shared {
                    together.extend([word(first), word(rows), word(position), at]);
                }
            }
            blocks.extend_from_slice(run.blocks);
            blocks_at += run.blocks.len();
        }
        for row in live..self.rows {
            places.extend([NO_ROW, 0]);
            alone.extend([word(row), 0, 0, 0]);
        }
        // Places of four words are read at once.
        places.resize(places.len().next_multiple_of(4), 0);
        self.staged.clear();
        for words in [places, alone, together, blocks] {
            self.staged.extend(words);
        }
        if self.staged.len() > self.words.len() {
            self.words = self.words.device().alloc(self.staged.len().next_power_of_two())?;
        }
        self.words.view_mut().slice(0..self.staged.len()).upload(&self.staged)
    }

    /// A run, cut where the length of attention's spans changes.
    fn pieces(&self, run: &Run<'_>) -> Vec<Piece> {
        let (mut pieces, mut position) = (Vec::new(), run.position);
        let end = run.position + run.rows;
        while position < end {
            let rows = end.min(span_change(position)) - position;
            pieces.push(Piece { position, rows, shared: self.fixed.is_none() && rows >= SHARED });
            position += rows;
        }
        pieces
    }

    /// Rows; of the fixed form, all that there can be.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Its device.
    pub fn device(&self) -> &Device {
        self.words.device()
    }

    /// Where it is.
    pub(super) fn address(&self) -> Arg {
        Arg::Ptr(self.words.view().address())
    }

    /// Rows that are taken alone: how many, and no one sees more positions.
    pub(super) fn alone(&self) -> (usize, usize) {
        (self.alone, self.context)
    }

    /// Where row `nth` of those is.
    pub(super) fn alone_at(&self, nth: usize) -> Arg {
        Arg::U32(u32_of((self.rows * 2).next_multiple_of(4) + 4 * nth))
    }

    /// Rows of each run that is taken together, and positions that the last of them sees.
    pub(super) fn together(&self) -> &[(usize, usize)] {
        &self.together
    }

    /// Where those are.
    pub(super) fn together_at(&self) -> Arg {
        self.alone_at(self.alone)
    }
}

fn rows_words(rows: usize, alone: usize, together: usize) -> usize {
    (rows * 2).next_multiple_of(4) + 4 * (alone + together)
}

fn word(x: usize) -> u32 {
    u32::try_from(x).expect("positions and blocks are numbered in 32 bits")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::testing::devices;

    #[test]
    fn rows_are_where_kernels_look_for_them() {
        for device in devices() {
            let long = Run { blocks: &[7, 8, 9], position: 20, rows: 16 };
            let runs = [
                Run { blocks: &[5], position: 3, rows: 1 },
                long,
                Run { blocks: &[1, 2], position: 17, rows: 2 },
            ];
            let mut step = StepRows::new(&device).unwrap();
            step.set(&runs).unwrap();
            assert_eq!((step.rows(), step.alone(), step.together()), (19, (3, 19), &[(16, 36)][..]));
            let words = step.words.download().unwrap();
            // 38 words of rows, padded to 40, three rows alone, one run.
            assert_eq!(words[..4], [3, 56, 20, 57]);
            assert_eq!(words[34..38], [17, 60, 18, 60]);
            assert_eq!((step.alone_at(0), step.together_at()), (Arg::U32(40), Arg::U32(52)));
            assert_eq!(words[40..52], [0, 1, 3, 56, 17, 1, 17, 60, 18, 1, 18, 60]);
            assert_eq!(words[52..62], [1, 16, 20, 57, 5, 7, 8, 9, 1, 2]);
        }
    }

    #[test]
    fn runs_are_cut_where_spans_become_longer() {
        for device in devices() {
            let runs = [
                Run { blocks: &[4, 5], position: 7900, rows: 60 },
                Run { blocks: &[6], position: 15_871, rows: 20 },
            ];
            let mut step = StepRows::new(&device).unwrap();
            step.set(&runs).unwrap();
            assert_eq!(step.together(), &[(36, 7936), (24, 7960), (19, 15_891)]);
            assert_eq!((step.rows(), step.alone()), (80, (1, 15_872)));
            let words = step.words.download().unwrap();
            assert_eq!(words[160..164], [60, 1, 15_871, 178]);
            assert_eq!(words[164..176], [0, 36, 7900, 176, 36, 24, 7936, 176, 61, 19, 15_872, 178]);
            assert_eq!(words[176..179], [4, 5, 6]);
        }
    }

    #[test]
    fn the_fixed_form_stays_where_it_is() {
        for device in devices() {
            let mut step = StepRows::fixed(&device, 3, 4, 50).unwrap();
            let address = step.address();
            let run = |blocks, position, rows| Run { blocks, position, rows };
            assert!(!step.fits(&[run(&[1], 0, 4)]), "rows");
            assert!(!step.fits(&[run(&[1, 2, 3], 0, 1), run(&[4, 5], 0, 1)]), "blocks");
            assert!(!step.fits(&[run(&[1], 49, 2)]), "context");
            step.set(&[run(&[1, 2, 3], 40, 2)]).unwrap();
            step.set(&[run(&[6, 7], 9, 1)]).unwrap();
            assert_eq!((step.rows(), step.alone(), step.address()), (3, (3, 50), address));
            let words = step.words.download().unwrap();
            assert_eq!(words[..6], [9, 20, NO_ROW, 0, NO_ROW, 0]);
            assert_eq!(words[8..22], [0, 1, 9, 20, 1, 0, 0, 0, 2, 0, 0, 0, 6, 7]);
        }
    }

    #[test]
    fn a_form_can_become_another_where_it_is() {
        for device in devices() {
            let mut step = StepRows::fixed(&device, 3, 4, 50).unwrap();
            let address = step.address();
            let run = |blocks, position| Run { blocks, position, rows: 1 };
            step.refit(2, 90);
            assert!(!step.fits(&[run(&[1], 0), run(&[1], 0), run(&[1], 0)]), "rows");
            assert!(step.fits(&[run(&[1], 89)]) && !step.fits(&[run(&[1], 90)]), "context");
            // What a row less takes is room for blocks.
            assert!(step.fits(&[run(&[1; 12], 0)]) && !step.fits(&[run(&[1; 13], 0)]), "blocks");
            step.set(&[run(&[6, 7], 70)]).unwrap();
            assert_eq!((step.rows(), step.alone(), step.address()), (2, (2, 90), address));
            assert_eq!(
                step.words.download().unwrap()[..14],
                [70, 12, NO_ROW, 0, 0, 1, 70, 12, 1, 0, 0, 0, 6, 7]
            );
        }
    }
}
