//! A cluster goes from one release to the next, and back, without losing a request.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use foggara_proto::version::{Build, Range};
use foggara_proto::wire::admin::{PutNoteRequest, StatusResponse};
use foggara_tests::ask::Ask;
use foggara_tests::nodes::{Nodes, TOKEN};
use foggara_tests::process::{foggara, text};
use foggara_tests::steady::load;
use foggara_tests::{machine, paths, release, wait};
use serde_json::Value;

/// `foggara` with these arguments, typed by the operator; what it prints.
fn operate(nodes: &Nodes, words: &[&str]) -> String {
    // One of them may be down.
    let endpoint: Vec<String> = (0..3).map(|number| nodes.grpc(number)).collect();
    let who = ["--endpoint", &endpoint.join(","), "--cluster-token", TOKEN];
    let output = tokio::task::block_in_place(|| foggara(&[words, &who[..]].concat()));
    assert!(output.status.success(), "foggara {}: {}", words.join(" "), text(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// What is replaced.
#[derive(Debug, Clone, Copy)]
enum Which {
    Coordinator(u16),
    Worker(u16),
}

/// Puts `program` in the place of one process, as docs/operate.md says, and waits until the cluster is as it was.
fn replace(nodes: &mut Nodes, which: Which, program: &Path) {
    let before = nodes.folder("before").join("status.json");
    std::fs::write(&before, operate(nodes, &["status", "--wait", "60", "--json"])).unwrap();
    let addr = match which {
        Which::Coordinator(number) => nodes.grpc(number),
        Which::Worker(number) => nodes.worker_addr(number),
    };
    tokio::task::block_in_place(|| match which {
        Which::Coordinator(number) => {
            nodes.stop_coordinator(number);
            nodes.start_coordinator(number, program);
        }
        Which::Worker(number) => nodes.replace_worker(number, program),
    });
    let before = before.to_str().unwrap();
    operate(nodes, &["status", "--wait", "90", "--like", before, "--restarted", &addr]);
}

/// Has something written down, and waits until every coordinator has it.
async fn all_write_and_read(nodes: &Nodes) {
    let note = PutNoteRequest { key: "k".into(), value: "v".into(), request_id: String::new() };
    let write = async || nodes.client(0).admin().put_note(note.clone()).await.ok();
    wait::until("a note is written", write).await;
    let mut written = 0;
    for number in 0..3 {
        written = written.max(nodes.client(number).status().await.applied);
    }
    for number in 0..3 {
        let has =
            async || nodes.client(number).try_status().await.ok().filter(|status| status.applied >= written);
        wait::until(&format!("coordinator {} has it", number + 1), has).await;
    }
}

/// Versions of coordinators and workers, as a coordinator knows them.
fn versions(status: &StatusResponse) -> (Vec<String>, Vec<String>) {
    let workers =
        status.workers.iter().filter_map(|worker| Some(worker.capabilities.as_ref()?.version.clone()));
    (status.coordinators.iter().map(|c| c.version.clone()).collect(), workers.collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_process_is_upgraded_under_load_in_any_order_and_may_go_back_until_all_are() {
    let _machine = machine::shared().await;
    let mut nodes = Nodes::start("rolling", 3, &[]);
    let (old, new) = (paths::foggara(), release::next(&nodes.folder("next")));
    nodes.worker(&[]);
    nodes.worker(&[]);
    nodes.wait_joined().await;
    let model = format!("tiny={}", paths::golden("llama").display());
    operate(&nodes, &["models", "add", &model, "--tp", "1", "--replicas", "2"]);

    let (stop, begun) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..3).map(|number| nodes.client(number)).collect();
    let asking = {
        let (stop, begun, runtime) = (stop.clone(), begun.clone(), tokio::runtime::Handle::current());
        std::thread::spawn(move || runtime.block_on(load(&clients, &stop, &begun)))
    };
    let goes_on = async |asking: &std::thread::JoinHandle<_>| {
        let before = begun.load(Ordering::Relaxed);
        let more = || asking.is_finished() || begun.load(Ordering::Relaxed) > before + 4;
        wait::until("requests are answered", async || more().then_some(())).await;
    };
    goes_on(&asking).await;
    for (which, program) in [
        (Which::Worker(0), &new),
        (Which::Coordinator(0), &new),
        // Both go back.
        (Which::Coordinator(0), &old),
        (Which::Worker(0), &old),
        // In no order.
        (Which::Coordinator(0), &new),
        (Which::Worker(1), &new),
        (Which::Coordinator(1), &new),
        // Started again as it was, and if it led, one of the new ones leads now: it writes what this one reads.
        (Which::Coordinator(2), &old),
        (Which::Coordinator(2), &new),
        (Which::Worker(0), &new),
    ] {
        replace(&mut nodes, which, program);
        all_write_and_read(&nodes).await;
        goes_on(&asking).await;
        if asking.is_finished() {
            break;
        }
    }
    stop.store(true, Ordering::Relaxed);
    let (answered, elsewhere) = tokio::task::block_in_place(|| asking.join()).unwrap();
    eprintln!("{answered} requests answered during the upgrade, {elsewhere} of them after asking elsewhere");

    let next = release::next_version();
    let all = (vec![next.clone(); 3], vec![next.clone(); 2]);
    nodes.wait_status("all are of the next version", |status| (versions(status) == all).then_some(())).await;
    let table = operate(&nodes, &["status"]);
    assert_eq!(table.matches(&next).count(), 5, "{table}");
    let json: Value = serde_json::from_str(&operate(&nodes, &["status", "--json"])).unwrap();
    assert_eq!(json["coordinators"][2]["version"], next.as_str(), "{json:#}");
    let metrics = foggara_tests::http::get(&format!("{}/metrics", nodes.http_url(1))).await.text;
    assert!(metrics.contains(&format!("foggara_build_info{{version=\"{next}\"}} 1")), "{metrics}");

    // All are upgraded: what is written now, a program of before cannot read. It says so and ends.
    let written = nodes.client(1).admin();
    let note = PutNoteRequest { key: "k".into(), value: "v".into(), request_id: String::new() };
    { written }.put_note(note).await.unwrap();
    tokio::task::block_in_place(|| nodes.stop_coordinator(2));
    nodes.start_coordinator(2, &old);
    let ended = tokio::task::block_in_place(|| nodes.process_of(2).wait(wait::PATIENCE));
    let log = nodes.process_of(2).log();
    assert_eq!(ended.code(), Some(3), "{log}");
    let formats = Build::own().formats;
    assert!(log.contains(&format!("format {} of the replicated state", formats.newest + 1)), "{log}");
    assert!(log.contains("upgrade it"), "{log}");

    // Nor does one that speaks something else disturb the others.
    let stranger = release::another(&nodes.folder("stranger"), |build| {
        build.version = "99.0.0".into();
        build.protocols = Range { oldest: 99, newest: 99 };
        build.formats.newest += 1;
    });
    nodes.start_coordinator(2, &stranger);
    let refused =
        format!("foggara 99.0.0 speaks protocol 99, foggara {next} here {}", Build::own().protocols);
    wait::until("it is told why", async || nodes.process_of(2).log().contains(&refused).then_some(())).await;
    nodes.client(0).ask(Ask::tokens("tiny", &[1, 2, 3]).exactly(5)).await;
    nodes.process_of(2).kill();
    nodes.start_coordinator(2, &new);
    nodes.wait_status("it is there again", |status| (versions(status) == all).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_has_workers_of_one_version_and_strangers_are_refused() {
    let _machine = machine::shared().await;
    let mut nodes = Nodes::start("one-version", 3, &[]);
    let next = release::next(&nodes.folder("next"));
    nodes.worker(&[]);
    nodes.worker_of(&next, &[]);
    nodes.wait_joined().await;
    let model = format!("tiny={}", paths::golden("llama").display());
    operate(&nodes, &["models", "add", &model, "--tp", "2", "--no-wait"]);
    let (before, after) = (Build::own().version, release::next_version());
    let reason = format!(
        "a group has workers of one version, and it cannot be {after} (2 idle workers are needed, there are 1), nor \
         {before} (2 idle workers are needed, there are 1)"
    );
    let lacks = |status: &StatusResponse| {
        let deployment = status.deployments.first()?;
        let said = deployment.state == "pending" && deployment.reason.contains(&reason);
        (said && deployment.versions_differ && status.groups.is_empty()).then_some(())
    };
    nodes.wait_status("it is said what is missing", lacks).await;

    // One that speaks nothing that is spoken here is no help.
    let stranger = release::another(&nodes.folder("stranger"), |build| {
        build.version = "99.0.0".into();
        build.protocols = Range { oldest: 98, newest: 99 };
    });
    nodes.worker_of(&stranger, &[]);
    let ended = tokio::task::block_in_place(|| nodes.process_of_worker(2).wait(wait::PATIENCE));
    let log = nodes.process_of_worker(2).log();
    assert_eq!(ended.code(), Some(3), "{log}");
    let refused =
        format!("foggara 99.0.0 speaks protocol 98 to 99, foggara {before} here {}", Build::own().protocols);
    assert!(log.contains(&refused), "{log}");
    nodes.kill_last_worker();

    // A second one of the next version.
    nodes.worker_of(&next, &[]);
    let formed = |status: &StatusResponse| {
        let group = status.groups.iter().find(|group| group.state == "ready" && group.driver != 0)?;
        let of = |id| status.workers.iter().find(|worker| worker.id == id)?.capabilities.clone();
        group.workers.iter().map(|id| Some(of(*id)?.version)).collect::<Option<Vec<String>>>()
    };
    let versions = nodes.wait_status("a group is formed", formed).await;
    assert_eq!(versions, [after.clone(), after.clone()]);
    let ask = || Ask::tokens("tiny", &[7, 8, 9]).exactly(20).logprobs(1);
    let expected = nodes.client(0).ask(ask()).await.bits();

    // The spare one of the version before does not take the place of one that is lost.
    nodes.kill_last_worker();
    nodes.wait_status("it is said again what is missing", lacks).await;
    // Two of the version before do, if that is what there is.
    nodes.worker(&[]);
    assert_eq!(nodes.wait_status("a group is formed", formed).await, [before.clone(), before]);
    assert_eq!(nodes.client(1).ask(ask()).await.bits(), expected);
}
