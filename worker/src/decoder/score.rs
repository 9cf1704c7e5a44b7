//! Logits: each rank of the last stage scores its part of the vocabulary for its part of the batch; rank 0 gets what is wanted:
//! all of a row, or its best few, of which each rank then sends the best few of its part. Where a rank has all of the vocabulary, it
//! draws the tokens that are to be drawn, and sends just these.

use std::ops::Range;

use foggara_kernels::collective::CollectiveError;
use foggara_kernels::op::rms_norm::rms_norm;

use foggara_models::{ArchSpec, RankSlice, Shape, SlicePlan};

use super::project::product;
use super::{BlockTables, Comms, Decoder, StepInput, Want};
use crate::best::{best_of, merge};
use crate::draw::{self, draw_any};

/// Rows of each part of the batch that are told of in one message.
pub(super) const TILE_ROWS: usize = 256;
/// Of these, such that all logits are wanted of: many would be hundreds of megabytes.
const WHOLE_ROWS: usize = 32;
/// Rows of logits that a CPU makes at once, for the same reason.
const LOGIT_ROWS: usize = 32;

/// A row that wants logits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    /// Among all rows that do.
    pub(super) number: usize,
    /// Among the rows of its part of the batch.
    pub(super) row: usize,
    /// The position behind it, whose token the logits are of.
    pub(super) next: usize,
    pub(super) want: Want,
}

/// What rank 0 is given of a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scores<'a> {
    /// The logits of all tokens.
    Whole(&'a [f32]),
    /// The best tokens and their logits, best first: of equals the smaller id, and what is not a number last. As many as wanted, or
    /// as there are.
    Best(&'a [(u32, f32)]),
    /// The token that was drawn.
    Drawn(u32),
}

impl<'a> Scores<'a> {
    /// The logits of all tokens, if they were wanted.
    pub fn whole(self) -> Option<&'a [f32]> {
        match self {
            Self::Whole(logits) => Some(logits),
            Self::Best(_) | Self::Drawn(_) => None,
        }
    }
}

/// What [`Scorer::score`] calls with the number of a row among those that want logits, and what is known of it.
pub type OnScores<'a> = dyn FnMut(usize, Scores<'_>) + 'a;

/// Of a row, what a rank with `part` tokens tells in one message with the other rows: all of its logits, or of the best so many
/// the places in its part, as bits that are no number, each followed by its logit; or the token that it has drawn, as such bits.
/// Returns the words.
fn words(want: Want, part: usize) -> usize {
    match want {
        Want::Whole => part,
        Want::Best(count) => 2 * part.min(count as usize),
        Want::Drawn(_) => part.min(1),
    }
}

/// Adds to a message of [`words`] the best of a rank's part: places in it, and their logits.
pub(super) fn tell_best(best: impl Iterator<Item = (u32, f32)>, message: &mut Vec<f32>) {
    message.extend(best.flat_map(|(place, logit)| [f32::from_bits(place), logit]));
}

/// Adds the token that was drawn.
pub(super) fn tell_drawn(token: u32, message: &mut Vec<f32>) {
    message.push(f32::from_bits(token));
}

/// The message of [`words`] for whole rows of a rank's part.
fn tell(scores: &[f32], wanted: &[Wanted], scratch: &mut draw::Scratch, message: &mut Vec<f32>) {
    let part = scores.len() / wanted.len().max(1);
    for (row, wanted) in scores.chunks_exact(part.max(1)).zip(wanted) {
        match wanted.want {
            Want::Whole => message.extend_from_slice(row),
            Want::Best(count) => {
                let best = best_of(row, count as usize).into_iter();
                tell_best(best.map(|place| (place, row[place as usize])), message);
            }
            Want::Drawn(rule) => {
                let token = draw_any(row, &rule.at(wanted.next), scratch);
                tell_drawn(token as u32, message);
            }
        }
    }
}

/// The rows that want logits, for each part of the batch, and what they `get` of what they want.
fn wanted(
    input: &StepInput,
    tables: &BlockTables,
    parts: usize,
    get: impl Fn(Want) -> Want,
) -> Vec<Vec<Wanted>> {
    let mut wanted = vec![Vec::new(); parts];
    let mut rows = vec![0; parts];
    let mut number = 0;
    for (i, segment) in input.segments.iter().enumerate() {
        let (part, want) = (tables.pool(segment.slot), get(input.want(i)));
        let first = rows[part];
        rows[part] += segment.len as usize;
        for row in first + segment.logits_from as usize..rows[part] {
            let next = segment.start as usize + row - first + 1;
            wanted[part].push(Wanted { number, row, next, want });
            number += 1;
        }
    }
    wanted
}

