//! Logits: each rank of the last stage scores its part of the vocabulary for its part of the batch; rank 0 gets it all.

use foggara_kernels::collective::CollectiveError;
use foggara_kernels::op::rms_norm::rms_norm;

use super::project::product;
use super::{BlockTables, Comms, Decoder, StepInput};

/// Rows of logits of each part of the batch that exist at once: many would be hundreds of megabytes.
const LOGIT_ROWS: usize = 32;

/// A row that wants logits.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    /// Among all rows that do.
    number: usize,
    /// Among the rows of its part of the batch.
    row: usize,
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

impl Decoder {
    /// Calls `on_logits` on rank 0 with the logits of every row that wants them.
    pub(super) fn score(
        &mut self,
        input: &StepInput,
        tables: &BlockTables,
        comms: &mut Comms,
        on_logits: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), CollectiveError> {
        let wanted = wanted(input, tables, self.shape.dp);
        let tiles = wanted.iter().map(|rows| rows.len().div_ceil(LOGIT_ROWS)).max().unwrap_or(0);
        for tile in 0..tiles {
            let tile: Vec<&[Wanted]> =
                wanted.iter().map(|rows| rows.chunks(LOGIT_ROWS).nth(tile).unwrap_or(&[])).collect();
            self.score_tile(&tile, comms, on_logits)?;
        }
        Ok(())
    }

    fn score_tile(
        &mut self,
        tile: &[&[Wanted]],
        comms: &mut Comms,
        on_logits: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), CollectiveError> {
        let place = self.slice.place;
        if place.stage + 1 == self.shape.pp {
            self.score_own(tile[place.dp]);
        } else {
            self.buffers.scores.clear();
        }
        let part = |rank: usize| tile[self.shape.place(rank).dp].len() * self.vocab_counts[rank];
        let counts: Vec<usize> = (0..self.shape.ranks()).map(part).collect();
        let leads = comms.rank() == 0;
        let b = &mut self.buffers;
        b.gathered.resize(if leads { counts.iter().sum() } else { 0 }, 0.0);
        comms.all().gather(&b.scores, &counts, &mut b.gathered)?;
        if !leads {
            return Ok(());
        }
        let last_stage = self.shape.ranks() - self.shape.stage_ranks();
        let mut rest = &b.gathered[..];
        for (dp, rows) in tile.iter().enumerate() {
            let first = last_stage + dp * self.shape.tp;
            let vocab_counts = &self.vocab_counts[first..first + self.shape.tp];
            let (parts, after) = rest.split_at(rows.len() * self.spec.vocab);
            rest = after;
            // One rank, or one row: the parts lie in order as they come.
            let logits = if vocab_counts.len() == 1 || rows.len() == 1 {
                parts
            } else {
                b.logits.resize(parts.len(), 0.0);
                interleave(parts, vocab_counts, rows.len(), &mut b.logits);
                &b.logits[..]
            };
            for (wanted, logits) in rows.iter().zip(logits.chunks_exact(self.spec.vocab)) {
                on_logits(wanted.number, logits);
            }
        }
        Ok(())
    }

    /// scores = this rank's part of the logits of some of its rows.
    fn score_own(&mut self, wanted: &[Wanted]) {
        let (hidden, b) = (self.spec.hidden, &mut self.buffers);
        b.last.set_rows(wanted.len());
        for (wanted, to) in wanted.iter().zip(b.last.f32_rows_mut().chunks_exact_mut(hidden)) {
            let x = &b.x[wanted.row * hidden..][..hidden];
            rms_norm(&self.pool, x, 1, &self.weights.final_norm, self.spec.norm_eps, to);
        }
        let output = self.weights.output.as_ref().or(self.weights.embedding.as_ref());
        let output = output.expect("the last stage holds the output layer");
        b.scores.resize(wanted.len() * output.rows(), 0.0);
        product(&self.pool, output, &mut b.last, &mut b.scores);
        if let Some(cap) = self.spec.logit_softcap {
            soft_cap(&mut b.scores, cap);
        }
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
