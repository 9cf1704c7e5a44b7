//! What the machine allows: measured rates, and the fastest a given model could go at them.

use std::path::Path;

use anyhow::{Context, Result};
use foggara_kernels::cpu::measure;
use foggara_models::footprint::Footprint;
use foggara_models::{Checkpoint, Quantize};
use serde::{Deserialize, Serialize};

use crate::args::TargetArgs;

/// Rates of the machine, the best of several short measurements.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct MachineLimits {
    /// One entry for one thread, and one for the threads of the cluster if those are more.
    pub(crate) rates: Vec<Rates>,
}

/// What some threads together can do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Rates {
    pub(crate) threads: usize,
    pub(crate) read_bytes_per_second: u64,
    /// A fused multiply-add counts as two.
    pub(crate) flops: u64,
}

impl MachineLimits {
    /// Measures for one thread, for two, and for `threads`: no more threads than there are cores.
    pub(crate) fn measure(threads: usize, quick: bool) -> Self {
        let (times, millis) = if quick { (3, 60) } else { (5, 150) };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let mut counts: Vec<usize> = [1, 2, threads].map(|count| count.clamp(1, cores)).to_vec();
        counts.sort_unstable();
        counts.dedup();
        let best = |rate: &dyn Fn() -> u64| (0..times).map(|_| rate()).max().unwrap_or(1);
        let rates = counts.into_iter().map(|threads| Rates {
            threads,
            read_bytes_per_second: best(&|| measure::read_bandwidth(threads, millis)),
            flops: best(&|| measure::fma_rate(threads, millis)),
        });
        Self { rates: rates.collect() }
    }

    /// The rates of `threads` threads, or of all cores where those are fewer.
    pub(crate) fn of(&self, threads: usize) -> Option<&Rates> {
        self.rates.iter().find(|rates| rates.threads >= threads).or(self.rates.last())
    }
}

/// What a model asks of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ModelCost {
    /// Bytes of weights, as stored, that a step of one token reads once.
    pub(crate) weight_bytes: u64,
    /// Weights that every token is multiplied with.
    pub(crate) body_params: u64,
    /// Weights of the output layer: only for tokens whose successor is wanted.
    pub(crate) output_params: u64,
}

impl ModelCost {
    /// Of the model that `args` name; `None` if they name none.
    pub(crate) fn asked(args: &TargetArgs) -> Result<Option<Self>> {
        args.model_path().as_deref().map(Self::of).transpose()
    }

    /// Reads the tensor table of a checkpoint.
    pub(crate) fn of(path: &Path) -> Result<Self> {
        let checkpoint = Checkpoint::open(path).with_context(|| format!("reading {}", path.display()))?;
        let footprint = Footprint::of(&checkpoint, Quantize::None)?;
        let output = footprint.scoring();
        let (mut weight_bytes, output_params, mut body_params) = (output.bytes, output.params, 0);
        for layer in &footprint.layers {
            let every = layer.attention + layer.dense;
            let experts = layer.top_k as u64;
            weight_bytes += every.bytes + experts * layer.expert.bytes;
            body_params += every.params + experts * layer.expert.params;
        }
        Ok(Self { weight_bytes, body_params, output_params })
    }
}

/// The fastest a model could go: no step is quicker than reading the weights once, nor than the multiply-adds of its tokens.
/// Attention, activations and everything else are taken as free.
#[derive(Debug, Clone)]
pub(crate) struct Ceilings {
    pub(crate) rates: Rates,
    pub(crate) cost: ModelCost,
}

impl Ceilings {
    /// Measures the machine and reads the model; `None` if `args` name none.
    pub(crate) fn measure(args: &TargetArgs) -> Result<Option<Self>> {
        let threads = args.workers * args.threads;
        let rates = MachineLimits::measure(threads, false).of(threads).cloned();
        Ok(ModelCost::asked(args)?.zip(rates).map(|(cost, rates)| Self { rates, cost }))
    }

    /// Tokens per second of `streams` streams that decode together.
    pub(crate) fn decode(&self, streams: usize) -> f64 {
        streams as f64 / self.step_seconds(streams, streams)
    }

