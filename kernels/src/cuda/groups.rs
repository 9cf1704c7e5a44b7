//! Which matrix of several each row meets.

use super::Buffer;

/// Rows `offsets[g]..offsets[g + 1]` of a sorted input meet matrix g.
#[derive(Debug)]
pub struct Groups {
    /// Matrices.
    pub count: usize,
    /// `count + 1` of them.
    pub offsets: Buffer<u32>,
    /// The host's bound of `offsets[count]`, which only the device knows.
    pub max_rows: usize,
    /// Of each sorted row, its matrix.
    pub group_of_row: Buffer<u32>,
    /// Of each sorted row, the row of the input that it is.
    pub token_of_row: Buffer<u32>,
}
