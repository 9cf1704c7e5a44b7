//! What the leader may draft in a step: tokens that are likely to follow, computed with the one that is known. Which these are
//! and how likely, it knows itself; what they cost is known here.

use foggara_proto::step::{Drafts, SequenceId, StepReport};

use super::Batcher;
use super::cost::{CostModel, Work};

/// Nothing counts as free: a row that a draft wastes also keeps plans and reports waiting.
const LEAST_PRICE: f64 = 0.05;
/// In thousandths.
const WHOLE: f64 = 1000.0;

impl Batcher {
    /// What may be drafted in the step that has been planned: nothing while prompts are read, which take what time there is.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    pub(super) fn drafts(&self, prefilling: usize) -> Drafts {
        let price = price(&self.cost, self.work);
        match self.limits.drafts {
            most @ 1.. if prefilling == 0 && price < WHOLE => Drafts { most, price: price.ceil() as u32 },
            _ => Drafts::default(),
        }
    }

    /// Tokens that a sequence may go further in the plans on their way and the one being made, if all that it drafts is right.
    pub(super) fn draft_reach(&self) -> usize {
        match self.limits.drafts as usize {
            0 => 0,
            most => (self.in_flight.len() + 1) * (most + 1),
        }
    }

    /// Sequences that had several tokens in a step have gone further than plans knew.
    pub(super) fn went_further(&mut self, report: &StepReport) {
        let several =
            |(id, tokens): (SequenceId, usize)| Some((id, tokens.checked_sub(1).filter(|n| *n > 0)?));
        let moved = report.outputs.iter().map(|output| (output.sequence, output.tokens.len()));
        self.shift(&moved.filter_map(several).collect(), usize::saturating_add);
    }
}

/// What one row more costs in a step that does `work`, in thousandths of what it takes for each token that it gives.
fn price(cost: &CostModel, work: Work) -> f64 {
    if work.decodes == 0 {
        return WHOLE;
    }
    let mut more = work;
    more.add_decode(work.attended / work.decodes);
    let (without, with) = (cost.predict(work), cost.predict(more));
    let row = (with - without) * work.decodes as f64 / without;
    WHOLE * row.max(LEAST_PRICE)
}

#[cfg(test)]
mod tests {
    use super::super::shadow::ModelLeader;
    use super::super::tests::{LIMITS, request};
    use super::super::{Limits, SequenceId as Id};
    use super::*;

    const DRAFTING: Limits = Limits { drafts: 4, ..LIMITS };

    /// Plans and runs a step. Returns what it allows, and the blocks it grants.
    fn step(batcher: &mut Batcher, leader: &mut ModelLeader) -> (Drafts, usize) {
        let plan = batcher.plan().expect("work");
        let granted = plan.grants.iter().map(|grant| grant.blocks.len()).sum();
        batcher.report(leader.execute(&plan)).expect("in order");
        (plan.drafts, granted)
    }

    fn submit(batcher: &mut Batcher, id: Id, prompt: usize) {
        let mut tokens = vec![7; prompt];
        tokens[0] = u32::try_from(id).expect("small");
        batcher.submit(id, request(&tokens, 40), None).expect("room");
    }

    #[test]
    fn whoever_decodes_alone_may_draft_and_whoever_is_beside_prompts_or_many_may_not() {
        let (mut batcher, mut leader) = (Batcher::new(1, DRAFTING), ModelLeader::new(DRAFTING));
        submit(&mut batcher, 1, 8);
        assert_eq!(
            step(&mut batcher, &mut leader),
            (Drafts::default(), 4),
            "its prompt is read; blocks ahead"
        );
        let (alone, _) = step(&mut batcher, &mut leader);
        assert!(alone.most == 4 && (50..500).contains(&alone.price), "{alone:?}");
        submit(&mut batcher, 2, 30);
        assert_eq!(step(&mut batcher, &mut leader).0, Drafts::default(), "another prompt is read");
        while batcher.sequences.values().any(|sequence| sequence.prefill_left() > 0) {
            step(&mut batcher, &mut leader);
        }
        let (beside, _) = step(&mut batcher, &mut leader);
        assert!(beside.most == 4 && beside.price > alone.price, "{beside:?} beside another, {alone:?} alone");
        let (mut batcher, mut leader) = (Batcher::new(1, LIMITS), ModelLeader::new(LIMITS));
        submit(&mut batcher, 1, 8);
        for granted in [2, 1, 0] {
            assert_eq!(step(&mut batcher, &mut leader), (Drafts::default(), granted), "none are wanted");
        }
    }

    /// A model that has seen steps of an engine with such costs, in microseconds.
    fn fitted(fixed: f64, row: f64, attended: f64) -> CostModel {
        let mut cost = CostModel::default();
        for step in 0..400usize {
            let mut work = Work::default();
            (0..=step % 5).for_each(|_| work.add_decode(100 + step % 7 * 300));
            if step.is_multiple_of(4) {
                work = work.with_chunk(step, 16 * (1 + step % 3), false);
            }
            cost.observe(work, fixed + row * work.rows as f64 + attended * work.attended as f64);
        }
        cost
    }

    #[test]
    fn a_row_costs_what_it_adds_to_a_token() {
        for (fixed, row, attended, decodes, expected, what) in [
            (10_000.0, 1_000.0, 0.0, 1, 91.0, "one stream, weights are read for it alone"),
            (10_000.0, 1_000.0, 0.0, 4, 286.0, "four"),
            (10_000.0, 1_000.0, 0.0, 32, 762.0, "many: a token costs hardly more than a row"),
            (1_000.0, 3_000.0, 0.0, 1, 750.0, "rows are what takes time"),
            (10_000.0, 1_000.0, 2.0, 1, 286.0, "in a long context"),
            (10_000.0, 10.0, 0.0, 1, 50.0, "nothing is free"),
        ] {
            let mut work = Work::default();
            (0..decodes).for_each(|_| work.add_decode(1_500));
            let price = price(&fitted(fixed, row, attended), work);
            assert!((price / expected - 1.0).abs() < 0.05, "{what}: {price} instead of {expected}");
        }
        assert!(price(&CostModel::default(), Work::default()) >= WHOLE, "nobody decodes");
    }
}
