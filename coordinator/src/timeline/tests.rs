//! Tables: what is told, and what the timeline says then.

use foggara_proto::sequence::{SequenceEnd, SequenceParams, SequenceRequest};

use super::gaps::{SLOWEST, STALL_US};
use super::*;
use crate::batcher::HeldUp;

fn request(id: &str) -> SequenceRequest {
    SequenceRequest::new(id, vec![1; 10], 10, SequenceParams::default())
}

fn began(now: Micros, phase: PhaseKind) -> Began<'static> {
    Began {
        now,
        group: 3,
        driver_epoch: 7,
        model: "m",
        ahead: 2,
        running: 5,
        phase,
        held: Held { places_us: 100, ..Held::default() },
    }
}

fn step(number: u64, prefill_rows: u32) -> Step {
    Step {
        number,
        rows: prefill_rows + 1,
        prefill_rows,
        wait_us: 1,
        compute_us: 20,
        collective_us: 5,
        sample_us: 2,
        unplanned: false,
    }
}

fn totals(driven: &Driven, now: Micros) -> [u64; 4] {
    [PhaseKind::Queue, PhaseKind::Preempted, PhaseKind::Prefill, PhaseKind::Decode]
        .map(|kind| driven.total_us(kind, now))
}

#[test]
fn a_life_with_a_preemption_is_told_in_phases() {
    let mut driven = Driven::new(&request("r"), 0, began(1_000, PhaseKind::Queue));
    assert_eq!(totals(&driven, 1_500), [500, 0, 0, 0], "while it waits");
    driven.entered(2_000, 4, Held { places_us: 700, memory_us: 50, prompts_us: 0 });
    driven.read(2_400, 4, step(1, 4));
    driven.read(2_900, 2, step(2, 2));
    driven.tokens(2_900, 1, step(2, 2));
    driven.tokens(3_000, 1, step(3, 0));
    driven.preempted(3_500, Held { places_us: 800, ..Held::default() });
    driven.entered(5_500, 11, Held { places_us: 800, memory_us: 1_900, prompts_us: 0 });
    driven.read(6_000, 1, step(9, 1));
    driven.tokens(6_000, 1, step(9, 1));
    driven.tokens(6_250, 1, step(10, 30));
    driven.ended(7_000, End::Whole(SequenceEnd::Length));
    driven.ended(9_000, End::DriverLost);
    assert_eq!(totals(&driven, 99_000), [1_000, 2_000, 900 + 500, 600 + 1_000]);
    let phases: Vec<_> = driven.phases.first.iter().map(|p| (p.kind.name(), p.from, p.to)).collect();
    let expected = [
        ("queue", 1_000, Some(2_000)),
        ("prefill", 2_000, Some(2_900)),
        ("decode", 2_900, Some(3_500)),
        ("preempted", 3_500, Some(5_500)),
        ("prefill", 5_500, Some(6_000)),
        ("decode", 6_000, Some(7_000)),
    ];
    assert_eq!(phases, expected);
    // Only what had not been summed up when it came, or was preempted, held it up.
    assert_eq!(driven.held, Held { places_us: 600, memory_us: 50 + 1_900, prompts_us: 0 });
    assert_eq!((driven.cached_tokens, driven.preemptions, driven.tokens), (4, 1, 4));
    assert_eq!(
        (driven.first_token, driven.end),
        (Some(2_900), Some((7_000, End::Whole(SequenceEnd::Length))))
    );
    let rows: Vec<_> = driven.chunks.first.iter().map(|chunk| (chunk.rows, chunk.step.number)).collect();
    assert_eq!(rows, [(4, 1), (2, 2), (1, 9)]);
    let gaps = &driven.gaps;
    assert_eq!((gaps.count, gaps.total_us, gaps.beside_prefill_us), (2, 100 + 250, 250));
    assert_eq!((gaps.wait_us, gaps.compute_us, gaps.collective_us, gaps.sample_us), (2, 40, 10, 4));
    let slow: Vec<_> =
        gaps.slowest().iter().map(|t| (t.index, t.gap_us, t.preempted, t.step.number)).collect();
    assert_eq!(slow, [(2, 3_000, true, 9), (3, 250, false, 10), (1, 100, false, 3)]);
}

#[test]
fn tokens_that_were_on_their_way_do_not_end_the_wait_of_the_preempted() {
    let mut driven = Driven::new(&request("r"), 0, began(1_000, PhaseKind::Queue));
    driven.entered(1_100, 0, Held::default());
    driven.tokens(1_200, 1, step(1, 4));
    driven.preempted(1_250, Held::default());
    driven.tokens(1_300, 1, step(2, 0));
    driven.entered(2_250, 0, Held::default());
    driven.tokens(2_300, 1, step(5, 2));
    driven.ended(2_300, End::Cancelled);
    assert_eq!(totals(&driven, 9_000), [100, 1_000, 100 + 50, 50]);
    let slow: Vec<_> = driven.gaps.slowest().iter().map(|token| (token.gap_us, token.preempted)).collect();
    assert_eq!(slow, [(1_000, true), (100, false)]);
}

