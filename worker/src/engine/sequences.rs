//! The leader's sequence table: from plans to steps, from logits to outputs.

mod ahead;
mod held;

use std::collections::BTreeMap;

use foggara_proto::sequence::{SequenceEnd, SequenceParams, TokenOutput};
use foggara_proto::step::{BlockId, Drafts, SequenceId, SequenceOutput, StepPlan};

use super::drafts::Lookup;
use super::sampler::{self, Context, History, Scratch};
use crate::decoder::{Scores, Segment, StepInput, Want};
use held::LastOutputs;

/// A plan that refers to what is not there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("sequence {sequence}: {reason}")]
pub struct PlanError {
    sequence: SequenceId,
    reason: String,
}

#[derive(Debug)]
struct Sequence {
    slot: u32,
    tokens: Vec<u32>,
    prompt_len: usize,
    params: SequenceParams,
    history: History,
    /// What a later driver needs to know of it; nobody here reads it.
    envelope: Vec<u8>,
    /// Granted to it, in the order of use.
    blocks: Vec<BlockId>,
    /// Positions in the cache.
    cached: usize,
    /// All that was known of it when it joined has gone through the model.
    prefilled: bool,
    /// Why it ended, once it has.
    end: Option<SequenceEnd>,
    last_outputs: LastOutputs,
    lookup: Lookup,
}

impl Sequence {
    fn decodes(&self) -> bool {
        self.end.is_none() && self.prefilled && self.cached + 1 == self.tokens.len()
    }

    /// Whether its blocks hold another position.
    fn has_room(&self, block_size: usize) -> bool {
        self.cached < self.blocks.len() * block_size
    }

    /// Tokens to compute behind the last one, `rows` at most. None that could not be taken in: it has blocks for all of them, and
    /// gets one token more than are right.
    fn draft(&mut self, drafts: Drafts, rows: usize, block_size: usize) -> Vec<u32> {
        let room = (self.blocks.len() * block_size).saturating_sub(self.cached + 1);
        let answered = self.tokens.len() - self.prompt_len;
        let wanted = (self.params.max_tokens as usize).saturating_sub(answered + 1);
        let most = room.min(wanted).min(rows).min(drafts.most as usize);
        if most == 0 {
            return Vec::new();
        }
        self.lookup.follow(&self.tokens, self.prompt_len);
        let mut draft = self.lookup.draft(&self.tokens, Drafts { most: most as u32, ..drafts });
        // Nothing follows what ends it.
        let stops = draft.iter().position(|token| self.params.stop_token_ids.contains(token));
        draft.truncate(stops.unwrap_or(most));
        draft
    }
}

/// What one row of logits is for.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    sequence: SequenceId,
    /// Position of the row.
    position: usize,
    /// Its token, if that is a guess.
    drafted: Option<u32>,
}

/// The sequences of a group, as its leader knows them.
#[derive(Debug)]
pub struct SequenceTable {
    vocab: usize,
    /// Positions in a block.
    block_size: usize,
    /// Rows of a step at most.
    max_rows: usize,
    /// What the last plan allows.
    drafts: Drafts,
    sequences: BTreeMap<SequenceId, Sequence>,
    free_slots: Vec<u32>,
    slots: u32,
    /// The step being run.
    running: Running,
    /// The one that was begun before what it found is known.
    following: Option<Running>,
    scratch: Scratch,
}

/// What is to become of a step.
#[derive(Debug, Default)]
struct Running {
    /// Rows with logits, in order.
    wanted: Vec<Wanted>,
    outputs: Vec<SequenceOutput>,
    /// Sequences that would decode, had they a block for it.
    skipped: Vec<SequenceId>,
    /// Tokens drafted, and those that were right.
    drafted: (u32, u32),
}

impl SequenceTable {
    /// An empty table, for steps of at most `max_rows` rows.
    pub fn new(vocab: usize, block_size: usize, max_rows: usize) -> Self {
        Self {
            vocab,
            block_size,
            max_rows,
            drafts: Drafts::default(),
            sequences: BTreeMap::new(),
            free_slots: Vec::new(),
            slots: 0,
            running: Running::default(),
            following: None,
            scratch: Scratch::default(),
        }
    }

