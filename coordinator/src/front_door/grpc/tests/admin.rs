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

/// A folder of the golden files.
fn golden(name: &str) -> String {
    let path = std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name);
    path.to_string_lossy().into_owned()
}

#[tokio::test]
async fn adapters_are_added_and_removed_and_what_is_wrong_with_one_is_said() {
    let fixture = Fixture::new(FakeGenerator::default());
    tokio::spawn(fixture.door.library.clone().follow(fixture.door.cluster.clone()));
    let mut client = AdminClient::new(connect(&fixture).await);
    let refused = |status: tonic::Status| (status.code(), status.message().to_owned());
    for (name, model) in [("m", "llama"), ("experts", "mixtral")] {
        let deployment = admin::Deployment {
            name: name.into(),
            replicas: 1,
            model_path: golden(model),
            ..Default::default()
        };
        let put = admin::PutDeploymentRequest { deployment: Some(deployment), request_id: String::new() };
        client.put_deployment(put).await.expect("written");
    }
    let mut changes = fixture.door.library.changes();
    let state = fixture.door.cluster.state();
    let placed = |name: &str| fixture.door.library.place(name, &state.deployments[name]).is_some();
    while !(placed("m") && placed("experts")) {
        changes.changed().await.expect("it looks");
    }
    let adapter = |name: &str, deployment: &str, path: &str| admin::PutAdapterRequest {
        adapter: Some(admin::Adapter {
            name: name.into(),
            deployment: deployment.into(),
            path: path.into(),
            ..Default::default()
        }),
        request_id: String::new(),
    };
    let here = golden("adapters/llama");
    client.put_adapter(adapter("a", "m", &here)).await.expect("written");
    for (request, code, says) in [
        (admin::PutAdapterRequest::default(), Code::InvalidArgument, "adapter: is missing"),
        (adapter("a b", "m", &here), Code::InvalidArgument, "name: `a b`"),
        (adapter("b", "none", &here), Code::NotFound, "deployment: no deployment is called `none`"),
        (adapter("b", "m", "/none"), Code::InvalidArgument, "path: `/none` is on none"),
        (adapter("b", "m", &golden("llama")), Code::InvalidArgument, "path: `"),
        (adapter("b", "experts", &here), Code::InvalidArgument, "path: it does not fit `experts`"),
        (adapter("m", "m", &here), Code::FailedPrecondition, "a deployment is called `m`"),
        (
            adapter("a", "m", &golden("adapters/llama-attention")),
            Code::FailedPrecondition,
            "an adapter called",
        ),
    ] {
        let (found, message) = refused(client.put_adapter(request).await.expect_err(says));
        assert!(found == code && message.starts_with(says), "{says}: {found:?} {message}");
    }
    let model = admin::Deployment { name: "b".into(), replicas: 1, model_path: here, ..Default::default() };
    let put = admin::PutDeploymentRequest { deployment: Some(model), request_id: String::new() };
    let (_, message) = refused(client.put_deployment(put).await.expect_err("an adapter"));
    assert!(message.ends_with("add it to a deployment with `foggara adapter add`"), "{message}");
    let status = client.status(admin::StatusRequest {}).await.expect("answered").into_inner();
    let [told] = &status.adapters[..] else { panic!("{:?}", status.adapters) };
    assert_eq!((told.name.as_str(), told.deployment.as_str(), told.state.as_str()), ("a", "m", "pending"));
    assert!(told.id > 0 && told.bytes > 0 && !told.hash.is_empty() && told.created > 0, "{told:?}");
    let remove = |name: &str| admin::RemoveAdapterRequest { name: name.into(), request_id: String::new() };
    client.remove_adapter(remove("a")).await.expect("it was there");
    let (code, message) = refused(client.remove_adapter(remove("a")).await.expect_err("gone"));
    assert!(code == Code::NotFound && message.contains("no adapter is called `a`"), "{message}");
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
