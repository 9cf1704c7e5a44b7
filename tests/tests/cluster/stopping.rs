//! How a cluster ends: by Ctrl-C with nothing cut off, by `kill -9` with nothing left behind.

use foggara_tests::answer::Answer;
use foggara_tests::ask::Ask;
use foggara_tests::process::is_alive;
use foggara_tests::setup::Setup;
use foggara_tests::{machine, paths, wait};

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
    let mut cluster = Setup::new("interrupt").model("tiny", &paths::golden("llama")).workers(2).start().await;
    let pids = cluster.pids();
    let client = cluster.client(1);
    let mut stream = client.stream(Ask::tokens("tiny", &[9]).exactly(500).build()).await.unwrap();
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
    assert_eq!(rest.map_err(|status| status.message().to_owned()), Ok(500), "the answer under way ends");
    assert!(status.success(), "{status}");
    assert!(pids.iter().all(|pid| !is_alive(*pid)), "nothing is left");
}
