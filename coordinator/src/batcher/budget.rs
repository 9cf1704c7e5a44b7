//! How much prefill goes into a step: one budget, in predicted time, for decodes and prompt chunks together.
//!
//! Decodes always go. While somebody decodes, prompt chunks may stretch a step to [`STRETCH`] times what it would take
//! without them, so that the time between others' tokens stays within twice of what it was before a long prompt came. When
//! nobody decodes, only the rows of a step are limited.
//!
//! Few streams' steps are short, and half of one lets hardly anybody in: of many short prompts that come at once, the first
//! answers would be over before the last ones begin. So a step may take as long as it will when all decode who wait for a
//! place and can have one: streams get early what is coming to them anyway. Prompts that take many such steps do not count.
//!
//! Streams have a claim to what they were used to, not to more: prompts that had arrived before the oldest of the streams
//! began are company it always had. As long as such prompts are left, steps run for fewer sequences than they could, and
//! what they cost whoever takes part is spent more often than need be. A step may then take so long that no more than
//! [`WASTE`] of it is lost that way: a burst is let in quickly where steps are expensive, and nobody who streamed before it
//! notices. That goes for prompts that [`COMPANY_STEPS`] such steps would let in. A prompt that takes many more would make all of
//! them long, for streams that come while it is read too, and save next to nothing.

use foggara_proto::step::{SequenceId, StepPlan};

use super::Batcher;
use super::admission::Next;
use super::cost::{CostModel, Work};
use super::sequence::{Phase, Sequence};

/// A step in which others decode may take so many times what it would take without prefill. Below 2 by what predictions
/// and machines vary: with 1.8 and with 1.65, one measurement in three came out between 2.0 and 2.2.
const STRETCH: f64 = 1.5;
/// The part of a step's time that may be lost because it runs without sequences that wait for it.
const WASTE: f64 = 0.03;
/// Whoever takes more steps than so many that are as long as its company allows is no company.
const COMPANY_STEPS: f64 = 32.0;
/// Whoever takes more steps than so many that are as long as those of all who are there is not counted among them.
const CROWD_STEPS: f64 = 8.0;
/// After so many steps with both, one has decodes alone: without it, nobody would know any more what those take, while one long
/// prompt is read.
const BOTH: u32 = 31;
/// Chunks are multiples of a power of two up to this, which kernels like; at most an eighth of the budget is left for it.
const WHOLE_CHUNK: usize = 16;

/// What may still go into the step being planned.
#[derive(Debug)]
pub(super) struct StepBudget {
    work: Work,
    rows: usize,
    most_micros: f64,
    prefilled: bool,
}

impl StepBudget {
    /// Rows that a prompt with `left` to compute after `start` positions may have. The first to ask gets one at least: there
    /// is progress in every step.
    fn rows_for(&self, cost: &CostModel, start: usize, left: usize) -> usize {
        let most = left.min(self.rows);
        let fits =
            |rows: usize| cost.predict(self.work.with_chunk(start, rows, rows == left)) <= self.most_micros;
        if most == 0 || fits(most) {
            return most;
        }
        // `fits` holds for `low` (or `low` is 0) and not for `high`.
        let (mut low, mut high) = (0, most);
        while high - low > 1 {
            let middle = usize::midpoint(low, high);
            if fits(middle) { low = middle } else { high = middle }
        }
        if low == 0 && !self.prefilled {
            return 1;
        }
        let whole = (low / 8).checked_ilog2().map_or(1, |log| 1 << log).min(WHOLE_CHUNK);
        low - low % whole
    }

    /// Takes the rows of a chunk, of `wanted`. If those are not all, there is no time for anybody else's.
    fn take(&mut self, start: usize, rows: usize, wanted: usize, last: bool) {
        self.work = self.work.with_chunk(start, rows, last);
        self.rows = if rows < wanted { 0 } else { self.rows - rows };
        self.prefilled |= rows > 0;
    }
}

impl Batcher {
    /// What the step may hold beside the decodes already in it.
    pub(super) fn step_budget(&self) -> StepBudget {
        let work = self.work;
        let most_micros = match work.decodes {
            0 => f64::INFINITY,
            _ if self.is_recovering() => f64::INFINITY,
            decodes => (STRETCH * self.cost.predict(work))
                .max(self.crowd_micros(decodes))
                .max(self.company_micros(decodes)),
        };
        let rows = match self.both {
            BOTH.. if most_micros.is_finite() => 0,
            _ => (self.limits.step_rows as usize).saturating_sub(work.rows),
        };
        StepBudget { work, rows, most_micros, prefilled: false }
    }

    /// Whether all that decode are streams that had been interrupted, and others of those are still to be read. None of them has
    /// been stalled for longer than these, so these are not made to wait for their sake.
    fn is_recovering(&self) -> bool {
        let running = || self.running.iter().filter_map(|id| self.sequences.get(id));
        let next = self.queue.candidates().next().and_then(|id| self.sequences.get(&id));
        let mut unread = running().filter(|sequence| sequence.prefill_left() > 0).chain(next);
        unread.any(|sequence| sequence.ticket.resumed())
            && running().filter(|sequence| sequence.decodes()).all(|sequence| sequence.ticket.resumed())
    }

    /// Notes what has been planned: the step's work, and whose prompts are complete with it.
    pub(super) fn close_budget(&mut self, plan: &StepPlan, budget: &StepBudget) {
        self.work = budget.work;
        self.both = if self.work.decodes > 0 && budget.prefilled { self.both + 1 } else { 0 };
        for chunk in &plan.chunks {
            if let Some(sequence) = self.sequences.get_mut(&chunk.sequence).filter(|s| s.prefill_left() == 0)
            {
                self.queue.streams(&mut sequence.ticket);
            }
        }
    }

