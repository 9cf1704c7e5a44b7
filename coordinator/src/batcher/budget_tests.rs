//! How steps are filled.

use super::*;
use crate::batcher::Limits;
use crate::batcher::tests::request;
use foggara_proto::step::{SequenceOutput, StepReport};

const LIMITS: Limits = Limits {
    kv_blocks: 4_096,
    pools: 1,
    block_size: 16,
    step_rows: 256,
    sequences: 64,
    queue: 1_000,
    lease_ms: 0,
    drafts: 0,
};

/// A batcher that knows an engine: 10 ms for a step, 1 ms for a row.
fn batcher() -> Batcher {
    let mut batcher = Batcher::new(1, LIMITS);
    for i in 0..300 {
        let mut work = Work::default();
        (0..i % 9).for_each(|decode| work.add_decode(1 + decode * i % 700));
        let work = work.with_chunk(i * 7 % 50, 1 + i * 13 % 100, i % 2 == 0);
        batcher.cost.observe(work, f64::from(u32::try_from(10_000 + work.rows * 1_000).expect("small")));
    }
    batcher
}

/// Submits a prompt that begins as no other does.
fn submit(batcher: &mut Batcher, id: SequenceId, prompt: usize, answer: u32) {
    let mut tokens = vec![1; prompt];
    tokens[0] = u32::try_from(id).expect("small") + 2;
    batcher.submit(id, request(&tokens, answer), None).expect("fits");
}

/// Plans a step and reports that everybody in it got a token. Returns the rows of each chunk.
fn step(batcher: &mut Batcher) -> Vec<(SequenceId, u32)> {
    let plan = batcher.plan().expect("there is work");
    let done = |id: &SequenceId| batcher.sequences.get(id).is_some_and(|s| s.prefill_left() == 0);
    let output = |id: SequenceId| SequenceOutput {
        sequence: id,
        prompt: vec![],
        tokens: vec![foggara_proto::sequence::TokenOutput { token: 1, logprob: None, top: vec![] }],
        end: None,
    };
    let outputs = batcher.running.iter().copied().filter(done).map(output).collect();
    let report = StepReport { driver_epoch: 1, number: plan.number, outputs, ..StepReport::default() };
    batcher.report(report).expect("in order");
    plan.chunks.iter().map(|chunk| (chunk.sequence, chunk.tokens)).collect()
}

/// A batcher in which `streams` sequences stream.
fn streaming(streams: u64) -> Batcher {
    let mut batcher = batcher();
    for id in 0..streams {
        submit(&mut batcher, id, 8, 1_000);
    }
    step(&mut batcher);
    assert_eq!(step(&mut batcher), []);
    batcher
}

#[test]
fn alone_a_prompt_gets_all_rows() {
    let mut batcher = batcher();
    submit(&mut batcher, 1, 600, 4);
    assert_eq!(
        [step(&mut batcher), step(&mut batcher), step(&mut batcher)].concat(),
        [(1, 256), (1, 256), (1, 88)]
    );
}

#[test]
fn now_and_then_a_step_shows_what_decodes_take() {
    let mut batcher = streaming(4);
    submit(&mut batcher, 99, 600, 4);
    let chunks: Vec<bool> = (0..40).map(|_| step(&mut batcher).is_empty()).collect();
    let alone: Vec<usize> = (0..40).filter(|step| chunks[*step]).collect();
    assert_eq!(alone, [31], "the prompt takes more than 40 steps");
}

#[test]
fn beside_streams_a_prompt_gets_most_of_as_much_time_again() {
    // 1.5 times 14 ms and 30 ms: 7 and 15 rows more.
    for (streams, expected) in [(4, 6..=8), (20, 12..=16)] {
        let mut batcher = streaming(streams);
        submit(&mut batcher, 99, 600, 4);
        let chunks = step(&mut batcher);
        assert!(matches!(chunks[..], [(99, rows)] if expected.contains(&rows)), "{streams}: {chunks:?}");
    }
}

