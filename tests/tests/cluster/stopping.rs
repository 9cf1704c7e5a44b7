//! How a cluster ends: by Ctrl-C with nothing cut off, by `kill -9` with nothing left behind.

use foggara_proto::wire::admin::{GetNoteRequest, PutNoteRequest, StatusResponse};
use foggara_tests::answer::Answer;
use foggara_tests::ask::Ask;
use foggara_tests::client::Client;
use foggara_tests::nodes::{Nodes, TOKEN};
use foggara_tests::process::{Process, foggara, is_alive, signal, text};
use foggara_tests::setup::Setup;
use foggara_tests::{machine, paths, wait};
use rustix::process::Signal;

/// So many tokens that an answer is not over before its coordinator has been asked to stop twice.
const LONG: u32 = 1_900;

/// An answer has begun; asked once, `process` stops when it is over, and asked again, at once. The code that it ends with.
async fn twice(client: &Client, process: &mut Process, first: Signal, says: &str) -> Option<i32> {
    let mut stream = client.stream(Ask::tokens("smol", &[9]).exactly(LONG).build()).await.unwrap();
    let mut answer = Answer::default();
    let began = answer.next(&mut stream).await.unwrap();
    assert!(began, "it goes on");
    signal(process.pid(), first);
    wait::until("it has heard of it", async || process.log().contains(says).then_some(())).await;
    let told = answer.token_ids.len();
    while answer.token_ids.len() == told {
        assert!(answer.next(&mut stream).await.unwrap(), "the answer goes on while it stops");
    }
    signal(process.pid(), Signal::TERM);
    let status = tokio::task::block_in_place(|| process.wait(wait::PATIENCE));
    let rest = async {
        while answer.next(&mut stream).await? {}
        Ok::<_, tonic::Status>(())
    }
    .await;
    assert!(rest.is_err(), "the answer is cut off after {} tokens", answer.token_ids.len());
    status.code()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_a_coordinator_at_once() {
    let _machine = machine::shared().await;
    let mut nodes = Nodes::start("second-signal", 1, &[]);
    nodes.worker(&[]);
    nodes.wait_joined().await;
    let (model, endpoint) = (format!("smol={}", paths::smol_gguf().display()), nodes.grpc(0));
    let added = foggara(&["models", "add", "--endpoint", &endpoint, "--cluster-token", TOKEN, &model]);
    assert!(added.status.success(), "{}", text(&added));
    let (client, says) = (nodes.client(0), "a second signal stops at once");
    assert_eq!(twice(&client, nodes.process_of(0), Signal::TERM, says).await, Some(130));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_interrupt_ends_up_and_all_its_processes_at_once() {
    let _machine = machine::shared().await;
    let mut cluster = Setup::new("second-interrupt").model("smol", &paths::smol_gguf()).start().await;
    let (client, pids) = (cluster.client(1), cluster.pids());
    assert_eq!(twice(&client, cluster.up(), Signal::INT, "once more to stop at once").await, Some(130));
    assert!(pids.iter().all(|pid| !is_alive(*pid)), "nothing is left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_of_up_leaves_no_process() {
    let _machine = machine::shared().await;
    let mut cluster = Setup::new("kill-up").model("tiny", &paths::golden("llama")).workers(2).start().await;
    let pids = cluster.pids();
    assert_eq!(pids.len(), 6, "`up`, three coordinators, two workers");
    let status = cluster.status().await;
    let known = status.coordinators.iter().map(|c| c.pid).chain(status.workers.iter().map(|w| w.pid));
    known.for_each(|pid| assert!(pids.contains(&pid), "{pid} is not a child of `up`"));
    cluster.up().kill();
    wait::until("all its processes have ended", async || {
        pids.iter().all(|pid| !is_alive(*pid)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupt_lets_answers_end_and_stops_everything() {
    let _machine = machine::shared().await;
    let mut cluster = Setup::new("interrupt").model("smol", &paths::smol_gguf()).workers(2).start().await;
    let pids = cluster.pids();
    let client = cluster.client(1);
    let mut stream = client.stream(Ask::tokens("smol", &[9]).exactly(100).build()).await.unwrap();
    let mut answer = Answer::default();
    while answer.token_ids.is_empty() {
        assert!(answer.next(&mut stream).await.unwrap());
    }
    let rest = async {
        while answer.next(&mut stream).await? {}
        Ok::<_, tonic::Status>(answer.token_ids.len())
    };
    let (rest, status) = tokio::task::block_in_place(|| {
        let handle = tokio::runtime::Handle::current();
        std::thread::scope(|scope| {
            let stopped = scope.spawn(|| cluster.stop());
            (handle.block_on(rest), stopped.join().unwrap())
        })
    });
    assert_eq!(rest.map_err(|status| status.message().to_owned()), Ok(100), "the answer under way ends");
    assert!(status.success(), "{status}");
    assert!(pids.iter().all(|pid| !is_alive(*pid)), "nothing is left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_starts_again_on_its_folder() {
    let _machine = machine::shared().await;
    let mut cluster = Setup::new("again").model("tiny", &paths::golden("llama")).workers(2).start().await;
    let ask = || Ask::tokens("tiny", &[7, 8, 9]).exactly(50).logprobs(1);
    let before = cluster.client(0).ask(ask()).await;
    for round in 0..3 {
        let (key, value) = (format!("round-{round}"), "kept".to_owned());
        let note = PutNoteRequest { key: key.clone(), value, request_id: String::new() };
        cluster.client(1).admin().put_note(note).await.unwrap();
        if round == 1 {
            assert!(tokio::task::block_in_place(|| cluster.stop()).success());
        }
        // The other times without being asked to end first: as in a loss of power.
        cluster.start_again().await;
        for number in 0..3 {
            let client = cluster.client(number);
            let note =
                client.admin().get_note(GetNoteRequest { key: key.clone() }).await.unwrap().into_inner();
            assert_eq!(note.value.as_deref(), Some("kept"), "{key}");
            assert_eq!(client.ask(ask()).await.bits(), before.bits());
        }
        let workers = |status: &StatusResponse| (status.workers.len() == 2).then_some(());
        cluster.wait_status(0, "workers of the life before are forgotten", workers).await;
    }
}