    /// How long a step will take when those decode as well who wait, or whose prompts are being read: as many as there are
    /// places for beside `decodes` streams.
    fn crowd_micros(&self, decodes: usize) -> f64 {
        let running = || self.running.iter().filter_map(|id| self.sequences.get(id));
        let reading = running().filter(|sequence| sequence.prefill_left() > 0);
        let waiting = self.queue.candidates().filter_map(|id| self.sequences.get(&id));
        let places = (self.limits.sequences as usize).saturating_sub(decodes);
        let (mut work, mut crowd) = (self.work, Vec::new());
        for sequence in reading.chain(waiting).take(places) {
            work.add_decode(sequence.joined_with);
            crowd.push(sequence);
        }
        let most = CROWD_STEPS * self.cost.predict(work);
        let long = |sequence: &&&Sequence| self.whole_micros(sequence) > most;
        if crowd.iter().any(|sequence| long(&sequence)) {
            work = self.work;
            crowd.iter().filter(|sequence| !long(sequence)).for_each(|s| work.add_decode(s.joined_with));
        }
        self.cost.predict(work)
    }

    /// What reading all of a prompt takes, beside the fixed part of a step: one that is long does not become short when little
    /// of it is left.
    fn whole_micros(&self, sequence: &Sequence) -> f64 {
        let rows = sequence.joined_with.saturating_sub(sequence.joined_at);
        let chunk = Work::default().with_chunk(sequence.joined_at, rows, true);
        self.cost.predict(chunk) - self.cost.predict(Work::default())
    }

    /// How long a step may take for the sake of those who had arrived before the oldest of `decodes` streams began, and do not
    /// decode yet.
    fn company_micros(&self, decodes: usize) -> f64 {
        let running = || self.running.iter().filter_map(|id| self.sequences.get(id));
        let decoding = running().filter(|sequence| sequence.decodes());
        let Some(since) = decoding.filter_map(|sequence| sequence.ticket.streams_since()).min() else {
            return 0.0;
        };
        let reading = running().filter(|s| s.prefill_left() > 0 && s.ticket.arrived_before(since));
        let waiting = self.queue.waiting_since(since).filter_map(|id| self.sequences.get(&id));
        let places = (self.limits.sequences as usize).saturating_sub(decodes);
        let fixed = self.cost.predict(Work::default());
        let whole = |sequence| self.whole_micros(sequence);
        let company: Vec<f64> = reading.chain(waiting).take(places).map(whole).collect();
        #[allow(clippy::cast_precision_loss)]
        let micros = |company: usize| fixed * company as f64 / (decodes + company) as f64 / WASTE;
        let most = COMPANY_STEPS * micros(company.len());
        micros(company.iter().filter(|whole| **whole <= most).count())
    }

    /// Rows of this step for sequence `id`, `most` at most; takes them from the budget.
    pub(super) fn chunk_rows(&self, budget: &mut StepBudget, id: SequenceId, most: usize) -> usize {
        let Some(sequence) = self.sequences.get(&id).filter(|s| s.phase == Phase::Running) else { return 0 };
        let (start, left) = (sequence.planned, sequence.prefill_left());
        let wanted = left.min(most);
        let rows = budget.rows_for(&self.cost, start, wanted);
        budget.take(start, rows, wanted, rows == left);
        rows
    }

    /// Whether there is room for the next in the queue to begin: there is if nobody's prompt is left unfinished, or if its
    /// own is shorter than what is left of the oldest one's.
    pub(super) fn may_begin(&self, budget: &StepBudget, next: &Next, oldest_left: usize) -> bool {
        let room = budget.rows_for(&self.cost, next.cached(), next.left) > 0;
        room && (oldest_left == 0 || next.left < oldest_left)
    }

    /// Sequences whose prompts are being read, in the order in which they get rows, with the most that each may have.
    ///
    /// The oldest first; but of a long prompt's rows up to half go to prompts that are shorter than what is left of it, the
    /// shortest first, be they running or next in the queue. So a short prompt does not wait for a long one, and no number of
    /// short ones can hold up a long one by more than as much again.
    pub(super) fn reading_order(&self, budget: &StepBudget) -> Vec<(SequenceId, usize)> {
        let left = |id: &SequenceId| self.sequences.get(id).map_or(0, Sequence::prefill_left);
        let mut reading = self.running.iter().copied().filter(|id| left(id) > 0);
        let Some(oldest) = reading.next() else { return Vec::new() };
        let (start, oldest_left) = (self.sequences.get(&oldest).map_or(0, |s| s.planned), left(&oldest));
        let mut others: Vec<_> = reading.collect();
        others.sort_by_key(left);
        let next = self.next_entry().map_or(0, |next| next.left);
        let lefts = others.iter().map(left).chain([next]);
        let shorter: usize = lefts.filter(|left| *left < oldest_left).sum();
        let room = budget.rows_for(&self.cost, start, oldest_left);
        // A single row goes to either side in turn.
        let half = usize::midpoint(room, usize::from(self.last_number.is_multiple_of(2)));
        let share = room.saturating_sub(shorter).max(half);
        let mut order = vec![(oldest, share)];
        order.extend(others.into_iter().map(|id| (id, usize::MAX)));
        order
    }
}

#[cfg(test)]
#[path = "budget_tests.rs"]
mod tests;
