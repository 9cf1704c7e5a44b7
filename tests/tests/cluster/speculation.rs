//! Tokens that are guessed save steps and change nothing, whatever dies meanwhile.

use foggara_proto::wire::inference::SamplingParams;
use foggara_tests::answer::Answer;
use foggara_tests::ask::Ask;
use foggara_tests::cluster::Cluster;
use foggara_tests::setup::Setup;
use foggara_tests::{machine, paths};
use rustix::process::Signal;

use crate::failover::{COORDINATORS, interrupted, pid_of_rank, same, with_all};

const TOKENS: u32 = 160;

/// A text that goes on as it began.
fn ask() -> Ask {
    let line = "The water comes through the tunnel, and the comb divides it: one part for each garden.\n";
    Ask::text("smol", &line.repeat(4)).exactly(TOKENS).logprobs(2)
}

/// All that may decide about a token of it.
fn asks() -> Vec<Ask> {
    let sampled = || ask().sampled(0.5, 0.95, 11);
    let with = |ask: Ask, change: fn(&mut SamplingParams)| ask.sampling(change);
    vec![
        ask(),
        sampled(),
        ask().sampled(1.2, 1.0, 5),
        with(sampled(), |sampling| sampling.top_k = Some(20)),
        with(sampled(), |sampling| sampling.frequency_penalty = Some(0.05)),
        with(ask(), |sampling| sampling.stop = vec!["each garden.\nThe water comes".into()]),
        with(ask(), |sampling| sampling.max_tokens = Some(53)),
    ]
}

async fn start(model: &std::path::Path, shape: &[(&str, u32)], speculate: u32) -> Cluster {
    let mut setup = Setup::new("speculation").model("smol", model).coordinators(1).workers(2);
    for (degree, n) in shape {
        setup = setup.option(degree, n);
    }
    setup.option("speculate", speculate).start().await
}

/// What was asked for, one after the other, and the steps, guessed tokens and right ones that it took.
async fn answers(cluster: &Cluster) -> (Vec<Answer>, [f64; 3]) {
    let client = cluster.client(0);
    let mut answers = Vec::new();
    for ask in asks() {
        answers.push(client.ask(ask).await);
    }
    cluster.wait_idle("smol").await;
    let counted =
        ["foggara_steps_total", "foggara_draft_tokens_total", "foggara_accepted_draft_tokens_total"];
    let mut sums = [0.0; 3];
    for (sum, name) in sums.iter_mut().zip(counted) {
        *sum = cluster.sum(name, &[("model", "smol")]).await;
    }
    (answers, sums)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_repeats_takes_fewer_steps_and_has_the_same_tokens() {
    let _machine = machine::shared().await;
    for (model, shape) in [
        (paths::smol_gguf(), &[("tp", 2)][..]),
        (paths::smol_gguf(), &[("tp", 1), ("pp", 2)]),
        (paths::smol_mixtral(), &[("tp", 2), ("ep", 2)]),
    ] {
        let (expected, [steps, drafted, right]) = answers(&start(&model, shape, 0).await).await;
        assert_eq!((drafted, right), (0.0, 0.0), "{shape:?}: nothing is guessed unless it may be");
        let cluster = start(&model, shape, 8).await;
        let (told, [fewer, drafted, right]) = answers(&cluster).await;
        for (number, (told, expected)) in told.iter().zip(&expected).enumerate() {
            same(told, expected, &format!("{shape:?}, request {number}"));
        }
        eprintln!("{shape:?}: {fewer} steps instead of {steps}; {right} of {drafted} guesses were right");
        assert!(right < drafted && fewer + right >= steps * 0.95, "{shape:?}: each saves a step at most");
        assert!(fewer < steps * 0.75, "{shape:?}: {fewer} steps instead of {steps}");
    }
}

/// Workers and coordinators die in the middle of drafts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_with_guesses_outlive_what_serves_them() {
    let _machine = machine::shared().await;
    let sampled = || ask().sampled(0.5, 0.95, 11).exactly(2 * TOKENS);
    let expected = start(&paths::smol_gguf(), &[("tp", 2)], 0).await.client(0).ask(sampled()).await;
    let setup = Setup::new("speculation").model("smol", &paths::smol_gguf()).workers(2);
    let cluster = setup.coordinators(COORDINATORS).option("speculate", 8).start().await;
    let guessed = async || cluster.sum("foggara_accepted_draft_tokens_total", &[("model", "smol")]).await;
    for what in ["rank 0", "rank 1", "driver", "Raft leader"] {
        let status = with_all(&cluster, COORDINATORS).await;
        let driver = status.groups[0].driver;
        let pid = |id| status.coordinators.iter().find(|c| c.id == id).expect("it is a member").pid;
        let (victim, id) = match what {
            "rank 0" => (pid_of_rank(&status, 0), 0),
            "rank 1" => (pid_of_rank(&status, 1), 0),
            "driver" => (pid(driver), driver),
            _ => (pid(status.leader), status.leader),
        };
        let door = (0..COORDINATORS).find(|number| u64::from(*number) + 1 != id).expect("there are three");
        let answer = interrupted(&cluster, sampled(), door, &[victim], Signal::KILL).await;
        same(&answer, &expected, &format!("{what} killed"));
    }
    with_all(&cluster, COORDINATORS).await;
    // What those that died had counted has gone with them.
    let before = guessed().await;
    same(&cluster.client(0).ask(sampled()).await, &expected, "undisturbed");
    cluster.wait_idle("smol").await;
    assert!(guessed().await > before + f64::from(TOKENS) / 4.0, "it was guessed at");
}
