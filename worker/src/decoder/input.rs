//! What every rank needs to know of a step, and its form on the way from the leader to the others.

use std::ops::Range;

use foggara_kernels::cuda::op::sample::MAX_TOP;
use foggara_kernels::op::draw::{Draw, Rule};
use foggara_proto::step::{BlockCopy, BlockId};

use super::span;
use crate::adapters::Adapters;

/// Consecutive positions of one sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// The sequence's place in the block tables.
    pub slot: u32,
    /// First position.
    pub start: u32,
    /// Rows.
    pub len: u32,
    /// Rows from this one on want logits (`len`: none).
    pub logits_from: u32,
}

impl Segment {
    /// Its positions.
    pub fn positions(&self) -> Range<usize> {
        span(self.start, self.len)
    }
}

/// What must be known of the logits of a row that wants them.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Want {
    /// All of them.
    #[default]
    Whole,
    /// So many of the best, or all if there are fewer: at most [`MOST_BEST`].
    Best(u32),
    /// The token that is drawn from them so; or all of them, where no rank has all and could draw.
    Drawn(Rule),
}

impl Want {
    /// How the token at position `next` is drawn, if it is to be.
    pub(super) fn draw(self, next: usize) -> Option<Draw> {
        match self {
            Self::Drawn(rule) => Some(rule.at(next)),
            Self::Whole | Self::Best(_) => None,
        }
    }

    /// What stands for it on the way to the other ranks.
    fn encode(self, mut put: impl FnMut(u32)) {
        match self {
            Self::Whole => put(0),
            Self::Best(count) => put(count),
            Self::Drawn(Rule { scale, least, share, seed }) => {
                let halves = [share, seed].map(|word| [word as u32, (word >> 32) as u32]);
                [DRAWN, scale.to_bits(), least.to_bits()]
                    .into_iter()
                    .chain(halves.into_iter().flatten())
                    .for_each(&mut put);
            }
        }
    }

    /// The reverse.
    fn decode(mut next: impl FnMut() -> Result<u32, InputError>) -> Result<Self, InputError> {
        Ok(match next()? {
            0 => Self::Whole,
            DRAWN => {
                let (scale, least) = (f32::from_bits(next()?), f32::from_bits(next()?));
                let mut long = || Ok(u64::from(next()?) | u64::from(next()?) << 32);
                Self::Drawn(Rule { scale, least, share: long()?, seed: long()? })
            }
            count => Self::Best(count),
        })
    }
}

/// Where a count would stand, of what is drawn.
const DRAWN: u32 = u32::MAX;

/// The greatest number of best logits that a row may want; of more it must take all.
pub const MOST_BEST: usize = MAX_TOP;

/// One step: changes of the block tables, copies of blocks, then rows.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StepInput {
    /// Slots that are forgotten: their blocks, and their adapters.
    pub drops: Vec<u32>,
    /// Slots whose sequences are computed with an adapter, and its number.
    pub adapters: Vec<(u32, u64)>,
    /// Blocks added to slots.
    pub grants: Vec<(u32, Vec<BlockId>)>,
    /// Blocks that begin as another one is, one copy after the other.
    pub copies: Vec<BlockCopy>,
    /// The rows' sequences and positions.
    pub segments: Vec<Segment>,
    /// What the rows of each segment want that want logits. Where there are fewer than segments, the others want all of them.
    pub wants: Vec<Want>,
    /// The rows' tokens, segment after segment.
    pub tokens: Vec<u32>,
    /// Afterwards the ranks tell the leader what they have counted.
    pub collect: bool,
}

/// A step that cannot be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("step input: {0}")]
pub struct InputError(String);

/// Bounds of what a step may refer to.
const MAX_SLOTS: u32 = 1 << 16;

impl StepInput {
    /// Whether running it would change or compute anything.
    pub fn is_empty(&self) -> bool {
        let changes = self.drops.is_empty()
            && self.adapters.is_empty()
            && self.grants.is_empty()
            && self.copies.is_empty();
        changes && self.tokens.is_empty() && !self.collect
    }

    /// What the rows of the `segment`-th segment want.
    pub fn want(&self, segment: usize) -> Want {
        self.wants.get(segment).copied().unwrap_or_default()
    }

