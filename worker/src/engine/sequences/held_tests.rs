//! What is told of a table, and how much of it.

use foggara_proto::sequence::SequenceEnd;
use foggara_proto::step::{Chunk, Grant, Join, StepPlan};

use super::*;

fn begin(table: &mut SequenceTable, join: Join, rows: u32) {
    let sequence = join.sequence;
    let plan = StepPlan {
        joins: vec![join],
        grants: vec![Grant { sequence, blocks: vec![5, 3] }],
        chunks: vec![Chunk { sequence, tokens: rows }],
        ..StepPlan::default()
    };
    table.begin(plan).expect("a plan that makes sense");
}

fn join(sequence: SequenceId, prompt: &[u32], params: SequenceParams) -> Join {
    let (tokens, prompt_len) = (prompt.to_vec(), prompt.len());
    Join { sequence, tokens, prompt_len, params, cached: 0, envelope: vec![9, sequence as u8] }
}

/// Logits over ten tokens of which `token` is the greatest.
fn likely(token: usize) -> [f32; 10] {
    std::array::from_fn(|i| if i == token { 2.0 } else { 0.0 })
}

#[test]
fn everything_that_goes_on_elsewhere_is_told() {
    let mut table = SequenceTable::new(10, 16, 64);
    let params = SequenceParams { max_tokens: 3, stop_token_ids: vec![7], ..SequenceParams::default() };
    let probable = SequenceParams { logprobs: Some(1), ..params.clone() };
    begin(&mut table, join(1, &[1, 2, 3], probable.clone()), 3);
    table.take_logits(0, &likely(4));
    let told = table.finish().remove(0).tokens.remove(0);
    let held = table.held();
    let expected = HeldSequence {
        sequence: 1,
        tokens: vec![1, 2, 3, 4],
        prompt_len: 3,
        params: probable,
        envelope: vec![9, 1],
        blocks: vec![5, 3],
        cached: 3,
        outputs: vec![told.clone()],
        end: None,
        reading_prompt: false,
        decodes: true,
    };
    assert_eq!(held, [expected]);
    table.go_on();
    table.take_logits(0, &likely(7));
    let more = table.finish().remove(0).tokens.remove(0);
    let held = table.held().remove(0);
    assert_eq!((held.tokens, held.cached, held.outputs), (vec![1, 2, 3, 4, 7], 4, vec![told, more]));
    assert_eq!(held.end, Some(SequenceEnd::StopToken), "it has ended, and is here until it is dropped");
    // Without probabilities tokens say it all.
    begin(&mut table, join(2, &[1], params), 1);
    table.take_logits(0, &likely(4));
    let held = table.held().remove(1);
    assert_eq!((held.tokens, held.outputs), (vec![1, 4], vec![]));
}

#[test]
fn a_prompt_is_read_once_all_its_probabilities_were_told() {
    let echo = SequenceParams { prompt_logprobs: true, ..SequenceParams::default() };
    for (prompt, rows, reading) in
        [(&[1, 2, 3][..], 1, true), (&[1, 2, 3], 2, false), (&[1, 2, 3], 3, false), (&[1], 1, false)]
    {
        let mut table = SequenceTable::new(10, 16, 64);
        begin(&mut table, join(1, prompt, echo.clone()), rows);
        assert_eq!(table.held()[0].reading_prompt, reading, "{rows} of {prompt:?}");
        let mut table = SequenceTable::new(10, 16, 64);
        begin(&mut table, join(1, prompt, SequenceParams::default()), rows);
        assert!(!table.held()[0].reading_prompt, "nobody asked");
    }
    let mut table = SequenceTable::new(10, 16, 64);
    let plan = StepPlan { joins: vec![join(1, &[1], echo)], ..StepPlan::default() };
    table.begin(plan).expect("a join without work");
    let held = table.held().remove(0);
    assert!(held.reading_prompt && !held.decodes, "nothing was told yet");
}

#[test]
fn only_the_last_outputs_are_kept() {
    let mut last = LastOutputs::default();
    for token in 0..OUTPUTS_KEPT as u32 + 3 {
        last.push(TokenOutput { token, logprob: Some(-1.0), top: vec![] });
    }
    let tokens: Vec<u32> = last.0.iter().map(|output| output.token).collect();
    assert_eq!(
        (tokens.len(), tokens[0], tokens[OUTPUTS_KEPT - 1]),
        (OUTPUTS_KEPT, 3, OUTPUTS_KEPT as u32 + 2)
    );
}

#[test]
fn the_largest_are_left_out_until_the_rest_fits() {
    let sizes = || vec![(1, 5), (2, 9), (3, 1), (4, 7)];
    for (most, expected) in [(22, &[][..]), (21, &[2]), (13, &[2]), (12, &[2, 4]), (0, &[1, 2, 3, 4])] {
        let out: Vec<SequenceId> = largest(sizes(), most).into_iter().collect();
        assert_eq!(out, expected, "at most {most}");
    }
}

#[test]
fn sizes_are_no_less_than_a_message_takes() {
    let long: Vec<u32> = vec![u32::MAX; 1_000];
    let output = TokenOutput { token: u32::MAX, logprob: Some(-1.0), top: vec![(u32::MAX, -1.0); 20] };
    let mut sequence = Sequence {
        slot: 0,
        history: super::super::History::new(&SequenceParams::default(), &[], 0),
        prompt_len: 500,
        params: SequenceParams {
            stop_token_ids: long.clone(),
            allowed_token_ids: long.clone(),
            held_token_ids: long.clone(),
            bad_words: vec![vec![u32::MAX; 3]; 100],
            logit_bias: vec![(u32::MAX, -1.0); 100],
            ..SequenceParams::default()
        },
        envelope: vec![1; 5_000],
        blocks: long.clone(),
        tokens: long,
        cached: 1_000,
        prefilled: true,
        end: Some(SequenceEnd::Length),
        last_outputs: LastOutputs::default(),
        lookup: Default::default(),
    };
    (0..100).for_each(|_| sequence.last_outputs.push(output.clone()));
    let in_message = |held: HeldSequence| {
        prost::Message::encoded_len(&foggara_proto::wire::worker::HeldSequence::from(held))
    };
    let bare = in_message(sequence.held(u64::MAX, false));
    assert!(sequence.bytes() >= bare, "{} for {bare}", sequence.bytes());
    let outputs = in_message(sequence.held(u64::MAX, true)) - bare;
    assert!(sequence.last_outputs.bytes() >= outputs, "{} for {outputs}", sequence.last_outputs.bytes());
    sequence.tokens = vec![1];
    assert!(sequence.bytes() < 5_000 * 5 + 5_000 + 4_000, "small numbers take little");
}

#[test]
fn what_is_too_much_to_tell_is_forgotten_everywhere() {
    let mut table = SequenceTable::new(10, 16, 64);
    for id in 1..=3 {
        let mut join = join(id, &[1, 2], SequenceParams::default());
        join.envelope = vec![0; if id == 2 { MOST_BYTES / 2 } else { MOST_BYTES / 3 }];
        begin(&mut table, join, 1);
    }
    let slot_of_2 = 1;
    assert_eq!(table.forget_untellable(), StepInput { drops: vec![slot_of_2], ..StepInput::default() });
    let ids: Vec<SequenceId> = table.held().iter().map(|held| held.sequence).collect();
    assert_eq!(ids, [1, 3]);
    assert!(table.forget_untellable().is_empty());
}
