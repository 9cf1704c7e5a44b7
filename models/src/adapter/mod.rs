//! Low-rank adapters (Hu et al., "LoRA", 2021) in the form that PEFT writes: a folder with adapter_config.json and
//! adapter_model.safetensors.
//!
//! An adapter says for some of a model's matrices W what is added to their products: W·x + scale · B·(A·x), with A of rank × input
//! and B of output × rank features. Which matrices these are is read from the tensors' names; what an adapter has beside them
//! (biases, magnitudes, whole layers) is refused rather than passed over.

mod config;
mod names;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::ModelError;
use crate::expected::expected;
use crate::hf;
use crate::roles::{LayerRole, TensorRole};
use crate::slice::TensorInfo;
use crate::spec::{ArchSpec, Attention, RopeStyle};

use config::Config;
use names::{Half, target};

/// What an adapter's folder holds.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";
/// Its tensors.
pub const ADAPTER_TENSORS: &str = "adapter_model.safetensors";
/// The highest rank that is taken.
pub const MAX_ADAPTER_RANK: usize = 512;

/// An opened adapter: its tables are in memory, its tensors stay in the file.
#[derive(Debug, Clone)]
pub struct Adapter {
    path: PathBuf,
    deltas: BTreeMap<(usize, LayerRole), LowRank>,
}

/// What is added to the product of one matrix: scale · B·(A·x).
#[derive(Debug, Clone)]
pub struct LowRank {
    /// rank × input features.
    pub a: TensorInfo,
    /// output features × rank.
    pub b: TensorInfo,
    /// Multiplies their product.
    pub scale: f32,
}

impl LowRank {
    /// Its rank.
    pub fn rank(&self) -> usize {
        self.a.rows
    }
}

/// A matrix's name in the model, and its A and its B as far as they were found.
type Halves = (String, [Option<TensorInfo>; 2]);

/// Whether a folder holds an adapter rather than a model.
pub fn is_adapter(path: &Path) -> bool {
    path.join(ADAPTER_CONFIG).is_file() && !path.join("config.json").is_file()
}

impl Adapter {
    /// Opens a folder that PEFT wrote.
    ///
    /// # Errors
    /// Names the file, the tensor or field, and the reason, if it is none or does something that is not supported.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let config = Config::read(&path.join(ADAPTER_CONFIG))?;
        let file = path.join(ADAPTER_TENSORS);
        let mut halves: BTreeMap<(usize, LayerRole), Halves> = BTreeMap::new();
        for (name, tensor) in hf::tensors::read(&file)? {
            let target = target(&name).map_err(|reason| ModelError::tensor(&file, &name, reason))?;
            let (module, pair) = halves.entry((target.layer, target.role)).or_default();
            let half = &mut pair[usize::from(target.half == Half::B)];
            if half.replace(tensor).is_some() {
                return Err(ModelError::tensor(&file, &name, "is there twice, under two names"));
            }
            *module = target.module;
        }
        let mut deltas = BTreeMap::new();
        for (at, (module, pair)) in halves {
            let [Some(a), Some(b)] = pair else {
                return Err(ModelError::corrupt(
                    &file,
                    format!("`{module}` has one of lora_A and lora_B only"),
                ));
            };
            let wrong = |reason: String| Err(ModelError::tensor(&file, &b.name, reason));
            if [&a, &b].iter().any(|half| half.count != 1) || a.rows != b.cols {
                return wrong(format!("is {} × {}, lora_A {} × {}", b.rows, b.cols, a.rows, a.cols));
            }
            if !(1..=MAX_ADAPTER_RANK).contains(&a.rows) {
                return wrong(format!("has rank {}, must be 1 to {MAX_ADAPTER_RANK}", a.rows));
            }
            let scale = config.scale(&module, a.rows);
            deltas.insert(at, LowRank { a, b, scale });
        }
        if deltas.is_empty() {
            return Err(ModelError::corrupt(&file, "holds no low-rank matrices"));
        }
        Ok(Self { path: path.to_owned(), deltas })
    }

    /// The folder it was opened from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is added to the product of a layer's matrix, if anything is.
    pub fn delta(&self, layer: usize, role: LayerRole) -> Option<&LowRank> {
        self.deltas.get(&(layer, role))
    }

    /// The highest rank of its matrices.
    pub fn rank(&self) -> usize {
        self.deltas.values().map(LowRank::rank).max().unwrap_or(0)
    }

    /// Whether it changes what experts, or the choice of them, give.
    pub fn changes_experts(&self) -> bool {
        use LayerRole as R;
        let of_experts =
            |role: &R| matches!(role, R::Router | R::ExpertGate(_) | R::ExpertUp(_) | R::ExpertDown(_));
        self.deltas.keys().any(|(_, role)| of_experts(role))
    }

    /// Bytes of its tensors.
    pub fn bytes(&self) -> u64 {
        self.deltas.values().map(|delta| (delta.a.bytes() + delta.b.bytes()) as u64).sum()
    }

    /// Whether it was made for such a model: every matrix it adds to is there, of the size it was made for.
    ///
    /// # Errors
    /// Names the first tensor that does not fit.
    pub fn check(&self, spec: &ArchSpec) -> Result<(), ModelError> {
        let file = self.path.join(ADAPTER_TENSORS);
        if matches!(spec.attention, Attention::Latent(_)) {
            return Err(ModelError::unsupported(&file, "adapters of models with latent attention"));
        }
        let sizes: BTreeMap<TensorRole, (usize, usize)> =
            expected(spec).into_iter().map(|(role, rows, cols)| (role, (rows, cols))).collect();
        for ((layer, role), delta) in &self.deltas {
            let wrong =
                |tensor: &TensorInfo, reason: String| Err(ModelError::tensor(&file, &tensor.name, reason));
            let Some((rows, cols)) = sizes.get(&TensorRole::Layer(*layer, *role)) else {
                let layers = spec.layers.len();
                return wrong(&delta.a, format!("the model, of {layers} layers, has no such matrix"));
            };
            if delta.a.cols != *cols {
                return wrong(
                    &delta.a,
                    format!("takes {} features, the model's matrix {cols}", delta.a.cols),
                );
            }
            if delta.b.rows != *rows {
                return wrong(
                    &delta.b,
                    format!("gives {} features, the model's matrix {rows}", delta.b.rows),
                );
            }
        }
        Ok(())
    }
}

/// Which row of an adapter's B adds to row `row` of a model's matrix.
///
/// GGUF files of Llama's kin hold the rows of queries and keys in another order than the folders that adapters are made for: pairs
/// that are rotated together lie side by side.
pub fn adapter_row(spec: &ArchSpec, role: LayerRole, row: usize) -> usize {
    let Attention::Grouped(a) = spec.attention else { return row };
    let interleaved = spec.ropes.iter().all(|rope| rope.style == RopeStyle::Interleaved);
    if !interleaved || !matches!(role, LayerRole::Q | LayerRole::K) {
        return row;
    }
    let (head, i) = (row / a.head_dim, row % a.head_dim);
    head * a.head_dim + i % 2 * (a.head_dim / 2) + i / 2
}
