//! Folders that are right, and every way in which they can be wrong.

use std::path::Path;

use serde_json::{Value, json};

use crate::spec::Mlp;
use crate::testing::{
    FFN, HEAD_DIM, HIDDEN, LAYERS, VOCAB, safetensors, stored, tiny_config, tiny_folder, tiny_safetensors,
    tiny_tensors,
};
use crate::{
    Checkpoint, Cut, DType, LayerRole, ModelError, Quantize, RopeStyle, Shape, TensorRole, TokenizerSource,
};

struct Folder(tempfile::TempDir);

impl Folder {
    fn new(dtype: DType) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        tiny_folder(folder.path(), dtype).expect("written");
        Self(folder)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> &Self {
        // A new file each time: an older one may still be mapped.
        drop(std::fs::remove_file(self.path().join(name)));
        std::fs::write(self.path().join(name), bytes).expect("written");
        self
    }

    /// Writes config.json with one field changed; `Value::Null` takes it away.
    fn config(&self, field: &str, value: Value) -> &Self {
        let mut config = tiny_config();
        let fields = config.as_object_mut().expect("an object");
        match value {
            Value::Null => drop(fields.shift_remove(field)),
            value => drop(fields.insert(field.into(), value)),
        }
        self.write("config.json", config.to_string())
    }

    fn open(&self) -> Result<Checkpoint, ModelError> {
        Checkpoint::open(self.path())
    }

    /// The error says each of `parts`.
    fn refuse(&self, parts: &[&str]) {
        let error = self.open().map(drop).expect_err(&format!("{parts:?}")).to_string();
        for part in parts {
            assert!(error.contains(part), "`{part}` is not in: {error}");
        }
    }
}

#[test]
fn every_type_is_read_where_it_lies() {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let folder = Folder::new(dtype);
        let model = folder.open().expect("a good folder");
        let spec = model.spec();
        assert_eq!((spec.hidden, spec.layers.len(), spec.vocab), (HIDDEN, LAYERS, VOCAB));
        assert_eq!(spec.layers[1].mlp, Mlp::Dense { width: FFN });
        assert!(spec.tied_output && spec.ropes[0].style == RopeStyle::Half);
        assert_eq!(spec.ropes[0].inv_freq.len(), HEAD_DIM / 2);
        assert_eq!((model.special().bos, &model.special().eos[..]), (Some(1), &[2, 3][..]));
        let names = tiny_tensors();
        let number = names.iter().position(|(name, _)| name.contains("0.mlp.down")).expect("there");
        let written = stored(dtype, HIDDEN * FFN, number as u32);
        let part = model
            .slice(TensorRole::Layer(0, LayerRole::Down), 5..9, 7..100)
            .expect("floats are cut anywhere");
        let width = dtype.block_bytes();
        for row in 0..4 {
            assert_eq!(
                part.row(row, &mut Vec::new()),
                &written[((5 + row) * FFN + 7) * width..][..93 * width],
                "{dtype}"
            );
        }
        let norm = model.slice(TensorRole::FinalNorm, 0..1, 0..HIDDEN).expect("there").to_f32();
        assert_eq!(norm.expect("floats").len(), HIDDEN);
    }
}

