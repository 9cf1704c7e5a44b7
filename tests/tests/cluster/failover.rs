//! A stream outlives the processes behind it: it goes on, and not a token differs.

use std::time::Duration;

use foggara_proto::wire::admin::StatusResponse;
use foggara_tests::answer::Answer;
use foggara_tests::ask::Ask;
use foggara_tests::cluster::Cluster;
use foggara_tests::process::{self, is_alive};
use foggara_tests::setup::Setup;
use foggara_tests::{machine, paths, wait};
use rustix::process::Signal;

const TOKENS: u32 = 150;
/// Tokens received before something is killed.
pub(crate) const BEFORE: usize = 30;

/// Coordinators of [`start`].
pub(crate) const COORDINATORS: u16 = 3;

/// One that all cores may be needed for: it is killed and comes back several times.
pub(crate) async fn start() -> Cluster {
    let setup = Setup::new("failover").model("smol", &paths::smol_gguf()).workers(2);
    setup.coordinators(COORDINATORS).start().await
}

pub(crate) fn ask() -> Ask {
    let prompt = "<|im_start|>user\nTell me a long story about water in the desert.<|im_end|>\n<|im_start|>assistant\n";
    Ask::text("smol", prompt).exactly(TOKENS).sampled(0.8, 0.95, 11).logprobs(2)
}

/// Asks the `number`-th coordinator, sends `signal` to the `victims` in the middle, and reads on.
pub(crate) async fn disturbed(cluster: &Cluster, number: u16, victims: &[u32], signal: Signal) -> Answer {
    interrupted(cluster, ask(), number, victims, signal).await
}

/// The same with any request.
pub(crate) async fn interrupted(
    cluster: &Cluster,
    ask: Ask,
    number: u16,
    victims: &[u32],
    signal: Signal,
) -> Answer {
    let client = cluster.client(number);
    let mut stream = client.stream(ask.build()).await.unwrap();
    let mut answer = Answer::default();
    let read = async {
        while answer.token_ids.len() < BEFORE {
            assert!(answer.next(&mut stream).await.unwrap(), "ended too early");
        }
        for victim in victims {
            assert!(is_alive(*victim));
            process::signal(*victim, signal);
        }
        while answer.next(&mut stream).await.unwrap_or_else(|s| panic!("{:?}: {}", s.code(), s.message())) {}
    };
    wait::for_end("the disturbed answer", read).await;
    answer
}

/// The cluster as it should be, before and after each kill: so many coordinators, and two workers with a rank each.
fn whole(status: &StatusResponse, coordinators: u16) -> Option<StatusResponse> {
    let coordinators = status.coordinators.len() == usize::from(coordinators)
        && status.coordinators.iter().all(|c| is_alive(c.pid));
    let workers =
        status.workers.len() == 2 && status.workers.iter().all(|w| w.state == "ready" && is_alive(w.pid));
    let driven = status
        .groups
        .iter()
        .any(|g| g.state == "ready" && status.coordinators.iter().any(|c| c.id == g.driver));
    (coordinators && workers && driven && status.leader != 0).then(|| status.clone())
}

pub(crate) fn pid_of_rank(status: &StatusResponse, rank: u32) -> u32 {
    status.workers.iter().find(|w| w.rank == Some(rank)).expect("every rank has a worker").pid
}

pub(crate) fn same(answer: &Answer, undisturbed: &Answer, what: &str) {
    assert_eq!(answer.bits(), undisturbed.bits(), "{what}: tokens and probabilities");
    assert_eq!(answer.text, undisturbed.text, "{what}: text");
    // What lay in the prefix cache when a sequence came is not part of the answer.
    let ending = |answer: &Answer| {
        let mut finished = answer.finished.clone();
        finished.iter_mut().flat_map(|end| &mut end.usage).for_each(|usage| usage.cached_tokens = 0);
        finished
    };
    assert_eq!(ending(answer), ending(undisturbed), "{what}: ending and usage");
}

async fn when_whole(cluster: &Cluster) -> StatusResponse {
    with_all(cluster, COORDINATORS).await
}