    /// Forgets everything; returns the step that tells the other ranks.
    pub fn clear(&mut self) -> StepInput {
        // Every slot there ever was: a plan that was refused half way may have freed some without a word to the others.
        let drops: Vec<u32> = (0..self.slots).collect();
        let empty = Self::new(self.vocab, self.block_size, self.max_rows);
        *self = Self { free_slots: drops.clone(), slots: self.slots, ..empty };
        StepInput { drops, ..StepInput::default() }
    }

    /// What may be drafted from now on, until a plan says otherwise.
    pub fn allow(&mut self, drafts: Drafts) {
        self.drafts = drafts;
    }

    /// Takes in a plan; returns the step it stands for.
    ///
    /// # Errors
    /// If it refers to sequences, tokens or work that do not exist. The table is unusable then until
    /// [`clear`](Self::clear).
    pub fn begin(&mut self, plan: StepPlan) -> Result<StepInput, PlanError> {
        let mut input = StepInput { copies: plan.copies, ..StepInput::default() };
        self.allow(plan.drafts);
        for id in plan.drops {
            input.drops.push(self.remove(id).ok_or_else(|| unknown(id, "dropped"))?);
        }
        for join in plan.joins {
            input.adapters.extend(self.join(join)?);
        }
        for grant in plan.grants {
            let sequence = self
                .sequences
                .get_mut(&grant.sequence)
                .ok_or_else(|| unknown(grant.sequence, "granted blocks"))?;
            sequence.blocks.extend(&grant.blocks);
            input.grants.push((sequence.slot, grant.blocks));
        }
        let mut chunks: BTreeMap<SequenceId, u32> = BTreeMap::new();
        for chunk in plan.chunks {
            let rows = chunks.entry(chunk.sequence).or_default();
            *rows = rows.saturating_add(chunk.tokens);
        }
        if let Some(id) = chunks.keys().find(|id| !self.sequences.contains_key(id)) {
            return Err(unknown(*id, "given work"));
        }
        self.add_rows(&chunks, &mut input)?;
        Ok(input)
    }

    /// The step that can be run without a plan: every sequence goes on that decodes and has room for it.
    pub fn go_on(&mut self) -> StepInput {
        let mut input = StepInput::default();
        // What is to decode cannot be wrong.
        self.add_rows(&BTreeMap::new(), &mut input).ok();
        self.running.skipped.clear();
        input
    }

    /// How many rows [`go_on`](Self::go_on) would have at least.
    pub fn decoding_rows(&self) -> usize {
        let can = |sequence: &&Sequence| sequence.decodes() && sequence.has_room(self.block_size);
        self.sequences.values().filter(can).count()
    }

    /// Takes a sequence out; returns the slot that it leaves.
    fn remove(&mut self, id: SequenceId) -> Option<u32> {
        let slot = self.sequences.remove(&id)?.slot;
        self.free_slots.push(slot);
        Some(slot)
    }

    /// The rows of a step: those of chunks, one of every other sequence that decodes, and what is drafted behind it.
    fn add_rows(
        &mut self,
        chunks: &BTreeMap<SequenceId, u32>,
        input: &mut StepInput,
    ) -> Result<(), PlanError> {
        let mut rows_left = self.rows_left(chunks);
        self.running = Running::default();
        let running = &mut self.running;
        for (id, sequence) in &mut self.sequences {
            let mut draft = Vec::new();
            let rows = match chunks.get(id) {
                Some(rows) => *rows as usize,
                None if !sequence.decodes() => continue,
                None if sequence.has_room(self.block_size) => {
                    draft = sequence.draft(self.drafts, rows_left, self.block_size);
                    1
                }
                None => {
                    running.skipped.push(*id);
                    continue;
                }
            };
            let start = sequence.cached;
            if rows == 0 || start + rows > sequence.tokens.len() || sequence.end.is_some() {
                let reason = format!("{rows} rows after {start} of {} tokens", sequence.tokens.len());
                return Err(PlanError { sequence: *id, reason });
            }
            rows_left -= draft.len();
            running.drafted.0 += word(draft.len());
            add_segment(input, &mut running.wanted, (*id, sequence), rows, &draft, self.vocab);
            if sequence.params.prompt_logprobs && start == 0 {
                // Nothing precedes the first token.
                let first = TokenOutput { token: sequence.tokens[0], logprob: None, top: Vec::new() };
                running.outputs.push(SequenceOutput {
                    sequence: *id,
                    prompt: vec![first],
                    tokens: Vec::new(),
                    end: None,
                });
            }
            sequence.cached += rows;
            sequence.prefilled |= sequence.cached == sequence.tokens.len();
        }
        Ok(())
    }