#[test]
fn a_file_cut_anywhere_or_with_a_flipped_byte_is_an_error_or_a_model() {
    let folder = Folder::new(DType::BF16);
    let bytes = std::fs::read(folder.path().join("model.safetensors")).expect("written");
    let header = 8 + u64::from_le_bytes(*bytes.first_chunk().expect("long enough")) as usize;
    for len in (0..header + 2).step_by(3).chain((header..bytes.len()).step_by(9973)).chain([bytes.len() - 1])
    {
        folder.write("model.safetensors", &bytes[..len]).refuse(&["model.safetensors", "truncated"]);
    }
    for at in (0..header).step_by(3) {
        let mut bad = bytes.clone();
        bad[at] ^= if at % 2 == 0 { 0x01 } else { 0xff };
        if let Ok(model) = folder.write("model.safetensors", &bad).open() {
            model.slices(&Cut::even(Shape::tensor(2)), Quantize::None).expect("an accepted model can be cut");
        }
    }
    // A header that claims to be longer than any memory.
    for claim in [u64::MAX, 1 << 40, bytes.len() as u64] {
        let mut bad = bytes.clone();
        bad[..8].copy_from_slice(&claim.to_le_bytes());
        folder.write("model.safetensors", &bad).refuse(&["model.safetensors"]);
    }
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let folder = Folder::new(DType::F16);
    let name = "model.layers.1.mlp.up_proj.weight";
    let all = tiny_tensors();
    let without: Vec<_> = all.iter().filter(|(n, _)| n != name).cloned().collect();
    folder.write("model.safetensors", tiny_safetensors(DType::F16, &without)).refuse(&[name, "is missing"]);
    let reshaped = |shape: &[usize]| {
        let with =
            |(n, s): &(String, Vec<usize>)| (n.clone(), if n == name { shape.to_vec() } else { s.clone() });
        tiny_safetensors(DType::F16, &all.iter().map(with).collect::<Vec<_>>())
    };
    folder.write("model.safetensors", reshaped(&[HIDDEN, FFN])).refuse(&[name, "256 × 512", "512 × 256"]);
    folder.write("model.safetensors", reshaped(&[2, FFN, HIDDEN])).refuse(&[name, "a stack of 2 matrices"]);
    folder.write("model.safetensors", reshaped(&[1, 2, FFN, HIDDEN])).refuse(&[name, "vectors, matrices"]);
    for dtype in ["I64", "F8_E4M3", "F64", "U8"] {
        let width = match dtype {
            "I64" | "F64" => 8,
            _ => 1,
        };
        let file = safetensors(&[(name, dtype, &[2], vec![0; 2 * width])]);
        folder.write("model.safetensors", file).refuse(&["model.safetensors", name, dtype, "not supported"]);
    }
    // Bytes that do not belong to the shape.
    for file in [
        safetensors(&[(name, "F16", &[5], vec![0; 8])]),
        safetensors(&[(name, "F16", &[usize::MAX, usize::MAX], vec![0; 8])]),
    ] {
        folder.write("model.safetensors", file).refuse(&["model.safetensors"]);
    }
    std::fs::remove_file(folder.path().join("model.safetensors")).expect("written before");
    folder.refuse(&["holds neither model.safetensors nor model.safetensors.index.json"]);
}

#[test]
fn shards_are_found_through_their_index() {
    let folder = Folder::new(DType::BF16);
    std::fs::remove_file(folder.path().join("model.safetensors")).expect("written before");
    let all = tiny_tensors();
    let (first, second) = all.split_at(7);
    let names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    folder.write(names[0], tiny_safetensors(DType::BF16, first));
    folder.write(names[1], tiny_safetensors(DType::BF16, second));
    let index = |change: &dyn Fn(&mut serde_json::Map<String, Value>)| {
        let mut map = serde_json::Map::new();
        for (part, file) in [first, second].into_iter().zip(names) {
            part.iter().for_each(|(name, _)| drop(map.insert(name.clone(), json!(file))));
        }
        change(&mut map);
        folder.write("model.safetensors.index.json", json!({"metadata": {}, "weight_map": map}).to_string());
    };
    index(&|_| ());
    let model = folder.open().expect("both shards are there");
    assert_eq!(
        model.total_bytes(),
        all.iter().map(|(_, s)| 2 * s.iter().product::<usize>() as u64).sum::<u64>()
    );
    let (here, there) = (&first[3].0, &second[2].0);
    index(&|map| drop(map.insert(here.clone(), json!(names[1]))));
    folder.refuse(&[names[1], here, "is missing, though the index says it is here"]);
    index(&|map| drop(map.shift_remove(there)));
    folder.refuse(&[there, "is missing"]);
    for file in ["../outside.safetensors", "/etc/passwd", "..", "", "a/b"] {
        index(&|map| drop(map.insert(here.clone(), json!(file))));
        folder.refuse(&["index.json", here, "not a file of this folder"]);
    }
    index(&|map| drop(map.insert(here.clone(), json!(7))));
    folder.refuse(&["index.json", here, "not a file of this folder"]);
    index(&|map| drop(map.insert(here.clone(), json!("model-00003-of-00002.safetensors"))));
    folder.refuse(&["model-00003-of-00002.safetensors"]);
    index(&|_| ());
    std::fs::remove_file(folder.path().join(names[1])).expect("written before");
    folder.refuse(&[names[1], "No such file"]);
    folder
        .write("model.safetensors.index.json", "{\"weight_map\": []}")
        .refuse(&["index.json", "weight_map"]);
    folder.write("model.safetensors.index.json", "{").refuse(&["index.json", "not valid JSON"]);
}

