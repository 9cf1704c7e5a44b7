//! Steps that are begun before what the one before them found is known: which token comes next the device knows, and how far each
//! sequence is without it the table does.

use std::collections::BTreeMap;

use foggara_proto::step::{Drafts, SequenceId, StepPlan};

use super::{Running, Sequence, SequenceTable, Wanted, word};
use crate::decoder::{Segment, StepInput, Want};
use crate::engine::sampler;

impl Sequence {
    /// Tokens of its answer when the step that runs is done, of which `coming` are not known yet.
    fn answered(&self, coming: usize) -> usize {
        self.tokens.len() - self.prompt_len + coming
    }

    /// Whether it has a row in the next step, whatever token comes: none of those that end it is known to.
    fn goes_on(&self) -> bool {
        self.end.is_none()
            && self.prefilled
            && self.cached == self.tokens.len()
            && self.answered(1) < self.params.max_tokens as usize
    }

    /// What its next row wants, after `coming` tokens that are not known; `None`: that depends on them.
    fn wants_after(&self, coming: usize, vocab: usize) -> Option<Want> {
        let free = coming == 0 || !self.history.grows();
        free.then(|| sampler::wanted_after(&self.history, &self.params, self.answered(coming), 0, vocab))
    }
}

impl SequenceTable {
    /// Whether the step of this plan can be begun before the one that runs is done, which has a row for each sequence that decodes:
    /// nothing comes or goes, what rows want does not depend on tokens that are not known, and is a token that the device
    /// finds; there are some, and no more than in the running step; and nothing would be drafted by what is known.
    pub fn can_follow(&mut self, plan: &StepPlan) -> bool {
        let changes = plan.drops.is_empty()
            && plan.joins.is_empty()
            && plan.copies.is_empty()
            && plan.chunks.is_empty()
            && plan.grants.iter().all(|grant| self.sequences.contains_key(&grant.sequence));
        if !changes {
            return false;
        }
        let (vocab, block_size) = (self.vocab, self.block_size);
        let coming = self.running.rows();
        let mut granted = BTreeMap::<SequenceId, usize>::new();
        for grant in &plan.grants {
            *granted.entry(grant.sequence).or_default() += grant.blocks.len();
        }
        let mut rows = 0;
        for (id, sequence) in &mut self.sequences {
            let comes = coming.contains_key(id);
            if !(if comes { sequence.goes_on() } else { sequence.decodes() }) {
                continue;
            }
            let blocks = sequence.blocks.len() + granted.get(id).copied().unwrap_or(0);
            rows += usize::from(sequence.cached < blocks * block_size);
            let found = matches!(
                sequence.wants_after(usize::from(comes), vocab),
                Some(Want::Best(1) | Want::Drawn(_))
            );
            if !found || sequence.would_draft(plan.drafts, block_size) {
                return false;
            }
        }
        (1..=self.running.wanted.len()).contains(&rows)
    }

    /// The step of a plan that [`can_follow`](Self::can_follow), and for each of its rows that of the running step whose token it
    /// takes, if it is not known. What the running step finds is then taken as ever, up to [`next`](Self::next).
    pub fn follow(&mut self, plan: StepPlan) -> (StepInput, Vec<Option<usize>>) {
        let (mut input, mut fed, mut next) = (StepInput::default(), Vec::new(), Running::default());
        self.allow(plan.drafts);
        for grant in plan.grants {
            if let Some(sequence) = self.sequences.get_mut(&grant.sequence) {
                sequence.blocks.extend(&grant.blocks);
                input.grants.push((sequence.slot, grant.blocks));
            }
        }
        let coming = self.running.rows();
        for (id, sequence) in &mut self.sequences {
            let row = coming.get(id).copied();
            let known = match row {
                Some(_) if sequence.goes_on() => 0,
                None if sequence.decodes() => sequence.tokens[sequence.cached],
                _ => continue,
            };
            if !sequence.has_room(self.block_size) {
                next.skipped.push(*id);
                continue;
            }
            let start = sequence.cached;
            let segment = Segment { slot: sequence.slot, start: word(start), len: 1, logits_from: 0 };
            input.segments.push(segment);
            input.wants.extend(sequence.wants_after(usize::from(row.is_some()), self.vocab));
            input.tokens.push(known);
            fed.push(row);
            next.wanted.push(Wanted { sequence: *id, position: start, drafted: None });
            sequence.cached += 1;
        }
        self.following = Some(next);
        (input, fed)
    }

    /// The step that follows is the running one from here on, what the one before has found having been taken.
    pub fn next(&mut self) {
        let mut next = self.following.take().unwrap_or_default();
        // What has ended meanwhile wants no block.
        next.skipped.retain(|id| self.sequences.get(id).is_some_and(|sequence| sequence.end.is_none()));
        self.running = next;
    }
}

impl Running {
    /// The row of each sequence.
    fn rows(&self) -> BTreeMap<SequenceId, usize> {
        self.wanted.iter().enumerate().map(|(row, wanted)| (wanted.sequence, row)).collect()
    }
}

impl Sequence {
    /// Whether anything would be drafted behind the last token that is known.
    fn would_draft(&mut self, drafts: Drafts, block_size: usize) -> bool {
        drafts.most > 0 && !self.draft(drafts, drafts.most as usize, block_size).is_empty()
    }
}

#[cfg(test)]
#[path = "ahead_tests.rs"]
mod tests;
