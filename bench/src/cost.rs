//! What a model asks of the machine: the fastest it could go, attention, activations and all else taken as free.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use foggara_models::footprint::{Footprint, Size};
use foggara_models::{Checkpoint, Quantize};
use serde::{Deserialize, Serialize};

use crate::args::TargetArgs;
use crate::bound::{Bound, Work};
use crate::limits::Rates;

/// Of one model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ModelCost {
    /// Bytes of weights, as held, that a step of one token reads once.
    pub(crate) weight_bytes: u64,
    /// Weights that every token is multiplied with.
    pub(crate) body_params: u64,
    /// Weights of the output layer: only for tokens whose successor is wanted.
    pub(crate) output_params: u64,
    /// Of the body's weights, those that are quantized: multiplied as bytes.
    #[serde(default)]
    pub(crate) body_codes: u64,
    /// Of the output layer's.
    #[serde(default)]
    pub(crate) output_codes: u64,
}

impl ModelCost {
    /// Of the model that `args` name; `None` if they name none.
    pub(crate) fn asked(args: &TargetArgs) -> Result<Option<Self>> {
        let option = args.up.iter().rev().find(|(name, _)| name == "--quantize");
        let quantize = match option {
            Some((_, value)) => value.parse().map_err(|e: String| anyhow!("--up quantize: {e}"))?,
            None => Quantize::None,
        };
        args.model_path().map(|path| Self::of(&path, quantize)).transpose()
    }

    /// Reads the tensor table of a checkpoint that is loaded so.
    fn of(path: &Path, quantize: Quantize) -> Result<Self> {
        let checkpoint = Checkpoint::open(path).with_context(|| format!("reading {}", path.display()))?;
        Ok(Self::from(&Footprint::of(&checkpoint, quantize)?))
    }

    /// One step that `rows` tokens go through, of which `outputs` go on to the output layer.
    fn step(&self, rows: usize, outputs: usize) -> Work {
        let (rows, outputs) = (rows as f64, outputs as f64);
        let ops = |body: u64, output: u64| 2.0 * (body as f64 * rows + output as f64 * outputs);
        let (body_floats, output_floats) =
            (self.body_params - self.body_codes, self.output_params - self.output_codes);
        Work {
            bytes: self.weight_bytes as f64,
            int8_ops: ops(self.body_codes, self.output_codes),
            flops: ops(body_floats, output_floats),
        }
    }

    /// Tokens per second of `streams` streams that decode together.
    pub(crate) fn decode(&self, streams: usize) -> Bound {
        Bound::of(streams as f64, self.step(streams, streams))
    }

    /// Prompt tokens per second of one prompt of `tokens`, to its first new token.
    pub(crate) fn prefill(&self, tokens: usize) -> Bound {
        Bound::of(tokens as f64, self.step(tokens, 1))
    }

    /// Generated tokens per second of `clients` that each send `input` tokens and ask for `output`.
    pub(crate) fn clients(&self, clients: usize, input: usize, output: usize) -> Bound {
        let prefill = (1.0, self.step(clients * input, clients));
        let decode = ((output - 1) as f64, self.step(clients, clients));
        Bound::Rate { units: (clients * output) as f64, steps: vec![prefill, decode] }
    }

    /// How the limits come about at these rates, for the report.
    pub(crate) fn explain(&self, rates: &Rates) -> String {
        let (giga, mega) = (|n: u64| n as f64 / 1e9, |n: u64| n as f64 / 1e6);
        format!(
            "A limit assumes that a step takes the longer of two times and that all else is free: reading the weights \
             once ({:.1} MB, at {:.1} GB/s: {:.2} ms), and two operations per weight and token ({:.1} M weights for each \
             token, {:.1} M more in the output layer for each token whose successor is wanted). Quantized weights ({:.1} M \
             and {:.1} M of these) are multiplied as bytes, at {:.0} GOP/s; others as f32, at {:.0} GFLOP/s. All rates are \
             those of {} thread(s), the higher of before and after.",
            mega(self.weight_bytes),
            giga(rates.read_bytes_per_second),
            self.weight_bytes as f64 / rates.read_bytes_per_second as f64 * 1e3,
            mega(self.body_params),
            mega(self.output_params),
            mega(self.body_codes),
            mega(self.output_codes),
            giga(rates.int8_ops),
            giga(rates.flops),
            rates.threads,
        )
    }
}