#[test]
fn fields_that_change_numbers_are_understood_or_refused_by_name() {
    let folder = Folder::new(DType::F16);
    for (field, value) in [
        ("quantization_config", json!({"bits": 4})),
        ("sliding_window", json!(4096)),
        ("partial_rotary_factor", json!(0.5)),
        ("attention_multiplier", json!(0.1)),
        ("layer_types", json!(["sliding_attention"])),
        ("some_new_field", json!(1)),
        ("hidden_act", json!("gelu")),
        ("mlp_bias", json!(true)),
        ("rope_interleaved", json!(true)),
    ] {
        folder.config(field, value).refuse(&["config.json", field, "not supported"]);
        folder.config(field, json!(null)).open().expect("absent");
    }
    for field in ["sliding_window", "quantization_config", "use_sliding_window"] {
        let mut config = tiny_config();
        config[field] = if field.starts_with("use") { json!(false) } else { Value::Null };
        folder.write("config.json", config.to_string()).open().expect("switched off");
    }
    for (field, value, said) in [
        ("architectures", json!(["MambaForCausalLM"]), "`MambaForCausalLM` (served: LlamaForCausalLM, "),
        ("architectures", json!("LlamaForCausalLM"), "`architectures` is"),
        ("architectures", json!(null), "`architectures` is missing"),
        ("hidden_size", json!("big"), "`hidden_size` is \"big\", not a whole number"),
        ("hidden_size", json!(null), "`hidden_size` is missing"),
        ("hidden_size", json!(-1), "`hidden_size` is -1"),
        ("hidden_size", json!(1u64 << 60), "rotated elements"),
        ("head_dim", json!(1u64 << 60), "rotated elements"),
        ("head_dim", json!(33), "rotated elements"),
        ("head_dim", json!(0), "head_dim is 0"),
        ("num_attention_heads", json!(0), "`num_attention_heads`"),
        ("num_key_value_heads", json!(0), "kv_heads is 0"),
        ("num_key_value_heads", json!(3), "cannot share 3 key heads evenly"),
        ("num_hidden_layers", json!(1u64 << 40), "layers is"),
        ("vocab_size", json!(VOCAB + 1), "40 × 256, the configuration says 41 × 256"),
        ("rms_norm_eps", json!("tiny"), "`rms_norm_eps`"),
        ("rms_norm_eps", json!(-1.0), "epsilon is -1"),
        ("rope_theta", json!("many"), "`rope_theta` is \"many\""),
        ("rope_theta", json!(0), "theta 0"),
        ("tie_word_embeddings", json!("yes"), "`tie_word_embeddings` is \"yes\", not true or false"),
        ("tie_word_embeddings", json!(false), "lm_head.weight"),
        ("attention_bias", json!(true), "bias"),
    ] {
        folder.config(field, value).refuse(&[said]);
    }
    folder.write("config.json", "[1]").refuse(&["config.json", "architectures"]);
    folder.write("config.json", "nonsense").refuse(&["config.json", "not valid JSON"]);
    folder.config("tie_word_embeddings", json!(null));
    assert!(folder.open().expect("no output layer, and nothing said about it").spec().tied_output);
}

