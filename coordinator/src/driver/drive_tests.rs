//! One driver against a leader in the same task.

use std::time::Duration;

use foggara_proto::sequence::{SequenceEnd, SequenceEvent, SequenceRequest};
use foggara_proto::step::{Attached, ExpertCount, HeldSequence, StepPlan};
use foggara_proto::wire::worker as wire;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Status;

use super::drive::{Assignment, Drive, Stopped};
use super::fake_leader::{LIMITS, Table, answer, request};
use super::{DriverCommand, Drivers, Events};
use crate::metrics::Metrics;
use crate::router::GenerateError;

type Received = mpsc::UnboundedReceiver<Result<SequenceEvent, GenerateError>>;

/// A driver, and the test in the leader's place.
struct Rig {
    commands: Option<mpsc::Sender<DriverCommand>>,
    plans: mpsc::Receiver<wire::DriverMessage>,
    reports: Option<mpsc::UnboundedSender<Result<wire::LeaderMessage, Status>>>,
    table: Table,
    ended: tokio::task::JoinHandle<Stopped>,
    metrics: Metrics,
    drivers: Drivers,
}

/// Longer than any test.
const FOREVER: Duration = Duration::from_secs(3_600);

impl Rig {
    fn new(queue: usize) -> Self {
        Self::over(Table::default(), queue, FOREVER)
    }

    /// A driver that begins with what `table` holds, where sequences go on for `grace` without a listener.
    fn over(mut table: Table, queue: usize, grace: Duration) -> Self {
        let (commands, mut received) = mpsc::channel(100);
        let (to_leader, plans) = mpsc::channel(8);
        let (reports, from_leader) = mpsc::unbounded_channel();
        let metrics = Metrics::new();
        let drivers = Drivers::default();
        let (group, model, driver_epoch, lease_ms, speculate) = (1, "m".to_owned(), 7, 0, 0);
        let assignment = Assignment { group, model, driver_epoch, queue, lease_ms, speculate, grace };
        let attached = Attached { limits: LIMITS, sequences: table.hold() };
        let measured = metrics.driver(1, 7, "m");
        let drive = Drive::new(assignment, attached, to_leader, measured, drivers.clone());
        let mut from_leader = UnboundedReceiverStream::new(from_leader);
        let ended = tokio::spawn(async move { drive.run(&mut received, &mut from_leader).await });
        let (commands, reports) = (Some(commands), Some(reports));
        Self { commands, plans, reports, table, ended, metrics, drivers }
    }

    fn command(&self, command: DriverCommand) {
        self.commands.as_ref().expect("not ended").try_send(command).expect("room");
    }

    fn submit(&self, id: u64, request: SequenceRequest) -> Received {
        let (events, received): (Events, _) = mpsc::unbounded_channel();
        // Streams are named like the sequences they ask for.
        self.command(DriverCommand::Submit { id, listener: id, request: Box::new(request), events });
        received
    }

    fn cancel(&self, request_id: &str, listener: u64) {
        self.command(DriverCommand::Cancel { request_id: request_id.into(), listener });
    }

    /// Leads until `sequence` is dropped.
    async fn lead_until_dropped(&mut self, sequence: u64) {
        loop {
            let plan = self.plan().await;
            let dropped = plan.drops.contains(&sequence);
            self.report(plan);
            if dropped {
                return;
            }
        }
    }

    async fn plan(&mut self) -> StepPlan {
        let message = limited(self.plans.recv()).await.and_then(|message| message.message);
        let Some(wire::driver_message::Message::Plan(plan)) = message else { panic!("{message:?}") };
        let plan = StepPlan::try_from(plan).expect("a valid plan");
        assert_eq!(plan.driver_epoch, 7);
        plan
    }

    fn report(&mut self, plan: StepPlan) {
        let report = self.table.execute(plan);
        self.send(wire::leader_message::Message::Report(report.into()));
    }

    fn send(&self, message: wire::leader_message::Message) {
        let message = wire::LeaderMessage { message: Some(message) };
        self.reports.as_ref().expect("not ended").send(Ok(message)).expect("driven");
    }