pub(crate) async fn with_all(cluster: &Cluster, coordinators: u16) -> StatusResponse {
    for number in 0..coordinators {
        cluster.wait_ready(number).await;
    }
    cluster.wait_status(0, "everything runs", |status| whole(status, coordinators)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_outlive_what_serves_them() {
    let _machine = machine::shared().await;
    let cluster = start().await;
    let status = when_whole(&cluster).await;
    let undisturbed = cluster.client(0).ask(ask()).await;
    assert_eq!(undisturbed.token_ids.len(), TOKENS as usize);
    let check = |answer: &Answer, what: &str| same(answer, &undisturbed, what);

    // Each rank in turn: `up` starts it again, the group is formed anew.
    check(&disturbed(&cluster, 0, &[pid_of_rank(&status, 0)], Signal::KILL).await, "rank 0 killed");
    let status = when_whole(&cluster).await;
    check(&disturbed(&cluster, 1, &[pid_of_rank(&status, 1)], Signal::KILL).await, "rank 1 killed");
    let status = when_whole(&cluster).await;
    let both = [pid_of_rank(&status, 0), pid_of_rank(&status, 1)];
    check(&disturbed(&cluster, 2, &both, Signal::KILL).await, "both ranks killed");

    // The coordinator that drives the group, the client being on another one.
    let status = when_whole(&cluster).await;
    let driver = status.groups[0].driver;
    let pid = |id| status.coordinators.iter().find(|c| c.id == id).expect("it is a member").pid;
    let other = (0..3).find(|number| u64::from(*number) + 1 != driver).expect("there are three");
    check(&disturbed(&cluster, other, &[pid(driver)], Signal::KILL).await, "driver killed");

    // The Raft leader, with driver and front door elsewhere: nothing happens to the stream.
    let status = when_whole(&cluster).await;
    let (driver, leader) = (status.groups[0].driver, status.leader);
    let pid = status.coordinators.iter().find(|c| c.id == leader).expect("it is a member").pid;
    let door = (0..3).find(|number| u64::from(*number) + 1 != leader).expect("there are three");
    check(
        &disturbed(&cluster, door, &[pid], Signal::KILL).await,
        &format!("leader {leader} killed, driver {driver}"),
    );

    when_whole(&cluster).await;
    cluster.wait_idle("smol").await;
}

/// Ranks that hold other layers, or other experts and other sequences, are missed and replaced like those of a tensor-parallel
/// group.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_outlive_ranks_of_any_shape() {
    let _machine = machine::shared().await;
    for (model, shape) in [
        (paths::smol_gguf(), &[("tp", 1), ("pp", 2)][..]),
        (paths::smol_mixtral(), &[("tp", 1), ("dp", 2), ("ep", 2)]),
    ] {
        let mut setup = Setup::new("shapes").model("smol", &model).coordinators(1).workers(2);
        for (degree, n) in shape {
            setup = setup.option(degree, n);
        }
        let cluster = setup.start().await;
        let client = cluster.client(0);
        // Two, so that each part of a divided batch has one.
        let second = || ask().sampled(0.8, 0.95, 12);
        let (undisturbed, beside) = (client.ask(ask()).await, client.ask(second()).await);
        for rank in [0, 1] {
            let status = with_all(&cluster, 1).await;
            let victims = [pid_of_rank(&status, rank)];
            let killed = disturbed(&cluster, 0, &victims, Signal::KILL);
            let (answer, other) = futures::future::join(killed, client.ask(second())).await;
            let what = format!("{shape:?}, rank {rank} killed");
            same(&answer, &undisturbed, &what);
            same(&other, &beside, &what);
            let after = with_all(&cluster, 1).await;
            assert!(after.groups[0].epoch > status.groups[0].epoch, "{what}: the group is another one");
        }
        cluster.wait_idle("smol").await;
    }
}

/// A worker that hangs is given up like one that died: a spare takes its rank. When it wakes up it does no harm.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spare_takes_the_place_of_a_worker_that_hangs() {
    let _machine = machine::shared().await;
    let setup =
        Setup::new("hang").model("smol", &paths::smol_gguf()).coordinators(1).workers(3).option("tp", 2);
    let cluster = setup.start().await;
    let undisturbed = cluster.client(0).ask(ask()).await;
    for rank in [1, 0] {
        let status = cluster.status().await;
        let victim = pid_of_rank(&status, rank);
        let answer = disturbed(&cluster, 0, &[victim], Signal::STOP).await;
        same(&answer, &undisturbed, &format!("rank {rank} hangs"));
        let taken_over = cluster.status().await;
        assert!(taken_over.groups[0].epoch > status.groups[0].epoch, "the group is another one");
        assert!(
            taken_over.workers.iter().all(|w| w.pid != victim || w.group.is_none()),
            "without the one that hangs"
        );
        process::signal(victim, Signal::CONT);
        let spare_again = |status: &StatusResponse| {
            let workers = status.workers.len() == 3 && status.workers.iter().all(|w| is_alive(w.pid));
            (workers && status.workers.iter().any(|w| w.state == "idle")).then_some(())
        };
        cluster.wait_status(0, "the worker is back as a spare", spare_again).await;
        same(&cluster.client(0).ask(ask()).await, &undisturbed, "afterwards");
    }
    cluster.wait_idle("smol").await;
}

