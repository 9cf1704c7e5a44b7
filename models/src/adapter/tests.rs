use std::path::Path;

use super::*;
use crate::checkpoint::Checkpoint;
use crate::dtype::DType;
use crate::testing::{safetensors, stored, tiny_gguf};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
}

fn adapter(name: &str) -> Adapter {
    Adapter::open(&golden("adapters").join(name)).expect("an adapter")
}

const CONFIG: &str = r#"{"peft_type": "LORA", "lora_alpha": 4, "bias": "none"}"#;

/// What comes of opening a folder with these tensors, of f32.
fn opened(config: &str, tensors: &[(&str, [usize; 2])]) -> Result<Adapter, ModelError> {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join(ADAPTER_CONFIG), config).expect("written");
    let data = |shape: &[usize; 2]| stored(DType::F32, shape.iter().product(), 1);
    let tensors: Vec<_> =
        tensors.iter().map(|(name, shape)| (*name, "F32", &shape[..], data(shape))).collect();
    std::fs::write(folder.path().join(ADAPTER_TENSORS), safetensors(&tensors)).expect("written");
    Adapter::open(folder.path())
}

fn named(matrix: &str, half: &str) -> String {
    format!("base_model.model.model.layers.0.{matrix}.lora_{half}.weight")
}

#[test]
fn what_peft_wrote_is_read() {
    let llama = adapter("llama");
    let q = llama.delta(2, LayerRole::Q).expect("it adapts all layers");
    assert_eq!((q.rank(), q.a.cols, q.b.rows, q.scale), (4, 64, 64, 2.0));
    let v = llama.delta(0, LayerRole::V).expect("it adapts values");
    assert_eq!((v.rank(), v.scale), (7, 8.0 / 7.0), "ranks may differ");
    assert_eq!(llama.delta(1, LayerRole::O).map(|o| o.scale), Some(0.75), "alphas may, too");
    assert_eq!(llama.delta(1, LayerRole::Up).map(|up| up.scale), Some(4.0));
    assert_eq!(llama.delta(2, LayerRole::Up).map(|up| up.scale), Some(2.0));
    assert!(llama.delta(3, LayerRole::Q).is_none() && !llama.changes_experts());
    assert_eq!(llama.rank(), 7);
    let roots = adapter("llama-attention");
    assert_eq!(roots.delta(0, LayerRole::Q).map(|q| q.scale), Some(4.0), "8 over the root of 4");
    assert!(roots.delta(0, LayerRole::K).is_none());
    let mixtral = adapter("mixtral");
    assert!(mixtral.changes_experts() && mixtral.delta(1, LayerRole::ExpertDown(7)).is_some());
}

#[test]
fn an_adapter_fits_the_model_it_was_made_for_only() {
    let spec = |name: &str| Checkpoint::open(&golden(name)).expect("a model").spec().clone();
    assert_eq!(adapter("llama").check(&spec("llama")), Ok(()));
    assert_eq!(adapter("mixtral").check(&spec("mixtral")), Ok(()));
    for (name, model, said) in [
        ("llama", "mixtral", "has no such matrix"),
        ("mixtral", "llama", "has no such matrix"),
        ("llama", "deepseek-v3", "latent attention"),
        ("llama-attention", "llama-odd-heads", "features, the model's matrix"),
    ] {
        let error = adapter(name).check(&spec(model)).expect_err(model).to_string();
        assert!(error.contains(said), "{name} for {model}: {error}");
    }
}

#[test]
fn rows_of_queries_and_keys_are_found_where_the_file_has_them_in_another_order() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("m.gguf");
    std::fs::write(&path, tiny_gguf(DType::F32).bytes()).expect("written");
    let gguf = Checkpoint::open(&path).expect("a model");
    let spec = gguf.spec();
    let Attention::Grouped(a) = spec.attention else { panic!("grouped attention") };
    let half = a.head_dim / 2;
    // Row 2i of a head is its row i as trained, row 2i + 1 its row i + half.
    for (row, expected) in
        [(0, 0), (1, half), (2, 1), (a.head_dim, a.head_dim), (a.head_dim + 1, a.head_dim + half)]
    {
        assert_eq!(adapter_row(spec, LayerRole::Q, row), expected, "row {row}");
    }
    assert_eq!(adapter_row(spec, LayerRole::V, 1), 1);
    let folder = Checkpoint::open(&golden("llama")).expect("a model");
    assert_eq!(adapter_row(folder.spec(), LayerRole::Q, 1), 1);
}

#[test]
fn what_cannot_be_served_is_refused_by_name() {
    let (a, b) = (named("self_attn.q_proj", "A"), named("self_attn.q_proj", "B"));
    assert!(opened(CONFIG, &[(&a, [2, 8]), (&b, [8, 2])]).is_ok());
    for (tensors, said) in [
        (vec![(&*a, [2, 8])], "one of lora_A and lora_B only"),
        (vec![(&*a, [2, 8]), (&*b, [8, 3])], "is 8 × 3, lora_A 2 × 8"),
        (vec![(&*a, [513, 8]), (&*b, [8, 513])], "has rank 513, must be 1 to 512"),
        (vec![], "holds no low-rank matrices"),
        (vec![(&*a, [2, 8]), (&*b, [8, 2]), ("base_model.model.lm_head.weight", [9, 8])], "modules_to_save"),
        (
            vec![(&*a, [2, 8]), (&*b, [8, 2]), ("model.layers.0.self_attn.q_proj.lora_A.weight", [2, 8])],
            "is there twice",
        ),
    ] {
        let error = opened(CONFIG, &tensors).expect_err(said).to_string();
        assert!(error.contains(said), "{error}");
    }
    let error = opened("{", &[]).expect_err("no JSON").to_string();
    assert!(error.contains(ADAPTER_CONFIG), "{error}");
    let folder = tempfile::tempdir().expect("a folder");
    let error = Adapter::open(folder.path()).expect_err("an empty folder").to_string();
    assert!(error.contains(ADAPTER_CONFIG), "{error}");
    std::fs::write(folder.path().join(ADAPTER_CONFIG), CONFIG).expect("written");
    let error = Adapter::open(folder.path()).expect_err("no tensors").to_string();
    assert!(error.contains(ADAPTER_TENSORS), "{error}");
    std::fs::write(folder.path().join(ADAPTER_TENSORS), b"nothing").expect("written");
    assert!(Adapter::open(folder.path()).is_err(), "no safetensors file");
}
