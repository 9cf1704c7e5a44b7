//! How a sequence enters: into which pool, with which blocks that are there already, and whether there is room.
//!
//! **The rule of admission.** A sequence enters a pool if the blocks for all its known tokens, less those it finds there, can
//! be taken, and one more for each sequence that runs there: so nothing is promised that is not there, and who enters is not
//! preempted in the next step. What cached blocks it finds count as taken by it. Growth beyond that is paid for by preemption.

use foggara_proto::step::{BlockCopy, BlockId, Grant, Join, SequenceId, StepPlan};

use super::Batcher;
use super::sequence::{Phase, Sequence};

/// A pool with cached blocks is preferred unless this many more sequences run there than elsewhere: the pools' ranks wait for
/// each other in every step.
const MOST_AHEAD: usize = 2;

/// How a waiting sequence can enter.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Entry {
    pool: usize,
    /// Its first blocks, which others hold or held.
    shared: Vec<BlockId>,
    /// The block whose content its first own block begins with.
    copied: Option<BlockId>,
    /// Tokens in those.
    cached: usize,
}

/// Who enters next.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Next {
    pub(super) id: SequenceId,
    /// How it can enter.
    pub(super) entry: Entry,
    /// Tokens that it has to compute.
    pub(super) left: usize,
}

impl Next {
    /// Tokens that it finds in the cache.
    pub(super) fn cached(&self) -> usize {
        self.entry.cached
    }
}

/// Why nobody enters though somebody waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeldUp {
    /// There are as many sequences in the group as there may be.
    Places,
    /// There are not enough blocks for whoever is next.
    Memory,
    /// Prompts that came before are to be read first, or decodes leave no time for more prompts.
    Prompts,
}

/// Whether a waiting sequence can enter in the plan being made.
#[derive(Debug, PartialEq, Eq)]
enum Admission {
    Enters(Entry),
    /// There is not enough memory for it yet.
    NoRoom,
    /// The first of its choices goes first. Others may go before it.
    NotYet,
}

impl Batcher {
    /// Whether and how `sequence` can enter.
    fn admission(&self, sequence: &Sequence) -> Admission {
        let first = sequence.first.and_then(|first| self.sequences.get(&first));
        // Sharing stays within what may be shared, whatever is asked for.
        let first = first.filter(|first| first.chain.root() == sequence.chain.root());
        let entry = match first {
            Some(first) if sequence.most_cached() > 0 => match self.beside(first, sequence) {
                Ok(entry) => entry,
                Err(NotBeside::NotYet) => return Admission::NotYet,
                Err(NotBeside::Never) => self.alone(sequence),
            },
            _ => self.alone(sequence),
        };
        entry.map_or(Admission::NoRoom, Admission::Enters)
    }

    /// How `sequence` can enter beside the first of its choices, with whose blocks it begins: whole ones are shared, though
    /// their content may still be on its way (the steps that fill them come first), the last one is copied.
    fn beside(&self, first: &Sequence, sequence: &Sequence) -> Result<Option<Entry>, NotBeside> {
        match first.phase {
            // What it left behind is in the cache.
            Phase::Ended | Phase::Preempted { .. } => return Err(NotBeside::Never),
            Phase::Waiting => return Err(NotBeside::NotYet),
            Phase::Running => {}
        }
        if self.is_reading(first) {
            return Err(NotBeside::NotYet);
        }
        let same = first.tokens.iter().zip(&sequence.tokens).take_while(|(a, b)| a == b).count();
        let cached = same.min(first.joined_with).min(sequence.most_cached());
        let whole = cached / self.block_size();
        let entry = Entry {
            pool: first.pool,
            shared: first.blocks[..whole].to_vec(),
            copied: (cached > whole * self.block_size()).then(|| first.blocks[whole]),
            cached,
        };
        let fits = self.fits(sequence, entry.pool, whole, 0);
        Ok(fits.then_some(entry))
    }

