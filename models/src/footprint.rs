//! The bytes of a model's matrices, and the multiplications a token costs: what a planner needs to know of it.

use std::path::Path;

use crate::checkpoint::Checkpoint;
use crate::dtype::DType;
use crate::error::ModelError;
use crate::expected::expected;
use crate::hf;
use crate::quantize::Quantize;
use crate::roles::{LayerRole, TensorRole};
use crate::spec::{ArchSpec, Mlp};

/// A part of a model: its bytes, once loaded, and its weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Size {
    /// Bytes as held in memory (before panels are filled up).
    pub bytes: u64,
    /// Weights: multiply-adds for each token that goes through.
    pub params: u64,
}

impl Size {
    fn add(&mut self, params: usize, bytes: usize) {
        self.bytes += bytes as u64;
        self.params += params as u64;
    }
}

impl std::ops::Add for Size {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { bytes: self.bytes + other.bytes, params: self.params + other.params }
    }
}

/// One layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LayerFootprint {
    /// Attention's matrices.
    pub attention: Size,
    /// The MLP, or the shared expert and the router.
    pub dense: Size,
    /// Each expert.
    pub expert: Size,
    /// How many there are; 0 in layers without.
    pub experts: usize,
    /// How many each token goes to.
    pub top_k: usize,
}

/// A whole model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Footprint {
    /// The embedding.
    pub embedding: Size,
    /// The output layer; nothing where it is the embedding.
    pub output: Size,
    /// Layer by layer.
    pub layers: Vec<LayerFootprint>,
}

impl Footprint {
    /// Of a checkpoint, loaded so.
    ///
    /// # Errors
    /// If a tensor is missing.
    pub fn of(model: &Checkpoint, quantize: Quantize) -> Result<Self, ModelError> {
        let bytes = |role: TensorRole, rows, cols| {
            model.tensor(role).map(|tensor| quantize.loaded(role, &tensor).bytes(rows, cols))
        };
        Self::collect(model.spec(), bytes)
    }

    /// Of a checkpoint, loaded so onto a GPU.
    ///
    /// # Errors
    /// If a tensor is missing.
    pub fn on_gpu(model: &Checkpoint, quantize: Quantize) -> Result<Self, ModelError> {
        let bytes = |role: TensorRole, rows, cols| {
            let loaded =
                model.tensor(role).map(|tensor| quantize.loaded_on_gpu(role, tensor.dtype, tensor.cols));
            loaded.map(|loaded| loaded.bytes_on_gpu(rows, cols))
        };
        Self::collect(model.spec(), bytes)
    }

    /// Of a model of which only the architecture and the stored type are known, loaded so.
    pub fn of_spec(spec: &ArchSpec, stored: DType, quantize: Quantize) -> Self {
        let bytes = |role, rows, cols| Ok(quantize.loaded_as(role, stored, cols).bytes(rows, cols));
        // Nothing is read, so nothing can fail.
        Self::collect(spec, bytes).unwrap_or_default()
    }

    /// The same, loaded so onto a GPU.
    pub fn of_spec_on_gpu(spec: &ArchSpec, stored: DType, quantize: Quantize) -> Self {
        let bytes =
            |role, rows, cols| Ok(quantize.loaded_on_gpu(role, stored, cols).bytes_on_gpu(rows, cols));
        Self::collect(spec, bytes).unwrap_or_default()
    }

