//! What a rank takes. Every number that is not the model's stands here.

use foggara_proto::shape::Shape;

use super::facts::{ExpertFacts, Kind, ModelFacts, WorkerFacts, bytes};
use super::layout::RankPart;

/// Positions of a KV block.
pub const BLOCK_SIZE: u32 = 16;
/// Tokens of KV cache, if memory allows and nothing else is asked for. A GPU's memory is the worker's alone and does as many
/// sequences at once as there is room for: a thousand of a thousand tokens.
pub(super) const DEFAULT_KV_TOKENS: u64 = 65_536;
const GPU_KV_TOKENS: u64 = 1 << 20;
/// Fewer tokens of KV cache than this, or than the context, are not worth serving with.
const LEAST_KV_TOKENS: u64 = 2_048;
/// A worker process beside weights and cache: program, threads, buffers. The bound that the project sets itself.
const CPU_PROCESS: u64 = 60 << 20;
/// A process on a GPU beside what it asks for: its context, kernels and buffers of NCCL. What `nvidia-smi` shows of an idle
/// process on an H100 is about half a gigabyte.
pub(super) const GPU_PROCESS: u64 = 600 << 20;
/// cublasLt's workspace. (Staging of uploads and downloads is the host's memory.)
const GPU_WORKSPACE: u64 = 32 << 20;
/// Rows of the largest step; the driver's own limits.
const STEP_ROWS: u64 = crate::driver::MAX_STEP_ROWS as u64;
const GPU_STEP_ROWS: u64 = crate::driver::GPU_STEP_ROWS as u64;
/// Sequences of a group at once; each may need a row of logits. GPUs keep so many rows of logits at once and score others after
/// them.
const SEQUENCES: u64 = crate::driver::MAX_SEQUENCES as u64;
const GPU_SCORED: u64 = 256;
/// Rows as wide as the residual stream, f32, that a forward pass keeps at once: the stream, its norm, queries, keys, values,
/// the attention's output, two sides of a gated MLP, what is received from other ranks, and as much again to be sure.
const ACTIVATION_ROWS: u64 = 20;
/// To find the best of logits, a GPU has three tenths as much again.
const GPU_LOGITS: f64 = 1.3;
/// Where parts of its attention wait for each other, at most.
const GPU_SCRATCH: u64 = 272 << 20;
/// Share of a worker's memory left alone. Of a host's: allocator, page cache, the system, coordinators. Of a GPU's: memory that
/// is given in pages of 2 MiB, blocks kept for the next request, recorded steps. Chosen.
const CPU_MARGIN: f64 = 0.1;
const GPU_MARGIN: f64 = 0.05;

/// Bytes that one rank takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RankNeeds {
    /// Its slice of the weights.
    pub weights: u64,
    /// KV cache of one token.
    pub kv_per_token: u64,
    /// Activations of the largest step, and the process itself.
    pub fixed: u64,
}

impl RankNeeds {
    /// With so many tokens of cache.
    pub fn with_kv(&self, tokens: u64) -> u64 {
        self.weights.saturating_add(self.fixed).saturating_add(tokens.saturating_mul(self.kv_per_token))
    }

    /// What steps read again and again, with one sequence of so many tokens.
    pub(super) fn read_again(&self, tokens: u64) -> u64 {
        self.weights.saturating_add(tokens.saturating_mul(self.kv_per_token))
    }

    /// Tokens of cache that fit beside the rest in `memory`; `None` if not even the rest does.
    pub(super) fn room(&self, memory: u64) -> Option<u64> {
        let left = memory.checked_sub(self.weights.checked_add(self.fixed)?)?;
        Some(left / self.kv_per_token.max(1))
    }
}

/// What may be used of a worker's memory.
pub fn usable(worker: &WorkerFacts) -> u64 {
    let margin = match worker.kind {
        Kind::Cpu => CPU_MARGIN,
        Kind::Gpu => GPU_MARGIN,
    };
    (worker.memory_bytes as f64 * (1.0 - margin)) as u64
}

/// Tokens of cache that are wanted of `model`, and the fewest that will do.
pub(super) fn kv_wanted(model: &ModelFacts, asked: u64, kind: Kind) -> (u64, u64) {
    // In whole blocks: that is how memory is taken.
    let whole = |tokens: u64| tokens.div_ceil(u64::from(BLOCK_SIZE)).max(1) * u64::from(BLOCK_SIZE);
    match asked {
        0 => {
            let usual = match kind {
                Kind::Cpu => DEFAULT_KV_TOKENS,
                Kind::Gpu => GPU_KV_TOKENS,
            };
            (whole(usual.max(model.context)), whole(model.context.min(LEAST_KV_TOKENS)))
        }
        asked => (whole(asked), whole(asked)),
    }
}

/// What the rank with this part takes on a worker of `kind`.
pub(super) fn needs(model: &ModelFacts, shape: Shape, part: &RankPart, kind: Kind) -> RankNeeds {
    let (heads, kv_heads) = (model.heads.max(1) as f64, model.kv_heads.max(1));
    let mut parameters = 0.0;
    for layer in &model.layers[part.layers.clone()] {
        parameters += layer.attention as f64 * part.heads as f64 / heads;
        parameters += layer.dense as f64 * part.share;
        if let Some(experts) = layer.experts {
            parameters +=
                part.experts.min(experts.count) as f64 * experts.parameters as f64 * part.expert_share;
        }
    }
    let ends = ends(model, shape, part.stage) as f64 * part.share;
    let bits = model.bits.on(kind);
    let weights = bytes(parameters as u64, bits.layers) + bytes(ends as u64, bits.embedding);
    let kv_per_token = (model.kv_bytes * part.kv_heads).div_ceil(kv_heads) * part.layers.len() as u64;
    RankNeeds { weights, kv_per_token, fixed: fixed(model, kind) }
}

/// What a rank takes on `kind` whatever its part: activations of the largest step, adapters (which GPUs have none of), and the
/// process.
pub(super) fn fixed(model: &ModelFacts, kind: Kind) -> u64 {
    let row = model.hidden * 4 * ACTIVATION_ROWS;
    match kind {
        Kind::Cpu => STEP_ROWS * row + SEQUENCES * model.vocab * 4 + CPU_PROCESS + model.adapters,
        Kind::Gpu => {
            let logits = (GPU_SCORED * model.vocab * 4) as f64 * GPU_LOGITS;
            GPU_STEP_ROWS * row + logits as u64 + pairs(model) + GPU_SCRATCH + GPU_WORKSPACE + GPU_PROCESS
        }
    }
}

/// What a GPU keeps at once of all pairs of a row and one of its experts: two sides of a gated MLP and what it makes of them, f32,
/// between them half as much in bf16 and, of weights in fp8, a quarter in E4M3. (Counted are four bytes for both.) An expert is three
/// matrices as long as the residual stream is wide.
fn pairs(model: &ModelFacts) -> u64 {
    let experts = model.layers.iter().filter_map(|layer| layer.experts);
    let row = |e: ExpertFacts| e.top_k * (e.parameters / model.hidden.max(1) + model.hidden) * 4;
    GPU_STEP_ROWS * experts.map(row).max().unwrap_or(0)
}

/// Parameters of embedding and output that the ranks of `stage` hold together.
fn ends(model: &ModelFacts, shape: Shape, stage: u32) -> u64 {
    let (first, last) = (stage == 0, stage + 1 == shape.pp);
    match (first, last) {
        (true, true) if model.tied => model.embedding,
        (true, true) => model.embedding * 2,
        (true, false) | (false, true) => model.embedding,
        (false, false) => 0,
    }
}
