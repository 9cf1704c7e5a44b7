//! One disturbance: streams begin, something is hit, streams end, the cluster is whole again.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use foggara_proto::wire::admin::StatusResponse;
use foggara_proto::wire::inference::GenerateRequest;
use foggara_tests::ask::Ask;
use foggara_tests::choice::Choice;
use foggara_tests::client::Client;
use foggara_tests::cluster::Cluster;
use foggara_tests::process::{self, is_alive};
use foggara_tests::wait;
use futures::future::join_all;
use rustix::process::Signal;
use tokio::sync::Notify;

use crate::kind::{Blow, HANG, Kind, Scene};
use crate::stream::{Heard, follow};

pub const MODEL: &str = "smol";
pub const COORDINATORS: u16 = 3;
/// Two ranks and a spare.
pub const WORKERS: usize = 3;
/// An answer takes as long as the machine takes for it; beyond this it is not coming.
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs trials against a cluster.
pub struct Trials<'a> {
    cluster: &'a Cluster,
    seed: u64,
    streams: usize,
    tokens: u32,
    undisturbed: Vec<Heard>,
}

/// What came of one.
pub struct Outcome {
    pub kind: Kind,
    pub number: usize,
    /// Tokens that all streams together had when the blow fell.
    pub moment: usize,
    pub blow: Option<Blow>,
    /// The longest stall of each stream that ended.
    pub stalls: Vec<Duration>,
    pub attached: usize,
    pub sent_again: usize,
    /// Streams that failed or differed, and how.
    pub failures: Vec<String>,
    /// Until the cluster was whole again, from the end of the last stream.
    pub whole_after: Duration,
}

impl Outcome {
    pub fn line(&self) -> String {
        let longest = self.stalls.iter().max().map_or(0.0, Duration::as_secs_f64);
        let blow = self.blow.map_or("nobody is hit".into(), |blow| format!("{blow:?}"));
        let failed = self.failures.len();
        format!(
            "{:<22} {:>3}  {blow} at token {:>4}: longest stall {longest:.3} s, {failed} failed, whole after {:.1} s",
            self.kind.name(),
            self.number + 1,
            self.moment,
            self.whole_after.as_secs_f64()
        )
    }
}

impl<'a> Trials<'a> {
    /// Hears the undisturbed answers first.
    pub async fn new(cluster: &'a Cluster, seed: u64, streams: usize, tokens: u32) -> Self {
        let mut trials = Self { cluster, seed, streams, tokens, undisturbed: Vec::new() };
        trials.when_whole().await;
        let client = cluster.client(0);
        let all = (0..streams).map(|i| follow(&client, &[], trials.request(i, "undisturbed"), |_| ()));
        let heard = wait::for_end("the undisturbed answers", join_all(all)).await;
        trials.undisturbed = heard.into_iter().map(|heard| heard.expect("nothing disturbs it")).collect();
        trials
    }

    /// Stream `i`: greedy or sampled, after a prompt of its own.
    fn request(&self, i: usize, id: &str) -> GenerateRequest {
        let topics = ["water", "the desert", "a long journey", "an old well", "the stars", "a caravan"];
        let topic = topics[i % topics.len()];
        let detail = "Take your time and leave nothing out. ".repeat(i);
        let prompt = format!(
            "<|im_start|>user\nTell me story {i} about {topic}. {detail}<|im_end|>\n<|im_start|>assistant\n"
        );
        let ask = Ask::text(MODEL, &prompt).exactly(self.tokens).logprobs(2);
        let ask = if i.is_multiple_of(2) { ask } else { ask.sampled(0.8, 0.95, 100 + i as u64) };
        ask.id(&format!("kills-{}-{id}-{i}", self.seed)).build()
    }

