//! Steps that are recorded once and replayed: decoding of few sequences, where the launches would take longer than the work.

use std::collections::HashMap;

use foggara_kernels::cuda::op::step_rows::{Run, StepRows};
use foggara_kernels::cuda::{Device, DeviceError, Recording};

use crate::decoder::StepInput;
use crate::decoder::score::LOGIT_ROWS;

/// Rows of a step that is recorded.
const MOST_ROWS: usize = LOGIT_ROWS;
/// Positions of a context: recorded for powers of two from this on.
const LEAST_CONTEXT: usize = 1024;

/// What was recorded, by sizes.
#[derive(Default)]
pub(super) struct Graphs {
    known: HashMap<Sizes, Recorded>,
}

/// Steps of the same sizes are the same launches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Sizes {
    rows: usize,
    context: usize,
    /// The best logits of each row that are found: as many.
    depth: usize,
}

/// One recorded step.
pub(super) struct Recorded {
    /// The rows it reads: at one address for as long as it lives.
    pub(super) rows: StepRows,
    /// Absent until it has been run once as it is, so that whatever is made at first use is there.
    pub(super) recording: Option<Recording>,
    pub(super) warm: bool,
    sizes: Sizes,
}

impl Recorded {
    /// How many of the best logits of each row are found.
    pub(super) fn depth(&self) -> usize {
        self.sizes.depth
    }
}

/// Whether a step is one to be recorded: each sequence has one row, which wants logits.
pub(super) fn can_be_recorded(input: &StepInput) -> bool {
    let decodes = |segment: &crate::decoder::Segment| segment.len == 1 && segment.logits_from == 0;
    input.segments.len() <= MOST_ROWS && input.segments.iter().all(decodes)
}

impl Graphs {
    /// Takes out the step for rows like these, of which the best `depth` logits are found, its rows set to them. To be [`put`](Self::put) back.
    ///
    /// # Errors
    /// If the device fails.
    pub(super) fn take(
        &mut self,
        device: &Device,
        runs: &[Run<'_>],
        block_size: usize,
        depth: usize,
    ) -> Result<Recorded, DeviceError> {
        let longest = runs.iter().map(|run| run.position + run.rows).max().unwrap_or(1);
        let context = longest.next_power_of_two().max(LEAST_CONTEXT);
        let sizes = Sizes { rows: runs.len(), context, depth };
        let mut recorded = match self.known.remove(&sizes) {
            Some(recorded) => recorded,
            None => {
                let blocks = sizes.rows * context.div_ceil(block_size);
                let rows = StepRows::fixed(device, sizes.rows, blocks, context)?;
                Recorded { rows, recording: None, warm: false, sizes }
            }
        };
        recorded.rows.set(runs)?;
        Ok(recorded)
    }

    /// Puts it back, for the next step of its sizes.
    pub(super) fn put(&mut self, recorded: Recorded) {
        self.known.insert(recorded.sizes, recorded);
    }
}
