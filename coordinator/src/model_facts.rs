//! What the placement needs to know of a model, from the tables of its checkpoint or from its configuration alone; no weights
//! are read.

use std::path::Path;

use foggara_models::footprint::{Footprint, LayerFootprint, Size, spec_of_config};
use foggara_models::{ArchSpec, Checkpoint, DType, KvFormat, Quantize, TensorRole};

use crate::placement::facts::{Bits, ExpertFacts, HeldBits, LayerFacts, ModelFacts};

/// The facts of a checkpoint that is served with this KV precision and quantization.
///
/// # Errors
/// If the checkpoint lacks a tensor, or there is no such quantization.
pub fn facts(model: &Checkpoint, kv_dtype: &str, quantize: &str) -> Result<ModelFacts, String> {
    let stored = model.tensor(TensorRole::Embedding).map_err(|e| e.to_string())?.dtype;
    let quantize: Quantize = quantize.parse()?;
    let cpu = Footprint::of(model, quantize).map_err(|e| e.to_string())?;
    let gpu = Footprint::on_gpu(model, quantize).map_err(|e| e.to_string())?;
    from_footprints(model.spec(), &cpu, &gpu, stored, kv_dtype)
}

/// The facts of the model at `path`. Of a folder without weights, what its config.json says.
///
/// # Errors
/// If there is neither, or it cannot be read.
pub fn facts_at(path: &Path, kv_dtype: &str, quantize: &str) -> Result<ModelFacts, String> {
    if has_weights(path) {
        return facts(&Checkpoint::open(path).map_err(|e| e.to_string())?, kv_dtype, quantize);
    }
    let (spec, stored) = spec_of_config(path).map_err(|e| e.to_string())?;
    let quantize: Quantize = quantize.parse()?;
    let cpu = Footprint::of_spec(&spec, stored, quantize);
    let gpu = Footprint::of_spec_on_gpu(&spec, stored, quantize);
    from_footprints(&spec, &cpu, &gpu, stored, kv_dtype)
}

/// Whether there is more than a configuration.
fn has_weights(path: &Path) -> bool {
    let Ok(folder) = path.read_dir() else { return true };
    let weights = |name: &str| name.ends_with(".safetensors") || name.ends_with(".gguf");
    !path.join("config.json").is_file()
        || folder.flatten().any(|entry| weights(&entry.file_name().to_string_lossy()))
}

fn from_footprints(
    spec: &ArchSpec,
    footprint: &Footprint,
    gpu: &Footprint,
    stored: DType,
    kv_dtype: &str,
) -> Result<ModelFacts, String> {
    let head = KvFormat::choose(kv_dtype, stored)?.head_bytes(spec);
    let layer = |layer: &LayerFootprint| LayerFacts {
        attention: layer.attention.params,
        dense: layer.dense.params,
        experts: (layer.experts > 0).then_some(ExpertFacts {
            count: layer.experts as u64,
            top_k: layer.top_k as u64,
            parameters: layer.expert.params,
        }),
    };
    Ok(ModelFacts {
        hidden: spec.hidden as u64,
        heads: spec.heads as u64,
        kv_heads: spec.kv_heads() as u64,
        kv_bytes: (spec.kv_heads() * head) as u64,
        layers: footprint.layers.iter().map(layer).collect(),
        embedding: footprint.embedding.params,
        tied: footprint.output.params == 0,
        vocab: spec.vocab as u64,
        context: spec.context as u64,
        bits: HeldBits { cpu: bits(footprint), gpu: bits(gpu) },
        adapters: 0,
    })
}

/// Bits of a parameter on the whole.
fn bits(footprint: &Footprint) -> Bits {
    let whole = |layer: &LayerFootprint| {
        let experts = layer.experts as u64;
        let experts = Size { bytes: layer.expert.bytes * experts, params: layer.expert.params * experts };
        layer.attention + layer.dense + experts
    };
    let layers = footprint.layers.iter().map(whole).fold(Size::default(), |sum, layer| sum + layer);
    let each = |size: Size| size.bytes as f64 * 8.0 / size.params.max(1) as f64;
    Bits { layers: each(layers), embedding: each(footprint.embedding) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::facts::Kind;

    fn golden(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
    }

    #[test]
    fn a_configuration_alone_gives_the_same_facts() {
        let folder = tempfile::tempdir().expect("a folder");
        for name in ["llama", "mixtral", "deepseek-v3"] {
            std::fs::copy(golden(name).join("config.json"), folder.path().join("config.json"))
                .expect("copied");
            for (kv_dtype, quantize) in [("auto", "none"), ("f16", "q8_0"), ("f16", "fp8"), ("q8_0", "none")]
            {
                let whole = facts_at(&golden(name), kv_dtype, quantize).expect("a checkpoint");
                let alone = facts_at(folder.path(), kv_dtype, quantize).expect("a configuration");
                assert_eq!(whole, alone, "{name}");
                assert_eq!(whole.experts() > 0, name != "llama");
            }
        }
        assert!(facts_at(&golden("llama"), "auto", "q3").is_err());
        assert!(facts_at(&golden("llama"), "q3", "none").is_err());
        assert!(facts_at(Path::new("/none"), "auto", "none").is_err());
    }

    #[test]
    fn what_is_kept_in_memory_is_what_the_checkpoint_holds() {
        let model = Checkpoint::open(&golden("mixtral")).expect("a checkpoint");
        let whole = facts(&model, "auto", "none").expect("complete");
        // All but norms, which are small.
        for kind in [Kind::Cpu, Kind::Gpu] {
            assert!(whole.weight_bytes(kind).abs_diff(model.total_bytes()) < model.total_bytes() / 50);
        }
        let small = facts(&model, "auto", "fp8").expect("complete").bits.gpu;
        assert!(small.layers > 8.0 && small.layers < 9.0, "a byte and a scale for each row: {small:?}");
        assert!((small.embedding - whole.bits.gpu.embedding).abs() < 1e-9, "{small:?}");
        assert_eq!(whole.kv_bytes, (model.spec().kv_heads() * model.spec().key_dim() * 2 * 4) as u64, "f32");
    }
}
