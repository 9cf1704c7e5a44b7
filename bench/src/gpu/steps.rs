//! Steps of a decoder that is alone.

use std::time::Instant;

use super::pages::Pages;
use super::serving::{Part, Serving};
use anyhow::{Context as _, Result};
use foggara_kernels::collective::Solo;
use foggara_kernels::cuda::Device;
use foggara_models::Shape;
use foggara_worker::decoder::{
    BlockTables, CacheConfig, Comms, DeviceDecoder, Forward, Segment, StepInput, Want,
};

/// Steps before those that count: sizes are met, and recorded.
const WARM_UP: usize = 4;

/// Steps of serving before so many that count.
pub(super) fn warm_up_of(steps: usize) -> usize {
    steps / 5
}

pub(super) struct Runner {
    decoder: DeviceDecoder,
    device: Device,
    tables: BlockTables,
    comms: Comms,
    vocab: usize,
    /// Of the cache, and positions of one.
    blocks: usize,
    block_size: usize,
    /// No step is begun before the one before it is done.
    one_by_one: bool,
    /// A step was begun and not finished.
    begun: bool,
}

impl Runner {
    pub(super) fn new(
        decoder: DeviceDecoder,
        device: Device,
        cache: CacheConfig,
        one_by_one: bool,
    ) -> Result<Self> {
        let comms = Comms::join(Shape::default(), Box::<Solo>::default(), |_| {
            Err(anyhow::anyhow!("a rank that is alone has no parts"))
        })?;
        let vocab = decoder.spec().vocab;
        let tables = BlockTables::new(1, cache.blocks);
        let CacheConfig { blocks, block_size, .. } = cache;
        Ok(Self { decoder, device, tables, comms, vocab, blocks, block_size, one_by_one, begun: false })
    }

    /// Gives as many sequences as there is room for `blocks_each` blocks of the cache each.
    pub(super) fn share(&mut self, blocks_each: usize) -> Result<()> {
        self.tables = BlockTables::new(1, self.blocks);
        let blocks = |slot: usize| (slot * blocks_each..(slot + 1) * blocks_each).map(|b| b as u32).collect();
        let grants = (0..self.blocks / blocks_each).map(|slot| (slot as u32, blocks(slot))).collect();
        Ok(self.tables.apply(&StepInput { grants, ..StepInput::default() })?)
    }

    /// Runs a step, or begins it behind the one before, as a leader does whose next plan is there. Only the first row's token is what
    /// the step before has found: weights are random, and all sequences would come to say the same and go to the same experts.
    fn step(&mut self, input: &StepInput) -> Result<()> {
        if self.one_by_one || !self.decoder.can_begin(input, &self.comms) {
            self.finish()?;
            return Ok(self.decoder.forward(input, &self.tables, &mut self.comms, &mut |_, _| ())?);
        }
        let mut fed = vec![None; input.segments.len()];
        fed[0] = self.begun.then_some(0);
        self.decoder.begin(input, &self.tables, &fed, &mut self.comms)?;
        self.finish()?;
        self.begun = true;
        Ok(())
    }

    /// Waits for the step that was begun, if one was.
    fn finish(&mut self) -> Result<()> {
        match std::mem::take(&mut self.begun) {
            true => Ok(self.decoder.finish(&mut |_, _| ())?),
            false => Ok(()),
        }
    }

    /// `len` positions of each of `streams` sequences from `start` on; logits of the last.
    fn rows(&self, streams: usize, start: usize, len: usize) -> StepInput {
        let segment = |slot: usize| Segment {
            slot: slot as u32,
            start: start as u32,
            len: len as u32,
            logits_from: len as u32 - 1,
        };
        let vocab = self.vocab;
        StepInput {
            segments: (0..streams).map(segment).collect(),
            // As greedy sampling does: the rest stays on the GPU.
            wants: vec![Want::Best(1); streams],
            tokens: (0..streams * len).map(|i| ((i * 7919 + start * 31 + 17) % vocab) as u32).collect(),
            ..StepInput::default()
        }
    }

    /// Seconds of a step that decodes one token of each of `streams` sequences, whose contexts begin with `context` positions
    /// (of zeros: what is in them does not change how long it takes).
    pub(super) fn decode(&mut self, streams: usize, context: usize, tokens: usize) -> Result<f64> {
        for i in 0..WARM_UP {
            self.step(&self.rows(streams, context + i % 2, 1))?;
        }
        self.finish()?;
        self.device.synchronize()?;
        let started = Instant::now();
        for i in 0..tokens {
            self.step(&self.rows(streams, context + i, 1))?;
        }
        self.finish()?;
        Ok(started.elapsed().as_secs_f64() / tokens as f64)
    }

    /// Seconds in which a prompt of `len` tokens is read, `chunk` at a time; the best of `runs`.
    pub(super) fn prefill(&mut self, len: usize, chunk: usize, runs: usize) -> Result<f64> {
        let mut best = f64::INFINITY;
        for _ in 0..runs + 1 {
            let started = Instant::now();
            for start in (0..len).step_by(chunk) {
                self.step(&self.rows(1, start, chunk.min(len - start)))?;
            }
            best = best.min(started.elapsed().as_secs_f64());
        }
        Ok(best)
    }

    /// Seconds and tokens of `steps` steps of a server that is never without requests, after [`warm_up_of`] that do not count. Its
    /// requests have the blocks that their positions need.
    pub(super) fn serve(&mut self, mut serving: Serving, steps: usize) -> Result<(f64, usize)> {
        self.tables = BlockTables::new(1, self.blocks);
        let mut pages = Pages::new(serving.streams(), self.blocks, self.block_size);
        for _ in 0..warm_up_of(steps) {
            self.serve_step(&mut serving, &mut pages)?;
        }
        self.finish()?;
        self.device.synchronize()?;
        let (started, mut tokens) = (Instant::now(), 0);
        for _ in 0..steps {
            tokens += self.serve_step(&mut serving, &mut pages)?;
        }
        self.finish()?;
        Ok((started.elapsed().as_secs_f64(), tokens))
    }

    /// Tokens that the next step gives.
    fn serve_step(&mut self, serving: &mut Serving, pages: &mut Pages) -> Result<usize> {
        let parts = serving.next();
        let changes = pages.before(&parts).context("the cache has too few blocks for what is served")?;
        if !changes.drops.is_empty() {
            // A leader waits where sequences come or go.
            self.finish()?;
        }
        self.tables.apply(&changes)?;
        self.step(&self.parts(&parts))?;
        Ok(parts.iter().filter(|part| part.gives).count())
    }

    fn parts(&self, parts: &[Part]) -> StepInput {
        let segment = |part: &Part| Segment {
            slot: part.slot as u32,
            start: part.start as u32,
            len: part.len as u32,
            logits_from: (part.len - usize::from(part.gives)) as u32,
        };
        let token = |part: &Part, i: usize| ((part.start + i) * 7919 + part.slot * 31 + 17) % self.vocab;
        StepInput {
            segments: parts.iter().map(segment).collect(),
            wants: vec![Want::Best(1); parts.len()],
            tokens: parts.iter().flat_map(|part| (0..part.len).map(|i| token(part, i) as u32)).collect(),
            ..StepInput::default()
        }
    }
}