#[test]
fn who_is_taken_over_goes_on_where_it_is() {
    let mut driven = Driven::new(&request("r"), 6, began(1_000, PhaseKind::Decode));
    assert!(driven.adopted && driven.known_tokens == 6);
    driven.listener(1_100, true);
    driven.tokens(1_200, 1, step(1, 0));
    driven.tokens(1_300, 1, step(2, 0));
    driven.ended(1_300, End::DriverLost);
    assert_eq!(totals(&driven, 2_000), [0, 0, 0, 300]);
    // How long before this driver the token before its first one came, it does not know.
    assert_eq!((driven.gaps.count, driven.gaps.slowest()[0].index), (1, 7));
    assert_eq!(driven.end.map(|(_, end)| end.name()), Some("driver lost"));
}

#[test]
fn tokens_of_one_step_have_no_time_between_them() {
    let mut driven = Driven::new(&request("r"), 0, began(1_000, PhaseKind::Queue));
    driven.entered(1_100, 0, Held::default());
    for (now, count) in [(1_200, 1), (1_300, 3), (1_350, 1)] {
        driven.tokens(now, count, step(1, 0));
    }
    assert_eq!((driven.tokens, driven.gaps.count, driven.gaps.total_us), (5, 4, 150));
    let slowest: Vec<_> = driven.gaps.slowest().iter().map(|token| (token.index, token.gap_us)).collect();
    assert_eq!(slowest, [(1, 100), (4, 50)]);
}

#[test]
fn choices_are_told_by_their_numbers() {
    for (id, first, expected) in
        [("r", None, ("r", 0)), ("r#3", Some("r"), ("r", 3)), ("a#2", None, ("a#2", 0))]
    {
        let request = SequenceRequest { sibling_of: first.map(str::to_owned), ..request(id) };
        let driven = Driven::new(&request, 0, began(1, PhaseKind::Queue));
        assert_eq!((driven.request_id.as_str(), driven.choice), expected);
    }
}

#[test]
fn however_long_it_is_it_takes_little_memory() {
    let mut driven = Driven::new(&request("r"), 0, began(0, PhaseKind::Queue));
    let mut now = 0;
    for _ in 0..1_000 {
        now += 10;
        driven.entered(now, 0, Held::default());
        now += 10;
        driven.read(now, 3, step(1, 3));
        driven.tokens(now, 1, step(1, 3));
        driven.listener(now, true);
        now += 10;
        driven.preempted(now, Held::default());
    }
    driven.ended(now, End::Cancelled);
    let most = MOST_ENTRIES as u64;
    assert_eq!((driven.phases.first.len(), driven.phases.more), (MOST_ENTRIES, 3_001 - most));
    assert_eq!((driven.chunks.first.len(), driven.chunks.more), (MOST_ENTRIES, 1_000 - most));
    assert_eq!(driven.more_rows, 3 * (1_000 - most));
    assert_eq!(driven.listeners.more, 1_000 - most);
    assert_eq!(totals(&driven, now), [10, 9_990, 10_000, 10_000], "what is left out counts");
    assert_eq!(driven.gaps.slowest().len(), SLOWEST);
    assert!(driven.phases.first.iter().all(|phase| phase.to.is_some()));
}

#[test]
fn the_slowest_gaps_are_kept() {
    let mut gaps = Gaps::default();
    for (index, gap_us) in [5, 300_000, 7, 1, 9, 300_000, 2, 3, 4, 8, 6, 250_000].into_iter().enumerate() {
        gaps.push(SlowToken { index: index as u64, at: 0, gap_us, preempted: false, step: Step::default() });
    }
    let kept: Vec<_> = gaps.slowest().iter().map(|token| (token.gap_us, token.index)).collect();
    assert_eq!(kept, [(300_000, 1), (300_000, 5), (250_000, 11), (9, 4), (8, 9), (7, 2), (6, 10), (5, 0)]);
    assert_eq!((gaps.stalls, gaps.stalls_us), (2, 600_000), "as long as {STALL_US} is none yet");
}

#[test]
fn causes_are_added_up() {
    let mut held = HeldTimes::default();
    for (now, cause) in [
        (100, Some(HeldUp::Places)),
        (150, Some(HeldUp::Memory)),
        (151, Some(HeldUp::Memory)),
        (170, None),
        (900, Some(HeldUp::Prompts)),
    ] {
        held.turn(now, cause);
    }
    assert_eq!(held.at(1_000), Held { places_us: 50, memory_us: 20, prompts_us: 100 });
}

#[test]
fn a_front_door_counts_tokens_and_patience() {
    let mut front = Front { arrived: 100, ..Front::default() };
    front.tokens(300, 0);
    assert_eq!(front.first_token, None, "an event without tokens");
    front.tokens(400, 2);
    front.tokens(500, 1);
    front.client(30);
    front.client(20);
    for at in 0..100 {
        front.placed(Placement { at, group: 1, coordinator: 1, driver_epoch: 1, choice: 0 });
    }
    assert_eq!((front.first_token, front.last_token, front.completion_tokens), (Some(400), Some(500), 3));
    assert_eq!((front.client_us, front.client_longest_us), (50, 30));
    assert_eq!((front.placements.first.len(), front.placements.more), (MOST_ENTRIES, 36));
    assert_eq!(front.duration_us(700), 600);
    front.end = Some((650, "stop".into()));
    assert_eq!(front.duration_us(700), 550);
}
