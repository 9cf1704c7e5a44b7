//! Plans in, steps out, and what becomes of the logits.

use foggara_proto::step::{Chunk, Grant, Join};

use super::*;

fn params(max_tokens: u32) -> SequenceParams {
    SequenceParams {
        max_tokens,
        temperature: 0.0,
        top_p: 1.0,
        top_k: 0,
        seed: 0,
        stop_token_ids: vec![7],
        logprobs: None,
        prompt_logprobs: false,
        ..SequenceParams::default()
    }
}

fn join(sequence: SequenceId, tokens: &[u32], prompt_len: usize, params: SequenceParams) -> Join {
    Join { sequence, tokens: tokens.to_vec(), prompt_len, params, cached: 0, envelope: Vec::new() }
}

fn chunk(sequence: SequenceId, tokens: u32) -> Chunk {
    Chunk { sequence, tokens }
}

impl SequenceTable {
    /// Takes a whole row.
    pub(super) fn take_logits(&mut self, row: usize, logits: &[f32]) {
        self.take_scores(row, Scores::Whole(logits));
    }
}

/// Logits over ten tokens of which `token` is the greatest.
fn likely(token: usize) -> [f32; 10] {
    std::array::from_fn(|i| if i == token { 2.0 } else { 0.0 })
}

fn begin(
    table: &mut SequenceTable,
    joins: Vec<Join>,
    chunks: Vec<Chunk>,
    drops: Vec<SequenceId>,
) -> StepInput {
    // Whoever joins has blocks for more than any test needs.
    let grants = joins.iter().map(|join| Grant { sequence: join.sequence, blocks: vec![0, 1] }).collect();
    let plan = StepPlan { joins, grants, chunks, drops, ..StepPlan::default() };
    table.begin(plan).expect("a plan that makes sense")
}

#[test]
fn a_prompt_goes_through_in_chunks_and_then_one_token_follows_the_other() {
    let mut table = SequenceTable::new(10, 16, 64);
    let input = begin(&mut table, vec![join(5, &[1, 2, 3], 3, params(3))], vec![chunk(5, 2)], vec![]);
    assert_eq!(input.segments, [Segment { slot: 0, start: 0, len: 2, logits_from: 2 }]);
    assert_eq!(input.tokens, [1, 2]);
    assert!(table.finish().is_empty(), "nothing is known yet");
    // The last chunk of the prompt, then two decodes without being named; the last reaches the limit.
    let chunks = [vec![chunk(5, 1)], vec![], vec![]];
    for (i, (chunks, end)) in chunks.into_iter().zip([None, None, Some(SequenceEnd::Length)]).enumerate() {
        let input = begin(&mut table, vec![], chunks, vec![]);
        assert_eq!(input.segments, [Segment { slot: 0, start: 2 + i as u32, len: 1, logits_from: 0 }]);
        assert_eq!(input.tokens, [if i == 0 { 3 } else { 3 + i as u32 }]);
        table.take_logits(0, &likely(4 + i));
        let outputs = table.finish();
        let token = outputs[0].tokens.first().map(|token| token.token);
        assert_eq!(
            (outputs.len(), outputs[0].sequence, token, outputs[0].end),
            (1, 5, Some(4 + i as u32), end)
        );
    }
    // It has ended: a plan that was already on its way does not run it.
    assert!(begin(&mut table, vec![], vec![], vec![]).is_empty());
    assert_eq!(begin(&mut table, vec![], vec![], vec![5]).drops, [0]);
}

#[test]
fn a_stop_token_ends_a_sequence_and_is_reported() {
    let mut table = SequenceTable::new(10, 16, 64);
    begin(&mut table, vec![join(1, &[3], 1, params(9))], vec![chunk(1, 1)], vec![]);
    table.take_logits(0, &likely(7));
    let output = table.finish().remove(0);
    assert_eq!(output.tokens.first().map(|token| token.token), Some(7));
    assert_eq!(output.end, Some(SequenceEnd::StopToken));
    assert!(begin(&mut table, vec![], vec![], vec![]).is_empty());
}

/// A table in which the token after a prompt has come as it did before; rows of its next step are at most so many.
fn repeating(max_rows: usize) -> SequenceTable {
    let mut table = SequenceTable::new(10, 16, max_rows);
    let prompt = [1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3];
    begin(&mut table, vec![join(1, &prompt, 11, params(9))], vec![chunk(1, 11)], vec![]);
    table.take_logits(0, &likely(4));
    table.finish();
    table.allow(Drafts { most: 8, price: 1 });
    table
}

