//! The operators' service.

use foggara_proto::auth::ClusterToken;
use foggara_proto::wire::admin;
use foggara_proto::wire::admin::admin_client::AdminClient;
use tonic::Code;

use super::{connect, generate, run};
use crate::front_door::fixture::{FakeGenerator, Fixture};

#[tokio::test]
async fn operators_read_their_own_writes() {
    let fixture = Fixture::new(FakeGenerator::default());
    let mut client = AdminClient::new(connect(&fixture).await);
    for (key, value) in [("a/1", "one"), ("a/2", "two"), ("b", "three")] {
        let note = admin::PutNoteRequest { key: key.into(), value: value.into(), request_id: String::new() };
        client.put_note(note).await.expect("written");
    }
    let get = |key: &str| admin::GetNoteRequest { key: key.into() };
    assert_eq!(client.get_note(get("a/2")).await.expect("read").into_inner().value.as_deref(), Some("two"));
    assert_eq!(client.get_note(get("none")).await.expect("read").into_inner().value, None);
    let listed = client.list_notes(admin::ListNotesRequest { prefix: "a/".into() }).await.expect("read");
    assert_eq!(listed.into_inner().notes.len(), 2);
    let refused = |status: tonic::Status| (status.code(), status.message().to_owned());
    let empty = admin::PutNoteRequest { key: String::new(), ..Default::default() };
    assert_eq!(refused(client.put_note(empty).await.expect_err("no key")).0, Code::FailedPrecondition);
    let remove = admin::RemoveDeploymentRequest { name: "none".into(), ..Default::default() };
    assert_eq!(refused(client.remove_deployment(remove).await.expect_err("none")).0, Code::NotFound);
    for (deployment, says) in [
        (None, "deployment"),
        (Some(admin::Deployment::default()), "name"),
        (Some(admin::Deployment { name: "m".into(), ..Default::default() }), "replicas"),
        (Some(admin::Deployment { name: "m".into(), tp: 65, ..Default::default() }), "tp"),
        (
            Some(admin::Deployment {
                name: "m".into(),
                tp: 2,
                dp: 1,
                replicas: 1,
                ep: 4,
                ..Default::default()
            }),
            "ep",
        ),
        (
            Some(admin::Deployment {
                name: "m".into(),
                tp: 1,
                replicas: 1,
                quantize: "q3".into(),
                ..Default::default()
            }),
            "quantize",
        ),
        (Some(admin::Deployment { name: "m".into(), tp: 1, ..Default::default() }), "replicas"),
        (
            Some(admin::Deployment {
                name: "m".into(),
                tp: 1,
                replicas: 1,
                kv_dtype: "x".into(),
                ..Default::default()
            }),
            "kv_dtype",
        ),
        (
            Some(admin::Deployment {
                name: "m".into(),
                tp: 1,
                replicas: 1,
                model_path: "/none".into(),
                ..Default::default()
            }),
            "model_path",
        ),
    ] {
        let put = admin::PutDeploymentRequest { deployment, request_id: String::new() };
        let (code, message) = refused(client.put_deployment(put).await.expect_err("refused"));
        assert!(code == Code::InvalidArgument && message.starts_with(says), "{says}: {message}");
    }
    let path = std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/llama");
    let dense = admin::Deployment {
        name: "m2".into(),
        replicas: 1,
        model_path: path.to_string_lossy().into_owned(),
        ..Default::default()
    };
    let plan = admin::PlanDeploymentRequest { deployment: Some(dense.clone()), sequence_tokens: 0 };
    let plan = client.plan_deployment(plan).await.expect("answered").into_inner();
    assert_eq!(plan.missing, "1 idle worker is needed, there are 0");
    let experts = admin::Deployment { tp: 2, ep: 2, ..dense };
    let put = admin::PutDeploymentRequest { deployment: Some(experts), request_id: String::new() };
    let (_, message) = refused(client.put_deployment(put).await.expect_err("no experts"));
    assert_eq!(message, "ep: 2, but the model has no experts: only 1 is possible");
    let status = client.status(admin::StatusRequest {}).await.expect("answered").into_inner();
    assert_eq!((status.cluster_id.as_str(), status.answered_by, status.leader), ("test", 1, 1));
}

#[tokio::test]
async fn operators_show_the_cluster_token_and_clients_need_none() {
    let fixture = Fixture::with_token(FakeGenerator::default(), ClusterToken::new(Some("secret")));
    let channel = connect(&fixture).await;
    let status =
        AdminClient::new(channel.clone()).status(admin::StatusRequest {}).await.expect_err("refused");
    assert_eq!(status.code(), Code::Unauthenticated);
    let mut client =
        AdminClient::with_interceptor(channel.clone(), ClusterToken::new(Some("secret")).shown());
    client.status(admin::StatusRequest {}).await.expect("admitted");
    run(channel, generate("hi")).await.expect("clients have no token");
}
