//! Which matrix of several each row of a product meets.

use super::Buffer;

/// Rows `offsets[g]..offsets[g + 1]` of a sorted input meet matrix `g`.
#[derive(Debug)]
pub struct Groups {
    /// Groups.
    pub count: usize,
    /// Where each begins, and the end of the last: `count + 1`, never falling, the first 0. Known to the device only.
    pub offsets: Buffer<u32>,
    /// At most so many rows in all, as the host knows.
    pub max_rows: usize,
    /// At most so many rows of one group.
    pub most_of_one: usize,
    /// The group of each sorted row.
    pub group_of_row: Buffer<u32>,
    /// The row of the unsorted input that each sorted row is.
    pub token_of_row: Buffer<u32>,
}
