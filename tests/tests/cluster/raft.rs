//! The control plane outlives its members, and forgets nothing that it has acknowledged.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use foggara_proto::wire::admin::{GetNoteRequest, ListNotesRequest, PutNoteRequest, StatusResponse};
use foggara_tests::client::Client;
use foggara_tests::cluster::Cluster;
use foggara_tests::members::{MEMBERS, Members};
use foggara_tests::process::{self, is_alive};
use foggara_tests::setup::Setup;
use foggara_tests::{machine, paths, wait};
use futures::future::join_all;
use rustix::process::Signal;

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
    let doors: Vec<Client> = (0..3).map(|number| cluster.client(number)).collect();
    for round in 0..machine::rounds(3, 7) {
        let (old, pid) = leader(&cluster).await;
        let key = format!("before-{round}");
        write(&doors, usize::from(old), &key, "kept").await;
        let survivors: Vec<Client> =
            (0..3).filter(|number| *number != old).map(|n| cluster.client(n)).collect();
        let term = survivors[0].status().await.term;
        process::kill(pid);
        let killed = Instant::now();
        let new = wait::until("a new leader", async || {
            for survivor in &survivors {
                let status = survivor.try_status().await.ok()?;
                if status.leader != 0 && status.term > term {
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
        write(&doors, new as usize - 1, &format!("away-{round}"), "kept").await;
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

/// Writes through the first of `doors` and then the others, under one id, until it is acknowledged.
async fn write(doors: &[Client], first: usize, key: &str, value: &str) {
    let mut next = first;
    wait::until(&format!("{key} is acknowledged"), async || {
        let request =
            PutNoteRequest { key: key.into(), value: value.into(), request_id: format!("write-{key}") };
        let mut admin = doors[next % doors.len()].admin();
        next += 1;
        let sent = tokio::time::timeout(Duration::from_secs(10), admin.put_note(request)).await;
        sent.ok()?.ok().map(drop)
    })
    .await;
}

/// The members' leader, as all of them know it.
async fn leader_of(doors: &[Client]) -> u16 {
    wait::until("members that agree on a leader", async || {
        let all = join_all(doors.iter().map(Client::try_status)).await;
        let leaders: Vec<u64> =
            all.into_iter().map(|status| status.map(|s| s.leader)).collect::<Result<_, _>>().ok()?;
        let agreed = leaders[0] != 0 && leaders.iter().all(|leader| *leader == leaders[0]);
        agreed.then(|| u16::try_from(leaders[0] - 1).expect("there are three"))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledged_write_is_lost_through_twenty_leader_kills() {
    let _machine = machine::shared().await;
    let mut members = Members::start("twenty-kills");
    let doors: Vec<Client> = (0..MEMBERS).map(|number| members.client(number)).collect();
    let acknowledged = Mutex::new(BTreeMap::new());
    for round in 0..machine::rounds(20, 60) {
        let leader = leader_of(&doors).await;
        let before = acknowledged.lock().unwrap().len();
        let writer = async |writer: usize| {
            for number in 0..NOTES {
                let key = format!("note/{round:02}/{writer}/{number:02}");
                let value = format!("{}", round * 1000 + number);
                write(&doors, writer + number, &key, &value).await;
                acknowledged.lock().unwrap().insert(key, value);
            }
        };
        let kill = async {
            // In the middle of it.
            wait::until("some writes are acknowledged", async || {
                (acknowledged.lock().unwrap().len() >= before + NOTES).then_some(())
            })
            .await;
            members.kill(leader);
            members.restart(leader);
        };
        futures::join!(join_all((0..WRITERS).map(writer)), kill);
    }
    leader_of(&doors).await;
    let acknowledged = acknowledged.into_inner().unwrap();
    for (number, door) in doors.iter().enumerate() {
        let request = ListNotesRequest { prefix: "note/".into() };
        let list = door.admin().list_notes(request).await.unwrap().into_inner();
        let notes: BTreeMap<String, String> = list.notes.into_iter().collect();
        assert_eq!(notes, acknowledged, "through coordinator {}", number + 1);
    }
    eprintln!("{} writes, all kept", acknowledged.len());
}

async fn read(door: &Client, key: &str) -> Result<Option<String>, tonic::Status> {
    let mut admin = door.admin();
    let note = admin.get_note(GetNoteRequest { key: key.into() });
    Ok(wait::for_end("a read, which has a deadline", note).await?.into_inner().value)
}

/// A leader that slept through its own replacement does not serve what it remembers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_was_paused_reads_nothing_stale() {
    let _machine = machine::shared().await;
    let members = Members::start("paused");
    let doors: Vec<Client> = (0..MEMBERS).map(|number| members.client(number)).collect();
    for round in 0..machine::rounds(3, 30) {
        let old = leader_of(&doors).await;
        let others: Vec<Client> = (0..MEMBERS).filter(|n| *n != old).map(|n| members.client(n)).collect();
        let (key, new) = (format!("k-{round}"), format!("new-{round}"));
        write(&others, 0, &key, "old").await;
        process::signal(members.pid(old), Signal::STOP);
        wait::until("the others have a new leader", async || {
            let status = others[0].try_status().await.ok()?;
            (status.leader != 0 && status.leader != u64::from(old) + 1).then_some(())
        })
        .await;
        let request = PutNoteRequest { key: key.clone(), value: new.clone(), request_id: new.clone() };
        wait::until("a write without it", async || {
            others[0].admin().put_note(request.clone()).await.ok().map(drop)
        })
        .await;
        process::signal(members.pid(old), Signal::CONT);
        // At once: it does not know yet that it leads no more. An error would be honest, an old value not.
        let seen = wait::until("the paused member answers", async || {
            read(&doors[usize::from(old)], &key).await.ok()
        })
        .await;
        assert_eq!(seen, Some(new), "round {round}");
    }
}

/// Without a majority nothing is promised; with it, and after a loss of power everywhere, everything promised is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minority_promises_nothing_and_a_power_cut_loses_nothing() {
    let _machine = machine::shared().await;
    let mut members = Members::start("minority");
    let doors: Vec<Client> = (0..MEMBERS).map(|number| members.client(number)).collect();
    leader_of(&doors).await;
    for number in 0..20 {
        write(&doors, number, &format!("before/{number}"), "kept").await;
    }
    members.kill(0);
    members.kill(1);
    let request = PutNoteRequest { key: "alone".into(), value: "x".into(), request_id: "alone".into() };
    let refused = wait::for_end("a refusal", doors[2].admin().put_note(request)).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable, "{}", refused.message());
    assert!(refused.message().contains("leader"), "{}", refused.message());
    let refused = read(&doors[2], "before/0").await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable, "a read: {}", refused.message());
    wait::until("status still answers, and says that nobody leads", async || {
        (doors[2].try_status().await.ok()?.leader == 0).then_some(())
    })
    .await;
    members.restart(0);
    write(&doors, 2, "two", "kept").await;
    members.restart(1);
    for round in 0..machine::rounds(3, 30) {
        (0..MEMBERS).for_each(|number| members.kill(number));
        (0..MEMBERS).for_each(|number| members.restart(number));
        leader_of(&doors).await;
        write(&doors, round, &format!("before/again-{round}"), "kept").await;
        for door in &doors {
            let list = door.admin().list_notes(ListNotesRequest { prefix: "before/".into() }).await.unwrap();
            let notes = list.into_inner().notes;
            assert_eq!(notes.len(), 20 + round + 1, "{notes:?}");
            assert_eq!(read(door, "two").await.unwrap().as_deref(), Some("kept"));
        }
    }
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
