//! `foggara.worker.v1`: step plans and reports between a driver and a leader.

use super::WireError;
use super::sequence::{checked_prompt_len, end_from_wire, end_to_wire};
use crate::step::{
    Attached, BlockCopy, Chunk, Drafts, ExpertCount, Grant, GroupLimits, HeldSequence, Join, RankUse,
    SequenceOutput, StepPlan, StepReport, StepTiming,
};
use crate::wire::{admin, worker as wire};

impl From<StepPlan> for wire::StepPlan {
    fn from(p: StepPlan) -> Self {
        let join = |j: Join| wire::Join {
            sequence: j.sequence,
            tokens: j.tokens,
            prompt_len: u32::try_from(j.prompt_len).unwrap_or(u32::MAX),
            params: Some(j.params.into()),
            cached: u32::try_from(j.cached).unwrap_or(u32::MAX),
            envelope: j.envelope,
        };
        Self {
            driver_epoch: p.driver_epoch,
            number: p.number,
            drops: p.drops,
            joins: p.joins.into_iter().map(join).collect(),
            grants: p
                .grants
                .into_iter()
                .map(|g| wire::Grant { sequence: g.sequence, blocks: g.blocks })
                .collect(),
            chunks: p
                .chunks
                .into_iter()
                .map(|c| wire::Chunk { sequence: c.sequence, tokens: c.tokens })
                .collect(),
            copies: p.copies.into_iter().map(|c| wire::BlockCopy { from: c.from, to: c.to }).collect(),
            lease_ms: p.lease_ms,
            drafts: Some(wire::Drafts { most: p.drafts.most, price: p.drafts.price }),
        }
    }
}

impl TryFrom<wire::StepPlan> for StepPlan {
    type Error = WireError;

    fn try_from(p: wire::StepPlan) -> Result<Self, WireError> {
        let join = |j: wire::Join| {
            let params = j.params.ok_or_else(|| WireError::new("joins.params", "missing"))?;
            let prompt_len = checked_prompt_len(j.prompt_len, j.tokens.len())?;
            let (cached, known) = (j.cached as usize, j.tokens.len());
            if cached >= known {
                return Err(WireError::new(
                    "joins.cached",
                    format!("{cached} of {known} tokens: one is left"),
                ));
            }
            let (sequence, tokens, envelope) = (j.sequence, j.tokens, j.envelope);
            Ok(Join { sequence, tokens, prompt_len, params: params.into(), cached, envelope })
        };
        let drafts = p.drafts.unwrap_or_default();
        Ok(Self {
            driver_epoch: p.driver_epoch,
            number: p.number,
            drops: p.drops,
            joins: p.joins.into_iter().map(join).collect::<Result<_, WireError>>()?,
            grants: p.grants.into_iter().map(|g| Grant { sequence: g.sequence, blocks: g.blocks }).collect(),
            chunks: p.chunks.into_iter().map(|c| Chunk { sequence: c.sequence, tokens: c.tokens }).collect(),
            copies: p.copies.into_iter().map(|c| BlockCopy { from: c.from, to: c.to }).collect(),
            lease_ms: p.lease_ms,
            drafts: Drafts { most: drafts.most, price: drafts.price },
        })
    }
}

impl From<StepReport> for wire::StepReport {
    fn from(r: StepReport) -> Self {
        let output = |o: SequenceOutput| wire::SequenceOutput {
            sequence: o.sequence,
            prompt: o.prompt.into_iter().map(Into::into).collect(),
            tokens: o.tokens.into_iter().map(Into::into).collect(),
            end: end_to_wire(o.end),
        };
        Self {
            driver_epoch: r.driver_epoch,
            number: r.number,
            outputs: r.outputs.into_iter().map(output).collect(),
            timing: Some(wire::StepTiming {
                rows: r.timing.rows,
                wait_us: r.timing.wait_us,
                compute_us: r.timing.compute_us,
                collective_us: r.timing.collective_us,
                sample_us: r.timing.sample_us,
            }),
            experts: r
                .experts
                .into_iter()
                .map(|e| wire::ExpertCount { layer: e.layer, expert: e.expert, tokens: e.tokens })
                .collect(),
            ranks: r.ranks.into_iter().map(Into::into).collect(),
            unplanned: r.unplanned,
            skipped: r.skipped,
            drafted: r.drafted,
            accepted: r.accepted,
        }
    }
}

impl TryFrom<wire::StepReport> for StepReport {
    type Error = WireError;

