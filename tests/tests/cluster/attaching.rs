//! A request is known by its id: by whoever takes it up when its front door has died, and when it is sent twice.

use foggara_proto::wire::admin::StatusResponse;
use foggara_tests::answer::Answer;
use foggara_tests::cluster::Cluster;
use foggara_tests::process;
use foggara_tests::{machine, wait};
use rustix::process::Signal;
use tonic::Code;

use crate::failover::{BEFORE, COORDINATORS, ask, start, with_all};

/// Sends a request through coordinator `door`, kills that in the middle, and gets the rest from `other`.
async fn attached(cluster: &Cluster, status: &StatusResponse, door: u16, other: u16, id: &str) -> Answer {
    let mut answer = Answer::default();
    let victim = status.coordinators.iter().find(|c| c.id == u64::from(door) + 1).expect("a member").pid;
    // Not a connection that could have been made again.
    let elsewhere = cluster.client(other);
    let mut stream = cluster.client(door).stream(ask().id(id).build()).await.expect("it is accepted");
    while answer.token_ids.len() < BEFORE {
        assert!(answer.next(&mut stream).await.expect("nothing happened yet"), "ended too early");
    }
    process::signal(victim, Signal::KILL);
    // What was on its way comes, then the stream breaks off.
    while answer.next(&mut stream).await.is_ok() {}
    assert!(answer.finished.is_none(), "killed too late");
    let received = u32::try_from(answer.token_ids.len()).expect("few");
    let rest = async {
        let mut rest = elsewhere.attach(id, &[received]).await.expect("somebody knows it");
        // Whoever attaches is told the beginning again.
        answer.started = Default::default();
        let (tokens, logprobs) =
            (std::mem::take(&mut answer.token_ids), std::mem::take(&mut answer.logprobs));
        while answer.next(&mut rest).await.expect("it goes on") {}
        answer.token_ids = [tokens, std::mem::take(&mut answer.token_ids)].concat();
        answer.logprobs = [logprobs, std::mem::take(&mut answer.logprobs)].concat();
    };
    wait::for_end("the rest of the answer", rest).await;
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_attaches_elsewhere_gets_the_rest() {
    let _machine = machine::shared().await;
    let cluster = start().await;
    with_all(&cluster, COORDINATORS).await;
    let undisturbed = cluster.client(0).ask(ask()).await;
    for what in ["a front door", "a front door that drives"] {
        let status = with_all(&cluster, COORDINATORS).await;
        let driver = u16::try_from(status.groups[0].driver - 1).expect("small");
        let door = if what == "a front door" { (driver + 1) % COORDINATORS } else { driver };
        let other = (door + 1) % COORDINATORS;
        let answer =
            attached(&cluster, &status, door, other, what.split(' ').next_back().expect("a word")).await;
        assert_eq!(answer.bits(), undisturbed.bits(), "{what}");
        assert_eq!(answer.text, undisturbed.text, "{what}");
        let adopted = cluster.sum("foggara_adopted_sequences_total", &[("model", "smol")]).await;
        assert!(door != driver || adopted > 0.0, "the next driver took over what there was");
    }
    with_all(&cluster, COORDINATORS).await;
    cluster.wait_idle("smol").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_id_sent_twice_is_one_request() {
    let _machine = machine::shared().await;
    let cluster = start().await;
    with_all(&cluster, COORDINATORS).await;
    let ask = || ask().exactly(300).id("twice");
    let other = || ask().exactly(3);
    let (one, two) = (cluster.client(1), cluster.client(2));
    let mut first = one.stream(ask().build()).await.expect("accepted");
    let mut answer = Answer::default();
    while answer.token_ids.is_empty() {
        assert!(answer.next(&mut first).await.expect("no error"));
    }
    let refused = wait::for_end("a refusal", two.try_ask(other())).await;
    let error = refused.expect_err("another request under the same id");
    assert_eq!((error.code(), error.message().contains("twice")), (Code::AlreadyExists, true), "{error}");
    let both = async {
        let again = two.ask(ask()).await;
        while answer.next(&mut first).await.expect("no error") {}
        again
    };
    let (again, unknown) = futures::future::join(both, one.attach("nobody", &[])).await;
    assert_eq!(again.bits(), answer.bits());
    assert_eq!(unknown.map(drop).expect_err("nobody knows it").code(), Code::NotFound);
    // Also after its end. All that was computed once.
    assert_eq!(two.ask(ask()).await.bits(), answer.bits());
    let asked = cluster.sum("foggara_prefix_cache_query_tokens_total", &[("model", "smol")]).await;
    let prompt = answer.started.prompt_token_ids.len();
    assert!((asked - prompt as f64).abs() < 0.5, "{asked} tokens were looked for, the prompt has {prompt}");
    // What comes under that id now is another request.
    assert_eq!(two.ask(other()).await.token_ids.len(), 3);
    cluster.wait_idle("smol").await;
}