#[test]
fn a_draft_goes_as_far_as_an_end_or_a_step_and_counts_as_far_as_it_is_right() {
    for (max_rows, sampled, told, end, right) in [
        (64, &[5, 6, 7][..], &[5, 6, 7][..], Some(SequenceEnd::StopToken), 2),
        (64, &[5, 9, 7], &[5, 9], None, 1),
        (64, &[7, 6, 7], &[7], Some(SequenceEnd::StopToken), 0),
        (64, &[9, 6, 5], &[9], None, 0),
        (2, &[5, 6], &[5, 6], None, 1),
        (1, &[5], &[5], None, 0),
    ] {
        let mut table = repeating(max_rows);
        let input = table.go_on();
        let len = sampled.len() as u32;
        assert_eq!(input.segments, [Segment { slot: 0, start: 11, len, logits_from: 0 }]);
        assert_eq!(input.tokens, [4, 5, 6][..sampled.len()], "the end itself is not drafted");
        sampled.iter().enumerate().for_each(|(row, token)| table.take_logits(row, &likely(*token)));
        assert_eq!(table.take_drafted(), (len - 1, right));
        let output = table.finish().remove(0);
        let tokens: Vec<usize> = output.tokens.iter().map(|token| token.token as usize).collect();
        assert_eq!((&tokens[..], output.end), (told, end), "{sampled:?}");
        let next = table.go_on();
        let start = next.segments.first().map(|segment| segment.start as usize);
        assert_eq!(start, end.is_none().then_some(11 + told.len()), "what was wrong is written over");
    }
}

#[test]
fn probabilities_of_a_prompt_come_in_order_and_nothing_need_be_generated() {
    let mut table = SequenceTable::new(10, 16, 64);
    let echo = SequenceParams { prompt_logprobs: true, prompt_top_logprobs: 1, ..params(0) };
    let input = begin(&mut table, vec![join(1, &[3, 4, 5], 3, echo)], vec![chunk(1, 2)], vec![]);
    assert_eq!(input.segments[0].logits_from, 0);
    table.take_logits(0, &likely(4));
    table.take_logits(1, &likely(9));
    let output = table.finish().remove(0);
    let tokens: Vec<_> =
        output.prompt.iter().map(|p| (p.token, p.logprob.is_some(), p.top.clone().len())).collect();
    assert_eq!(tokens, [(3, false, 0), (4, true, 1), (5, true, 1)]);
    assert_eq!(output.prompt[2].top[0].0, 9, "the likeliest is not the prompt's own");
    assert_eq!((output.tokens.len(), output.end), (0, None));
    begin(&mut table, vec![], vec![chunk(1, 1)], vec![]);
    table.take_logits(0, &likely(2));
    let output = table.finish().remove(0);
    assert_eq!((output.prompt.len(), output.tokens.len(), output.end), (0, 0, Some(SequenceEnd::Length)));
}

#[test]
fn a_sequence_goes_on_from_where_it_was() {
    // Two of three tokens were generated elsewhere; the prompt's probabilities are told again, nothing else is.
    let mut table = SequenceTable::new(10, 16, 64);
    let again = SequenceParams { prompt_logprobs: true, ..params(3) };
    let input = begin(&mut table, vec![join(1, &[3, 4, 5, 6], 2, again)], vec![chunk(1, 4)], vec![]);
    assert_eq!((input.segments[0].logits_from, input.segments[0].len), (0, 4));
    for row in 0..4 {
        table.take_logits(row, &likely(8));
    }
    let output = table.finish().remove(0);
    assert_eq!(output.prompt.iter().map(|p| p.token).collect::<Vec<_>>(), [3, 4]);
    assert_eq!(output.tokens.first().map(|token| token.token), Some(8));
    assert_eq!(output.end, Some(SequenceEnd::Length));
    // One that had everything already ends without another token.
    begin(&mut table, vec![join(2, &[3, 4, 5], 1, params(2))], vec![chunk(2, 3)], vec![1]);
    table.take_logits(0, &likely(8));
    let output = table.finish().remove(0);
    assert_eq!((output.sequence, output.tokens.len(), output.end), (2, 0, Some(SequenceEnd::Length)));
}

