//! Every rank but the leader: runs the steps it is sent until the group ends.

use std::time::Instant;

use super::{Engine, EngineError, STEP_DEADLINE};
use crate::decoder::StepInput;

/// Follows the leader. Returns only when the group ends.
///
/// # Errors
/// Why the group ended.
pub fn follow(mut engine: Engine) -> Result<(), EngineError> {
    let mut bytes = Vec::new();
    loop {
        // Between steps there may be nothing to do for hours.
        engine.comms.set_deadline(None);
        let waiting = Instant::now();
        engine.comms.all().broadcast(&mut bytes)?;
        engine.own.waited(waiting.elapsed());
        engine.comms.set_deadline(Some(STEP_DEADLINE));
        let input = StepInput::decode(&bytes)?;
        engine.prepare(&input)?;
        engine.run(&input, &mut |_, _| ())?;
    }
}
