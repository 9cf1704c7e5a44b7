//! Processes that do not belong to the cluster.

use foggara_proto::PROTOCOL;
use foggara_proto::wire::worker::registry_client::RegistryClient;
use foggara_proto::wire::worker::{Hello, WorkerMessage, registry_message, worker_message};
use foggara_tests::machine;

use crate::shared::TINY;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_of_another_version_is_refused_with_both_versions() {
    let _machine = machine::shared().await;
    let cluster = TINY.get().await;
    for number in 0..3 {
        let other = "foggara 99.0.0 protocol 99";
        let hello = Hello { incarnation: "x".into(), protocol: other.into(), ..Hello::default() };
        let hello = WorkerMessage { message: Some(worker_message::Message::Hello(hello)) };
        let mut registry = RegistryClient::new(cluster.client(number).channel());
        let mut answers = registry.session(tokio_stream::iter([hello])).await.unwrap().into_inner();
        match answers.message().await.unwrap().and_then(|answer| answer.message) {
            Some(registry_message::Message::Refused(refused)) => {
                assert!(
                    refused.reason.contains(other) && refused.reason.contains(PROTOCOL),
                    "{}",
                    refused.reason
                );
            }
            answer => panic!("not refused: {answer:?}"),
        }
        assert_eq!(answers.message().await.unwrap(), None, "nothing follows");
    }
    assert_eq!(cluster.status().await.workers.len(), 2, "it did not become a member");
}