    fn try_from(r: wire::StepReport) -> Result<Self, WireError> {
        let output = |o: wire::SequenceOutput| {
            Ok(SequenceOutput {
                sequence: o.sequence,
                prompt: o.prompt.into_iter().map(Into::into).collect(),
                tokens: o.tokens.into_iter().map(Into::into).collect(),
                end: end_from_wire(o.end)?,
            })
        };
        let t = r.timing.unwrap_or_default();
        Ok(Self {
            driver_epoch: r.driver_epoch,
            number: r.number,
            outputs: r.outputs.into_iter().map(output).collect::<Result<_, WireError>>()?,
            timing: StepTiming {
                rows: t.rows,
                wait_us: t.wait_us,
                compute_us: t.compute_us,
                collective_us: t.collective_us,
                sample_us: t.sample_us,
            },
            experts: r
                .experts
                .into_iter()
                .map(|e| ExpertCount { layer: e.layer, expert: e.expert, tokens: e.tokens })
                .collect(),
            ranks: r.ranks.into_iter().map(Into::into).collect(),
            unplanned: r.unplanned,
            skipped: r.skipped,
            drafted: r.drafted,
            accepted: r.accepted,
        })
    }
}

impl From<RankUse> for admin::RankStats {
    fn from(r: RankUse) -> Self {
        Self {
            rank: r.rank,
            steps: r.steps,
            wait_us: r.wait_us,
            compute_us: r.compute_us,
            collective_us: r.collective_us,
            sample_us: r.sample_us,
            dispatched_rows: r.dispatched_rows,
            dispatched_bytes: r.dispatched_bytes,
        }
    }
}

impl From<admin::RankStats> for RankUse {
    fn from(r: admin::RankStats) -> Self {
        Self {
            rank: r.rank,
            steps: r.steps,
            wait_us: r.wait_us,
            compute_us: r.compute_us,
            collective_us: r.collective_us,
            sample_us: r.sample_us,
            dispatched_rows: r.dispatched_rows,
            dispatched_bytes: r.dispatched_bytes,
        }
    }
}

impl From<HeldSequence> for wire::HeldSequence {
    fn from(s: HeldSequence) -> Self {
        Self {
            sequence: s.sequence,
            tokens: s.tokens,
            prompt_len: u32::try_from(s.prompt_len).unwrap_or(u32::MAX),
            params: Some(s.params.into()),
            envelope: s.envelope,
            blocks: s.blocks,
            cached: u32::try_from(s.cached).unwrap_or(u32::MAX),
            outputs: s.outputs.into_iter().map(Into::into).collect(),
            end: end_to_wire(s.end),
            reading_prompt: s.reading_prompt,
            decodes: s.decodes,
        }
    }
}

impl TryFrom<wire::HeldSequence> for HeldSequence {
    type Error = WireError;

    fn try_from(s: wire::HeldSequence) -> Result<Self, WireError> {
        let params = s.params.ok_or_else(|| WireError::new("sequences.params", "missing"))?;
        let prompt_len = checked_prompt_len(s.prompt_len, s.tokens.len())?;
        let (cached, known, told) = (s.cached as usize, s.tokens.len(), s.outputs.len());
        if cached > known {
            return Err(WireError::new("sequences.cached", format!("{cached} of {known} tokens")));
        }
        if told > known - prompt_len {
            return Err(WireError::new(
                "sequences.outputs",
                format!("{told} after {prompt_len} of {known} tokens"),
            ));
        }
        Ok(Self {
            sequence: s.sequence,
            tokens: s.tokens,
            prompt_len,
            params: params.into(),
            envelope: s.envelope,
            blocks: s.blocks,
            cached,
            outputs: s.outputs.into_iter().map(Into::into).collect(),
            end: end_from_wire(s.end)?,
            reading_prompt: s.reading_prompt,
            decodes: s.decodes,
        })
    }
}