/// A coordinator that hangs is given up like one that died: streams through the others go on while it sleeps.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_outlive_a_coordinator_that_hangs() {
    let _machine = machine::shared().await;
    let cluster = start().await;
    let undisturbed = cluster.client(0).ask(ask()).await;
    for what in ["driver", "leader"] {
        let status = when_whole(&cluster).await;
        let id = if what == "driver" { status.groups[0].driver } else { status.leader };
        let victim = status.coordinators.iter().find(|c| c.id == id).expect("it is a member").pid;
        let other = (0..3).find(|number| u64::from(*number) + 1 != id).expect("there are three");
        let answer = disturbed(&cluster, other, &[victim], Signal::STOP).await;
        process::signal(victim, Signal::CONT);
        same(&answer, &undisturbed, &format!("{what} hangs"));
    }
    when_whole(&cluster).await;
    cluster.wait_idle("smol").await;
}

/// So short that nobody takes the driver's place.
const HICCUP: Duration = Duration::from_millis(300);

/// While the driver stands still for a moment, the group's leader goes on without its plans, and the driver finds its way back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_driver_that_stands_still_for_a_moment_is_not_waited_for() {
    let _machine = machine::shared().await;
    let cluster = start().await;
    let undisturbed = cluster.client(0).ask(ask()).await;
    wait::until("steps without a plan", async || {
        let status = when_whole(&cluster).await;
        let driver = status.groups[0].driver;
        let victim = status.coordinators.iter().find(|c| c.id == driver).expect("it is a member").pid;
        let other = (0..3).find(|number| u64::from(*number) + 1 != driver).expect("there are three");
        let wake = async {
            wait::until("it stands still", async || process::is_stopped(victim).then_some(())).await;
            // Not a wait for something: how long it stands still is the disturbance itself.
            tokio::time::sleep(HICCUP).await;
            process::signal(victim, Signal::CONT);
        };
        let (answer, ()) =
            futures::future::join(disturbed(&cluster, other, &[victim], Signal::STOP), wake).await;
        same(&answer, &undisturbed, "the driver stands still");
        // On a crowded machine another may have taken its place.
        (cluster.sum("foggara_unplanned_steps_total", &[("model", "smol")]).await > 0.0).then_some(())
    })
    .await;
    cluster.wait_idle("smol").await;
}

/// All coordinators die at once: workers keep their weights, and everything goes on where the log says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cluster_comes_back_when_all_coordinators_die() {
    let _machine = machine::shared().await;
    let cluster =
        Setup::new("all-coordinators").model("tiny", &paths::golden("llama")).workers(2).start().await;
    let ask = || Ask::tokens("tiny", &[7, 8, 9]).exactly(100).logprobs(1);
    let before = cluster.client(0).ask(ask()).await;
    let status = cluster.status().await;
    status.coordinators.iter().for_each(|coordinator| process::kill(coordinator.pid));
    let back = |now: &StatusResponse| {
        let restarted = now.coordinators.iter().all(|c| is_alive(c.pid));
        let same_workers =
            now.workers.iter().map(|w| (w.id, w.pid)).eq(status.workers.iter().map(|w| (w.id, w.pid)));
        let driven =
            now.groups.iter().any(|g| g.state == "ready" && g.driver_epoch > status.groups[0].driver_epoch);
        (restarted && same_workers && driven && now.deployments[0].state == "ready").then_some(())
    };
    for number in 0..3 {
        cluster.wait_status(number, "the same workers serve again", back).await;
        cluster.wait_ready(number).await;
        assert_eq!(cluster.client(number).ask(ask()).await.bits(), before.bits());
    }
    assert_eq!(
        cluster.status().await.groups[0].id,
        status.groups[0].id,
        "the group was kept: nothing was loaded again"
    );
}