impl From<&Footprint> for ModelCost {
    fn from(footprint: &Footprint) -> Self {
        let output = footprint.scoring();
        let mut cost = Self {
            weight_bytes: output.bytes,
            output_params: output.params,
            output_codes: codes(output),
            ..Self::default()
        };
        for layer in &footprint.layers {
            let experts = layer.top_k as u64;
            for (times, size) in [(1, layer.attention), (1, layer.dense), (experts, layer.expert)] {
                cost.weight_bytes += times * size.bytes;
                cost.body_params += times * size.params;
                cost.body_codes += times * codes(size);
            }
        }
        cost
    }
}

/// The quantized weights of a part: all of it, or none. Quantized ones take up to 9 bits each, others 16 at least.
fn codes(size: Size) -> u64 {
    if size.bytes * 8 < size.params * 12 { size.params } else { 0 }
}

#[cfg(test)]
mod tests {
    use foggara_models::footprint::LayerFootprint;

    use super::*;

    const RATES: Rates = Rates {
        threads: 2,
        read_bytes_per_second: 1000,
        flops: 8000,
        int8_ops: 16_000,
        handover_nanos: None,
    };

    fn floats() -> ModelCost {
        ModelCost { weight_bytes: 100, body_params: 40, output_params: 10, body_codes: 0, output_codes: 0 }
    }

    fn limit(bound: &Bound) -> f64 {
        bound.limit(&RATES).expect("there is work")
    }

    #[test]
    fn one_stream_is_bound_by_reading_and_many_by_arithmetic() {
        // 0.1 s to read, 0.0125 s to multiply for each token.
        assert!((limit(&floats().decode(1)) - 10.0).abs() < 1e-9);
        assert!((limit(&floats().decode(4)) - 40.0).abs() < 1e-9);
        assert!((limit(&floats().decode(32)) - 80.0).abs() < 1e-9);
    }

    #[test]
    fn quantized_weights_are_multiplied_as_bytes() {
        let cost = ModelCost { body_codes: 40, output_codes: 10, ..floats() };
        assert!((limit(&cost.decode(32)) - 160.0).abs() < 1e-9);
        let mixed = ModelCost { body_codes: 40, ..floats() };
        let seconds = 2.0 * 32.0 * (40.0 / 16_000.0 + 10.0 / 8000.0);
        assert!((limit(&mixed.decode(32)) - 32.0 / seconds).abs() < 1e-9);
    }

    #[test]
    fn a_prompt_needs_the_output_layer_once() {
        // 99 × 40 + 50 multiply-adds, two operations each.
        let seconds = 2.0 * (100.0 * 40.0 + 10.0) / 8000.0;
        assert!((limit(&floats().prefill(100)) - 100.0 / seconds).abs() < 1e-9);
    }

    #[test]
    fn clients_pay_for_prompts_and_answers() {
        let prefill = 2.0 * (32.0 * 10.0 * 40.0 + 32.0 * 10.0) / 8000.0;
        let decode = 4.0 * 2.0 * 32.0 * 50.0 / 8000.0;
        assert!((limit(&floats().clients(32, 10, 5)) - 160.0 / (prefill + decode)).abs() < 1e-9);
    }

    #[test]
    fn experts_cost_as_often_as_a_token_goes_to_them() {
        let size = |bytes, params| Size { bytes, params };
        let layer = LayerFootprint {
            attention: size(80, 40),
            dense: size(10, 5),
            expert: size(68, 64),
            experts: 8,
            top_k: 2,
        };
        let footprint = Footprint { embedding: size(20, 10), output: size(0, 0), layers: vec![layer] };
        let expected = ModelCost {
            weight_bytes: 20 + 80 + 10 + 2 * 68,
            body_params: 40 + 5 + 2 * 64,
            output_params: 10,
            body_codes: 2 * 64,
            output_codes: 0,
        };
        assert_eq!(ModelCost::from(&footprint), expected);
    }
}