impl From<Attached> for wire::Attached {
    fn from(a: Attached) -> Self {
        let l = a.limits;
        Self {
            kv_blocks: l.kv_blocks,
            block_size: l.block_size,
            max_step_rows: l.max_step_rows,
            pools: l.pools,
            sequences: a.sequences.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<wire::Attached> for Attached {
    type Error = WireError;

    fn try_from(a: wire::Attached) -> Result<Self, WireError> {
        if a.block_size == 0 || a.max_step_rows == 0 {
            return Err(WireError::new("attached", "block_size and max_step_rows must be at least 1"));
        }
        let pools = a.pools.max(1);
        if a.kv_blocks.checked_mul(pools).is_none() {
            let reason = format!("{pools} pools of {} blocks are more than there are block ids", a.kv_blocks);
            return Err(WireError::new("attached", reason));
        }
        let (block_size, max_step_rows) = (a.block_size, a.max_step_rows);
        let limits = GroupLimits { kv_blocks: a.kv_blocks, pools, block_size, max_step_rows };
        let sequences = a.sequences.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?;
        Ok(Self { limits, sequences })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sequence::{SequenceEnd, SequenceParams, TokenOutput};

    #[test]
    fn plans_and_reports_survive_the_wire() {
        let params = SequenceParams { seed: 3, ..SequenceParams::default() };
        let plan = StepPlan {
            driver_epoch: 4,
            number: 2,
            drops: vec![1],
            joins: vec![Join {
                sequence: 8,
                tokens: vec![5, 6],
                prompt_len: 2,
                params,
                cached: 1,
                envelope: vec![1, 2],
            }],
            grants: vec![Grant { sequence: 8, blocks: vec![0, 3] }],
            copies: vec![BlockCopy { from: 7, to: 0 }],
            chunks: vec![Chunk { sequence: 8, tokens: 1 }],
            lease_ms: 2_000,
            drafts: Drafts { most: 8, price: 125 },
        };
        assert_eq!(StepPlan::try_from(wire::StepPlan::from(plan.clone())), Ok(plan));
        let report = StepReport {
            driver_epoch: 4,
            number: 2,
            outputs: vec![SequenceOutput {
                sequence: 8,
                prompt: vec![],
                tokens: [1, 7].map(|token| TokenOutput { token, logprob: None, top: vec![] }).to_vec(),
                end: Some(SequenceEnd::Length),
            }],
            timing: StepTiming { rows: 2, wait_us: 1, compute_us: 9, collective_us: 4, sample_us: 1 },
            experts: vec![ExpertCount { layer: 3, expert: 7, tokens: 1 << 40 }],
            ranks: vec![RankUse {
                rank: 1,
                steps: 2,
                wait_us: 3,
                compute_us: 4,
                collective_us: 5,
                sample_us: 6,
                dispatched_rows: 7,
                dispatched_bytes: 8,
            }],
            unplanned: true,
            skipped: vec![9],
            drafted: 3,
            accepted: 1,
        };
        assert_eq!(StepReport::try_from(wire::StepReport::from(report.clone())), Ok(report));
    }

    #[test]
    fn a_join_without_params_is_refused() {
        let join = wire::Join {
            sequence: 1,
            tokens: vec![1],
            prompt_len: 1,
            params: None,
            cached: 0,
            envelope: vec![],
        };
        let plan = wire::StepPlan { joins: vec![join], ..Default::default() };
        assert_eq!(StepPlan::try_from(plan).map_err(|e| e.field), Err("joins.params"));
    }

    #[test]
    fn a_join_with_nothing_left_to_compute_is_refused() {
        for (cached, fits) in [(0, true), (1, true), (2, false), (u32::MAX, false)] {
            let params = Some(crate::wire::cluster::SequenceParams::default());
            let join = wire::Join {
                sequence: 1,
                tokens: vec![1, 2],
                prompt_len: 1,
                params,
                cached,
                envelope: vec![],
            };
            let plan = wire::StepPlan { joins: vec![join], ..Default::default() };
            let refused = StepPlan::try_from(plan).err().map(|e| e.field);
            assert_eq!(refused, (!fits).then_some("joins.cached"), "{cached}");
        }
    }

    #[test]
    fn pools_have_block_ids_of_their_own() {
        let attached = |kv_blocks, pools| {
            let (block_size, max_step_rows, sequences) = (16, 8, vec![]);
            wire::Attached { kv_blocks, block_size, max_step_rows, pools, sequences }
        };
        let limits = |kv_blocks, pools| {
            let limits = GroupLimits { kv_blocks, block_size: 16, max_step_rows: 8, pools };
            Attached { limits, sequences: vec![] }
        };
        assert_eq!(Attached::try_from(attached(9, 2)), Ok(limits(9, 2)));
        assert_eq!(Attached::try_from(attached(9, 0)), Ok(limits(9, 1)), "a leader that knows of one");
        assert!(Attached::try_from(attached(1 << 31, 2)).is_err());
        assert_eq!(wire::Attached::from(limits(9, 2)), attached(9, 2));
    }

    #[test]
    fn held_sequences_survive_the_wire_and_are_checked() {
        let output = TokenOutput { token: 7, logprob: Some(-1.0), top: vec![(7, -1.0)] };
        let held = HeldSequence {
            sequence: 3,
            tokens: vec![5, 6, 7],
            prompt_len: 2,
            params: SequenceParams::default(),
            envelope: vec![1, 2, 3],
            blocks: vec![8, 1],
            cached: 2,
            outputs: vec![output.clone()],
            end: Some(SequenceEnd::StopToken),
            reading_prompt: true,
            decodes: true,
        };
        let wire = wire::HeldSequence::from(held.clone());
        assert_eq!(HeldSequence::try_from(wire.clone()), Ok(held));
        let field = |wire: wire::HeldSequence| HeldSequence::try_from(wire).map_err(|error| error.field);
        assert_eq!(field(wire::HeldSequence { cached: 4, ..wire.clone() }), Err("sequences.cached"));
        let two = vec![output.clone().into(), output.into()];
        assert_eq!(field(wire::HeldSequence { outputs: two, ..wire.clone() }), Err("sequences.outputs"));
        assert_eq!(field(wire::HeldSequence { params: None, ..wire }), Err("sequences.params"));
    }
}
