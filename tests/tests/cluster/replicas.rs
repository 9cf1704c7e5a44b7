//! A model with several replicas, and requests that come twice.

use foggara_proto::wire::admin::StatsRequest;
use foggara_tests::ask::Ask;
use foggara_tests::setup::Setup;
use foggara_tests::{machine, paths};

/// Requests, and tokens of each answer.
const REQUESTS: u32 = 24;
const TOKENS: u32 = 60;

/// Whatever front doors a request comes through, at the same time or later, it is computed once, by one of the replicas.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_id_sent_twice_is_one_request_with_several_replicas() {
    let _machine = machine::shared().await;
    let setup = Setup::new("replicas").model("tiny", &paths::golden("llama")).workers(2);
    let cluster = setup.option("tp", 1).option("replicas", 2).start().await;
    for number in 0..3 {
        let both = cluster.wait_status(number, "two groups", |status| {
            let ready = status.groups.iter().filter(|group| group.state == "ready" && group.driver != 0);
            (ready.count() == 2).then_some(())
        });
        both.await;
    }
    let prompt = |request: u32| [request, 2, 3, 4, 5];
    let ask = |request: u32| {
        Ask::tokens("tiny", &prompt(request + 10)).exactly(TOKENS).logprobs(1).id(&format!("r{request}"))
    };
    let clients = [cluster.client(0), cluster.client(1), cluster.client(2)];
    let all = (0..REQUESTS).map(async |request| {
        // Copies through every front door, all at once; and once more when it has been answered.
        let copies = clients.iter().map(|client| client.ask(ask(request)));
        let copies = futures::future::join_all(copies).await;
        let later = clients[request as usize % 3].ask(ask(request)).await;
        assert!(copies.iter().all(|copy| copy.bits() == later.bits()), "request {request}");
    });
    futures::future::join_all(all).await;
    cluster.wait_idle("tiny").await;
    let stats = clients[0].admin().stats(StatsRequest {}).await.unwrap().into_inner();
    let generated: Vec<u64> = stats.groups.iter().map(|group| group.generated_tokens).collect();
    assert_eq!(generated.iter().sum::<u64>(), u64::from(REQUESTS * TOKENS), "computed once: {generated:?}");
    assert!(generated.len() == 2 && generated.iter().all(|tokens| *tokens > 0), "by both: {generated:?}");
}
