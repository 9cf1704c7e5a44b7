//! Adapters: who may be called what, where they are, and what ends with what.

use super::adapters::*;
use super::tests::*;
use super::*;

fn adapter(deployment: &str, path: &str) -> Adapter {
    let manifest = "m".repeat(100);
    Adapter { id: 77, deployment: deployment.into(), path: path.into(), manifest, created: 9 }
}

fn put(name: &str, path: &str) -> Command {
    Command::PutAdapter { name: name.into(), adapter: adapter("m", path) }
}

fn loaded(rank: u32, adapter: u64, failed: Option<&str>) -> Command {
    Command::AdapterLoaded { group: 3, epoch: 4, rank, adapter, failed: failed.map(str::to_owned) }
}

/// What [`Run::with_group`] has, and adapters "a" (5) and "b" (6) of "m".
fn with_adapters() -> Run {
    let mut run = Run::with_group();
    assert_eq!(run.apply(put("a", "/a")), Outcome::Done);
    assert_eq!(run.apply(put("b", "/b")), Outcome::Done);
    run
}

fn presence(run: &Run, id: u64) -> Presence<'_> {
    run.state.presence(3, &run.state.groups[&3], id)
}

#[test]
fn names_are_of_one_adapter_or_one_deployment() {
    let mut run = with_adapters();
    assert_eq!(run.state.adapters["a"].id, 5, "what a command says of its number is not believed");
    assert_eq!(run.apply(put("a", "/a")), Outcome::Done, "the same again");
    assert_eq!(run.state.adapters["a"].id, 5);
    let unknown = Command::PutAdapter { name: "c".into(), adapter: adapter("unknown", "/c") };
    for (command, says) in [
        (put("a", "/other"), "remove it first"),
        (put("m", "/a"), "a deployment is called `m`"),
        (unknown, "no deployment is called `unknown`"),
        (Command::PutDeployment { name: "a".into(), deployment: deployment(1) }, "an adapter is called `a`"),
        (Command::RemoveAdapter { name: "m".into() }, "no adapter is called `m`"),
    ] {
        let outcome = run.apply(command);
        assert!(matches!(&outcome, Outcome::Refused(why) if why.contains(says)), "{outcome:?}");
    }
    assert_eq!(run.apply(Command::RemoveAdapter { name: "a".into() }), Outcome::Done);
    assert!(refused(&run.apply(Command::RemoveAdapter { name: "a".into() })));
    assert_eq!(run.apply(put("a", "/a")), Outcome::Done);
    assert_eq!(run.state.adapters["a"].id, 7, "numbers are never used again");
}

#[test]
fn a_group_has_an_adapter_when_every_rank_has() {
    let mut run = with_adapters();
    assert_eq!(presence(&run, 5), Presence::Loading);
    assert_eq!(run.apply(loaded(0, 5, None)), Outcome::Done);
    assert_eq!(presence(&run, 5), Presence::Loading);
    let long = "é".repeat(2 * MAX_OBSTACLE);
    assert_eq!(run.apply(loaded(1, 5, Some(&long))), Outcome::Done);
    let Presence::Failed(1, reason) = presence(&run, 5) else { panic!("{:?}", presence(&run, 5)) };
    assert_eq!(reason.chars().count(), MAX_OBSTACLE, "bounded");
    assert_eq!(run.apply(loaded(1, 5, None)), Outcome::Done);
    assert_eq!((presence(&run, 5), presence(&run, 6)), (Presence::Ready, Presence::Loading));
    run.apply(loaded(1, 5, Some("lost")));
    assert_eq!(presence(&run, 5), Presence::Failed(1, "lost"), "the last word counts");
    let old = Command::AdapterLoaded { group: 3, epoch: 3, rank: 0, adapter: 5, failed: None };
    for wrong in [loaded(2, 5, None), loaded(0, 9, None), old] {
        assert!(refused(&run.apply(wrong.clone())), "{wrong:?}");
    }
    run.apply(Command::PutDeployment { name: "n".into(), deployment: deployment(1) });
    run.apply(Command::PutAdapter { name: "c".into(), adapter: adapter("n", "/c") });
    assert!(refused(&run.apply(loaded(0, run.state.adapters["c"].id, None))), "another deployment's");
}

#[test]
fn what_was_loaded_is_forgotten_with_the_adapter_and_with_the_group() {
    let mut run = with_adapters();
    run.apply(loaded(0, 5, None));
    run.apply(loaded(0, 6, None));
    run.apply(Command::RemoveAdapter { name: "a".into() });
    assert_eq!(run.state.adapters_loaded[&3].keys().copied().collect::<Vec<_>>(), [6]);
    run.apply(Command::WorkerLost { id: 1 });
    assert!(run.state.adapters_loaded.is_empty(), "the group has ended");
    assert!(run.state.adapters.contains_key("b"), "the next one loads it again");
    run.apply(Command::RemoveDeployment { name: "m".into() });
    assert!(run.state.adapters.is_empty());
}

#[test]
fn adapters_and_their_manifests_are_bounded() {
    let mut run = Run::with_group();
    for i in 0..MAX_ADAPTERS {
        assert_eq!(run.apply(put(&i.to_string(), "/a")), Outcome::Done);
    }
    assert!(refused(&run.apply(put("one more", "/a"))));
    run.apply(Command::RemoveAdapter { name: "0".into() });
    let used = 100 * (MAX_ADAPTERS - 1);
    let of = |bytes| Adapter { manifest: "x".repeat(bytes), ..adapter("m", "/a") };
    let large = |bytes| Command::PutAdapter { name: "large".into(), adapter: of(bytes) };
    assert!(refused(&run.apply(large(MAX_MANIFESTS_BYTES - used + 1))));
    assert_eq!(run.apply(large(MAX_MANIFESTS_BYTES - used)), Outcome::Done);
    let model = Deployment { manifest: "x".into(), ..deployment(1) };
    assert!(refused(&run.apply(Command::PutDeployment { name: "n".into(), deployment: model })));
}