#[test]
fn the_rotation_is_read_in_old_and_new_spellings() {
    let folder = Folder::new(DType::F16);
    let frequencies = |field: &str, value: Value| {
        folder.config(field, value).open().map(|model| model.spec().ropes[0].inv_freq.clone())
    };
    let plain = frequencies("rope_scaling", json!(null)).expect("no scaling");
    let second = |theta: f32| theta.powf(-2.0 / HEAD_DIM as f32);
    assert!((plain[1] - second(10_000.0)).abs() < 1e-6);
    let new = frequencies("rope_parameters", json!({"rope_type": "default", "rope_theta": 500_000.0}));
    assert!((new.expect("the new spelling")[1] - second(500_000.0)).abs() < 1e-6);
    for linear in [json!({"type": "linear", "factor": 2.0}), json!({"rope_type": "linear", "factor": 2.0})] {
        assert_eq!(frequencies("rope_scaling", linear).expect("linear")[0], 0.5);
    }
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64});
    let scaled = frequencies("rope_scaling", llama3).expect("llama3");
    assert_eq!((scaled[0], scaled[15]), (1.0, plain[15] / 8.0));
    for (value, said) in [
        (json!({"rope_type": "longrope", "factor": 2.0}), "`short_factor` must be a list of 16 numbers"),
        (json!({"rope_type": "dynamic", "factor": 2.0}), "rope type `dynamic`"),
        (json!({"rope_type": "llama3", "factor": 8.0}), "`low_freq_factor` is missing"),
        (json!({"rope_type": "linear"}), "`factor` is missing"),
        (json!({"rope_type": "linear", "factor": "2"}), "`factor` is \"2\""),
        (json!({"rope_type": 7}), "`rope_type` is 7"),
        (json!("linear"), "parameters are \"linear\""),
        (json!({"rope_type": "linear", "factor": 0.0}), "no finite frequencies"),
        (json!({"rope_type": "default", "partial_rotary_factor": 0.5}), "partial_rotary_factor"),
        (json!({"rope_type": "default", "mscale": 0.7}), "rope parameter `mscale`"),
        (json!({"rope_type": "default", "long_mscale": 0.7}), "rope parameter `long_mscale`"),
    ] {
        let error = frequencies("rope_scaling", value).expect_err(said).to_string();
        assert!(error.contains(said) && error.contains("config.json"), "{error}");
    }
}

#[test]
fn what_belongs_to_the_tokenizer_is_found() {
    let folder = Folder::new(DType::F16);
    let model = folder.open().expect("a good folder");
    assert!(model.tokenizer().expect("readable").is_none() && model.chat_template().is_none());
    folder.write("tokenizer.json", "{}");
    folder.write("generation_config.json", json!({"eos_token_id": [3, 7], "pad_token_id": 0}).to_string());
    let templates = json!([{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]);
    let config = json!({"bos_token": {"content": "<s>"}, "eos_token": "</s>", "chat_template": templates});
    folder.write("tokenizer_config.json", config.to_string());
    let model = folder.open().expect("a good folder");
    let Ok(Some(TokenizerSource::HfJson(path))) = model.tokenizer() else { panic!("it has one") };
    assert!(path.ends_with("tokenizer.json"));
    let special = model.special();
    assert_eq!((special.bos, &special.eos[..], special.pad), (Some(1), &[3, 7, 2][..], Some(0)));
    assert_eq!((special.bos_text.as_deref(), special.eos_text.as_deref()), (Some("<s>"), Some("</s>")));
    assert_eq!(model.chat_template(), Some("d"));
    folder.write("chat_template.jinja", "own");
    assert_eq!(folder.open().expect("a good folder").chat_template(), Some("own"));
    folder.write("chat_template.jinja", [0xff]).refuse(&["chat_template.jinja", "not UTF-8"]);
}