    /// Leads until a sequence has ended; returns its tokens and why.
    async fn lead(&mut self, received: &mut Received) -> (Vec<u32>, SequenceEnd) {
        let mut tokens = Vec::new();
        loop {
            tokio::select! {
                biased;
                event = received.recv() => {
                    let event = event.expect("more to come").expect("no error");
                    tokens.extend(event.tokens.iter().map(|output| output.token));
                    if let Some(end) = event.end {
                        return (tokens, end);
                    }
                }
                plan = self.plan() => self.report(plan),
            }
        }
    }
}

async fn limited<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("within a minute")
}

#[tokio::test]
async fn choices_enter_beside_the_first_by_its_request_id() {
    let mut rig = Rig::new(10);
    let mut first = rig.submit(1, request("r", &[5, 6, 7, 8, 9], 4));
    let beside =
        |id: &str| SequenceRequest { sibling_of: Some("r".into()), ..request(id, &[5, 6, 7, 8, 9], 4) };
    let mut second = rig.submit(2, beside("r-1"));
    let plan = rig.plan().await;
    assert_eq!(plan.joins.iter().map(|join| join.sequence).collect::<Vec<_>>(), [1]);
    rig.report(plan);
    let plan = rig.plan().await;
    let joins: Vec<_> = plan.joins.iter().map(|join| (join.sequence, join.cached)).collect();
    assert_eq!(joins, [(2, 4)], "all but the last token of its prompt");
    rig.report(plan);
    let wanted = answer(&[5, 6, 7, 8, 9], 4);
    let (tokens, end) = rig.lead(&mut second).await;
    assert_eq!((tokens, end), (wanted.clone(), SequenceEnd::Length));
    assert_eq!(rig.lead(&mut first).await.0, wanted);
}

#[tokio::test]
async fn sequences_submitted_together_share_steps_and_are_answered() {
    let mut rig = Rig::new(10);
    let mut first = rig.submit(1, request("a", &[1, 2, 3], 5));
    let mut second = rig.submit(2, request("b", &[4], 3));
    let plan = rig.plan().await;
    assert_eq!(plan.joins.iter().map(|join| join.sequence).collect::<Vec<_>>(), [1, 2], "one batch");
    rig.report(plan);
    assert_eq!(rig.lead(&mut second).await, (answer(&[4], 3), SequenceEnd::Length));
    assert_eq!(rig.lead(&mut first).await, (answer(&[1, 2, 3], 5), SequenceEnd::Length));
    let text = rig.metrics.render();
    assert!(text.contains("foggara_queue_wait_seconds_count{model=\"m\"} 2"), "{text}");
}

#[tokio::test]
async fn tokens_of_experts_are_summed_and_exported() {
    let mut rig = Rig::new(10);
    let mut events = rig.submit(1, request("a", &[1, 2, 3], 2));
    for tokens in [6, 2] {
        let plan = rig.plan().await;
        let mut report = rig.table.execute(plan);
        report.experts = vec![ExpertCount { layer: 1, expert: 5, tokens }];
        rig.send(wire::leader_message::Message::Report(report.into()));
    }
    while limited(events.recv()).await.expect("more").expect("no error").end.is_none() {}
    assert_eq!(rig.drivers.experts().of("m"), super::ExpertLoad::from([((1, 5), 8)]));
    let text = rig.metrics.render();
    assert!(text.contains("foggara_expert_tokens_total{expert=\"5\",layer=\"1\",model=\"m\"} 8"), "{text}");
}

#[tokio::test]
async fn a_cancelled_sequence_is_dropped_and_its_request_id_is_free_again() {
    let mut rig = Rig::new(10);
    let _events = rig.submit(1, request("a", &[1, 2], 100));
    let plan = rig.plan().await;
    rig.report(plan);
    rig.cancel("a", 1);
    let mut again = rig.submit(2, request("a", &[5], 2));
    // The cancellation of a stream that has ended is nobody else's.
    rig.cancel("a", 1);
    let mut dropped = false;
    let tokens = loop {
        let plan = rig.plan().await;
        dropped |= plan.drops.contains(&1);
        rig.report(plan);
        if dropped {
            break rig.lead(&mut again).await.0;
        }
    };
    assert_eq!(tokens, answer(&[5], 2));
}