#[test]
fn there_is_progress_however_little_time_there_is() {
    let mut batcher = streaming(1);
    for _ in 0..1_000 {
        // Rows of this engine cost a hundred times its decodes.
        batcher.cost.observe(Work::default().with_chunk(0, 64, false), 64e5);
    }
    submit(&mut batcher, 99, 40, 4);
    for _ in 0..40 {
        assert!(matches!(step(&mut batcher)[..], [(99, 1..)]) || batcher.sequences[&99].prefill_left() == 0);
    }
    assert_eq!(batcher.sequences[&99].prefill_left(), 0);
}

#[test]
fn a_burst_is_let_in_faster_than_a_latecomer() {
    let mut batcher = batcher();
    for id in 0..4 {
        submit(&mut batcher, id, 200, 1_000);
    }
    assert_eq!(step(&mut batcher), [(0, 200), (1, 56)]);
    let beside = step(&mut batcher);
    assert!(matches!(beside[..], [(1, 100..)] | [(1, 100..), (2, _)]), "{beside:?}");
    while batcher.running.len() < 4
        || batcher.running.iter().any(|id| batcher.sequences[id].prefill_left() > 0)
    {
        step(&mut batcher);
    }
    submit(&mut batcher, 9, 200, 4);
    let late = step(&mut batcher);
    assert!(matches!(late[..], [(9, 6..=8)]), "{late:?}");
}

#[test]
fn steps_may_take_what_they_will_when_all_decode_who_come() {
    // Of 11 ms that a stream takes, half is enough for 5 rows; 32 streams will take 42 ms.
    let mut batcher = streaming(1);
    for id in 50..81 {
        submit(&mut batcher, id, 8, 1_000);
    }
    let rows: u32 = step(&mut batcher).iter().map(|(_, rows)| rows).sum();
    assert!((24..=34).contains(&rows), "{rows}");
    // 31 prompts of 8 rows: the last one begins long before the first has many tokens.
    let steps = (1..100).find(|_| {
        step(&mut batcher);
        batcher.running.iter().filter(|id| batcher.sequences[id].decodes()).count() == 32
    });
    assert!(steps.is_some_and(|steps| steps <= 24), "{steps:?}");
    // There are places for no more than so many.
    let mut few = streaming(1);
    few.limits.sequences = 4;
    (50..81).for_each(|id| submit(&mut few, id, 8, 1_000));
    let rows: u32 = step(&mut few).iter().map(|(_, rows)| rows).sum();
    assert!(rows <= 7, "{rows}");
}

#[test]
fn long_prompts_are_not_counted_among_those_who_come() {
    let mut batcher = streaming(1);
    (50..60).for_each(|id| submit(&mut batcher, id, 2_000, 4));
    let rows: u32 = step(&mut batcher).iter().map(|(_, rows)| rows).sum();
    assert!((1..=6).contains(&rows), "{rows}");
}

#[test]
fn a_long_prompt_stretches_no_steps_of_streams_that_came_after_it() {
    let mut batcher = streaming(8);
    submit(&mut batcher, 50, 4_000, 4);
    let before: u32 = step(&mut batcher).iter().map(|(_, rows)| rows).sum();
    (0..8).for_each(|id| batcher.cancel(id));
    for id in 60..68 {
        submit(&mut batcher, id, 8, 1_000);
    }
    while batcher.running.iter().filter(|id| batcher.sequences[id].decodes()).count() < 8 {
        step(&mut batcher);
    }
    for after in [50, 51] {
        let rows: u32 = step(&mut batcher).iter().map(|(_, rows)| rows).sum();
        assert!(rows > 0 && rows <= before + 1, "{before} rows, then {rows}");
        // One more that waits makes no difference.
        submit(&mut batcher, after + 1, 4_000, 4);
    }
}

