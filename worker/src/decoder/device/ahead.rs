//! Steps that are begun before the one before them is finished: what a step has found feeds the next on the device, and the host
//! takes it meanwhile. The device is never idle for the host's sake.

use foggara_kernels::cuda::op::elementwise::fed_token;
use foggara_kernels::cuda::op::step_rows::Run;
use foggara_kernels::cuda::{Coming, DeviceError};

use super::DeviceDecoder;
use super::graphs::can_be_recorded;
use super::score::{Sought, score_all};
use crate::decoder::{BlockTables, Comms, ForwardError, OnScores, Scores, StepInput, Want};

/// Steps that are begun at once, at most: one that computes, and one that waits for it.
const MOST_BEGUN: usize = 2;

/// A step that was begun.
pub(super) struct Begun {
    /// What its rows want: each the best token, or one that is drawn.
    wants: Vec<Want>,
    /// Of each row that was scored the place of the greatest logit, then the bits of these logits; if any row wants that.
    greatest: Option<Coming<u32>>,
    /// The token that was drawn of each, if any was.
    drawn: Option<Coming<u32>>,
}

/// Whether all that is wanted of a row is a token, which the device finds.
fn is_found(want: Want) -> bool {
    matches!(want, Want::Best(1) | Want::Drawn(_))
}

impl DeviceDecoder {
    /// Whether all that a step needs of others it has found itself: the rank is alone, nothing is copied, and each row is a
    /// sequence's next, of which a token is wanted.
    pub(super) fn can_be_begun(&self, input: &StepInput, comms: &Comms) -> bool {
        let rows = input.segments.len();
        comms.size() == 1
            && (1..=self.graphs.most_rows()).contains(&rows)
            && input.copies.is_empty()
            && can_be_recorded(input)
            && (0..rows).all(|segment| is_found(self.scorer.get(input.want(segment))))
    }

    /// Starts a step: [`begin`](crate::decoder::Forward::begin).
    pub(super) fn begin_step(
        &mut self,
        input: &StepInput,
        tables: &BlockTables,
        fed: &[Option<usize>],
        comms: &mut Comms,
    ) -> Result<(), ForwardError> {
        assert!(self.begun.len() < MOST_BEGUN && self.can_be_begun(input, comms), "a step that can be begun");
        let wants: Vec<Want> = (0..input.segments.len()).map(|i| self.scorer.get(input.want(i))).collect();
        let sought = Sought::by(wants.iter().copied());
        let words = self.words_of(input, fed);
        let feeds = fed.iter().any(Option::is_some);
        let runs: Vec<Run<'_>> = input.segments.iter().filter_map(|s| self.run_of(s, tables)).collect();
        let recorded = match self.device.driver().can_capture() {
            true => self.graphs.take(&runs, sought)?,
            false => None,
        };
        let scored = match recorded {
            Some(mut recorded) => {
                let scored = recorded.rows.rows();
                let done = self
                    .set_words(&words, scored, feeds)
                    .map_err(ForwardError::from)
                    .and_then(|()| self.launch_recorded(&mut recorded, input, comms));
                self.graphs.put(recorded);
                done.map(|()| scored)
            }
            None => {
                self.set_words(&words, words.len(), feeds)?;
                self.launch_unrecorded(input, &runs, sought, comms)
            }
        }?;
        let begun = self.fetch(wants, sought, scored)?;
        self.begun.push_back(begun);
        Ok(())
    }

    /// Its tokens, or what stands for those that the step before finds.
    fn words_of(&self, input: &StepInput, fed: &[Option<usize>]) -> Vec<u32> {
        let words = input.tokens.iter().enumerate();
        let fed = |i: usize| fed.get(i).copied().flatten();
        words
            .map(|(i, token)| match (fed(i), self.begun.back()) {
                (None, _) => *token,
                (Some(row), Some(before)) => fed_token(row, matches!(before.wants[row], Want::Drawn(_))),
                (Some(row), None) => panic!("row {row} of a step that was not begun"),
            })
            .collect()
    }

    fn set_words(&mut self, words: &[u32], rows: usize, feeds: bool) -> Result<(), DeviceError> {
        self.buffers.set_tokens(words, rows)?;
        if feeds { self.buffers.feed(rows) } else { Ok(()) }
    }

    /// A step whose sizes are not recorded, its tokens being where they are to be; returns the rows that were scored.
    fn launch_unrecorded(
        &mut self,
        input: &StepInput,
        runs: &[Run<'_>],
        sought: Sought,
        comms: &mut Comms,
    ) -> Result<usize, ForwardError> {
        let scored = input.tokens.len();
        if sought.draws() {
            self.set_draws(input, scored)?;
        }
        let Some(mut rows) = self.rows.take() else { unreachable!("put back after every step") };
        let done = rows.set(runs).map_err(ForwardError::from).and_then(|()| self.run_layers(&rows, comms));
        self.rows = Some(rows);
        done?;
        score_all(&mut self.buffers, &self.weights, &self.spec, scored, sought)?;
        Ok(scored)
    }

    /// Has what is wanted come to the host once it is found.
    fn fetch(&self, wants: Vec<Want>, sought: Sought, scored: usize) -> Result<Begun, DeviceError> {
        let b = &self.buffers;
        let greatest = b.sampling.as_ref().filter(|_| sought.best > 0);
        let drawn = b.drawing.as_ref().filter(|_| sought.draws());
        Ok(Begun {
            wants,
            greatest: greatest.map(|sampling| sampling.greatest(scored).fetch()).transpose()?,
            drawn: drawn.map(|drawing| drawing.tokens(scored).fetch()).transpose()?,
        })
    }

    /// Whether the first step that was begun is done.
    pub(super) fn first_is_done(&self) -> Result<bool, ForwardError> {
        let Some(first) = self.begun.front() else { return Ok(true) };
        for coming in first.greatest.iter().chain(&first.drawn) {
            if !coming.is_here()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Finishes it: [`finish`](crate::decoder::Forward::finish).
    pub(super) fn finish_first(&mut self, on_scores: &mut OnScores<'_>) -> Result<(), ForwardError> {
        let Some(Begun { wants, greatest, drawn }) = self.begun.pop_front() else {
            panic!("no step was begun");
        };
        let greatest = greatest.map_or(Ok(Vec::new()), Coming::take)?;
        let drawn = drawn.map_or(Ok(Vec::new()), Coming::take)?;
        let (places, logits) = greatest.split_at(greatest.len() / 2);
        for (row, want) in wants.into_iter().enumerate() {
            match want {
                Want::Drawn(_) => on_scores(row, Scores::Drawn(drawn[row])),
                _ => on_scores(row, Scores::Best(&[(places[row], f32::from_bits(logits[row]))])),
            }
        }
        Ok(())
    }
}