    /// Whether it can be run on `tables` (its own changes made) with this vocabulary, block size and most rows.
    ///
    /// # Errors
    /// Names what does not fit.
    pub fn check(
        &self,
        tables: &BlockTables,
        vocab: usize,
        block_size: usize,
        max_rows: usize,
    ) -> Result<(), InputError> {
        let rows: usize = self.segments.iter().map(|segment| segment.len as usize).sum();
        if rows > max_rows {
            return Err(InputError(format!("{rows} rows, at most {max_rows}")));
        }
        if rows != self.tokens.len() {
            return Err(InputError(format!("{} tokens for {rows} rows", self.tokens.len())));
        }
        if let Some(token) = self.tokens.iter().find(|token| **token as usize >= vocab) {
            return Err(InputError(format!("token {token} of a vocabulary of {vocab}")));
        }
        let too_many = |want: &&Want| matches!(want, Want::Best(count) if *count as usize > MOST_BEST);
        if let Some(want) = self.wants.iter().find(too_many) {
            return Err(InputError(format!("{want:?} of logits, at most {MOST_BEST}")));
        }
        for segment in &self.segments {
            let room = tables.blocks(segment.slot).len() * block_size;
            if segment.positions().end > room || segment.logits_from > segment.len {
                return Err(InputError(format!("{segment:?} in blocks for {room} positions")));
            }
        }
        Ok(())
    }

    /// Whether the adapters of its rows are loaded.
    ///
    /// # Errors
    /// Names one that is not.
    pub fn check_adapters(&self, tables: &BlockTables, adapters: &Adapters) -> Result<(), InputError> {
        let mut wanted = self.segments.iter().filter_map(|segment| tables.adapter(segment.slot));
        match wanted.find(|adapter| !adapters.has(*adapter)) {
            Some(adapter) => Err(InputError(format!("adapter {adapter} is not loaded"))),
            None => Ok(()),
        }
    }

    /// Little-endian words: six counts and a flag, then the six lists, that of segments with what their rows want.
    pub fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.clear();
        let mut put =
            |word: usize| bytes.extend_from_slice(&u32::try_from(word).unwrap_or(u32::MAX).to_le_bytes());
        let lists = [self.drops.len(), self.adapters.len(), self.grants.len(), self.copies.len()];
        lists.into_iter().chain([self.segments.len(), self.tokens.len()]).for_each(&mut put);
        put(usize::from(self.collect));
        self.drops.iter().for_each(|slot| put(*slot as usize));
        for (slot, adapter) in &self.adapters {
            [*slot as usize, (*adapter as u32) as usize, (*adapter >> 32) as usize]
                .into_iter()
                .for_each(&mut put);
        }
        for (slot, blocks) in &self.grants {
            put(*slot as usize);
            put(blocks.len());
            blocks.iter().for_each(|block| put(*block as usize));
        }
        for copy in &self.copies {
            [copy.from, copy.to].into_iter().for_each(|block| put(block as usize));
        }
        for (i, s) in self.segments.iter().enumerate() {
            [s.slot, s.start, s.len, s.logits_from].into_iter().for_each(|word| put(word as usize));
            self.want(i).encode(|word| put(word as usize));
        }
        self.tokens.iter().for_each(|token| put(*token as usize));
    }

    /// The reverse of [`encode`](Self::encode).
    ///
    /// # Errors
    /// If the bytes are not such a message.
    pub fn decode(bytes: &[u8]) -> Result<Self, InputError> {
        let mut words = bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word));
        let mut next =
            || words.next().ok_or_else(|| InputError(format!("{} bytes are too few", bytes.len())));
        let counts = [next()?, next()?, next()?, next()?, next()?, next()?];
        let collect = next()? != 0;
        let drops = (0..counts[0]).map(|_| next()).collect::<Result<_, _>>()?;
        let mut adapters = Vec::new();
        for _ in 0..counts[1] {
            adapters.push((next()?, u64::from(next()?) | u64::from(next()?) << 32));
        }
        let mut grants = Vec::new();
        for _ in 0..counts[2] {
            let (slot, count) = (next()?, next()?);
            grants.push((slot, (0..count).map(|_| next()).collect::<Result<_, _>>()?));
        }
        let mut copies = Vec::new();
        for _ in 0..counts[3] {
            copies.push(BlockCopy { from: next()?, to: next()? });
        }
        let (mut segments, mut wants) = (Vec::new(), Vec::new());
        for _ in 0..counts[4] {
            segments.push(Segment { slot: next()?, start: next()?, len: next()?, logits_from: next()? });
            wants.push(Want::decode(&mut next)?);
        }
        let tokens = (0..counts[5]).map(|_| next()).collect::<Result<_, _>>()?;
        Ok(Self { drops, adapters, grants, copies, segments, wants, tokens, collect })
    }
}

/// The blocks of every sequence, by slot; the same on every rank.
///
/// Each part of the batch has a pool of blocks: of `n` blocks each, pool `p` has those numbered `p · n ..`. A sequence's blocks
/// are of one pool, and so say which part it is in.
#[derive(Debug)]
pub struct BlockTables {
    pools: usize,
    pool_blocks: usize,
    slots: Vec<Slot>,
}

