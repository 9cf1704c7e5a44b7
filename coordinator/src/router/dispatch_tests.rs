//! Choosing a group, going on after a fault, and errors over the wire.

use foggara_proto::sequence::{SequenceParams, TokenOutput};
use foggara_proto::shape::Shape;

use super::*;
use crate::cluster::state::adapters::Adapter;
use crate::cluster::state::{
    Capabilities, CollectiveKind, Command, Deployment, Envelope, Formation, Member, Outcome, Worker,
};

fn request(prompt: &[u32], max_tokens: u32) -> SequenceRequest {
    let params = SequenceParams {
        max_tokens,
        temperature: 0.0,
        top_p: 1.0,
        top_k: 0,
        seed: 1,
        stop_token_ids: vec![2],
        logprobs: Some(0),
        prompt_logprobs: true,
        ..SequenceParams::default()
    };
    SequenceRequest::new("r", prompt.to_vec(), prompt.len(), params)
}

fn output(token: u32) -> TokenOutput {
    TokenOutput { token, logprob: Some(-1.0), top: vec![] }
}

fn event(prompt: &[u32], tokens: &[u32]) -> SequenceEvent {
    let outputs = |ids: &[u32]| ids.iter().copied().map(output).collect();
    SequenceEvent { prompt: outputs(prompt), tokens: outputs(tokens), ..SequenceEvent::default() }
}

fn ids(outputs: &[TokenOutput]) -> Vec<u32> {
    outputs.iter().map(|output| output.token).collect()
}

#[test]
fn a_sequence_goes_on_with_what_it_has() {
    let mut progress =
        Progress { request: request(&[5, 6, 7], 4), prompt_told: 0, came: Instant::now(), accepted: false };
    let mut skip = 0;
    // Lost in the middle of the prompt: the next driver tells it from the beginning.
    assert_eq!(ids(&progress.take(event(&[5, 6], &[]), &mut skip).prompt), [5, 6]);
    assert!(progress.resume().params.prompt_logprobs);
    let mut skip = progress.prompt_told;
    assert!(progress.take(event(&[5], &[]), &mut skip).prompt.is_empty(), "told already");
    assert_eq!(ids(&progress.take(event(&[6, 7], &[8]), &mut skip).prompt), [7], "only what is new");
    assert_eq!(skip, 0);
    // Lost after the first token: the prompt is not told again, and the answer goes on.
    let again = progress.resume();
    assert_eq!((again.tokens, again.prompt_len), (vec![5, 6, 7, 8], 3));
    assert!(!again.params.prompt_logprobs);
    assert_eq!(
        (again.params.max_tokens, again.params.seed),
        (4, 1),
        "counted from the prompt, same random numbers"
    );
    assert_eq!(progress.ended(), None);
}

#[test]
fn a_sequence_whose_last_word_was_lost_has_ended() {
    for (tokens, expected) in [
        (&[8, 9][..], None),
        (&[8, 9, 10, 11], Some(SequenceEnd::Length)),
        (&[8, 2], Some(SequenceEnd::StopToken)),
        (&[], None),
    ] {
        let mut progress =
            Progress { request: request(&[5], 4), prompt_told: 0, came: Instant::now(), accepted: true };
        progress.take(event(&[5], tokens), &mut 0);
        assert_eq!(progress.ended(), expected, "{tokens:?}");
    }
}

#[test]
fn only_a_newcomer_may_be_refused() {
    let full = GenerateError::QueueFull { model: "m".into(), limit: 3, retry_after: Duration::from_secs(2) };
    let unavailable = GenerateError::Unavailable { model: "m".into(), reason: "x".into() };
    let invalid = GenerateError::Invalid { field: "max_tokens", reason: "x".into() };
    for (error, newcomer, accepted) in [
        (full, false, true),
        (GenerateError::Duplicate("r".into()), false, true),
        (unavailable, true, true),
        (invalid, false, false),
        (GenerateError::DeadlineExceeded { deadline_ms: 5 }, false, false),
        (GenerateError::Internal("x".into()), false, false),
    ] {
        let mut progress =
            Progress { request: request(&[5], 4), prompt_told: 0, came: Instant::now(), accepted: false };
        assert_eq!(progress.retries(&error), newcomer, "{error:?}");
        progress.accepted = true;
        assert_eq!(progress.retries(&error), accepted, "{error:?}");
    }
}