    /// `bytes` says how many a matrix of so many rows and columns takes.
    fn collect(
        spec: &ArchSpec,
        bytes: impl Fn(TensorRole, usize, usize) -> Result<usize, ModelError>,
    ) -> Result<Self, ModelError> {
        let layer = |mlp: &Mlp| match mlp {
            Mlp::Dense { .. } => LayerFootprint::default(),
            Mlp::Experts(e) => LayerFootprint { experts: e.count, top_k: e.top_k, ..Default::default() },
        };
        let mut all = Self { layers: spec.layers.iter().map(|l| layer(&l.mlp)).collect(), ..Self::default() };
        for (role, rows, cols) in expected(spec) {
            if rows == 1 || (role == TensorRole::Output && spec.tied_output) {
                continue;
            }
            let part = match role {
                TensorRole::Embedding => &mut all.embedding,
                TensorRole::Output => &mut all.output,
                TensorRole::FinalNorm => continue,
                TensorRole::Layer(l, role) => {
                    let Some(part) = part_of(&mut all.layers[l], role) else { continue };
                    part
                }
            };
            part.add(rows * cols, bytes(role, rows, cols)?);
        }
        Ok(all)
    }

    /// Bytes of all of it.
    pub fn bytes(&self) -> u64 {
        let layers =
            self.layers.iter().map(|l| l.attention.bytes + l.dense.bytes + l.expert.bytes * l.experts as u64);
        self.embedding.bytes + self.output.bytes + layers.sum::<u64>()
    }

    /// The output layer, also where it is the embedding.
    pub fn scoring(&self) -> Size {
        if self.output.params == 0 { self.embedding } else { self.output }
    }
}

/// Where a layer's matrix is counted; of experts only the first, since all are alike.
fn part_of(layer: &mut LayerFootprint, role: LayerRole) -> Option<&mut Size> {
    use LayerRole as R;
    Some(match role {
        R::Q | R::K | R::V | R::O | R::QDown | R::QUp | R::KvDown | R::KvUp | R::KeyUp(_) | R::ValueUp(_) => {
            &mut layer.attention
        }
        R::Gate | R::Up | R::Down | R::SharedGate | R::SharedUp | R::SharedDown | R::Router => {
            &mut layer.dense
        }
        R::ExpertGate(0) | R::ExpertUp(0) | R::ExpertDown(0) => &mut layer.expert,
        _ => return None,
    })
}