#[derive(Debug, Default, Clone)]
struct Slot {
    pool: usize,
    /// Numbered within the pool.
    blocks: Vec<BlockId>,
    adapter: Option<u64>,
}

impl BlockTables {
    /// Empty tables over `pools` pools of `pool_blocks` blocks.
    pub fn new(pools: usize, pool_blocks: usize) -> Self {
        Self { pools, pool_blocks, slots: Vec::new() }
    }

    /// Makes a step's changes.
    ///
    /// # Errors
    /// If a slot or block does not exist, or a sequence would have, or a block would be copied from, blocks of two pools.
    pub fn apply(&mut self, input: &StepInput) -> Result<(), InputError> {
        for slot in &input.drops {
            if let Some(slot) = self.slots.get_mut(*slot as usize) {
                *slot = Slot::default();
            }
        }
        for (slot, adapter) in &input.adapters {
            if *slot >= MAX_SLOTS {
                return Err(InputError(format!("adapter {adapter} for slot {slot}")));
            }
            self.slot(*slot).adapter = Some(*adapter);
        }
        let total = self.pools * self.pool_blocks;
        for (slot, blocks) in &input.grants {
            if *slot >= MAX_SLOTS || blocks.iter().any(|block| *block as usize >= total) {
                return Err(InputError(format!("blocks {blocks:?} of {total} for slot {slot}")));
            }
            let Some(first) = blocks.first() else { continue };
            let pool = *first as usize / self.pool_blocks;
            let pool_blocks = self.pool_blocks;
            let table = self.slot(*slot);
            let stays = table.blocks.is_empty() || table.pool == pool;
            if !stays || blocks.iter().any(|block| *block as usize / pool_blocks != pool) {
                return Err(InputError(format!("blocks {blocks:?} of two pools for slot {slot}")));
            }
            table.pool = pool;
            let start = pool * pool_blocks;
            table.blocks.extend(blocks.iter().map(|block| block - start as BlockId));
        }
        for copy in &input.copies {
            let (from, to) = (copy.from as usize, copy.to as usize);
            let exist = from < total && to < total;
            if !exist || from == to || from / self.pool_blocks != to / self.pool_blocks {
                return Err(InputError(format!("a copy of block {from} over block {to} of {total}")));
            }
        }
        Ok(())
    }

    fn slot(&mut self, slot: u32) -> &mut Slot {
        let at = slot as usize;
        if self.slots.len() <= at {
            self.slots.resize_with(at + 1, Slot::default);
        }
        &mut self.slots[at]
    }

    /// The pool that a block is of, and its number there.
    pub fn place(&self, block: BlockId) -> (usize, BlockId) {
        let each = self.pool_blocks.max(1);
        (block as usize / each, (block as usize % each) as BlockId)
    }

    /// The blocks of a slot, in order, numbered within their pool.
    pub fn blocks(&self, slot: u32) -> &[BlockId] {
        self.slots.get(slot as usize).map_or(&[], |slot| &slot.blocks)
    }

    /// The adapter that a slot's sequence is computed with.
    pub fn adapter(&self, slot: u32) -> Option<u64> {
        self.slots.get(slot as usize).and_then(|slot| slot.adapter)
    }

