//! What was measured on a GPU, beside what it allows.

use std::fmt;

use anyhow::Result;
use foggara_kernels::cuda::{Device, WeightKind};
use foggara_kernels::op::kv_cache::KvType;
use foggara_models::ArchSpec;
use foggara_models::spec::{Attention, Mlp};
use serde::Serialize;

use super::limits::Limits;
use crate::args::GpuArgs;

/// All of it.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    gpu: String,
    date: String,
    shape: String,
    layers: usize,
    weights: String,
    weight_bytes: u64,
    pub(super) limits: Limits,
    pub(super) rows: Vec<Row>,
    /// How often each kernel was started.
    pub(super) launches: Vec<(String, u64)>,
}

/// One measurement.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    what: String,
    seconds: f64,
    tokens_per_second: f64,
    /// Bytes of weights and cache that a step must read at least, over what copies move; of decoding.
    share_of_copy: Option<f64>,
    /// Of multiplications that must be done, over what the library's product does; of prefill.
    share_of_product: Option<f64>,
    tflops: Option<f64>,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:28} {:9.1} tok/s, {:8.3} ms", self.what, self.tokens_per_second, self.seconds * 1e3)?;
        if let Some(share) = self.share_of_copy {
            write!(f, ", {:3.0} % of the memory's speed", share * 100.0)?;
        }
        if let (Some(share), Some(tflops)) = (self.share_of_product, self.tflops) {
            write!(f, ", {tflops:.0} TFLOP/s, {:3.0} % of the product's", share * 100.0)?;
        }
        Ok(())
    }
}

/// What a layer's matrices have, by whether every token needs them.
struct Elements {
    /// For every token.
    always: f64,
    /// Of one expert, how many there are, and to how many a token goes.
    experts: Option<(f64, f64, f64)>,
}

fn elements(spec: &ArchSpec, layer: usize) -> Elements {
    let hidden = spec.hidden as f64;
    let attention = match spec.attention {
        Attention::Grouped(a) => hidden * (2 * (spec.heads + a.kv_heads) * a.head_dim) as f64,
        Attention::Latent(_) => 0.0,
    };
    match spec.layers[layer].mlp {
        Mlp::Dense { width } => Elements { always: attention + 3.0 * hidden * width as f64, experts: None },
        Mlp::Experts(e) => Elements {
            always: attention + hidden * (e.count + 3 * e.shared_width) as f64,
            experts: Some((3.0 * hidden * e.width as f64, e.count as f64, e.top_k as f64)),
        },
    }
}

/// Elements of layers that a step of `rows` tokens must read: experts are met as chance has it.
fn elements_read(spec: &ArchSpec, rows: usize) -> f64 {
    let of_layer = |layer: usize| {
        let elements = elements(spec, layer);
        let met = |(each, count, top_k): (f64, f64, f64)| {
            each * count * (1.0 - (1.0 - top_k / count).powi(rows as i32))
        };
        elements.always + elements.experts.map_or(0.0, met)
    };
    (0..spec.layers.len()).map(of_layer).sum()
}

/// Elements of layers that each token is multiplied with.
fn elements_met(spec: &ArchSpec) -> f64 {
    let of_layer = |layer: usize| {
        let elements = elements(spec, layer);
        elements.always + elements.experts.map_or(0.0, |(each, _, top_k)| each * top_k)
    };
    (0..spec.layers.len()).map(of_layer).sum()
}

impl Row {
    /// A step that decodes a token of each of `streams` sequences.
    pub(super) fn decode(
        spec: &ArchSpec,
        (kind, kv): (WeightKind, KvType),
        limits: &Limits,
        streams: usize,
        context: usize,
        tokens: usize,
        seconds: f64,
    ) -> Self {
        let output = (spec.vocab * spec.hidden * 2) as f64;
        let seen = (context + tokens / 2) as f64;
        let each = if kv == KvType::F8 { 1 } else { 2 };
        let cached =
            (spec.layers.len() * spec.kv_heads() * (spec.key_dim() + spec.value_dim()) * each) as f64;
        // With scales of blocks; those of rows are left out.
        let of_weight = kind.tight_bytes(1024) as f64 / 1024.0;
        let bytes = elements_read(spec, streams) * of_weight + output + seen * cached * streams as f64;
        let flops = 2.0 * streams as f64 * (elements_met(spec) + output / 2.0);
        Self {
            what: format!("decode, {streams} streams"),
            seconds,
            tokens_per_second: streams as f64 / seconds,
            share_of_copy: Some(bytes / limits.copy_bytes_per_second / seconds),
            share_of_product: None,
            tflops: Some(flops / seconds / 1e12),
        }
    }

    /// `tokens` of answers in `steps` steps in which as many prompts were read as answers ended.
    pub(super) fn serving(
        (prompt, answer): (usize, usize),
        streams: usize,
        tokens: usize,
        seconds: f64,
        steps: usize,
    ) -> Self {
        Self {
            what: format!("{prompt}/{answer}, {streams} at once"),
            seconds: seconds / steps as f64,
            tokens_per_second: tokens as f64 / seconds,
            share_of_copy: None,
            share_of_product: None,
            tflops: None,
        }
    }

    /// A prompt of `len` tokens.
    pub(super) fn prefill(spec: &ArchSpec, limits: &Limits, len: usize, seconds: f64) -> Self {
        let heads = (spec.layers.len() * spec.heads * (spec.key_dim() + spec.value_dim())) as f64;
        // A position sees half of the others.
        let attention = heads * len as f64 * len as f64 / 2.0;
        let flops = 2.0 * (len as f64 * elements_met(spec) + attention);
        Self {
            what: format!("prefill of {len}"),
            seconds,
            tokens_per_second: len as f64 / seconds,
            share_of_copy: None,
            share_of_product: Some(flops / seconds / limits.product_flops),
            tflops: Some(flops / seconds / 1e12),
        }
    }
}

impl Report {
    pub(super) fn new(
        args: &GpuArgs,
        spec: &ArchSpec,
        device: &Device,
        limits: Limits,
        weight_bytes: u64,
    ) -> Self {
        let now = time::OffsetDateTime::now_utc();
        Self {
            gpu: device.name(),
            date: now.date().to_string(),
            shape: args.config.as_ref().map_or_else(|| args.shape.clone(), |path| path.display().to_string()),
            layers: spec.layers.len(),
            weights: args.weights.clone(),
            weight_bytes,
            limits,
            rows: Vec::new(),
            launches: Vec::new(),
        }
    }

    /// Writes it where it was asked for.
    pub(super) fn save(&self, args: &GpuArgs) -> Result<()> {
        if let Some(path) = &args.save {
            std::fs::write(path, serde_json::to_string_pretty(self)? + "\n")?;
        }
        Ok(())
    }
}