/// The architecture a config.json describes and the type it says its weights are stored in (BF16 if it does not say), without
/// any weights at hand. `path` is the file or its folder.
///
/// # Errors
/// Names the field and the reason.
pub fn spec_of_config(path: &Path) -> Result<(ArchSpec, DType), ModelError> {
    hf::spec_of_config(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::Loaded;

    fn golden(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
    }

    #[test]
    fn a_configuration_tells_as_much_as_the_weights() {
        for name in ["llama", "mixtral", "deepseek-v3", "gpt-oss", "gemma3"] {
            let model = Checkpoint::open(&golden(name)).expect("a valid checkpoint");
            let (spec, dtype) = spec_of_config(&golden(name)).expect("a valid configuration");
            assert_eq!((&spec, dtype), (model.spec(), DType::F32), "{name}");
            for quantize in Quantize::ALL {
                let of = Footprint::of(&model, quantize).expect("every tensor is there");
                assert_eq!(of, Footprint::of_spec(&spec, dtype, quantize), "{name} {quantize}");
                let of = Footprint::on_gpu(&model, quantize).expect("every tensor is there");
                assert_eq!(of, Footprint::of_spec_on_gpu(&spec, dtype, quantize), "{name} {quantize}");
            }
        }
    }

    #[test]
    fn every_matrix_is_counted_once() {
        let model = Checkpoint::open(&golden("mixtral")).expect("a valid checkpoint");
        let footprint = Footprint::of(&model, Quantize::None).expect("every tensor is there");
        let vectors = 4 * 64 * (1 + 2 * 3);
        assert_eq!(footprint.bytes() + vectors, model.total_bytes());
        assert_eq!(footprint.layers[0].expert.params, 3 * 64 * 96);
        assert_eq!((footprint.layers[2].experts, footprint.layers[2].top_k), (8, 2));
    }

    #[test]
    fn a_gpu_holds_blocks_and_floats_as_they_are() {
        let (spec, _) = spec_of_config(&golden("mixtral")).expect("a valid configuration");
        let of = |stored, quantize| Footprint::of_spec_on_gpu(&spec, stored, quantize);
        let plain = of(DType::BF16, Quantize::None);
        assert_eq!(plain.layers[0].expert.bytes, 2 * plain.layers[0].expert.params);
        assert_eq!(plain, Footprint::of_spec(&spec, DType::BF16, Quantize::None));
        // Stored so, or made so: 34 or 18 bytes for 32 weights. Routers are in bf16, or as they are stored.
        let (eight, four) = (of(DType::Q8_0, Quantize::None), of(DType::BF16, Quantize::Q4_0));
        assert_eq!(eight.layers[0].expert.bytes * 32, 34 * eight.layers[0].expert.params);
        assert_eq!(four.layers[0].expert.bytes * 32, 18 * four.layers[0].expert.params);
        assert_eq!((four.embedding, four.output), (eight.embedding, eight.output), "in Q8_0");
        for small in [&eight, &four] {
            assert_eq!(small.layers[0].dense, plain.layers[0].dense, "a router");
        }
        assert_eq!(of(DType::F32, Quantize::Q8_0).embedding, eight.embedding);
        assert_eq!(of(DType::F32, Quantize::None).bytes(), 2 * plain.bytes());
        // Q5_0 becomes Q8_0. Of blocks of 256 a row of 64 has one.
        let (of_32, of_256) = (four.layers[0].expert.params / 32, (2 * 96 + 64) as u64);
        for (stored, bytes) in [
            (DType::Q4_1, 20 * of_32),
            (DType::Q5_0, 34 * of_32),
            (DType::Q5_1, 24 * of_32),
            (DType::Q4_K, 148 * of_256),
            (DType::Q5_K, 180 * of_256),
            (DType::Q6_K, 212 * of_256),
        ] {
            let held = of(stored, Quantize::None);
            assert_eq!(held.layers[0].expert.bytes, bytes, "{stored}");
            assert_eq!(held.layers[0].dense, plain.layers[0].dense, "a router");
        }
        let small = of(DType::Q5_0, Quantize::Fp8);
        assert_eq!(
            small.layers[0].expert,
            Footprint::of_spec(&spec, DType::BF16, Quantize::Fp8).layers[0].expert
        );
        assert_eq!(small.embedding, eight.embedding, "in Q8_0");
    }

    #[test]
    fn what_latent_attention_takes_apart_is_in_no_blocks_on_a_gpu() {
        let (spec, _) = spec_of_config(&golden("deepseek-v3")).expect("a valid configuration");
        for layer in 0..spec.layers.len() {
            for role in [LayerRole::KvUp, LayerRole::KeyUp(0), LayerRole::ValueUp(0), LayerRole::Router] {
                let held = Quantize::None.loaded_on_gpu(TensorRole::Layer(layer, role), DType::Q8_0, 64);
                assert_eq!(held, Loaded::As(DType::BF16), "{role:?}");
            }
            let held =
                Quantize::None.loaded_on_gpu(TensorRole::Layer(layer, LayerRole::KvDown), DType::Q8_0, 64);
            assert_eq!(held, Loaded::As(DType::Q8_0));
        }
    }

    #[test]
    fn fp8_takes_a_byte_a_weight_and_a_scale_a_row() {
        let model = Checkpoint::open(&golden("mixtral")).expect("a valid checkpoint");
        let at = |quantize| Footprint::of(&model, quantize).expect("every tensor is there");
        let (plain, small) = (at(Quantize::None), at(Quantize::Fp8));
        let rows = 2 * 96 + 64;
        assert_eq!(small.layers[0].expert.bytes, 3 * 64 * 96 + 4 * rows);
        assert_eq!((small.embedding, small.output), (plain.embedding, plain.output));
        let router = 8 * 64 * 4;
        assert_eq!(small.layers[0].dense.bytes, router, "routers stay as they are stored");
    }
}
