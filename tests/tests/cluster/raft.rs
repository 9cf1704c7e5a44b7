//! The control plane outlives its members, and forgets nothing that it has acknowledged.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use foggara_proto::wire::admin::{GetNoteRequest, ListNotesRequest, PutNoteRequest, StatusResponse};
use foggara_tests::client::Client;
use foggara_tests::cluster::Cluster;
use foggara_tests::process::{self, is_alive};
use foggara_tests::setup::Setup;
use foggara_tests::{machine, paths, wait};
use futures::future::join_all;

/// The promise.
const NEW_LEADER_WITHIN: Duration = Duration::from_secs(2);
/// Writers of numbered notes, and how many each writes around every kill.
const WRITERS: usize = 4;
const NOTES: usize = 40;

async fn start(name: &str) -> Cluster {
    Setup::new(name).model("tiny", &paths::golden("llama")).workers(1).option("tp", 1).start().await
}

/// Index and process of the leader, when all coordinators run and agree on it.
async fn leader(cluster: &Cluster) -> (u16, u32) {
    let clients: Vec<Client> = (0..3).map(|number| cluster.client(number)).collect();
    wait::until("three running coordinators that agree on a leader", async || {
        let all = join_all(clients.iter().map(Client::try_status)).await;
        let all: Vec<StatusResponse> = all.into_iter().collect::<Result<_, _>>().ok()?;
        let leader = all[0].leader;
        let agree = leader != 0 && all.iter().all(|status| status.leader == leader);
        let runs = all[0].coordinators.len() == 3 && all[0].coordinators.iter().all(|c| is_alive(c.pid));
        let pid = all[0].coordinators.iter().find(|c| c.id == leader)?.pid;
        (agree && runs).then(|| (u16::try_from(leader - 1).unwrap(), pid))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_leader_is_replaced_within_two_seconds_and_rejoins() {
    let _machine = machine::alone().await;
    let cluster = start("leader-kill").await;
    for round in 0..machine::rounds(3, 20) {
        let (old, pid) = leader(&cluster).await;
        let key = format!("before-{round}");
        write(&cluster, old, &key, "kept").await;
        let survivors: Vec<Client> =
            (0..3).filter(|number| *number != old).map(|n| cluster.client(n)).collect();
        let term = survivors[0].status().await.term;
        process::kill(pid);
        let killed = Instant::now();
        let new = wait::until("a new leader", async || {
            for survivor in &survivors {
                let status = survivor.try_status().await.ok()?;
                if status.leader != 0 && status.term > term && status.leader != u64::from(old) + 1 {
                    return Some(status.leader);
                }
            }
            None
        })
        .await;
        let took = killed.elapsed();
        eprintln!("leader {} killed; {new} leads after {took:?}", old + 1);
        assert!(took <= NEW_LEADER_WITHIN, "a new leader after {took:?}");
        // `up` starts it again on the same folder: it comes back with what was written before and while it was away.
        write(&cluster, u16::try_from(new - 1).unwrap(), &format!("away-{round}"), "kept").await;
        let back = cluster.client(old);
        let registered = |status: &StatusResponse| {
            let me = status.coordinators.iter().find(|c| c.id == u64::from(old) + 1)?;
            (me.pid != pid && is_alive(me.pid) && status.leader != 0).then_some(())
        };
        cluster.wait_status(old, "the killed coordinator answers again", registered).await;
        for key in [key, format!("away-{round}")] {
            let note = back.admin().get_note(GetNoteRequest { key: key.clone() }).await.unwrap().into_inner();
            assert_eq!(note.value.as_deref(), Some("kept"), "{key} through the coordinator that came back");
        }
    }
}

/// Writes through coordinator `first` and then the others, under one id, until it is acknowledged.
async fn write(cluster: &Cluster, first: u16, key: &str, value: &str) {
    let clients: Vec<Client> = (0..3).map(|number| cluster.client(number)).collect();
    let mut next = usize::from(first);
    wait::until(&format!("{key} is acknowledged"), async || {
        let request =
            PutNoteRequest { key: key.into(), value: value.into(), request_id: format!("write-{key}") };
        let mut admin = clients[next % 3].admin();
        next += 1;
        let sent = tokio::time::timeout(Duration::from_secs(10), admin.put_note(request)).await;
        sent.ok()?.ok().map(drop)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledged_write_is_lost_through_twenty_leader_kills() {
    let _machine = machine::shared().await;
    let cluster = start("twenty-kills").await;
    let acknowledged = Mutex::new(BTreeMap::new());
    for round in 0..machine::rounds(20, 60) {
        let (_, pid) = leader(&cluster).await;
        let before = acknowledged.lock().unwrap().len();
        let writer = async |writer: usize| {
            for number in 0..NOTES {
                let key = format!("note/{round:02}/{writer}/{number:02}");
                let value = format!("{}", round * 1000 + number);
                write(&cluster, u16::try_from((writer + number) % 3).unwrap(), &key, &value).await;
                acknowledged.lock().unwrap().insert(key, value);
            }
        };
        let killer = async {
            // In the middle of it.
            wait::until("some writes are acknowledged", async || {
                (acknowledged.lock().unwrap().len() >= before + NOTES).then_some(())
            })
            .await;
            process::kill(pid);
        };
        futures::join!(join_all((0..WRITERS).map(writer)), killer);
    }
    leader(&cluster).await;
    let acknowledged = acknowledged.into_inner().unwrap();
    for number in 0..3 {
        let request = ListNotesRequest { prefix: "note/".into() };
        let list = cluster.client(number).admin().list_notes(request).await.unwrap().into_inner();
        let notes: BTreeMap<String, String> = list.notes.into_iter().collect();
        assert_eq!(notes, acknowledged, "through coordinator {}", number + 1);
    }
    eprintln!("{} writes, all kept", acknowledged.len());
}

/// Writes go through any coordinator, and a write that is sent twice is done once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_coordinator_takes_writes_and_repeats_do_nothing() {
    let _machine = machine::shared().await;
    let cluster = crate::shared::TINY.get().await;
    for number in 0..3 {
        let client = cluster.client(number);
        let put = async |value: &str, id: String| {
            let request = PutNoteRequest { key: "k".into(), value: value.into(), request_id: id };
            client.admin().put_note(request).await.unwrap();
        };
        put("first", format!("first-{number}")).await;
        put("second", format!("second-{number}")).await;
        put("first", format!("first-{number}")).await;
        for reader in 0..3 {
            let request = GetNoteRequest { key: "k".into() };
            let note = cluster.client(reader).admin().get_note(request).await.unwrap().into_inner();
            assert_eq!(
                note.value.as_deref(),
                Some("second"),
                "written through {number}, read through {reader}"
            );
        }
    }
}
