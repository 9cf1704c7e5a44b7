//! Requests as they come: heavy-tailed lengths, bursts, clients that go away.

use foggara_proto::sequence::SequenceRequest;

use super::world::Client;
use crate::batcher::tests::{Lcg, params};

/// A request of `prompt` tokens that ends after `answer`, of at most `most`.
pub(super) fn request(tenant: &str, prompt: usize, answer: usize, most: usize) -> SequenceRequest {
    let mut params = params(u32::try_from(most).expect("small"));
    params.seed = answer as u64;
    let mut request = SequenceRequest::new("r", vec![1; prompt], prompt, params);
    request.tenant = tenant.into();
    request
}

/// A client that comes at `at_us` and stays.
pub(super) fn client(at_us: u64, request: SequenceRequest) -> Client {
    Client { at_us, request, cancel_us: None }
}

impl Lcg {
    /// In (0, 1].
    #[allow(clippy::cast_precision_loss)]
    fn part(&mut self) -> f64 {
        (self.below(1 << 30) + 1) as f64 / (1u64 << 30) as f64
    }

    /// A length with a heavy tail: most are near `least`, some are `most`.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    pub(super) fn length(&mut self, least: usize, most: usize) -> usize {
        let length = least as f64 * self.part().powf(-1.0 / 1.3);
        (length as usize).min(most)
    }

    /// Microseconds to the next of arrivals that are `mean` apart.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    pub(super) fn pause(&mut self, mean: f64) -> u64 {
        (-self.part().ln() * mean) as u64
    }
}

/// `count` requests of four tenants, `mean_us` apart on average, one in twenty in a burst of ten, one in fifteen given up
/// by its client.
///
/// Most prompts and answers are little longer than `prompt` and `answer`, some are very long.
pub(super) fn mixed(seed: u64, count: usize, mean_us: f64, (prompt, answer): (usize, usize)) -> Vec<Client> {
    let mut random = Lcg(seed);
    let (mut at_us, mut burst) = (0, 0);
    let client = |_| {
        if burst == 0 {
            at_us += random.pause(mean_us);
            burst = if random.below(20) == 0 { 10 } else { 1 };
        }
        burst -= 1;
        let tenant = ["", "a", "b", "c"][usize::try_from(random.below(4)).expect("small")];
        let (prompt, most) = (random.length(prompt, 2_000), random.length(answer, 400));
        let answer = if random.below(2) == 0 { most } else { most.div_ceil(2) };
        let mut request = request(tenant, prompt, answer, most);
        request.priority = i32::try_from(random.below(11)).expect("small") - 5;
        let cancel_us = (random.below(15) == 0).then(|| at_us + random.pause(3e6));
        Client { at_us, request, cancel_us }
    };
    (0..count).map(client).collect()
}