    /// The part of the batch that a slot's sequence is in.
    pub fn pool(&self, slot: u32) -> usize {
        self.slots.get(slot as usize).map_or(0, |slot| slot.pool)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input() -> StepInput {
        StepInput {
            drops: vec![4],
            adapters: vec![(1, 5 << 32 | 7)],
            grants: vec![(1, vec![7, 2]), (3, vec![])],
            copies: vec![BlockCopy { from: 3, to: 2 }, BlockCopy { from: 0, to: 1 }],
            segments: vec![
                Segment { slot: 1, start: 0, len: 3, logits_from: 2 },
                Segment { slot: 3, start: 9, len: 1, logits_from: 1 },
            ],
            wants: vec![Want::Best(40), Want::Drawn(Rule::new(0.7, 0.9, 0.05, 5 << 40 | 3))],
            tokens: vec![5, 6, 7, 8],
            collect: true,
        }
    }

    #[test]
    fn steps_survive_the_way_to_the_other_ranks() {
        let mut bytes = vec![1, 2, 3];
        input().encode(&mut bytes);
        assert_eq!(StepInput::decode(&bytes), Ok(input()));
        for len in 0..bytes.len() - 3 {
            assert!(StepInput::decode(&bytes[..len]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn whoever_says_nothing_wants_all() {
        let mut input = StepInput { wants: vec![Want::Best(1)], ..input() };
        assert_eq!((input.want(0), input.want(1)), (Want::Best(1), Want::Whole));
        let mut bytes = Vec::new();
        input.encode(&mut bytes);
        input.wants.push(Want::Whole);
        assert_eq!(StepInput::decode(&bytes), Ok(input));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(BlockTables::new(1, 7).apply(&input()).is_err(), "block 7 of 7");
        assert!(BlockTables::new(2, 4).apply(&input()).is_err(), "blocks of two pools");
        let mut tables = BlockTables::new(1, 8);
        tables.apply(&input()).expect("blocks exist");
        assert_eq!(tables.blocks(1), [7, 2]);
        assert!(input().check(&tables, 9, 2, 9).is_err(), "slot 3 has no blocks");
        let one = StepInput { segments: input().segments[..1].to_vec(), tokens: vec![5, 6, 7], ..input() };
        assert_eq!(one.check(&tables, 9, 2, 3), Ok(()));
        assert!(one.check(&tables, 9, 2, 2).is_err(), "three rows of two");
        assert!(one.check(&tables, 7, 2, 9).is_err(), "token 7 of 7");
        assert!(one.check(&tables, 9, 1, 9).is_err(), "three positions in two blocks of one");
        let many = StepInput { wants: vec![Want::Best(257)], ..one };
        assert!(many.check(&tables, 9, 2, 3).is_err(), "257 best of at most 256");
        tables.apply(&StepInput { drops: vec![1], ..StepInput::default() }).expect("a drop");
        assert!(tables.blocks(1).is_empty());
    }

    #[test]
    fn a_slot_keeps_its_adapter_until_it_is_forgotten() {
        let mut tables = BlockTables::new(1, 8);
        let given = StepInput { adapters: vec![(3, 1 << 40)], ..StepInput::default() };
        assert!(!given.is_empty());
        tables.apply(&given).expect("a slot");
        tables.apply(&StepInput { grants: vec![(3, vec![1])], ..StepInput::default() }).expect("a block");
        assert_eq!((tables.adapter(3), tables.adapter(2), tables.adapter(9)), (Some(1 << 40), None, None));
        let segments = vec![Segment { slot: 3, start: 0, len: 1, logits_from: 0 }];
        let step = StepInput { segments, tokens: vec![1], ..StepInput::default() };
        let error = step.check_adapters(&tables, &Adapters::default()).expect_err("it is not there");
        assert!(error.to_string().contains("adapter 1099511627776"), "{error}");
        let again = StepInput { drops: vec![3], grants: vec![(3, vec![2])], ..StepInput::default() };
        tables.apply(&again).expect("another sequence in its slot");
        assert_eq!(tables.adapter(3), None);
        assert_eq!(step.check_adapters(&tables, &Adapters::default()), Ok(()));
        let far = StepInput { adapters: vec![(MAX_SLOTS, 1)], ..StepInput::default() };
        assert!(tables.apply(&far).is_err(), "a slot that nobody has");
    }

    #[test]
    fn blocks_are_numbered_within_their_pool() {
        let mut tables = BlockTables::new(3, 4);
        let grant = |blocks| StepInput { grants: vec![(5, blocks)], ..StepInput::default() };
        tables.apply(&grant(vec![9, 8])).expect("both of pool 2");
        tables.apply(&grant(vec![11])).expect("again");
        assert_eq!((tables.pool(5), tables.blocks(5)), (2, &[1, 0, 3][..]));
        assert!(tables.apply(&grant(vec![1])).is_err(), "of another pool");
        assert_eq!((tables.place(11), tables.place(4)), ((2, 3), (1, 0)));
        tables.apply(&StepInput { drops: vec![5], ..grant(vec![1]) }).expect("dropped and granted anew");
        assert_eq!((tables.pool(5), tables.blocks(5)), (0, &[1][..]));
    }

    #[test]
    fn blocks_are_copied_within_their_pool_only() {
        let copy = |from, to| {
            let copies = vec![BlockCopy { from, to }];
            BlockTables::new(2, 4).apply(&StepInput { copies, ..StepInput::default() })
        };
        assert_eq!(copy(5, 7), Ok(()));
        for (from, to, what) in [
            (3, 4, "of another pool"),
            (8, 7, "from nowhere"),
            (7, 8, "to nowhere"),
            (2, 2, "over itself"),
            (u32::MAX, u32::MAX - 1, "out of reach"),
        ] {
            assert!(copy(from, to).is_err(), "{what}");
        }
        assert!(!StepInput { copies: vec![BlockCopy { from: 1, to: 0 }], ..StepInput::default() }.is_empty());
    }
}