#[tokio::test]
async fn a_sequence_without_a_listener_ends_when_nobody_comes() {
    let mut rig = Rig::over(Table::default(), 10, Duration::ZERO);
    drop(rig.submit(1, request("never", &[1], 100)));
    drop(rig.submit(2, request("a", &[1, 2], 100)));
    let events = rig.submit(3, request("b", &[1, 2], 100));
    let plan = rig.plan().await;
    assert_eq!(plan.joins.len(), 1, "whoever has gone before is not begun");
    rig.report(plan);
    drop(events);
    rig.lead_until_dropped(3).await;
}

#[tokio::test]
async fn a_sequence_without_a_listener_goes_on_and_another_stream_takes_it_up() {
    let mut rig = Rig::new(10);
    let first = rig.submit(1, request("a", &[1, 2], 30));
    for _ in 0..4 {
        let plan = rig.plan().await;
        rig.report(plan);
    }
    drop(first);
    rig.command(DriverCommand::Lost { request_id: "a".into(), listener: 1 });
    for _ in 0..4 {
        let plan = rig.plan().await;
        assert!(plan.drops.is_empty(), "it goes on");
        rig.report(plan);
    }
    // One that has two tokens, and one that has none.
    let whole = answer(&[1, 2], 30);
    let known = SequenceRequest { tokens: [&[1, 2], &whole[..2]].concat(), ..request("a", &[1, 2], 30) };
    let mut second = rig.submit(2, known);
    let mut third = rig.submit(3, request("a", &[1, 2], 30));
    let (rest, end) = rig.lead(&mut second).await;
    assert_eq!((&rest[..], end), (&whole[2..], SequenceEnd::Length));
    assert_eq!(rig.lead(&mut third).await, (whole, SequenceEnd::Length));
}

#[tokio::test]
async fn a_sequence_ends_when_the_last_of_its_listeners_says_so() {
    let mut rig = Rig::new(10);
    let (_first, _second) =
        (rig.submit(1, request("a", &[1, 2], 200)), rig.submit(2, request("a", &[1, 2], 200)));
    rig.cancel("a", 1);
    rig.cancel("a", 1);
    for _ in 0..5 {
        let plan = rig.plan().await;
        assert!(plan.drops.is_empty(), "somebody listens");
        rig.report(plan);
    }
    // It broke off first, and only then it was said that nobody wants it.
    rig.command(DriverCommand::Lost { request_id: "a".into(), listener: 2 });
    rig.cancel("a", 2);
    rig.lead_until_dropped(1).await;
}

#[tokio::test]
async fn a_request_id_sent_twice_is_one_request_and_another_is_refused() {
    let mut rig = Rig::new(10);
    let asked = || SequenceRequest { envelope: vec![5], ..request("a", &[1, 2], 6) };
    let mut first = rig.submit(1, asked());
    let mut second = rig.submit(2, asked());
    let mut other = rig.submit(3, request("a", &[1, 2], 7));
    let error = limited(other.recv()).await.expect("an answer").expect_err("refused");
    assert_eq!(error, GenerateError::Duplicate("a".into()));
    let found = rig.drivers.find("a").expect("it is driven here");
    assert_eq!((found.group, found.prompt, found.envelope), (Some(1), vec![1, 2], vec![5]));
    let plan = rig.plan().await;
    assert_eq!(plan.joins.len(), 1, "it is computed once");
    rig.report(plan);
    for events in [&mut first, &mut second] {
        assert_eq!(rig.lead(events).await, (answer(&[1, 2], 6), SequenceEnd::Length));
    }
    assert!(rig.drivers.find("a").is_some(), "it is kept for a while");
}