#[test]
fn short_prompts_get_half_of_what_a_long_one_gets() {
    let mut batcher = streaming(20);
    submit(&mut batcher, 50, 4_000, 4);
    step(&mut batcher);
    submit(&mut batcher, 51, 60, 4);
    submit(&mut batcher, 52, 30, 4);
    let mut given = std::collections::BTreeMap::new();
    while batcher.sequences.values().filter(|s| s.prefill_left() > 0).count() > 1 {
        for (id, rows) in step(&mut batcher) {
            *given.entry(id).or_insert(0) += rows;
        }
    }
    assert_eq!((given[&51], given[&52]), (60, 30));
    assert!((60..=130).contains(&given[&50]), "{given:?}");
}

#[test]
fn what_others_cannot_use_goes_to_the_oldest() {
    let mut batcher = batcher();
    batcher.limits.sequences = 21;
    for id in 0..20 {
        submit(&mut batcher, id, 8, 1_000);
    }
    step(&mut batcher);
    submit(&mut batcher, 50, 4_000, 4);
    let alone = step(&mut batcher);
    submit(&mut batcher, 51, 60, 4);
    // There is no place for it; rows go on as before (but for the rounding of chunks).
    let beside = step(&mut batcher);
    let (&[(50, alone)], &[(50, beside)]) = (&alone[..], &beside[..]) else {
        panic!("{alone:?}, {beside:?}")
    };
    assert!(beside + 4 >= alone, "{alone} rows, then {beside}");
}

#[test]
fn equal_prompts_are_read_one_after_the_other() {
    let mut batcher = streaming(20);
    submit(&mut batcher, 50, 200, 4);
    submit(&mut batcher, 51, 200, 4);
    let chunks = step(&mut batcher);
    assert!(matches!(chunks[..], [(50, _)]), "{chunks:?}");
}

proptest::proptest! {
    /// The rows of a chunk are within what was asked for and what there is, and fit in the time if there is more than one.
    #[test]
    fn chunks_fit(rows in 1usize..300, start in 0usize..5_000, left in 1usize..5_000, most in 1f64..1e6, decodes in 0usize..60) {
        let cost = batcher().cost;
        let mut work = Work::default();
        (0..decodes).for_each(|i| work.add_decode(i * 10));
        let budget = StepBudget { work, rows, most_micros: most, prefilled: false };
        let chunk = budget.rows_for(&cost, start, left);
        proptest::prop_assert!(chunk >= 1 && chunk <= left.min(rows));
        if chunk > 1 {
            proptest::prop_assert!(cost.predict(work.with_chunk(start, chunk, chunk == left)) <= most);
        }
        let later = StepBudget { prefilled: true, ..budget };
        proptest::prop_assert!(later.rows_for(&cost, start, left) <= chunk);
    }
}

#[test]
fn streams_that_were_interrupted_together_are_read_together() {
    let resume = |batcher: &mut Batcher, id: SequenceId, tokens: usize| {
        let mut known = vec![1; tokens];
        known[0] = u32::try_from(id).expect("small") + 2;
        let lost = foggara_proto::sequence::SequenceRequest { prompt_len: 8, ..request(&known, 1_000) };
        batcher.submit(id, lost, None).expect("fits");
    };
    let mut recovering = batcher();
    (0..4).for_each(|id| resume(&mut recovering, id, 300));
    let rows: Vec<u32> = (0..5).map(|_| step(&mut recovering).iter().map(|(_, rows)| rows).sum()).collect();
    // Those that are read already take a row of each step.
    assert_eq!(rows, [256, 256, 255, 254, 179]);
    // Beside streams that nothing has happened to, they are prompts like any other.
    let mut others = streaming(4);
    (10..14).for_each(|id| resume(&mut others, id, 300));
    let rows: u32 = step(&mut others).iter().map(|(_, rows)| rows).sum();
    assert!((1..40).contains(&rows), "{rows}");
}
