//! Processes that do not belong to the cluster.

use foggara_proto::version::Build;
use foggara_proto::wire::admin::Capabilities;
use foggara_proto::wire::worker::registry_client::RegistryClient;
use foggara_proto::wire::worker::{Hello, WorkerMessage, registry_message, worker_message};
use foggara_tests::machine;

use crate::shared::TINY;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_speaks_another_protocol_is_refused_with_both_versions() {
    let _machine = machine::shared().await;
    let cluster = TINY.get().await;
    for number in 0..3 {
        let capabilities = Capabilities { version: "99.0.0".into(), ..Capabilities::default() };
        let hello = Hello {
            incarnation: "x".into(),
            oldest_protocol: 98,
            newest_protocol: 99,
            capabilities: Some(capabilities),
            ..Hello::default()
        };
        let hello = WorkerMessage { message: Some(worker_message::Message::Hello(hello)) };
        let mut registry = RegistryClient::new(cluster.client(number).channel());
        let mut answers = registry.session(tokio_stream::iter([hello])).await.unwrap().into_inner();
        match answers.message().await.unwrap().and_then(|answer| answer.message) {
            Some(registry_message::Message::Refused(refused)) => {
                let Build { version, protocols, .. } = Build::own();
                let both =
                    format!("foggara 99.0.0 speaks protocol 98 to 99, foggara {version} here {protocols}");
                assert!(refused.reason.contains(&both), "{}", refused.reason);
            }
            answer => panic!("not refused: {answer:?}"),
        }
        assert_eq!(answers.message().await.unwrap(), None, "nothing follows");
    }
    assert_eq!(cluster.status().await.workers.len(), 2, "it did not become a member");
}
