//! What a front door records of each request and of its tokens.

use std::sync::Arc;

use foggara_coordinator::front_door::{Account, Counted};
use foggara_coordinator::metrics::Metrics;
use foggara_coordinator::timeline::{Front, Placement};
use foggara_coordinator::traces::{FrontRecording, Timelines};
use foggara_proto::sequence::{SequenceParams, SequenceRequest};

use super::{Pace, Part, REMEMBERED, nanos};
use crate::args::RecordingArgs;

const MODEL: &str = "mixtral-8x7b";

pub(super) fn parts(args: &RecordingArgs, pace: &Pace) -> Vec<Part> {
    let part = |what, nanos: f64| Part { place: "the front door", what, nanos };
    let mut door = Door { metrics: Arc::new(Metrics::new()), timelines: Timelines::default(), requests: 0 };
    (0..REMEMBERED).for_each(|_| door.request());
    let sequences = pace.sequences as f64;
    vec![
        part("each sequence's tokens", door.token() * sequences),
        part("requests, from coming to ending", nanos(|| door.request()) * sequences / args.answer as f64),
    ]
}

struct Door {
    metrics: Arc<Metrics>,
    timelines: Timelines,
    requests: u64,
}

impl Door {
    fn begin(&mut self) -> (Account, FrontRecording) {
        self.requests += 1;
        let request_id = format!("request-{}", self.requests);
        let recording = self.timelines.front(Front {
            request_id: request_id.clone(),
            api: "chat",
            model: MODEL.into(),
            prompt_tokens: 128,
            choices: 1,
            arrived: self.timelines.now(),
            checked: self.timelines.now(),
            ..Front::default()
        });
        let placed =
            Placement { at: self.timelines.now(), group: 1, coordinator: 1, driver_epoch: 7, choice: 0 };
        let request = SequenceRequest::new(&request_id, Vec::new(), 0, SequenceParams::default());
        self.timelines.placed(&request, placed);
        let request_id = &request_id;
        let counted =
            Counted { api: "chat", model: MODEL, adapter: None, request_id, choices: 1, prompt_tokens: 128 };
        (Account::new(Arc::clone(&self.metrics), recording.clone(), counted), recording)
    }

    /// A token that comes, is told, and is taken.
    fn token(&mut self) -> f64 {
        let (mut account, recording) = self.begin();
        account.tokens(0, 1);
        nanos(|| {
            account.tokens(0, 1);
            let told = recording.told();
            recording.took(told);
        })
    }

    /// A request without its tokens.
    fn request(&mut self) {
        let (mut account, recording) = self.begin();
        recording.cached(16);
        account.finish("stop");
    }
}
