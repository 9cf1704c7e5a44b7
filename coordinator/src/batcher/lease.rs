//! The lease of a plan: how far the leader may go on by itself when the next plan is late.
//!
//! A plan that is late (the network hiccups, this process dies) stops no tokens: the leader decodes what it decoded, as far as
//! the blocks reach that it has been granted. So the last phase of a plan grants blocks ahead, to each sequence its own, for
//! as many steps as the lease lasts. They are what the sequence would be granted a little later in any case, so nothing has to be
//! given back; what they take from others is bounded ([`SHARE`], and whoever waits next goes before).
//!
//! What the leader did without a plan it reports before its next planned step. Plans already on their way did not know of it:
//! positions in them are put right here. A sequence that went so far that it lacks a block in a planned step is skipped in it.
//!
//! Drafts that are right take sequences further than plans knew, too: blocks reach ahead for as many as the plans on their way allow.

use std::collections::BTreeMap;

use foggara_proto::step::{Grant, SequenceId, SequenceOutput, StepPlan, StepReport};

use super::cost::Work;
use super::reports::ReportError;
use super::sequence::{Phase, Sequence};
use super::{Batcher, Step};

/// Most tokens that the blocks of a sequence reach ahead, however short the steps are.
pub(super) const MOST_AHEAD: usize = 512;
/// Of a pool, one block in so many may be granted ahead.
const SHARE: usize = 8;

impl Batcher {
    /// Grants blocks for the steps that the leader may run without a plan, out of what nobody else is about to need.
    pub(super) fn grant_ahead(&mut self, plan: &mut StepPlan) {
        plan.lease_ms = self.limits.lease_ms;
        let ahead = self.lease_steps().max(self.draft_reach());
        if ahead == 0 {
            return;
        }
        for pool in 0..self.pools.len() {
            self.grant_ahead_in(pool, ahead, plan);
        }
    }

    fn grant_ahead_in(&mut self, pool: usize, ahead: usize, plan: &mut StepPlan) {
        let decoding = |this: &Self, id: &SequenceId| {
            let sequence = this.sequences.get(id).filter(|s| s.pool == pool && s.decodes())?;
            Some(this.blocks_ahead(sequence))
        };
        let granted: Vec<(SequenceId, usize)> =
            self.running.iter().filter_map(|id| Some((*id, decoding(self, id)?))).collect();
        let most = self.limits.kv_blocks as usize / SHARE;
        let taken: usize = granted.iter().map(|(_, blocks)| blocks).sum();
        let mut left = most.saturating_sub(taken).min(self.spare(pool));
        // Nobody's lease is long while another's is nothing.
        let each = (most / granted.len().max(1)).max(1);
        for (id, blocks) in granted {
            let Some(sequence) = self.sequences.get(&id) else { continue };
            let reach = (sequence.planned + ahead).min(sequence.most_positions());
            let wanted = self.blocks_for(reach).saturating_sub(sequence.blocks.len());
            let count = wanted.min(each.saturating_sub(blocks)).min(left);
            let Some(taken) = self.pools[pool].take(count).filter(|taken| !taken.is_empty()) else {
                continue;
            };
            left -= count;
            if let Some(sequence) = self.sequences.get_mut(&id) {
                sequence.blocks.extend_from_slice(&taken);
            }
            plan.grants.push(Grant { sequence: id, blocks: taken });
        }
    }

    /// Steps of what decodes now that the lease lasts for.
    fn lease_steps(&self) -> usize {
        let mut work = Work::default();
        for id in &self.running {
            if let Some(sequence) = self.sequences.get(id).filter(|sequence| sequence.decodes()) {
                work.add_decode(sequence.planned);
            }
        }
        let micros = f64::from(self.limits.lease_ms) * 1e3;
        if micros == 0.0 {
            return 0;
        }
        let step = self.cost.predict(work).max(1.0);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let steps = (micros / step).ceil().min(MOST_AHEAD as f64) as usize;
        steps
    }

    /// Blocks that a sequence has beyond what the plans made so far fill.
    fn blocks_ahead(&self, sequence: &Sequence) -> usize {
        sequence.blocks.len().saturating_sub(self.blocks_for(sequence.planned))
    }

    /// Blocks of a pool that neither those who run there nor who waits next need at once.
    fn spare(&self, pool: usize) -> usize {
        let next = self.queue.candidates().next().and_then(|id| self.sequences.get(&id));
        let needed = next.map_or(0, |sequence| self.blocks_for(sequence.tokens.len()));
        self.pools[pool].available().saturating_sub(self.running_in(pool) + needed)
    }

    /// The leader ran a step without a plan after the last one reported: what it decoded has gone one further, in the plans on
    /// their way too.
    pub(super) fn went_on(&mut self, report: &StepReport) -> Result<Vec<(SequenceId, usize)>, ReportError> {
        if report.number != self.last_reported {
            return Err(ReportError::OutOfOrder { got: report.number, expected: Some(self.last_reported) });
        }
        let decoded = |output: &SequenceOutput| (output.sequence, output.tokens.len().max(1));
        self.shift(&report.outputs.iter().map(decoded).collect(), usize::saturating_add);
        // Blocks are named by the next planned step.
        Ok(Vec::new())
    }

    /// Sequences lacked a block in the oldest plan in flight.
    pub(super) fn fell_behind(&mut self, skipped: &[SequenceId]) {
        self.shift(&skipped.iter().map(|id| (*id, 1)).collect(), usize::saturating_sub);
    }

    /// Puts right where sequences stand after the plans on their way, each by a number of positions.
    pub(super) fn shift(&mut self, moved: &BTreeMap<SequenceId, usize>, by: impl Fn(usize, usize) -> usize) {
        if moved.is_empty() {
            return;
        }
        for (id, count) in moved {
            if let Some(sequence) = self.sequences.get_mut(id).filter(|s| s.phase == Phase::Running) {
                sequence.planned = by(sequence.planned, *count);
            }
        }
        for (id, position) in self.in_flight.iter_mut().flat_map(|Step { positions, .. }| positions) {
            if let Some(count) = moved.get(id) {
                *position = by(*position, *count);
            }
        }
    }
}