#[test]
fn a_sequence_whose_beginning_is_cached_starts_behind_it() {
    let mut table = SequenceTable::new(10, 16, 64);
    let cached = Join { cached: 3, ..join(1, &[3, 4, 5, 6], 4, params(3)) };
    // One token is left, but nothing is computed before it is named.
    assert!(begin(&mut table, vec![cached], vec![], vec![]).segments.is_empty());
    let input = begin(&mut table, vec![], vec![chunk(1, 1)], vec![]);
    assert_eq!(input.segments, [Segment { slot: 0, start: 3, len: 1, logits_from: 0 }]);
    assert_eq!(input.tokens, [6]);
    table.take_logits(0, &likely(8));
    assert_eq!(table.finish().remove(0).tokens.first().map(|token| token.token), Some(8));
    assert_eq!(begin(&mut table, vec![], vec![], vec![]).tokens, [8], "and then it decodes");
}

#[test]
fn slots_are_used_again() {
    let mut table = SequenceTable::new(10, 16, 64);
    let three = (1..=3).map(|id| join(id, &[1], 1, params(5))).collect();
    let all = (1..=3).map(|id| chunk(id, 1)).collect();
    let input = begin(&mut table, three, all, vec![]);
    assert_eq!(input.segments.iter().map(|segment| segment.slot).collect::<Vec<_>>(), [0, 1, 2]);
    let input = begin(&mut table, vec![join(9, &[2], 1, params(5))], vec![chunk(9, 1)], vec![2]);
    assert_eq!(input.drops, [1]);
    assert_eq!(input.segments.last().map(|segment| segment.slot), Some(1));
}

#[test]
fn plans_that_make_no_sense_are_refused_and_clearing_forgets_all_of_them() {
    let plan = |drops: &[SequenceId], joins: Vec<Join>, grants: &[SequenceId], chunks: Vec<Chunk>| StepPlan {
        drops: drops.to_vec(),
        joins,
        grants: grants.iter().map(|sequence| Grant { sequence: *sequence, blocks: vec![0] }).collect(),
        chunks,
        ..StepPlan::default()
    };
    let good = || join(4, &[1, 2], 2, params(5));
    let echo = || SequenceParams { prompt_logprobs: true, ..params(5) };
    let cases = [
        ("an unknown drop", plan(&[8], vec![], &[], vec![])),
        ("a drop twice", plan(&[1, 1], vec![], &[], vec![])),
        ("unknown blocks", plan(&[], vec![], &[8], vec![])),
        ("unknown work", plan(&[], vec![], &[], vec![chunk(8, 1)])),
        ("work for what was dropped", plan(&[1], vec![], &[], vec![chunk(1, 1)])),
        ("joining twice", plan(&[], vec![good(), good()], &[], vec![])),
        ("a name in use", plan(&[], vec![join(1, &[1], 1, params(5))], &[], vec![])),
        ("a token out of range", plan(&[], vec![join(4, &[10], 1, params(5))], &[], vec![])),
        ("no tokens", plan(&[], vec![join(4, &[], 0, params(5))], &[], vec![])),
        ("no prompt", plan(&[], vec![join(4, &[1], 0, params(5))], &[], vec![])),
        ("a prompt longer than the tokens", plan(&[], vec![join(4, &[1], 2, params(5))], &[], vec![])),
        ("all of it cached", plan(&[], vec![Join { cached: 2, ..good() }], &[], vec![chunk(4, 1)])),
        ("more cached than there is", plan(&[], vec![Join { cached: 9, ..good() }], &[], vec![])),
        (
            "cached, but its probabilities are wanted",
            plan(&[], vec![Join { cached: 1, ..join(4, &[1, 2], 2, echo()) }], &[], vec![chunk(4, 1)]),
        ),
        ("no work", plan(&[], vec![good()], &[], vec![chunk(4, 0)])),
        ("more work than tokens", plan(&[], vec![good()], &[], vec![chunk(4, 3)])),
        ("more work in two parts", plan(&[], vec![good()], &[], vec![chunk(4, 2), chunk(4, 1)])),
        (
            "work beyond all numbers",
            plan(&[], vec![good()], &[], vec![chunk(4, u32::MAX), chunk(4, u32::MAX)]),
        ),
    ];
    for (what, bad) in cases {
        let mut table = SequenceTable::new(10, 16, 64);
        let both = vec![join(1, &[1, 2], 2, params(5)), join(2, &[3], 1, params(5))];
        begin(&mut table, both, vec![chunk(1, 1), chunk(2, 1)], vec![]);
        assert!(table.begin(bad).is_err(), "{what}");
        // Whatever the plan did before it was refused: every slot is forgotten everywhere.
        let slots: Vec<u32> = table.clear().drops;
        assert!([0, 1].iter().all(|slot| slots.contains(slot)), "{what}: {slots:?}");
        let input = begin(&mut table, vec![join(1, &[1, 2], 2, params(5))], vec![chunk(1, 2)], vec![]);
        assert_eq!(input.segments.len(), 1, "{what}");
    }
}