    /// Prompt tokens per second of one prompt of `tokens`, to its first new token.
    pub(crate) fn prefill(&self, tokens: usize) -> f64 {
        tokens as f64 / self.step_seconds(tokens, 1)
    }

    /// Generated tokens per second of `clients` that each send `input` tokens and ask for `output`.
    pub(crate) fn clients(&self, clients: usize, input: usize, output: usize) -> f64 {
        let prefill = self.step_seconds(clients * input, clients);
        let decode = self.step_seconds(clients, clients) * (output - 1) as f64;
        (clients * output) as f64 / (prefill + decode)
    }

    /// A pass over the weights with `rows` tokens, of which `outputs` go on to the output layer.
    fn step_seconds(&self, rows: usize, outputs: usize) -> f64 {
        let read = self.cost.weight_bytes as f64 / self.rates.read_bytes_per_second as f64;
        let multiply_adds =
            self.cost.body_params as f64 * rows as f64 + self.cost.output_params as f64 * outputs as f64;
        read.max(2.0 * multiply_adds / self.rates.flops as f64)
    }

    /// How the ceilings come about, for the report.
    pub(crate) fn explain(&self) -> String {
        let Self { rates, cost } = self;
        let giga = |n: u64| n as f64 / 1e9;
        let mega = |n: u64| n as f64 / 1e6;
        format!(
            "A limit assumes that a step takes the longer of two times and that all else is free: reading the weights \
             once ({:.1} MB as stored, at {:.1} GB/s: {:.2} ms), and two f32 operations per weight and token ({:.1} M \
             weights for each token, {:.1} M more in the output layer for each token whose successor is wanted, at \
             {:.0} GFLOP/s). Both rates are those of {} thread(s), measured just before. Decode of one stream is bound \
             by the first, prefill by the second. The f32 rate is no wall for 4-bit weights: int8 products can pass it.",
            mega(cost.weight_bytes),
            giga(rates.read_bytes_per_second),
            cost.weight_bytes as f64 / rates.read_bytes_per_second as f64 * 1e3,
            mega(cost.body_params),
            mega(cost.output_params),
            giga(rates.flops),
            rates.threads,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ceilings() -> Ceilings {
        Ceilings {
            rates: Rates { threads: 2, read_bytes_per_second: 1000, flops: 8000 },
            cost: ModelCost { weight_bytes: 100, body_params: 40, output_params: 10 },
        }
    }

    #[test]
    fn one_stream_is_bound_by_reading_and_many_by_arithmetic() {
        let ceilings = ceilings();
        // 0.1 s to read, 0.0125 s to multiply for each token.
        assert!((ceilings.decode(1) - 10.0).abs() < 1e-9);
        assert!((ceilings.decode(4) - 40.0).abs() < 1e-9);
        assert!((ceilings.decode(32) - 80.0).abs() < 1e-9);
    }

    #[test]
    fn a_prompt_needs_the_output_layer_once() {
        // 99 × 40 + 50 multiply-adds, two operations each.
        let seconds = 2.0 * (100.0 * 40.0 + 10.0) / 8000.0;
        assert!((ceilings().prefill(100) - 100.0 / seconds).abs() < 1e-9);
    }

    #[test]
    fn clients_pay_for_prompts_and_answers() {
        let prefill = 2.0 * (32.0 * 10.0 * 40.0 + 32.0 * 10.0) / 8000.0;
        let decode = 4.0 * 2.0 * 32.0 * 50.0 / 8000.0;
        assert!((ceilings().clients(32, 10, 5) - 160.0 / (prefill + decode)).abs() < 1e-9);
    }

    #[test]
    fn rates_are_of_the_threads_asked_for() {
        let rates = |threads| Rates { threads, read_bytes_per_second: 1, flops: 1 };
        let limits = MachineLimits { rates: vec![rates(1), rates(2), rates(8)] };
        let found = |threads| limits.of(threads).map(|rates| rates.threads);
        assert_eq!((found(1), found(2), found(8), found(16)), (Some(1), Some(2), Some(8), Some(8)));
    }
}