/// The rows of a part of the batch that are told of in one message, message after message: the same on every rank, wherever it
/// computes.
fn tiles(wanted: &[Wanted]) -> Vec<&[Wanted]> {
    let (mut tiles, mut first, mut whole) = (Vec::new(), 0, 0);
    for (i, row) in wanted.iter().enumerate() {
        whole += usize::from(row.want == Want::Whole);
        if i - first == TILE_ROWS || whole > WHOLE_ROWS {
            tiles.push(&wanted[first..i]);
            (first, whole) = (i, usize::from(row.want == Want::Whole));
        }
    }
    if first < wanted.len() {
        tiles.push(&wanted[first..]);
    }
    tiles
}

/// Brings the parts of logits together.
pub(super) struct Scorer {
    shape: Shape,
    vocab: usize,
    /// Vocabulary rows of each rank that scores.
    counts: Vec<usize>,
    /// Whether each of these has all of the vocabulary, and so can draw.
    draws: bool,
    /// Rank 0: everyone's messages, one after the other.
    gathered: Vec<f32>,
    /// Rank 0: a row over the whole vocabulary, or the best of one.
    logits: Vec<f32>,
    best: Vec<(u32, f32)>,
    /// This rank's message: kept, since new memory of its size comes from the system page by page.
    message: Vec<f32>,
}

impl Scorer {
    pub(super) fn new(spec: &ArchSpec, plan: &SlicePlan) -> Self {
        let scores = |slice: &RankSlice| slice.place.stage + 1 == plan.shape.pp;
        let has_all = |slice: &RankSlice| !scores(slice) || slice.vocab.len() == spec.vocab;
        Self {
            shape: plan.shape,
            vocab: spec.vocab,
            counts: plan.ranks.iter().map(|s| if scores(s) { s.vocab.len() } else { 0 }).collect(),
            draws: plan.ranks.iter().all(has_all),
            gathered: Vec::new(),
            logits: Vec::new(),
            best: Vec::new(),
            message: Vec::new(),
        }
    }

    /// What is given of a row that wants this.
    pub(super) fn get(&self, want: Want) -> Want {
        match want {
            Want::Drawn(_) if !self.draws => Want::Whole,
            want => want,
        }
    }

    /// For each tile of the rows that want logits: `own` makes this rank's message ([`words`]) of its rows among them (on the
    /// last stage), and rank 0 calls `on_scores` with what each row wants.
    ///
    /// # Errors
    /// Those of `own`, and of the collectives.
    pub(super) fn score<E: From<CollectiveError>>(
        &mut self,
        (input, tables): (&StepInput, &BlockTables),
        comms: &mut Comms,
        mut own: impl FnMut(&[Wanted], &mut Vec<f32>) -> Result<(), E>,
        on_scores: &mut OnScores<'_>,
    ) -> Result<(), E> {
        let wanted = wanted(input, tables, self.shape.dp, |want| self.get(want));
        let parts: Vec<Vec<&[Wanted]>> = wanted.iter().map(|rows| tiles(rows)).collect();
        let place = self.shape.place(comms.rank());
        let mut message = std::mem::take(&mut self.message);
        for tile in 0..parts.iter().map(Vec::len).max().unwrap_or(0) {
            let tile: Vec<&[Wanted]> =
                parts.iter().map(|part| part.get(tile).copied().unwrap_or_default()).collect();
            message.clear();
            if place.stage + 1 == self.shape.pp {
                own(tile[place.dp], &mut message)?;
            }
            self.gather(&message, &tile, comms, on_scores)?;
        }
        self.message = message;
        Ok(())
    }

    fn gather(
        &mut self,
        message: &[f32],
        tile: &[&[Wanted]],
        comms: &mut Comms,
        on_scores: &mut OnScores<'_>,
    ) -> Result<(), CollectiveError> {
        let told = |rank: usize| {
            let rows = tile[self.shape.place(rank).dp].iter();
            rows.map(|wanted| words(wanted.want, self.counts[rank])).sum::<usize>()
        };
        let counts: Vec<usize> = (0..self.shape.ranks()).map(told).collect();
        let leads = comms.rank() == 0;
        self.gathered.resize(if leads { counts.iter().sum() } else { 0 }, 0.0);
        comms.all().gather(message, &counts, &mut self.gathered)?;
        if !leads {
            return Ok(());
        }
        // Those that score are the last.
        let first = self.shape.ranks() - self.shape.stage_ranks();
        let mut start = 0;
        for (dp, rows) in tile.iter().enumerate() {
            let ranks = first + dp * self.shape.tp..first + (dp + 1) * self.shape.tp;
            let mut parts = Vec::with_capacity(ranks.len());
            for rank in ranks {
                parts.push(Part { told: start..start + counts[rank], tokens: self.counts[rank] });
                start += counts[rank];
            }
            for wanted in *rows {
                self.give(wanted, rows.len() == 1, &mut parts, on_scores);
            }
        }
        Ok(())
    }

