//! However the ranks reach each other, every bit is the same.

use foggara_proto::wire::admin::StatusResponse;
use foggara_tests::setup::Setup;
use foggara_tests::{machine, paths};

use crate::probe;

/// How the ranks of `model` reach each other.
pub fn collective(status: &StatusResponse, model: &str) -> String {
    status.groups.iter().find(|group| group.deployment == model).expect("a group").collective.clone()
}

/// Three ranks of a model with three key heads, over both collectives on this host.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tcp_and_shared_memory_on_one_host() {
    let _machine = machine::shared().await;
    let mut answers = Vec::new();
    for kind in ["shm", "tcp"] {
        let setup =
            Setup::new(kind).model("odd", &paths::golden("llama-odd-heads")).coordinators(1).workers(3);
        let cluster = setup.option("tp", 3).option("collective", kind).start().await;
        assert_eq!(collective(&cluster.status().await, "odd"), kind);
        answers.push(probe::one_by_one(&cluster.client(0), &probe::tiny("odd")).await);
    }
    assert_eq!(answers[0], answers[1]);
}