#[test]
fn a_deadline_counts_from_arrival_whoever_is_asked() {
    let came = Instant::now().checked_sub(Duration::from_secs(5)).expect("a machine that is up for longer");
    let asked = SequenceRequest { deadline_ms: Some(60_000), ..request(&[5], 4) };
    let mut progress = Progress { request: asked, prompt_told: 0, came, accepted: false };
    let left = progress.resume().deadline_ms.expect("still there");
    assert!(left > 1_000 && left <= 55_000, "{left}");
    assert_eq!(progress.missed(), None);
    let missed = GenerateError::DeadlineExceeded { deadline_ms: 60_000 };
    assert_eq!(progress.told(GenerateError::DeadlineExceeded { deadline_ms: left }), missed);
    progress.request.deadline_ms = Some(4_000);
    assert_eq!(progress.resume().deadline_ms, Some(0));
    assert_eq!(progress.missed(), Some(GenerateError::DeadlineExceeded { deadline_ms: 4_000 }));
    progress.take(event(&[5], &[8]), &mut 0);
    assert_eq!(progress.missed(), None, "it has begun");
}

#[test]
fn errors_survive_the_wire() {
    for error in [
        GenerateError::QueueFull { model: "m".into(), limit: 3, retry_after: Duration::from_secs(2) },
        GenerateError::Invalid { field: "max_tokens", reason: "too many".into() },
        GenerateError::Duplicate("r".into()),
        GenerateError::DeadlineExceeded { deadline_ms: 1_500 },
    ] {
        assert_eq!(from_status(&to_status(&error)), error);
    }
    let other = to_status(&GenerateError::Unavailable { model: "m".into(), reason: "gone".into() });
    assert!(matches!(from_status(&other), GenerateError::Unavailable { .. }));
    for broken in [Code::Unknown, Code::Cancelled, Code::Unavailable, Code::NotFound, Code::DeadlineExceeded]
    {
        let status = tonic::Status::new(broken, "the connection broke");
        assert!(matches!(from_status(&status), GenerateError::Unavailable { .. }), "{broken:?}");
    }
}

fn apply(state: &mut ClusterState, command: Command) -> Outcome {
    state.apply(&Envelope { request_id: format!("{command:?}{}", state.groups.len()), command })
}

/// Two groups of "m", of which `ready` are ready and `driven` driven.
fn state(ready: usize, driven: usize) -> ClusterState {
    let mut state = ClusterState::default();
    let member = Member { addr: "a".into(), http_addr: "h".into(), pid: 1, draining: false };
    apply(&mut state, Command::RegisterMember { id: 1, member });
    let deployment = Deployment {
        model_path: "/m".into(),
        shape: Shape::tensor(1),
        replicas: 2,
        kv_tokens: 0,
        kv_dtype: "auto".into(),
        collective: "auto".into(),
        quantize: "none".into(),
        created: 0,
        manifest: String::new(),
    };
    apply(&mut state, Command::PutDeployment { name: "m".into(), deployment });
    for place in 0..2 {
        let worker = Worker {
            addr: "a".into(),
            collective_addr: "c".into(),
            host: "h".into(),
            pid: 1,
            incarnation: place.to_string(),
            capabilities: Capabilities::default(),
            group: None,
        };
        let Outcome::Worker(worker) = apply(&mut state, Command::RegisterWorker(Box::new(worker))) else {
            panic!("refused")
        };
        let form = Command::FormGroup(Formation {
            deployment: "m".into(),
            shape: Shape::SOLO,
            rank_weights: vec![],
            experts: vec![],
            ranks: vec![worker],
            collective: CollectiveKind::Solo,
            kv_blocks: 4,
            block_size: 16,
            key: [0; 16],
        });
        let Outcome::Group(group) = apply(&mut state, form) else { panic!("refused") };
        let epoch = state.groups[&group].epoch;
        if place < ready {
            apply(&mut state, Command::RankReady { group, epoch, rank: 0 });
        }
        if place < driven {
            apply(&mut state, Command::AssignDriver { group, coordinator: 1, replaces: 0 });
        }
    }
    state
}

