//! An adapter of any model, with numbers that mean nothing.

use std::path::Path;

use anyhow::{Context, Result, bail};
use foggara_models::ArchSpec;
use foggara_models::spec::{Attention, Mlp};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

/// Small enough that an adapted model still says something.
const SIZE: f32 = 0.01;

/// Writes an adapter of rank `rank` for all matrices of the model's layers (of routers none) to `folder`, in bf16.
pub(super) fn write(spec: &ArchSpec, rank: usize, seed: u64, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    let mut numbers = Numbers(seed);
    let mut tensors = Vec::new();
    for (module, rows, cols) in modules(spec)? {
        for (half, shape) in [("A", vec![rank, cols]), ("B", vec![rows, rank])] {
            let bytes: Vec<u8> =
                (0..shape.iter().product()).flat_map(|_| numbers.next().to_le_bytes()).collect();
            tensors.push((format!("base_model.model.{module}.lora_{half}.weight"), shape, bytes));
        }
    }
    let views = tensors
        .iter()
        .map(|(name, shape, bytes)| Ok((name.as_str(), TensorView::new(Dtype::BF16, shape.clone(), bytes)?)));
    let views = views.collect::<Result<Vec<_>, safetensors::SafeTensorError>>()?;
    safetensors::serialize_to_file(views, None, &folder.join("adapter_model.safetensors"))?;
    let config = serde_json::json!({"peft_type": "LORA", "r": rank, "lora_alpha": rank, "bias": "none"});
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).context("writing an adapter")
}

/// Names, rows and columns of the matrices of all layers.
fn modules(spec: &ArchSpec) -> Result<Vec<(String, usize, usize)>> {
    let Attention::Grouped(a) = spec.attention else {
        bail!("models with latent attention take no adapters");
    };
    let (q, kv, hidden) = (spec.heads * a.head_dim, a.kv_heads * a.head_dim, spec.hidden);
    let mut modules = Vec::new();
    for (l, layer) in spec.layers.iter().enumerate() {
        let mut add =
            |module: String, rows, cols| modules.push((format!("model.layers.{l}.{module}"), rows, cols));
        for (part, rows, cols) in [("q", q, hidden), ("k", kv, hidden), ("v", kv, hidden), ("o", hidden, q)] {
            add(format!("self_attn.{part}_proj"), rows, cols);
        }
        let mlps = match layer.mlp {
            Mlp::Dense { width } => vec![("mlp".to_owned(), width)],
            Mlp::Experts(e) => (0..e.count).map(|i| (format!("mlp.experts.{i}"), e.width)).collect(),
        };
        for (mlp, width) in mlps {
            for (part, rows, cols) in
                [("gate", width, hidden), ("up", width, hidden), ("down", hidden, width)]
            {
                add(format!("{mlp}.{part}_proj"), rows, cols);
            }
        }
    }
    Ok(modules)
}

/// Numbers around zero, in bf16 (a linear congruential generator with Knuth's constants).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u16 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let around_zero = ((self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * SIZE;
        // The first half of an f32.
        (around_zero.to_bits() >> 16) as u16
    }
}

#[cfg(test)]
mod tests {
    use foggara_models::{Adapter, Checkpoint};

    use super::*;

    #[test]
    fn adapters_of_models_with_experts_and_without_fit_them() {
        for name in ["llama", "mixtral", "qwen3-moe"] {
            let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name);
            let model = Checkpoint::open(&golden).expect("a model");
            let folder = tempfile::tempdir().expect("a folder");
            write(model.spec(), 5, 1, folder.path()).expect("written");
            let adapter = Adapter::open(folder.path()).expect("an adapter");
            assert_eq!((adapter.check(model.spec()), adapter.rank()), (Ok(()), 5), "{name}");
        }
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/deepseek-v3");
        let model = Checkpoint::open(&golden).expect("a model");
        assert!(modules(model.spec()).is_err());
    }
}
