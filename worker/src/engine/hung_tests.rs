//! Ranks that are there but do nothing.

use std::sync::Mutex;
use std::sync::mpsc::channel;

use foggara_models::Shape;
use foggara_proto::step::{Chunk, Grant, StepPlan};

use super::tests::{Driver, join};
use super::*;
use crate::testing::{Kind, golden, group};

#[test]
fn a_rank_that_hangs_in_a_step_is_given_up_sooner_than_one_that_never_ran_one() {
    let (model, _) = golden("llama");
    for kind in [Kind::Shm, Kind::Tcp] {
        let (gone, wait) = channel::<()>();
        let wait = Mutex::new(wait);
        let ends = group(&model, Shape::tensor(2), kind, KvType::F32, |mut engine| {
            engine.check()?;
            if engine.comms.rank() == 1 {
                // Takes the step, and stays without another word until the leader has given up.
                engine.comms.all().broadcast(&mut Vec::new())?;
                wait.lock().expect("one follower").recv().expect("the leader says so");
                return Ok(());
            }
            let (events, received) = channel();
            let mut driver = Driver::attach(&events, 1);
            driver.send(StepPlan {
                joins: vec![join(1, &[1], 9, 0.0)],
                grants: vec![Grant { sequence: 1, blocks: vec![0] }],
                chunks: vec![Chunk { sequence: 1, tokens: 1 }],
                ..StepPlan::default()
            });
            let end = lead(engine, &received);
            gone.send(()).expect("the follower waits");
            end
        });
        let Err(EngineError::Collective(CollectiveError::Timeout { rank: 1, waited, .. })) = ends[0] else {
            panic!("{kind:?}: {ends:?}");
        };
        assert!(waited < STEP_DEADLINE, "{kind:?}: {waited:?}");
    }
}