#[test]
fn ready_and_driven_groups_can_be_chosen() {
    let groups: Vec<u64> = state(2, 2).groups.keys().copied().collect();
    for (ready, driven, expected) in [(2, 2, 2), (2, 1, 1), (1, 2, 1), (2, 0, 0), (0, 0, 0)] {
        let state = state(ready, driven);
        let found = candidates(&state, "m", &request(&[5], 4), |group| group as usize * 3);
        let ids: Vec<u64> = found.iter().map(|(target, _)| target.group).collect();
        assert_eq!(ids, groups[..expected], "{ready} {driven}");
        for (target, view) in found {
            assert_eq!((view.group, view.driver_epoch), (target.group, target.driver_epoch));
            assert_eq!((view.load, view.blocks, view.block_size), (target.group as usize * 3, 4, 16));
        }
        assert!(candidates(&state, "other", &request(&[5], 4), |_| 0).is_empty());
    }
}

#[test]
fn a_target_ends_with_its_lease() {
    let mut state = state(1, 1);
    let (target, _) = candidates(&state, "m", &request(&[5], 4), |_| 0)[0];
    assert!(target.is_current(&state));
    let replaces = target.driver_epoch;
    apply(&mut state, Command::AssignDriver { group: target.group, coordinator: 1, replaces });
    assert!(!target.is_current(&state));
    assert_eq!(waiting_for(&state, "m", &request(&[5], 4)), "2 groups, 1 ready");
    assert_eq!(waiting_for(&state, "none", &request(&[5], 4)), "no group is formed; 0 idle workers");
}

/// A request for an adapter, perhaps one that runs already.
fn adapted(adapter: u64, at: Option<u64>) -> SequenceRequest {
    let plain = request(&[5], 4);
    SequenceRequest { params: SequenceParams { adapter: Some(adapter), ..plain.params.clone() }, at, ..plain }
}

#[test]
fn a_request_for_an_adapter_goes_where_every_rank_has_it() {
    let mut state = state(2, 2);
    let groups: Vec<(u64, u64)> = state.groups.iter().map(|(id, group)| (*id, group.epoch)).collect();
    let adapter =
        Adapter { id: 0, deployment: "m".into(), path: "/a".into(), manifest: String::new(), created: 0 };
    apply(&mut state, Command::PutAdapter { name: "a".into(), adapter });
    let id = state.adapters["a"].id;
    let found = |state: &ClusterState, asked: &SequenceRequest| -> Vec<u64> {
        candidates(state, "m", asked, |_| 0).iter().map(|(target, _)| target.group).collect()
    };
    let asked = adapted(id, None);
    assert_eq!(found(&state, &asked), [0; 0]);
    assert_eq!(found(&state, &request(&[5], 4)).len(), 2, "others need not wait");
    assert_eq!(waiting_for(&state, "m", &asked), "its adapter is being loaded by 2 groups");
    assert_eq!(adapter_failed(&state, "m", &asked), None);
    assert_eq!(asked_for(&state, "m", &asked).as_deref(), Some("a"));
    let mut says = |(group, epoch): (u64, u64), failed: Option<&str>| {
        let failed = failed.map(str::to_owned);
        apply(&mut state, Command::AdapterLoaded { group, epoch, rank: 0, adapter: id, failed });
        state.clone()
    };
    let one_failed = says(groups[0], Some("no file"));
    assert_eq!(adapter_failed(&one_failed, "m", &asked), None, "the other may get it");
    let all_failed = says(groups[1], Some("no file"));
    let reason = adapter_failed(&all_failed, "m", &asked);
    assert_eq!(reason.as_deref(), Some("its adapter could not be loaded: rank 0: no file"));
    let one_has = says(groups[1], None);
    assert_eq!((found(&one_has, &asked), adapter_failed(&one_has, "m", &asked)), (vec![groups[1].0], None));
    // Removed: whoever runs goes on where it is.
    let mut removed = one_has.clone();
    apply(&mut removed, Command::RemoveAdapter { name: "a".into() });
    assert_eq!(found(&removed, &asked), [0; 0]);
    assert_eq!(found(&removed, &adapted(id, Some(groups[1].0))), [groups[1].0]);
    assert_eq!(asked_for(&removed, "m", &asked), None);
}
