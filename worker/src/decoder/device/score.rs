//! Logits of a rank's part of the vocabulary, the best of them, and tokens drawn from them. They are left on the device but for what
//! is wanted: what comes to the host comes slowly.

use std::ops::Range;

use foggara_kernels::cuda::op::draw::draw;
use foggara_kernels::cuda::op::elementwise::{gather_rows, soft_cap};
use foggara_kernels::cuda::op::matmul::matmul;
use foggara_kernels::cuda::op::residual::add_and_norm;
use foggara_kernels::cuda::op::sample::{argmax, top};
use foggara_kernels::cuda::{ActsView, ActsViewMut, DeviceError};
use foggara_models::ArchSpec;

use super::buffers::Buffers;
use super::weights::DeviceWeights;
use crate::decoder::score::{Wanted, tell_best, tell_drawn};
use crate::decoder::{MOST_BEST, Want};

/// What is looked for in every row where rows want this and that; for each such, steps are recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Sought {
    /// How many of the best: 0, 1, or one of a few numbers.
    pub(super) best: usize,
    pub(super) draws: Draws,
}

/// Whether tokens are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(super) enum Draws {
    #[default]
    None,
    /// From all tokens.
    FromAll,
    /// Some from those that top-p leaves.
    Cut,
}

impl Sought {
    pub(super) fn by(wants: impl Iterator<Item = Want>) -> Self {
        let (mut most, mut draws) = (0, Draws::None);
        for want in wants {
            match want {
                Want::Whole => (),
                Want::Best(count) => most = most.max(count as usize),
                Want::Drawn(rule) => {
                    draws = draws.max(if rule.cuts() { Draws::Cut } else { Draws::FromAll });
                }
            }
        }
        let best = match most {
            few @ 0..=1 => few,
            2..=64 => 64,
            _ => MOST_BEST,
        };
        Self { best, draws }
    }

    /// Whether any token is drawn.
    pub(super) fn draws(self) -> bool {
        self.draws != Draws::None
    }
}

/// Scores rows of the residual stream, and adds what they want of this rank's part to `message`.
pub(super) fn score_wanted(
    b: &mut Buffers,
    weights: &DeviceWeights,
    spec: &ArchSpec,
    wanted: &[Wanted],
    message: &mut Vec<f32>,
) -> Result<(), DeviceError> {
    let (rows, hidden) = (wanted.len(), spec.hidden);
    if rows == 0 {
        return Ok(());
    }
    let numbers: Vec<u32> = wanted.iter().map(|wanted| wanted.row as u32).collect();
    b.wanted.view_mut().slice(0..rows).upload(&numbers)?;
    let out = ActsViewMut::F32(b.last_x.view_mut().slice(0..rows * hidden));
    gather_rows(out, ActsView::F32(b.x.view()), b.wanted.view().slice(0..rows), hidden)?;
    let out = b.last.view_mut().slice(0..rows * hidden);
    let x = b.last_x.view_mut().slice(0..rows * hidden);
    add_and_norm(Some(out), x, None, None, weights.final_norm.view(), rows, hidden, spec.norm_eps)?;
    let sought = Sought::by(wanted.iter().map(|wanted| wanted.want));
    if sought.draws() {
        b.set_draws(wanted.iter().map(|wanted| wanted.want.draw(wanted.next)))?;
    }
    score(b, weights, spec, rows, sought)?;
    tell(b, wanted, 0..rows, rows, sought, message)
}

/// The same of all `rows` rows, left on the device for [`tell`].
pub(super) fn score_all(
    b: &mut Buffers,
    weights: &DeviceWeights,
    spec: &ArchSpec,
    rows: usize,
    sought: Sought,
) -> Result<(), DeviceError> {
    let hidden = spec.hidden;
    let out = b.last.view_mut().slice(0..rows * hidden);
    let x = b.x.view_mut().slice(0..rows * hidden);
    add_and_norm(Some(out), x, None, None, weights.final_norm.view(), rows, hidden, spec.norm_eps)?;
    score(b, weights, spec, rows, sought)
}

