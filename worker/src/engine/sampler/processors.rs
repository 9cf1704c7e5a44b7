//! Logits as a sequence's parameters change them: a function for each, over a row and what it must know of the sequence.

use foggara_proto::sequence::SequenceParams;

use super::{Context, History};

/// Whether anything may change the logits that a token is sampled from after `answered` tokens of the answer.
pub(super) fn may_change(params: &SequenceParams, answered: usize) -> bool {
    may_change_any(params, answered) || History::is_wanted(params)
}

/// Whether anything but penalties may.
fn may_change_any(params: &SequenceParams, answered: usize) -> bool {
    let bans = answered < params.min_tokens as usize || !params.bad_words.is_empty();
    let lists = !params.allowed_token_ids.is_empty() || !params.logit_bias.is_empty();
    bans || lists
}

/// Whether nothing is done to logits but that those of tokens of the history may become less: none is lifted, so that of the
/// others the best are as they were.
pub(super) fn only_lowers(params: &SequenceParams, answered: usize) -> bool {
    let lowers =
        params.repetition_penalty >= 1.0 && params.frequency_penalty >= 0.0 && params.presence_penalty >= 0.0;
    lowers && !may_change_any(params, answered)
}

/// Writes the logits of `sequence` to `row`; `false`, and nothing written, if they are just those of the model.
pub(super) fn process(logits: &[f32], sequence: Context<'_>, row: &mut Vec<f32>) -> bool {
    let params = sequence.params;
    if !may_change(params, sequence.answer().len()) {
        return false;
    }
    let held = sequence.answer().len() < params.min_tokens as usize;
    let bans = held || !params.bad_words.is_empty();
    let limits = !params.allowed_token_ids.is_empty();
    if !limits && !bans && params.logit_bias.is_empty() && sequence.history.is_empty() {
        return false;
    }
    allow(logits, &params.allowed_token_ids, row);
    if bans {
        ban_words(row, &params.bad_words, sequence.answer());
        if held {
            ban(row, &params.stop_token_ids);
            ban(row, &params.held_token_ids);
        }
        if !row.iter().any(|logit| *logit > f32::NEG_INFINITY) {
            // Bans that leave nothing hold for nothing.
            allow(logits, &params.allowed_token_ids, row);
        }
    }
    bias(row, &params.logit_bias);
    penalise(row, sequence.history, params);
    true
}

/// The logits of `allowed` alone; of all if there are none.
fn allow(logits: &[f32], allowed: &[u32], row: &mut Vec<f32>) {
    row.clear();
    if allowed.is_empty() {
        row.extend_from_slice(logits);
        return;
    }
    row.resize(logits.len(), f32::NEG_INFINITY);
    for id in allowed {
        if let (Some(to), Some(from)) = (row.get_mut(*id as usize), logits.get(*id as usize)) {
            *to = *from;
        }
    }
}

fn ban(row: &mut [f32], ids: &[u32]) {
    for id in ids {
        if let Some(logit) = row.get_mut(*id as usize) {
            *logit = f32::NEG_INFINITY;
        }
    }
}

/// Bans the last token of each word whose others the answer ends with.
fn ban_words(row: &mut [f32], words: &[Vec<u32>], answer: &[u32]) {
    for word in words {
        if let Some((last, beginning)) = word.split_last()
            && answer.ends_with(beginning)
        {
            ban(row, &[*last]);
        }
    }
}

fn bias(row: &mut [f32], biases: &[(u32, f32)]) {
    for (id, bias) in biases {
        if let Some(logit) = row.get_mut(*id as usize) {
            *logit += bias;
        }
    }
}

/// Each token is changed once, so the order of the history does not matter.
fn penalise(row: &mut [f32], history: &History, params: &SequenceParams) {
    for (id, count) in history.counts() {
        if let Some(logit) = row.get_mut(id as usize) {
            *logit = penalised(*logit, count, params);
        }
    }
}

/// The logit of a token of the history that is in the answer so many times. Repetition counts the prompt and the answer, the other
/// two the answer alone.
pub(super) fn penalised(mut logit: f32, count: u32, params: &SequenceParams) -> f32 {
    if logit > 0.0 {
        logit /= params.repetition_penalty;
    } else {
        logit *= params.repetition_penalty;
    }
    if count > 0 {
        logit -= params.frequency_penalty * count as f32;
        logit -= params.presence_penalty;
    }
    logit
}
