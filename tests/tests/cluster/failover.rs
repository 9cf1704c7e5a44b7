//! A stream outlives the processes behind it: it goes on, and not a token differs.

use foggara_proto::wire::admin::StatusResponse;
use foggara_tests::answer::Answer;
use foggara_tests::ask::Ask;
use foggara_tests::cluster::Cluster;
use foggara_tests::process::{self, is_alive};
use foggara_tests::setup::Setup;
use foggara_tests::{machine, paths, wait};

const TOKENS: u32 = 150;
/// Tokens received before something is killed.
const BEFORE: usize = 30;

/// One that all cores may be needed for: it is killed and comes back several times.
async fn start() -> Cluster {
    Setup::new("failover").model("smol", &paths::smol_gguf()).workers(2).start().await
}

fn ask() -> Ask {
    let prompt = "<|im_start|>user\nTell me a long story about water in the desert.<|im_end|>\n<|im_start|>assistant\n";
    Ask::text("smol", prompt).exactly(TOKENS).sampled(0.8, 0.95, 11).logprobs(2)
}

/// Asks the `number`-th coordinator, kills process `victim` in the middle, and reads on.
async fn disturbed(cluster: &Cluster, number: u16, victim: u32) -> Answer {
    let client = cluster.client(number);
    let mut stream = client.stream(ask().build()).await.unwrap();
    let mut answer = Answer::default();
    let read = async {
        while answer.token_ids.len() < BEFORE {
            assert!(answer.next(&mut stream).await.unwrap(), "ended too early");
        }
        assert!(is_alive(victim));
        process::kill(victim);
        while answer.next(&mut stream).await.unwrap_or_else(|s| panic!("{:?}: {}", s.code(), s.message())) {}
    };
    wait::for_end("the disturbed answer", read).await;
    answer
}

/// The cluster as it should be, before and after each kill.
fn whole(status: &StatusResponse) -> Option<StatusResponse> {
    let coordinators = status.coordinators.len() == 3 && status.coordinators.iter().all(|c| is_alive(c.pid));
    let workers =
        status.workers.len() == 2 && status.workers.iter().all(|w| w.state == "ready" && is_alive(w.pid));
    let driven = status
        .groups
        .iter()
        .any(|g| g.state == "ready" && status.coordinators.iter().any(|c| c.id == g.driver));
    (coordinators && workers && driven && status.leader != 0).then(|| status.clone())
}

async fn when_whole(cluster: &Cluster) -> StatusResponse {
    for number in 0..3 {
        cluster.wait_ready(number).await;
    }
    cluster.wait_status(0, "everything runs", whole).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_outlive_what_serves_them() {
    let _machine = machine::shared().await;
    let cluster = start().await;
    let status = when_whole(&cluster).await;
    let undisturbed = cluster.client(0).ask(ask()).await;
    assert_eq!(undisturbed.token_ids.len(), TOKENS as usize);
    let check = |answer: &Answer, what: &str| {
        assert_eq!(answer.bits(), undisturbed.bits(), "{what}: tokens and probabilities");
        assert_eq!(answer.text, undisturbed.text, "{what}: text");
        assert_eq!(answer.finished, undisturbed.finished, "{what}: usage");
    };

    // Each rank in turn: `up` starts it again, the group is formed anew.
    let pid_of_rank = |status: &StatusResponse, rank| {
        status.workers.iter().find(|w| w.rank == Some(rank)).expect("every rank has a worker").pid
    };
    check(&disturbed(&cluster, 0, pid_of_rank(&status, 0)).await, "rank 0 killed");
    let status = when_whole(&cluster).await;
    check(&disturbed(&cluster, 1, pid_of_rank(&status, 1)).await, "rank 1 killed");

    // The coordinator that drives the group, the client being on another one.
    let status = when_whole(&cluster).await;
    let driver = status.groups[0].driver;
    let pid = |id| status.coordinators.iter().find(|c| c.id == id).expect("it is a member").pid;
    let other = (0..3).find(|number| u64::from(*number) + 1 != driver).expect("there are three");
    check(&disturbed(&cluster, other, pid(driver)).await, "driver killed");

    // The Raft leader, with driver and front door elsewhere: nothing happens to the stream.
    let status = when_whole(&cluster).await;
    let (driver, leader) = (status.groups[0].driver, status.leader);
    let pid = status.coordinators.iter().find(|c| c.id == leader).expect("it is a member").pid;
    let door = (0..3).find(|number| u64::from(*number) + 1 != leader).expect("there are three");
    check(&disturbed(&cluster, door, pid).await, &format!("leader {leader} killed, driver {driver}"));

    when_whole(&cluster).await;
    cluster.wait_idle("smol").await;
}