/// What a leader holds of sequences that another driver gave it: it died before it heard of the last two of its plans.
async fn left_behind(requests: &[SequenceRequest], reported: usize) -> Table {
    let mut rig = Rig::new(10);
    let received: Vec<Received> =
        requests.iter().zip(1..).map(|(request, id)| rig.submit(id, request.clone())).collect();
    for _ in 0..reported {
        let plan = rig.plan().await;
        rig.report(plan);
    }
    for _ in 0..2 {
        let plan = rig.plan().await;
        rig.table.execute(plan);
    }
    drop(received);
    rig.table
}

#[tokio::test]
async fn a_driver_takes_over_what_another_left() {
    let asked = |id: &str, max_tokens| SequenceRequest {
        envelope: id.as_bytes().to_vec(),
        ..request(id, &[1, 2, id.len() as u32], max_tokens)
    };
    let requests = [asked("running", 40), asked("ended", 3), asked("unwanted", 40)];
    let table = left_behind(&requests, 2).await;
    assert_eq!(table.len(), 3);
    let mut rig = Rig::over(table, 10, Duration::from_millis(200));
    assert_eq!(rig.drivers.find("running").map(|found| found.envelope), Some(b"running".to_vec()));
    assert_eq!(rig.drivers.find("ended").map(|found| found.group), Some(Some(1)), "it is kept");
    let mut running = rig.submit(11, requests[0].clone());
    assert_eq!(rig.lead(&mut running).await.0, answer(&requests[0].tokens, 40));
    // Nobody comes for the third one.
    let mut dropped = rig.drivers.find("unwanted").is_none();
    while !dropped {
        let plan = rig.plan().await;
        dropped = plan.drops.contains(&3);
        rig.report(plan);
    }
    let text = rig.metrics.render();
    assert!(text.contains("foggara_adopted_sequences_total{model=\"m\"} 2"), "{text}");
}

#[tokio::test]
async fn what_cannot_be_taken_over_begins_again() {
    let with = |id: &str, change: fn(&mut SequenceRequest)| {
        let mut request = request(id, &[1, 2, 3], 12);
        change(&mut request);
        request
    };
    let requests = [with("a", |_| {}), with("b", |r| r.params.logprobs = Some(1))];
    let table = left_behind(&requests, 6).await;
    for (what, lie) in [
        ("envelope", (|held| held.envelope = vec![255; 4]) as fn(&mut HeldSequence)),
        ("blocks", |held| held.blocks = vec![9_999]),
        ("prompt", |held| held.reading_prompt = true),
        ("outputs", |_| {}),
    ] {
        let mut table = table.clone();
        table.lie(lie);
        let mut rig = Rig::over(table, 10, FOREVER);
        let mut received = rig.submit(11, requests[1].clone());
        let (tokens, _) = rig.lead(&mut received).await;
        assert_eq!(tokens, answer(&[1, 2, 3], 12), "{what}");
    }
}

#[tokio::test]
async fn what_cannot_be_taken_is_refused_with_its_reason() {
    let mut rig = Rig::new(2);
    let mut kept = vec![rig.submit(1, request("a", &[1], 100))];
    let refused = async |mut received: Received| {
        limited(received.recv()).await.expect("an answer").expect_err("refused")
    };
    assert_eq!(refused(rig.submit(2, request("a", &[9], 1))).await, GenerateError::Duplicate("a".into()));
    let GenerateError::Invalid { field, reason } = refused(rig.submit(3, request("b", &[1], 1000))).await
    else {
        panic!("it can never fit")
    };
    assert_eq!((field, reason.contains("256")), ("max_tokens", true), "{reason}");
    // One waits in the plan, the others until there are no places left.
    let plan = rig.plan().await;
    rig.report(plan);
    let mut full = None;
    for i in 0..100 {
        let mut events = rig.submit(10 + i, request(&format!("q{i}"), &[1], 100));
        rig.cancel("nobody", 9999);
        tokio::task::yield_now().await;
        match events.try_recv() {
            Ok(Err(error)) => {
                full = Some(error);
                break;
            }
            _ => kept.push(events),
        }
    }
    let Some(GenerateError::QueueFull { model, limit, retry_after }) = full else { panic!("{full:?}") };
    assert_eq!((model.as_str(), limit), ("m", 2));
    assert!(retry_after >= Duration::from_secs(1));
    assert!(kept.len() >= 2, "the queue holds what it says");
}