    /// Takes a row from the beginning of each part's message, and gives it away. `only`: nothing follows in any of them.
    fn give(&mut self, wanted: &Wanted, only: bool, parts: &mut [Part], on_scores: &mut OnScores<'_>) {
        let count = match wanted.want {
            // The parts lie in order as they come.
            Want::Whole if only || parts.len() == 1 => {
                let start = parts.first().map_or(0, |part| part.told.start);
                parts.iter_mut().for_each(|part| part.told.start += part.tokens);
                let logits = &self.gathered[start..start + self.vocab];
                return on_scores(wanted.number, Scores::Whole(logits));
            }
            Want::Whole => {
                self.logits.clear();
                for part in parts {
                    self.logits.extend_from_slice(&self.gathered[part.told.start..][..part.tokens]);
                    part.told.start += part.tokens;
                }
                return on_scores(wanted.number, Scores::Whole(&self.logits));
            }
            Want::Drawn(_) => {
                let Some(part) = parts.first_mut() else { return };
                let token = self.gathered[part.told.start].to_bits();
                part.told.start += 1;
                return on_scores(wanted.number, Scores::Drawn(token));
            }
            Want::Best(count) => count as usize,
        };
        self.best.clear();
        let mut first = 0;
        for part in &mut *parts {
            let len = words(wanted.want, part.tokens);
            let pairs = self.gathered[part.told.start..][..len].as_chunks::<2>().0;
            self.best.extend(pairs.iter().map(|[place, logit]| (first + place.to_bits(), *logit)));
            part.told.start += len;
            first += part.tokens as u32;
        }
        if parts.len() > 1 {
            merge(&mut self.best, count);
        }
        on_scores(wanted.number, Scores::Best(&self.best));
    }
}

/// What is left of a rank's message, and the tokens it scores.
struct Part {
    told: Range<usize>,
    tokens: usize,
}

impl Decoder {
    /// Calls `on_scores` on rank 0 with what every row wants that wants logits.
    pub(super) fn score(
        &mut self,
        input: &StepInput,
        tables: &BlockTables,
        comms: &mut Comms,
        on_scores: &mut OnScores<'_>,
    ) -> Result<(), CollectiveError> {
        let (hidden, b, weights, pool) = (self.spec.hidden, &mut self.buffers, &self.weights, &self.pool);
        let (eps, softcap) = (self.spec.norm_eps, self.spec.logit_softcap);
        let (scores, scratch) = (&mut b.scores, &mut b.draw);
        let mut few = |wanted: &[Wanted], message: &mut Vec<f32>| {
            b.last.set_rows(wanted.len());
            for (wanted, to) in wanted.iter().zip(b.last.f32_rows_mut().chunks_exact_mut(hidden)) {
                let x = &b.x[wanted.row * hidden..][..hidden];
                rms_norm(pool, x, 1, &weights.final_norm, eps, to);
            }
            let output = weights.output.as_ref().or(weights.embedding.as_ref());
            let output = output.expect("the last stage holds the output layer");
            let all = wanted.iter().all(|wanted| wanted.want == Want::Whole);
            let to = if all { &mut *message } else { &mut *scores };
            let start = if all { to.len() } else { 0 };
            to.resize(start + wanted.len() * output.rows(), 0.0);
            let to = &mut to[start..];
            product(pool, output, &mut b.last, to);
            if let Some(cap) = softcap {
                soft_cap(to, cap);
            }
            if !all {
                tell(scores, wanted, scratch, message);
            }
        };
        let own = |wanted: &[Wanted], message: &mut Vec<f32>| {
            wanted.chunks(LOGIT_ROWS).for_each(|wanted| few(wanted, message));
            Ok(())
        };
        self.scorer.score((input, tables), comms, own, on_scores)
    }
}

/// x = cap · tanh(x / cap), element by element.
fn soft_cap(x: &mut [f32], cap: f32) {
    x.iter_mut().for_each(|x| *x = cap * (*x / cap).tanh());
}

#[cfg(test)]
#[path = "score_tests.rs"]
pub(super) mod tests;
