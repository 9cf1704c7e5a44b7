//! Logits: each rank of the last stage scores its part of the vocabulary for its part of the batch; rank 0 gets it all.

use foggara_kernels::collective::CollectiveError;
use foggara_kernels::op::rms_norm::rms_norm;

use foggara_models::{ArchSpec, RankSlice, Shape, SlicePlan};

use super::project::product;
use super::{BlockTables, Comms, Decoder, StepInput};

/// Rows of logits of each part of the batch that exist at once: many would be hundreds of megabytes.
pub(super) const LOGIT_ROWS: usize = 32;

/// A row that wants logits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    /// Among all rows that do.
    pub(super) number: usize,
    /// Among the rows of its part of the batch.
    pub(super) row: usize,
}

/// The rows that want logits, for each part of the batch.
fn wanted(input: &StepInput, tables: &BlockTables, parts: usize) -> Vec<Vec<Wanted>> {
    let mut wanted = vec![Vec::new(); parts];
    let mut rows = vec![0; parts];
    let mut number = 0;
    for segment in &input.segments {
        let part = tables.pool(segment.slot);
        let first = rows[part];
        rows[part] += segment.len as usize;
        for row in first + segment.logits_from as usize..rows[part] {
            wanted[part].push(Wanted { number, row });
            number += 1;
        }
    }
    wanted
}

/// Brings the parts of logits together.
pub(super) struct Scorer {
    shape: Shape,
    vocab: usize,
    /// Vocabulary rows of each rank that scores.
    counts: Vec<usize>,
    softcap: Option<f32>,
    /// Rank 0: everyone's parts, one after the other.
    gathered: Vec<f32>,
    /// Rank 0: rows over the whole vocabulary.
    logits: Vec<f32>,
}

impl Scorer {
    pub(super) fn new(spec: &ArchSpec, plan: &SlicePlan) -> Self {
        let scores = |slice: &RankSlice| slice.place.stage + 1 == plan.shape.pp;
        Self {
            shape: plan.shape,
            vocab: spec.vocab,
            counts: plan.ranks.iter().map(|s| if scores(s) { s.vocab.len() } else { 0 }).collect(),
            softcap: spec.logit_softcap,
            gathered: Vec::new(),
            logits: Vec::new(),
        }
    }

    /// For each tile of the rows that want logits: `own` fills in this rank's part of the logits of its rows among them (on the
    /// last stage), and rank 0 calls `on_logits` with each row's whole ones.
    ///
    /// # Errors
    /// Those of `own`, and of the collectives.
    pub(super) fn score<E: From<CollectiveError>>(
        &mut self,
        (input, tables): (&StepInput, &BlockTables),
        comms: &mut Comms,
        mut own: impl FnMut(&[Wanted], &mut Vec<f32>) -> Result<(), E>,
        on_logits: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), E> {
        let wanted = wanted(input, tables, self.shape.dp);
        let tiles = wanted.iter().map(|rows| rows.len().div_ceil(LOGIT_ROWS)).max().unwrap_or(0);
        let place = self.shape.place(comms.rank());
        let mut scores = Vec::new();
        for tile in 0..tiles {
            let tile: Vec<&[Wanted]> =
                wanted.iter().map(|rows| rows.chunks(LOGIT_ROWS).nth(tile).unwrap_or(&[])).collect();
            scores.clear();
            if place.stage + 1 == self.shape.pp {
                own(tile[place.dp], &mut scores)?;
                if let Some(cap) = self.softcap {
                    soft_cap(&mut scores, cap);
                }
            }
            self.gather(&scores, &tile, comms, on_logits)?;
        }
        Ok(())
    }

    fn gather(
        &mut self,
        scores: &[f32],
        tile: &[&[Wanted]],
        comms: &mut Comms,
        on_logits: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), CollectiveError> {
        let part = |rank: usize| tile[self.shape.place(rank).dp].len() * self.counts[rank];
        let counts: Vec<usize> = (0..self.shape.ranks()).map(part).collect();
        let leads = comms.rank() == 0;
        self.gathered.resize(if leads { counts.iter().sum() } else { 0 }, 0.0);
        comms.all().gather(scores, &counts, &mut self.gathered)?;
        if !leads {
            return Ok(());
        }
        let last_stage = self.shape.ranks() - self.shape.stage_ranks();
        let mut rest = &self.gathered[..];
        for (dp, rows) in tile.iter().enumerate() {
            let first = last_stage + dp * self.shape.tp;
            let vocab_counts = &self.counts[first..first + self.shape.tp];
            let (parts, after) = rest.split_at(rows.len() * self.vocab);
            rest = after;
            // One rank, or one row: the parts lie in order as they come.
            let logits = if vocab_counts.len() == 1 || rows.len() == 1 {
                parts
            } else {
                self.logits.resize(parts.len(), 0.0);
                interleave(parts, vocab_counts, rows.len(), &mut self.logits);
                &self.logits[..]
            };
            for (wanted, logits) in rows.iter().zip(logits.chunks_exact(self.vocab)) {
                on_logits(wanted.number, logits);
            }
        }
        Ok(())
    }
}

impl Decoder {
    /// Calls `on_logits` on rank 0 with the logits of every row that wants them.
    pub(super) fn score(
        &mut self,
        input: &StepInput,
        tables: &BlockTables,
        comms: &mut Comms,
        on_logits: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), CollectiveError> {
        let (hidden, b, weights, pool) = (self.spec.hidden, &mut self.buffers, &self.weights, &self.pool);
        let eps = self.spec.norm_eps;
        let own = |wanted: &[Wanted], scores: &mut Vec<f32>| {
            b.last.set_rows(wanted.len());
            for (wanted, to) in wanted.iter().zip(b.last.f32_rows_mut().chunks_exact_mut(hidden)) {
                let x = &b.x[wanted.row * hidden..][..hidden];
                rms_norm(pool, x, 1, &weights.final_norm, eps, to);
            }
            let output = weights.output.as_ref().or(weights.embedding.as_ref());
            let output = output.expect("the last stage holds the output layer");
            scores.resize(wanted.len() * output.rows(), 0.0);
            product(pool, output, &mut b.last, scores);
            Ok(())
        };
        self.scorer.score((input, tables), comms, own, on_logits)
    }
}

/// x = cap · tanh(x / cap), element by element.
fn soft_cap(x: &mut [f32], cap: f32) {
    x.iter_mut().for_each(|x| *x = cap * (*x / cap).tanh());
}

/// From rank-major parts (each `rows` × its count) to rows over the whole vocabulary.
fn interleave(parts: &[f32], counts: &[usize], rows: usize, out: &mut [f32]) {
    let vocab: usize = counts.iter().sum();
    let (mut start, mut column) = (0, 0);
    for count in counts {
        for row in 0..rows {
            let from = &parts[start + row * count..][..*count];
            out[row * vocab + column..][..*count].copy_from_slice(from);
        }
        start += rows * count;
        column += count;
    }
}