    /// Does it, and waits until the cluster is as it was.
    pub async fn run(&mut self, kind: Kind, number: usize) -> Outcome {
        let status = self.when_whole().await;
        let mut choice = Choice::seeded(self.seed ^ ((kind as u64) << 32) ^ number as u64);
        let Scene { door, blow } = kind.scene(&status, &mut choice);
        // Not before the streams have begun, and with something left to do.
        let all = self.streams * self.tokens as usize;
        let moment = self.streams + choice.below((all * 9 / 10).saturating_sub(self.streams).max(1));
        let client = self.cluster.client(door);
        let others: Vec<Client> = match kind.attaches() {
            true => {
                (0..COORDINATORS).filter(|other| *other != door).map(|n| self.cluster.client(n)).collect()
            }
            false => Vec::new(),
        };
        let (count, news) = (AtomicUsize::new(0), Notify::new());
        let told = |new: usize| {
            count.fetch_add(new, Ordering::Relaxed);
            news.notify_one();
        };
        let id = format!("{kind:?}-{number}");
        let streams = join_all((0..self.streams).map(|i| {
            let followed = follow(&client, &others, self.request(i, &id), &told);
            async {
                tokio::time::timeout(PATIENCE, followed)
                    .await
                    .unwrap_or_else(|_| Err(format!("no end within {PATIENCE:?}")))
            }
        }));
        let strike = async {
            let Some(blow) = blow else { return };
            while count.load(Ordering::Relaxed) < moment {
                news.notified().await;
            }
            fall(blow).await;
        };
        let mut outcome = Outcome {
            kind,
            number,
            moment,
            blow,
            stalls: Vec::new(),
            attached: 0,
            sent_again: 0,
            failures: Vec::new(),
            whole_after: Duration::ZERO,
        };
        // The streams may all fail before the moment comes.
        let (mut streams, mut strike) = (std::pin::pin!(streams), std::pin::pin!(strike));
        let heard = tokio::select! {
            heard = &mut streams => heard,
            () = &mut strike => streams.await,
        };
        if let Some(Blow::Hang(pid)) = blow {
            process::signal(pid, Signal::CONT);
        }
        for (i, heard) in heard.into_iter().enumerate() {
            let what = format!(
                "{}, seed {}, number {number}, {blow:?} at token {moment}: stream {i}",
                kind.name(),
                self.seed
            );
            match heard {
                Ok(heard) => {
                    if !heard.is(&self.undisturbed[i]) {
                        outcome
                            .failures
                            .push(format!("{what}: {}", difference(&heard, &self.undisturbed[i])));
                    }
                    outcome.stalls.push(heard.stall());
                    outcome.attached += heard.attached;
                    outcome.sent_again += heard.sent_again;
                }
                Err(reason) => outcome.failures.push(format!("{what}: {reason}")),
            }
        }
        let ended = Instant::now();
        self.when_whole().await;
        outcome.whole_after = ended.elapsed();
        outcome
    }

    /// Waits until nothing is missing.
    async fn when_whole(&self) -> StatusResponse {
        for number in 0..COORDINATORS {
            self.cluster.wait_ready(number).await;
        }
        let whole = self.cluster.wait_status(0, "everything runs", whole).await;
        self.cluster.wait_idle(MODEL).await;
        whole
    }
}

async fn fall(blow: Blow) {
    match blow {
        Blow::Kill(pid) => process::kill(pid),
        Blow::Hang(pid) => {
            process::signal(pid, Signal::STOP);
            tokio::time::sleep(HANG).await;
            process::signal(pid, Signal::CONT);
        }
    }
}

/// Where an answer parts from the undisturbed one.
fn difference(heard: &Heard, undisturbed: &Heard) -> String {
    let place = heard.tokens.iter().zip(&undisturbed.tokens).position(|(a, b)| a != b);
    let probability = heard.logprobs.iter().zip(&undisturbed.logprobs).position(|(a, b)| a != b);
    format!(
        "differs: {} tokens for {}, first other token at {place:?}, first other log-probability at {probability:?}, finished {:?}",
        heard.tokens.len(),
        undisturbed.tokens.len(),
        heard.finished
    )
}

fn whole(status: &StatusResponse) -> Option<StatusResponse> {
    let coordinators = status.coordinators.len() == usize::from(COORDINATORS)
        && status.coordinators.iter().all(|c| is_alive(c.pid));
    let workers = status.workers.len() == WORKERS && status.workers.iter().all(|w| is_alive(w.pid));
    let ranks = status.workers.iter().filter(|w| w.state == "ready" && w.rank.is_some()).count();
    let spares = status.workers.iter().filter(|w| w.state == "idle").count();
    let driven = status
        .groups
        .iter()
        .any(|g| g.state == "ready" && status.coordinators.iter().any(|c| c.id == g.driver));
    (coordinators && workers && ranks == 2 && spares == 1 && driven && status.leader != 0)
        .then(|| status.clone())
}
