//! Requests without end, of which none may be lost.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::ask::Ask;
use crate::client::{Client, is_cut_off};
use crate::wait;

/// Requests at once.
const STREAMS: usize = 4;

/// Asks `tiny` again and again until told to stop, through every coordinator in turn; who is refused or cut off asks the next one, with
/// the same id. All answers are the same. Gives how many requests were answered, and how many not at the first.
pub async fn load(clients: &[Client], stop: &AtomicBool, begun: &AtomicUsize) -> (usize, usize) {
    let ask = |id: &str| Ask::tokens("tiny", &[7, 8, 9]).exactly(200).logprobs(1).id(id);
    let expected = clients[0].ask(ask("expected")).await.bits();
    let one = async |stream: usize| {
        let (mut answered, mut elsewhere) = (0, 0);
        while !stop.load(Ordering::Relaxed) {
            let id = format!("stream-{stream}-request-{answered}");
            let mut tries = 0;
            let answer = wait::until(&id, async || {
                let client = &clients[(stream + answered + tries) % clients.len()];
                tries += 1;
                match client.try_ask(ask(&id)).await {
                    Ok(answer) => Some(answer),
                    Err(status) if status.code() == tonic::Code::Unavailable || is_cut_off(&status) => None,
                    Err(status) => panic!("{id}: {:?}: {}", status.code(), status.message()),
                }
            })
            .await;
            assert_eq!(answer.bits(), expected, "{id}");
            answered += 1;
            elsewhere += usize::from(tries > 1);
            begun.fetch_add(1, Ordering::Relaxed);
        }
        (answered, elsewhere)
    };
    let streams = futures::future::join_all((0..STREAMS).map(one)).await;
    streams.into_iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
}