    /// Rows that a step has room for beside those of chunks and one of each other sequence that may decode.
    fn rows_left(&self, chunks: &BTreeMap<SequenceId, u32>) -> usize {
        let decodes = self.sequences.iter().filter(|(id, s)| s.decodes() && !chunks.contains_key(id)).count();
        let chunks: usize = chunks.values().map(|rows| *rows as usize).sum();
        self.max_rows.saturating_sub(decodes + chunks)
    }

    /// Takes a sequence in; returns its slot and its adapter, if it has one.
    fn join(&mut self, join: foggara_proto::step::Join) -> Result<Option<(u32, u64)>, PlanError> {
        let id = join.sequence;
        let wrong = |reason: String| PlanError { sequence: id, reason };
        if let Some(token) = join.tokens.iter().find(|token| **token as usize >= self.vocab) {
            return Err(wrong(format!("token {token} of a vocabulary of {}", self.vocab)));
        }
        if join.prompt_len == 0 || join.prompt_len > join.tokens.len() {
            return Err(wrong(format!("a prompt of {} in {} tokens", join.prompt_len, join.tokens.len())));
        }
        if join.cached >= join.tokens.len() {
            return Err(wrong(format!("{} of {} tokens cached", join.cached, join.tokens.len())));
        }
        if join.cached > 0 && join.params.prompt_logprobs {
            return Err(wrong(format!("{} tokens cached whose probabilities are asked for", join.cached)));
        }
        if self.sequences.contains_key(&id) {
            return Err(wrong("joined twice".into()));
        }
        let slot = self.free_slots.pop().unwrap_or_else(|| {
            self.slots += 1;
            self.slots - 1
        });
        let sequence = Sequence {
            slot,
            history: History::new(&join.params, &join.tokens, join.prompt_len),
            tokens: join.tokens,
            prompt_len: join.prompt_len,
            params: join.params,
            envelope: join.envelope,
            blocks: Vec::new(),
            cached: join.cached,
            prefilled: false,
            end: None,
            last_outputs: LastOutputs::default(),
            lookup: Lookup::default(),
        };
        let adapted = sequence.params.adapter.map(|adapter| (slot, adapter));
        self.sequences.insert(id, sequence);
        Ok(adapted)
    }

