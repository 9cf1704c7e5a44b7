//! One driver against a leader in the same task.

use std::time::Duration;

use foggara_proto::sequence::{SequenceEnd, SequenceEvent, SequenceRequest};
use foggara_proto::step::{Attached, ExpertCount, StepPlan};
use foggara_proto::wire::worker as wire;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Status;

use super::drive::Drive;
use super::fake_leader::{LIMITS, Table, answer, request};
use super::{DriverCommand, Events, ExpertLoads};
use crate::metrics::Metrics;
use crate::router::GenerateError;

type Received = mpsc::UnboundedReceiver<Result<SequenceEvent, GenerateError>>;

/// A driver, and the test in the leader's place.
struct Rig {
    commands: Option<mpsc::Sender<DriverCommand>>,
    plans: mpsc::Receiver<wire::DriverMessage>,
    reports: Option<mpsc::UnboundedSender<Result<wire::LeaderMessage, Status>>>,
    table: Table,
    ended: tokio::task::JoinHandle<String>,
    metrics: Metrics,
    experts: ExpertLoads,
}

impl Rig {
    fn new(queue: usize) -> Self {
        let (commands, mut received) = mpsc::channel(100);
        let (to_leader, plans) = mpsc::channel(8);
        let (reports, from_leader) = mpsc::unbounded_channel();
        let metrics = Metrics::new();
        let experts = ExpertLoads::default();
        let drive =
            Drive::new("m".into(), 7, &LIMITS, queue, to_leader, metrics.driver(1, 7, "m"), experts.clone());
        let mut from_leader = UnboundedReceiverStream::new(from_leader);
        let ended = tokio::spawn(async move { drive.run(&mut received, &mut from_leader).await });
        let (commands, reports) = (Some(commands), Some(reports));
        Self { commands, plans, reports, table: Table::default(), ended, metrics, experts }
    }

    fn command(&self, command: DriverCommand) {
        self.commands.as_ref().expect("not ended").try_send(command).expect("room");
    }

    fn submit(&self, id: u64, request: SequenceRequest) -> Received {
        let (events, received): (Events, _) = mpsc::unbounded_channel();
        self.command(DriverCommand::Submit { id, request: Box::new(request), events });
        received
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
    assert_eq!(rig.experts.of("m"), super::ExpertLoad::from([((1, 5), 8)]));
    let text = rig.metrics.render();
    assert!(text.contains("foggara_expert_tokens_total{expert=\"5\",layer=\"1\",model=\"m\"} 8"), "{text}");
}

#[tokio::test]
async fn a_cancelled_sequence_is_dropped_and_its_request_id_is_free_again() {
    let mut rig = Rig::new(10);
    let _events = rig.submit(1, request("a", &[1, 2], 100));
    let plan = rig.plan().await;
    rig.report(plan);
    rig.command(DriverCommand::Cancel { id: 1 });
    let mut again = rig.submit(2, request("a", &[5], 2));
    // The cancellation of a sequence that has ended is nobody else's.
    rig.command(DriverCommand::Cancel { id: 1 });
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
async fn a_listener_that_has_gone_is_noticed_with_its_next_token() {
    let mut rig = Rig::new(10);
    drop(rig.submit(1, request("never", &[1], 100)));
    drop(rig.submit(2, request("a", &[1, 2], 100)));
    let events = rig.submit(3, request("b", &[1, 2], 100));
    let plan = rig.plan().await;
    assert_eq!(plan.joins.len(), 1, "whoever has gone before is not begun");
    rig.report(plan);
    drop(events);
    loop {
        let plan = rig.plan().await;
        let dropped = plan.drops.contains(&3);
        rig.report(plan);
        if dropped {
            return;
        }
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
        rig.command(DriverCommand::Cancel { id: 9999 });
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
        assert_eq!(limited(rig.ended).await.expect("no panic"), expected);
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
