//! Steps that are recorded once and replayed: decoding, where the launches would take longer than the work.
//!
//! Not every number of rows is recorded, but some ([`padded`]): a step of fewer rows is that of more, of which the last do not
//! exist. Such a row is embedded and goes through products and norms, which do nothing to other rows; it attends to nothing,
//! writes nothing to the cache, goes to no expert, and no one asks for its logits. Which kernels are used depends on how many rows
//! there are with it, as always.

use std::collections::HashMap;

use foggara_kernels::cuda::op::step_rows::{Run, StepRows};
use foggara_kernels::cuda::{Device, DeviceError, Recording};

use super::buffers::decode_rows;
use super::score::Sought;
use crate::decoder::StepInput;

/// Positions of a context: recorded for powers of two from this on.
const LEAST_CONTEXT: usize = 1024;
/// Blocks that the rows of a recorded step see at most, all together: 8 MiB of numbers.
const MOST_BLOCKS: usize = 1 << 21;
/// Steps that are kept; of more, that which was not run for longest is forgotten. A server that is steadily used is at a few sizes at
/// a time, and of long contexts at one or two powers of two.
const KEPT: usize = 64;

/// What was recorded, by sizes.
pub(super) struct Graphs {
    /// The rows that recorded steps read: all of them at this one address. Absent while a step runs.
    rows: Option<StepRows>,
    known: HashMap<Sizes, Known>,
    /// Rows of a step that is recorded, and positions that they see at most.
    most_rows: usize,
    most_context: usize,
    /// Steps so far.
    steps: u64,
}

/// Steps of the same sizes are the same launches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Sizes {
    /// Those that do not exist among them.
    rows: usize,
    context: usize,
    /// Of each row.
    sought: Sought,
}

#[derive(Default)]
struct Known {
    recording: Option<Recording>,
    warm: bool,
    /// The number of its last step.
    last: u64,
}

/// One recorded step.
pub(super) struct Recorded {
    /// The rows it reads.
    pub(super) rows: StepRows,
    /// Absent until it has been run once as it is, so that whatever is made at first use is there.
    pub(super) recording: Option<Recording>,
    pub(super) warm: bool,
    sizes: Sizes,
}

impl Recorded {
    /// What is looked for in each row of logits.
    pub(super) fn sought(&self) -> Sought {
        self.sizes.sought
    }
}

/// Whether a step is one to be recorded, if there is room: each sequence has one row, which wants logits.
pub(super) fn can_be_recorded(input: &StepInput) -> bool {
    input.segments.iter().all(|segment| segment.len == 1 && segment.logits_from == 0)
}

/// The rows that so many are recorded as: a power of two, or half as many again. Where products go through other kernels, there are
/// such numbers.
fn padded(rows: usize) -> usize {
    let power = rows.next_power_of_two();
    let between = power / 4 * 3;
    if between >= rows { between } else { power }
}

impl Graphs {
    /// Nothing yet, for steps of at most `max_rows` rows that see at most `context` positions each.
    ///
    /// # Errors
    /// If there is no memory, or the device fails.
    pub(super) fn new(
        device: &Device,
        max_rows: usize,
        context: usize,
        block_size: usize,
    ) -> Result<Self, DeviceError> {
        let most_rows = decode_rows(max_rows);
        let blocks = most_rows.saturating_mul(context.div_ceil(block_size)).min(MOST_BLOCKS);
        let rows = Some(StepRows::fixed(device, most_rows, blocks, context)?);
        Ok(Self { rows, known: HashMap::new(), most_rows, most_context: context, steps: 0 })
    }

    /// Rows of a step that is recorded, at most.
    pub(super) fn most_rows(&self) -> usize {
        self.most_rows
    }

    /// Takes out the step for rows like these, in whose logits this is sought, its rows set to them. To be
    /// [`put`](Self::put) back. `None`: there are more rows, positions or blocks than recorded steps have.
    ///
    /// # Errors
    /// If the device fails.
    pub(super) fn take(&mut self, runs: &[Run<'_>], sought: Sought) -> Result<Option<Recorded>, DeviceError> {
        if runs.len() > self.most_rows {
            return Ok(None);
        }
        let longest = runs.iter().map(|run| run.position + run.rows).max().unwrap_or(1);
        let context = longest.next_power_of_two().max(LEAST_CONTEXT).min(self.most_context);
        let sizes = Sizes { rows: padded(runs.len()).min(self.most_rows), context, sought };
        let Some(rows) = &mut self.rows else { unreachable!("put back after every step") };
        rows.refit(sizes.rows, context);
        if !rows.fits(runs) {
            return Ok(None);
        }
        rows.set(runs)?;
        let Known { recording, warm, .. } = self.known.remove(&sizes).unwrap_or_default();
        Ok(self.rows.take().map(|rows| Recorded { rows, recording, warm, sizes }))
    }

    /// Puts it back, for the next step of its sizes.
    pub(super) fn put(&mut self, recorded: Recorded) {
        let Recorded { rows, recording, warm, sizes } = recorded;
        self.rows = Some(rows);
        self.steps += 1;
        self.known.insert(sizes, Known { recording, warm, last: self.steps });
        if self.known.len() > KEPT {
            let oldest = self.known.iter().min_by_key(|(_, known)| known.last).map(|(sizes, _)| *sizes);
            oldest.map(|sizes| self.known.remove(&sizes));
        }
    }
}

#[cfg(test)]
#[path = "graphs_tests.rs"]
mod tests;