    /// Takes what the `row`-th row that wanted logits was given of them.
    pub fn take_scores(&mut self, row: usize, scores: Scores<'_>) {
        let Some(wanted) = self.running.wanted.get(row).copied() else { return };
        let Some(sequence) = self.sequences.get_mut(&wanted.sequence) else { return };
        let next = wanted.position + 1;
        if let Some(drafted) = wanted.drafted {
            if sequence.tokens.get(wanted.position) != Some(&drafted) {
                // Something else has come in its place or before it. What it left in the cache is written over.
                return;
            }
            sequence.cached = next;
            self.running.drafted.1 += 1;
        }
        if sequence.end.is_some() {
            // It ended in the step before, for which this one did not wait: the row was for nothing.
            sequence.cached = wanted.position;
            return;
        }
        let output = output_of(&mut self.running.outputs, wanted.sequence);
        if next < sequence.tokens.len() {
            // A token that is known already: of the prompt, if its probability is asked for.
            if sequence.params.prompt_logprobs
                && next < sequence.prompt_len
                && let Scores::Whole(logits) = scores
            {
                let token = sequence.tokens[next] as usize;
                let top = Some(sequence.params.prompt_top_logprobs);
                output.prompt.push(sampler::describe(logits, token, top));
            }
            return;
        }
        let most = sequence.params.max_tokens as usize;
        let generated = sequence.tokens.len() - sequence.prompt_len;
        if generated < most {
            let context = Context {
                params: &sequence.params,
                tokens: &sequence.tokens,
                prompt_len: sequence.prompt_len,
                history: &sequence.history,
            };
            let sampled = match scores {
                Scores::Whole(logits) => sampler::sample(logits, context, &mut self.scratch),
                Scores::Best(best) => sampler::sample_best_after(best, context, &mut self.scratch),
                Scores::Drawn(token) => sampler::drawn(token),
            };
            sequence.tokens.push(sampled.token);
            sequence.history.push(sampled.token);
            if sequence.params.stop_token_ids.contains(&sampled.token) {
                output.end = Some(SequenceEnd::StopToken);
            }
            if sequence.params.logprobs.is_some() {
                sequence.last_outputs.push(sampled.clone());
            }
            output.tokens.push(sampled);
        }
        if output.end.is_none() && generated + 1 >= most {
            output.end = Some(SequenceEnd::Length);
        }
        sequence.end = output.end;
    }

    /// Of the step being run: sequences that the plan had decode but that lack a block.
    pub fn take_skipped(&mut self) -> Vec<SequenceId> {
        std::mem::take(&mut self.running.skipped)
    }

    /// Of the step being run: how many tokens were drafted, and how many of them were right.
    pub fn take_drafted(&mut self) -> (u32, u32) {
        std::mem::take(&mut self.running.drafted)
    }

    /// What the step produced.
    pub fn finish(&mut self) -> Vec<SequenceOutput> {
        std::mem::take(&mut self.running.outputs)
    }
}

fn unknown(sequence: SequenceId, what: &str) -> PlanError {
    PlanError { sequence, reason: format!("{what}, but it is not here") }
}

/// The output of a sequence in this step; rows come sequence by sequence, so it is the last or a new one.
fn output_of(outputs: &mut Vec<SequenceOutput>, id: SequenceId) -> &mut SequenceOutput {
    let place = outputs.iter().rposition(|output| output.sequence == id);
    let place = place.unwrap_or_else(|| {
        outputs.push(SequenceOutput { sequence: id, prompt: Vec::new(), tokens: Vec::new(), end: None });
        outputs.len() - 1
    });
    &mut outputs[place]
}

fn add_segment(
    input: &mut StepInput,
    wanted: &mut Vec<Wanted>,
    (id, sequence): (SequenceId, &Sequence),
    rows: usize,
    draft: &[u32],
    vocab: usize,
) {
    let start = sequence.cached;
    let end = start + rows;
    let whole = sequence.params.prompt_logprobs && start + 1 < sequence.prompt_len;
    let logits_from = match (whole, end == sequence.tokens.len()) {
        (true, _) => 0,
        (false, true) => rows - 1,
        (false, false) => rows,
    };
    input.segments.push(Segment {
        slot: sequence.slot,
        start: word(start),
        len: word(rows + draft.len()),
        logits_from: word(logits_from),
    });
    let answered = sequence.tokens.len() - sequence.prompt_len;
    input.wants.push(match whole {
        true => Want::Whole,
        false => sampler::wanted_after(&sequence.history, &sequence.params, answered, draft.len(), vocab),
    });
    input.tokens.extend_from_slice(&sequence.tokens[start..end]);
    input.tokens.extend_from_slice(draft);
    let known = (start + logits_from..end).map(|position| (position, None));
    let drafted = (end..).zip(draft.iter().copied().map(Some));
    wanted.extend(known.chain(drafted).map(|(position, drafted)| Wanted { sequence: id, position, drafted }));
}

fn word(value: usize) -> u32 {
    u32::try_from(value).expect("sequences are shorter than 2^32")
}

#[cfg(test)]
#[path = "sequences_tests.rs"]
mod tests;