    /// How `sequence` can enter by itself: in the pool where it finds most; without that, where there is most room, then where
    /// the fewest run.
    fn alone(&self, sequence: &Sequence) -> Option<Entry> {
        let most = sequence.most_cached() / self.block_size();
        let hashes = &sequence.chain.hashes()[..most];
        let running: Vec<usize> = (0..self.pools.len()).map(|pool| self.running_in(pool)).collect();
        let fewest = running.iter().min().copied().unwrap_or(0);
        let found = self.pools.iter().enumerate().map(|(pool, blocks)| (pool, blocks.find(hashes)));
        let fit = found.filter(|(pool, found)| self.fits(sequence, *pool, found.blocks.len(), found.revived));
        let best = fit.min_by_key(|(pool, found)| {
            let near = running[*pool] <= fewest + MOST_AHEAD;
            let counted = if near { found.blocks.len() } else { 0 };
            (std::cmp::Reverse((counted, self.pools[*pool].available())), running[*pool])
        });
        best.map(|(pool, found)| {
            let cached = found.blocks.len() * self.block_size();
            Entry { pool, shared: found.blocks, copied: None, cached }
        })
    }

    /// The rule of admission for a sequence that has `shared` blocks already, of which nobody holds `revived`.
    fn fits(&self, sequence: &Sequence, pool: usize, shared: usize, revived: usize) -> bool {
        let missing = self.blocks_for(sequence.tokens.len()) - shared;
        self.pools[pool].available() >= missing + revived + self.running_in(pool)
    }

    /// Who enters next, and how: the first in the queue that does not wait for the first of its choices. Else what is in the
    /// way; nothing is if nobody waits.
    pub(super) fn next_entry(&self) -> Result<Next, Option<HeldUp>> {
        if self.running.len() >= self.limits.sequences as usize {
            return Err(self.queue.candidates().next().map(|_| HeldUp::Places));
        }
        let waiting = self.queue.candidates().filter_map(|id| Some((id, self.sequences.get(&id)?)));
        for (id, sequence) in waiting {
            match self.admission(sequence) {
                Admission::NotYet => {}
                Admission::NoRoom => return Err(Some(HeldUp::Memory)),
                Admission::Enters(entry) => {
                    return Ok(Next { id, left: sequence.tokens.len() - entry.cached, entry });
                }
            }
        }
        Err(None)
    }

    /// Whether no plan made so far completes the prompt of a running sequence.
    fn is_reading(&self, sequence: &Sequence) -> bool {
        sequence.prefilled_by.is_none_or(|plan| plan > self.last_number)
    }

    /// Lets a waiting sequence in, as [`admission`](Self::admission) has just said.
    pub(super) fn enter(&mut self, plan: &mut StepPlan, id: SequenceId, entry: Entry) {
        let needed = self.blocks_for(self.sequences.get(&id).map_or(0, |sequence| sequence.tokens.len()));
        let Some(sequence) = self.sequences.get_mut(&id) else { unreachable!("waiting sequences are known") };
        let Entry { pool, shared, copied, cached } = entry;
        self.pools[pool].share(&shared);
        let own = self.pools[pool].take(needed - shared.len()).expect("there is room");
        if let (Some(from), Some(to)) = (copied, own.first().copied()) {
            plan.copies.push(BlockCopy { from, to });
        }
        if sequence.most_cached() > 0 {
            self.cache_tokens.asked += sequence.tokens.len() as u64;
            self.cache_tokens.found += cached as u64;
        }
        if !sequence.entered {
            sequence.entered = true;
            sequence.found = u32::try_from(cached.min(sequence.prompt_len)).ok();
        }
        // What is there already costs its tenant nothing.
        self.queue.enter(id, &mut sequence.ticket, sequence.tokens.len() - cached);
        sequence.phase = Phase::Running;
        sequence.first = None;
        sequence.pool = pool;
        sequence.joined_at = cached;
        sequence.planned = cached;
        sequence.named = 0;
        sequence.blocks = [shared, own].concat();
        self.running.push(id);
        plan.joins.push(Join {
            sequence: id,
            tokens: sequence.tokens.clone(),
            prompt_len: sequence.prompt_len,
            params: sequence.params.clone(),
            cached,
            envelope: sequence.envelope.clone(),
        });
        plan.grants.push(Grant { sequence: id, blocks: sequence.blocks.clone() });
    }
}

/// Why a sequence does not enter beside the first of its choices.
enum NotBeside {
    /// The first is not there yet.
    NotYet,
    /// The first has gone, or is about to: it enters alone.
    Never,
}
