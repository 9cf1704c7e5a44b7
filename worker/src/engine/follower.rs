//! Every rank but the leader: runs the steps it is sent until the group ends.

use std::time::Duration;

use super::{Engine, EngineError};
use crate::decoder::StepInput;

/// A collective inside a step that takes longer than this means that a rank hangs.
pub(super) const STEP_DEADLINE: Duration = Duration::from_secs(30);

/// Follows the leader. Returns only when the group ends.
///
/// # Errors
/// Why the group ended.
pub fn follow(mut engine: Engine) -> Result<(), EngineError> {
    let mut bytes = Vec::new();
    loop {
        // Between steps there may be nothing to do for hours.
        engine.collective.set_deadline(None);
        engine.collective.broadcast(&mut bytes)?;
        engine.collective.set_deadline(Some(STEP_DEADLINE));
        let input = StepInput::decode(&bytes)?;
        engine.run(&input, &mut |_, _| ())?;
    }
}