/// scores = this rank's part of the logits of normed rows; then what is sought in each.
fn score(
    b: &mut Buffers,
    weights: &DeviceWeights,
    spec: &ArchSpec,
    rows: usize,
    sought: Sought,
) -> Result<(), DeviceError> {
    let output = weights.output.as_ref().or(weights.embedding.as_ref());
    let output = output.expect("the last stage holds the output layer");
    let part = output.rows();
    let out = b.scores.view_mut().slice(0..rows * part);
    matmul(out, part, b.last.view().slice(0..rows * spec.hidden), output, rows)?;
    if let Some(cap) = spec.logit_softcap {
        // Before anything is found: capped logits may be equal where others are not.
        soft_cap(b.scores.view_mut().slice(0..rows * part), cap)?;
    }
    let Some(sampling) = &mut b.sampling else { return Ok(()) };
    let scores = b.scores.view().slice(0..rows * part);
    let depth = sought.best.min(part);
    if depth > 1 {
        top(sampling, scores, rows, part, depth)?;
    }
    if depth == 1 || sought.draws() {
        argmax(sampling, scores, rows, part)?;
    }
    match &mut b.drawing {
        Some(drawing) if sought.draws() => {
            draw(drawing, sampling, scores, rows, part, sought.draws == Draws::Cut)
        }
        _ => Ok(()),
    }
}

/// Adds what rows want of this rank's part to `message`: of the best as many as each wants, tokens that were drawn, and rows of which
/// all are wanted. They are `rows` of the `scored` rows that were last scored.
pub(super) fn tell(
    b: &Buffers,
    wanted: &[Wanted],
    rows: Range<usize>,
    scored: usize,
    sought: Sought,
    message: &mut Vec<f32>,
) -> Result<(), DeviceError> {
    assert_eq!(wanted.len(), rows.len(), "a row for each that wants logits");
    let Some(sampling) = &b.sampling else { return Ok(()) };
    let part = sampling.vocab();
    let depth = sought.best.min(part);
    let mut found = vec![0; 2 * scored * depth];
    match depth {
        0 => {}
        1 => sampling.greatest(scored).download(&mut found)?,
        depth => sampling.best(scored, depth).download(&mut found)?,
    }
    let (places, logits) = found.split_at(scored * depth);
    let mut drawn = Vec::new();
    if let Some(drawing) = b.drawing.as_ref().filter(|_| sought.draws()) {
        drawn.resize(scored, 0);
        drawing.tokens(scored).download(&mut drawn)?;
    }
    let mut row = rows.start;
    // Neighbours that want all come in one piece.
    for wanted in wanted.chunk_by(|a, b| a.want == Want::Whole && b.want == Want::Whole) {
        match wanted[0].want {
            Want::Whole => {
                let start = message.len();
                message.resize(start + wanted.len() * part, 0.0);
                let rows = b.scores.view().slice(row * part..(row + wanted.len()) * part);
                rows.download(&mut message[start..])?;
            }
            Want::Best(count) => {
                let best = row * depth..row * depth + depth.min(count as usize);
                let logits = logits[best.clone()].iter().map(|bits| f32::from_bits(*bits));
                tell_best(places[best].iter().copied().zip(logits), message);
            }
            Want::Drawn(_) => tell_drawn(drawn[row], message),
        }
        row += wanted.len();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use foggara_kernels::op::draw::Rule;

    use super::*;

    #[test]
    fn few_depths_are_recorded_and_each_row_has_what_it_wants() {
        use Want::{Best, Drawn, Whole};
        for (wants, expected) in [
            (&[][..], 0),
            (&[Whole, Whole], 0),
            (&[Best(1), Whole, Best(1)], 1),
            (&[Best(1), Best(2)], 64),
            (&[Best(64), Whole], 64),
            (&[Best(65)], 256),
            (&[Best(256), Best(1)], 256),
        ] {
            let sought = Sought::by(wants.iter().copied());
            assert_eq!(sought, Sought { best: expected, draws: Draws::None }, "{wants:?}");
        }
        let drawn = |top_p| Drawn(Rule::new(1.0, top_p, 0.0, 7));
        for (wants, best, draws) in [
            (&[drawn(1.0), Whole][..], 0, Draws::FromAll),
            (&[drawn(0.9), drawn(1.0)], 0, Draws::Cut),
            (&[Best(3), drawn(1.0), Best(1)], 64, Draws::FromAll),
        ] {
            assert_eq!(Sought::by(wants.iter().copied()), Sought { best, draws }, "{wants:?}");
        }
    }
}