#[test]
fn penalties_and_bans_go_on_from_where_they_were() {
    let params = SequenceParams {
        frequency_penalty: 0.7,
        bad_words: vec![vec![8, 9]],
        min_tokens: 4,
        temperature: 1.0,
        ..params(12)
    };
    let logits: [f32; 10] = std::array::from_fn(|i| (i as f32 * 1.3).sin() + i as f32 * 0.2);
    let run = |known: &[u32]| {
        let mut table = SequenceTable::new(10, 16, 64);
        let rows = known.len() as u32;
        begin(&mut table, vec![join(1, known, 2, params.clone())], vec![chunk(1, rows)], vec![]);
        let mut tokens = known.to_vec();
        loop {
            table.take_logits(0, &logits);
            let output = table.finish().remove(0);
            tokens.extend(output.tokens.iter().map(|token| token.token));
            if output.end.is_some() {
                return tokens;
            }
            begin(&mut table, vec![], vec![], vec![]);
        }
    };
    let whole = run(&[3, 8]);
    assert!(whole.len() >= 2 + 5 && !whole[2..].windows(2).any(|pair| pair == [8, 9]), "{whole:?}");
    for known in 2..whole.len() {
        assert_eq!(run(&whole[..known]), whole, "started over with {known}");
    }
}

#[test]
fn a_sequence_without_room_is_left_out_until_it_has_some() {
    let mut table = SequenceTable::new(10, 2, 64);
    let join = |id, blocks: &[u32]| StepPlan {
        joins: vec![join(id, &[1, 2], 2, params(9))],
        grants: vec![Grant { sequence: id, blocks: blocks.to_vec() }],
        chunks: vec![chunk(id, 2)],
        ..StepPlan::default()
    };
    for (id, blocks) in [(4, &[0, 1][..]), (5, &[2])] {
        table.begin(join(id, blocks)).expect("a plan that makes sense");
        table.take_logits(if id == 4 { 0 } else { 1 }, &likely(3));
        table.take_logits(0, &likely(3));
    }
    // Sequence 4 has taken three of its four positions, sequence 5 both of its two.
    assert_eq!(table.decoding_rows(), 1);
    assert_eq!(table.go_on().segments, [Segment { slot: 0, start: 3, len: 1, logits_from: 0 }]);
    assert!(table.take_skipped().is_empty(), "no plan had it decode");
    table.take_logits(0, &likely(3));
    assert_eq!(table.decoding_rows(), 0);
    assert!(table.go_on().is_empty());
    let grants = vec![Grant { sequence: 5, blocks: vec![7] }];
    let input = table.begin(StepPlan { grants, ..StepPlan::default() }).expect("a plan that makes sense");
    assert_eq!(input.segments, [Segment { slot: 1, start: 2, len: 1, logits_from: 0 }]);
    assert_eq!(table.take_skipped(), [4]);
    // One that has ended is not skipped, only dropped some time.
    table.take_logits(0, &likely(7));
    assert!(table.begin(StepPlan::default()).expect("a plan that makes sense").is_empty());
    assert_eq!(table.take_skipped(), [4]);
}

#[test]
fn the_adapter_of_a_sequence_is_told_when_it_joins_and_forgotten_with_it() {
    let mut table = SequenceTable::new(10, 16, 64);
    let adapted = |adapter| SequenceParams { adapter, ..params(3) };
    let joins = vec![join(5, &[1], 1, adapted(Some(9))), join(6, &[1], 1, adapted(None))];
    let input = begin(&mut table, joins, vec![chunk(5, 1), chunk(6, 1)], vec![]);
    assert_eq!(input.adapters, [(0, 9)]);
    assert_eq!(table.held()[0].params.adapter, Some(9), "a later driver is told");
    assert!(begin(&mut table, vec![], vec![], vec![]).adapters.is_empty(), "once");
    // Another one takes its slot.
    let input = begin(&mut table, vec![join(7, &[1], 1, adapted(None))], vec![chunk(7, 1)], vec![5]);
    assert_eq!((&input.drops[..], &input.adapters[..]), (&[0][..], &[][..]));
    assert_eq!(input.segments.iter().map(|segment| segment.slot).collect::<Vec<_>>(), [0]);
}