#[tokio::test]
async fn whoever_waits_past_its_deadline_is_refused_though_nothing_else_happens() {
    let mut rig = Rig::new(100);
    let long: Vec<Received> =
        (0..16).map(|i| rig.submit(i, request(&format!("long {i}"), &[1], 16))).collect();
    let plan = rig.plan().await;
    assert!(!plan.joins.is_empty());
    // Nobody reports, so nobody leaves; what is sent afterwards waits.
    let late =
        |deadline_ms| SequenceRequest { deadline_ms: Some(deadline_ms), ..request("late", &[1; 200], 2) };
    let mut received = rig.submit(99, late(30));
    let error = limited(received.recv()).await.expect("an answer").expect_err("refused");
    assert_eq!(error, GenerateError::DeadlineExceeded { deadline_ms: 30 });
    // Its request id is free again, and who has time enough is answered.
    let mut again = rig.submit(100, late(1_000_000));
    rig.report(plan);
    assert_eq!(rig.lead(&mut again).await, (answer(&[1; 200], 2), SequenceEnd::Length));
    drop(long);
}

#[tokio::test]
async fn tenants_enter_in_turn() {
    let mut rig = Rig::new(100);
    // One step's worth of prompt each, so that they enter one by one.
    let of = |tenant: &str, id: u64| SequenceRequest {
        tenant: tenant.into(),
        ..request(&format!("{id}"), &[1; 16], 1)
    };
    let mut received: Vec<Received> = (1..=4).map(|id| rig.submit(id, of("many", id))).collect();
    received.push(rig.submit(5, of("one", 5)));
    let mut joined = Vec::new();
    while joined.len() < 5 {
        let plan = rig.plan().await;
        joined.extend(plan.joins.iter().map(|join| join.sequence));
        rig.report(plan);
    }
    assert_eq!(joined, [1, 5, 2, 3, 4]);
    for events in &mut received {
        limited(events.recv()).await.expect("an answer").expect("no error");
    }
}

#[tokio::test]
async fn whoever_waits_is_told_when_the_driver_ends() {
    for (cause, expected) in [
        ("out of order", "report 9 came while Some(1) was expected"),
        ("nonsense", "the leader sent something else than a report"),
        ("closed", "the leader closed the connection"),
        ("lease", "the lease has ended"),
        ("error", "broken"),
    ] {
        let mut rig = Rig::new(10);
        let mut events = rig.submit(1, request("a", &[1, 2], 100));
        rig.plan().await;
        let report = wire::StepReport { driver_epoch: 7, number: 9, ..Default::default() };
        match cause {
            "out of order" => rig.send(wire::leader_message::Message::Report(report)),
            "nonsense" => rig.send(wire::leader_message::Message::Attached(
                Attached { limits: LIMITS, sequences: vec![] }.into(),
            )),
            "closed" => rig.reports = None,
            "lease" => rig.commands = None,
            _ => {
                let reports = rig.reports.as_ref().expect("not ended");
                reports.send(Err(Status::aborted("broken"))).expect("driven");
            }
        }
        let error = limited(events.recv()).await.expect("told").expect_err("lost");
        assert!(matches!(error, GenerateError::Unavailable { .. }), "{cause}: {error:?}");
        let stopped = limited(rig.ended).await.expect("no panic");
        assert_eq!((stopped.reason.as_str(), stopped.fault), (expected, cause == "out of order"));
    }
}

#[tokio::test]
async fn reports_of_another_lease_are_ignored() {
    let mut rig = Rig::new(10);
    let mut events = rig.submit(1, request("a", &[1, 2], 2));
    let old = wire::StepReport { driver_epoch: 6, number: 1, ..Default::default() };
    rig.send(wire::leader_message::Message::Report(old));
    assert_eq!(rig.lead(&mut events).await.0, answer(&[1, 2], 2));
}
