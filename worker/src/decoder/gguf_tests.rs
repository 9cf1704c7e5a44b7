//! The models of the fixtures as a converter to GGUF would write them: the numbers stay the same.

use foggara_models::spec::{Activation, Attention, Experts, Grouped, Latent, Mlp, Routing};
use foggara_models::testing::GgufFile;
use foggara_models::{ArchSpec, Checkpoint, DType, LayerRole as R, TensorRole};
use serde_json::Value;

use super::*;
use crate::decoder::tests::agrees;
use crate::testing::golden;

/// A role of the expert with a number.
type ExpertRole = fn(usize) -> R;

/// What differs between files of one model.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Form {
    /// As it is written today.
    Usual,
    /// Each expert in a tensor of its own.
    ExpertsApart,
    /// The up projections of latent attention in one tensor.
    UpJoined,
    /// Windows in a list, an entry for each layer.
    WindowList,
}

/// A model, and the file it is written to.
struct Writer<'a> {
    model: &'a Checkpoint,
    spec: &'a ArchSpec,
    arch: &'static str,
    file: GgufFile,
}

/// A tensor's rows, columns and values.
struct Values {
    rows: usize,
    cols: usize,
    values: Vec<f32>,
}

impl Values {
    /// Of each head: rows 0, half, 1, half + 1 …
    fn permuted(mut self, heads: usize) -> Self {
        // A bias has its heads side by side.
        let width = if self.rows == 1 { 1 } else { self.cols };
        let dim = self.values.len() / width / heads;
        let row = |r: usize| {
            let (head, i) = (r / dim, r % dim);
            self.values[(head * dim + i / 2 + i % 2 * (dim / 2)) * width..][..width].to_vec()
        };
        self.values = (0..heads * dim).flat_map(row).collect();
        self
    }

    fn bytes(&self) -> Vec<u8> {
        self.values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }
}

impl Writer<'_> {
    fn values(&self, role: TensorRole) -> Values {
        let tensor = self.model.tensor(role).expect("there");
        let whole = self.model.slice(role, 0..tensor.rows, 0..tensor.cols).expect("the whole");
        Values { rows: tensor.rows, cols: tensor.cols, values: whole.to_f32().expect("floats") }
    }

    fn has(&self, layer: usize, role: R) -> bool {
        self.model.tensor(TensorRole::Layer(layer, role)).is_ok()
    }

    fn put(&mut self, name: &str, shape: &[usize], bytes: Vec<u8>) {
        let shape: Vec<u64> = shape.iter().map(|size| *size as u64).collect();
        self.file = std::mem::take(&mut self.file).tensor(name, DType::F32, &shape, bytes);
    }

    fn add(&mut self, name: &str, of: &Values) {
        let shape = [of.rows, of.cols];
        self.put(name, if of.rows == 1 { &shape[1..] } else { &shape }, of.bytes());
    }

    fn copy(&mut self, layer: usize, name: &str, role: R) {
        let values = self.values(TensorRole::Layer(layer, role));
        self.add(&format!("blk.{layer}.{name}"), &values);
    }

    /// As [`copy`](Self::copy), of norms that are stored as what is added to 1: files have it added.
    fn norm(&mut self, name: &str, role: TensorRole) {
        let mut values = self.values(role);
        if self.spec.norm_plus_one {
            values.values.iter_mut().for_each(|value| *value += 1.0);
        }
        self.add(name, &values);
    }

    /// One tensor of several: matrices in a stack, vectors in rows.
    fn stack(&mut self, name: &str, parts: &[Values]) {
        let bytes = parts.iter().flat_map(Values::bytes).collect();
        match parts[0].rows {
            1 => self.put(name, &[parts.len(), parts[0].cols], bytes),
            rows => self.put(name, &[parts.len(), rows, parts[0].cols], bytes),
        }
    }

    fn count(&mut self, key: &str, value: usize) {
        self.file = std::mem::take(&mut self.file).u32(&format!("{}.{key}", self.arch), value as u32);
    }

    fn number(&mut self, key: &str, value: f64) {
        self.file = std::mem::take(&mut self.file).f32(&format!("{}.{key}", self.arch), value as f32);
    }

    fn text(&mut self, key: &str, value: &str) {
        self.file = std::mem::take(&mut self.file).text(&format!("{}.{key}", self.arch), value);
    }

    fn flag(&mut self, key: &str, value: bool) {
        self.file = std::mem::take(&mut self.file).bool(&format!("{}.{key}", self.arch), value);
    }

    fn metadata(&mut self, config: &Value, form: Form) {
        let s = self.spec;
        let dense = |layer: &foggara_models::spec::Layer| match layer.mlp {
            Mlp::Dense { width } => Some(width),
            Mlp::Experts(_) => None,
        };
        self.count("block_count", s.layers.len());
        self.count("context_length", s.context);
        self.count("embedding_length", s.hidden);
        self.count("attention.head_count", s.heads);
        self.count("vocab_size", s.vocab);
        self.number("attention.layer_norm_rms_epsilon", f64::from(s.norm_eps));
        let field = config["intermediate_size"].as_u64().expect("a width") as usize;
        self.count("feed_forward_length", s.layers.iter().find_map(dense).unwrap_or(field));
        match s.attention {
            Attention::Grouped(Grouped { kv_heads, head_dim, .. }) => {
                self.count("attention.head_count_kv", kv_heads);
                self.count("attention.key_length", head_dim);
                self.count("attention.value_length", head_dim);
            }
            Attention::Latent(latent) => self.latent_metadata(&latent, form),
        }
        self.count("rope.dimension_count", s.ropes[0].inv_freq.len() * 2);
        if let Some((_, experts)) = s.moe_layers().next() {
            self.experts_metadata(&experts);
        }
        for (key, value) in
            [("attn_logit_softcapping", s.attention_softcap), ("final_logit_softcapping", s.logit_softcap)]
        {
            if let Some(value) = value {
                self.number(key, f64::from(value));
            }
        }
        self.rope_metadata(config);
        if let Some(window) = s.layers.iter().find_map(|layer| layer.window) {
            self.count("attention.sliding_window", window);
            let list: Vec<u8> = s.layers.iter().map(|layer| layer.window.is_some().into()).collect();
            if form == Form::WindowList {
                let key = format!("{}.attention.sliding_window_pattern", self.arch);
                self.file = std::mem::take(&mut self.file).array(&key, 7, list.len(), &list);
            } else if self.arch == "gemma3" {
                self.count("attention.sliding_window_pattern", 3);
            }
        }
    }

    fn latent_metadata(&mut self, latent: &Latent, form: Form) {
        let (head, cached) = (latent.nope_dim + latent.rope_dim, latent.kv_rank + latent.rope_dim);
        self.count("attention.kv_lora_rank", latent.kv_rank);
        if let Some(rank) = latent.q_rank {
            self.count("attention.q_lora_rank", rank);
        }
        if form == Form::UpJoined {
            self.count("attention.head_count_kv", self.spec.heads);
            self.count("attention.key_length", head);
            self.count("attention.value_length", latent.value_dim);
        } else {
            self.count("attention.head_count_kv", 1);
            self.count("attention.key_length", cached);
            self.count("attention.value_length", latent.kv_rank);
            self.count("attention.key_length_mla", head);
            self.count("attention.value_length_mla", latent.value_dim);
        }
    }

    fn experts_metadata(&mut self, experts: &Experts) {
        self.count("expert_count", experts.count);
        self.count("expert_used_count", experts.top_k);
        if self.arch != "llama" {
            self.count("expert_feed_forward_length", experts.width);
        }
        if let Routing::GroupedSigmoid { groups, top_groups, renormalize, scale } = experts.routing {
            self.count("expert_shared_count", experts.shared_width / experts.width);
            self.count("expert_gating_func", 2);
            self.count("expert_group_count", groups);
            self.count("expert_group_used_count", top_groups);
            self.flag("expert_weights_norm", renormalize);
            self.number("expert_weights_scale", f64::from(scale));
            let dense = self.spec.moe_layers().next().map_or(0, |(first, _)| first);
            self.count("leading_dense_block_count", dense);
        }
    }

    fn rope_metadata(&mut self, config: &Value) {
        let parameters = &config["rope_parameters"];
        let global = parameters.get("full_attention").unwrap_or(parameters);
        let theta = global["rope_theta"].as_f64().expect("a number");
        self.number("rope.freq_base", theta);
        match global["rope_type"].as_str() {
            Some("yarn") => {
                self.text("rope.scaling.type", "yarn");
                self.number("rope.scaling.factor", global["factor"].as_f64().expect("a number"));
                let original = global["original_max_position_embeddings"].as_u64().expect("a number");
                self.count("rope.scaling.original_context_length", original as usize);
            }
            Some("llama3") => {
                // Divisors of the plain frequencies.
                let rope = &self.spec.ropes[0];
                let dims = (rope.inv_freq.len() * 2) as f64;
                let plain = |i: usize| theta.powf(-((2 * i) as f64) / dims);
                let divisor = |(i, frequency): (usize, &f32)| (plain(i) / f64::from(*frequency)) as f32;
                let values: Vec<f32> = rope.inv_freq.iter().enumerate().map(divisor).collect();
                self.add("rope_freqs.weight", &Values { rows: 1, cols: values.len(), values });
            }
            _ => (),
        }
    }

    fn attention(&mut self, l: usize, form: Form) {
        let block = |name: &str| format!("blk.{l}.{name}");
        match self.spec.attention {
            Attention::Grouped(a) => {
                let pairs = |heads| (self.arch == "llama").then_some(heads);
                let (q, k) = (pairs(self.spec.heads), pairs(a.kv_heads));
                let mut parts = Vec::new();
                for (name, role, heads) in [
                    ("attn_q.weight", R::Q, q),
                    ("attn_k.weight", R::K, k),
                    ("attn_v.weight", R::V, None),
                    ("attn_q.bias", R::QBias, q),
                    ("attn_k.bias", R::KBias, k),
                    ("attn_v.bias", R::VBias, None),
                ] {
                    if self.has(l, role) {
                        let values = self.values(TensorRole::Layer(l, role));
                        parts.push((name, heads.into_iter().fold(values, Values::permuted)));
                    }
                }
                if self.arch == "phi3" {
                    self.side_by_side(&block("attn_qkv.weight"), parts.into_iter().map(|(_, part)| part));
                } else {
                    parts.iter().for_each(|(name, values)| self.add(&block(name), values));
                }
                if a.qk_norm {
                    self.norm(&block("attn_q_norm.weight"), TensorRole::Layer(l, R::QNorm));
                    self.norm(&block("attn_k_norm.weight"), TensorRole::Layer(l, R::KNorm));
                }
            }
            Attention::Latent(a) => {
                for (name, role) in [
                    ("attn_q_a.weight", R::QDown),
                    ("attn_q_a_norm.weight", R::QDownNorm),
                    ("attn_q_b.weight", R::QUp),
                    ("attn_kv_a_mqa.weight", R::KvDown),
                    ("attn_kv_a_norm.weight", R::KvDownNorm),
                ] {
                    self.copy(l, name, role);
                }
                if form == Form::UpJoined {
                    self.copy(l, "attn_kv_b.weight", R::KvUp);
                } else {
                    self.split_up(l, &a);
                }
            }
        }
        for (name, role) in
            [("attn_output.weight", R::O), ("attn_output.bias", R::OBias), ("attn_sinks.weight", R::Sinks)]
        {
            if self.has(l, role) {
                self.copy(l, name, role);
            }
        }
    }

    /// The keys' part of each head transposed, and the values' part.
    fn split_up(&mut self, l: usize, a: &Latent) {
        let all = self.values(TensorRole::Layer(l, R::KvUp)).values;
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for head in all.chunks_exact((a.nope_dim + a.value_dim) * a.kv_rank) {
            let (key, value) = head.split_at(a.nope_dim * a.kv_rank);
            let at = |i: usize, j: usize| key[i * a.kv_rank + j];
            let transposed = (0..a.kv_rank).flat_map(|j| (0..a.nope_dim).map(move |i| at(i, j))).collect();
            keys.push(Values { rows: a.kv_rank, cols: a.nope_dim, values: transposed });
            values.push(Values { rows: a.value_dim, cols: a.kv_rank, values: value.to_vec() });
        }
        self.stack(&format!("blk.{l}.attn_k_b.weight"), &keys);
        self.stack(&format!("blk.{l}.attn_v_b.weight"), &values);
    }

    fn side_by_side(&mut self, name: &str, parts: impl Iterator<Item = Values>) {
        let all = parts.reduce(|mut all, part| {
            all.rows += part.rows;
            all.values.extend(part.values);
            all
        });
        self.add(name, &all.expect("at least one"));
    }

    fn mlp(&mut self, l: usize, form: Form) {
        match self.spec.layers[l].mlp {
            Mlp::Dense { .. } if self.arch == "phi3" => {
                let both = [R::Gate, R::Up].map(|role| self.values(TensorRole::Layer(l, role)));
                self.side_by_side(&format!("blk.{l}.ffn_up.weight"), both.into_iter());
                self.copy(l, "ffn_down.weight", R::Down);
            }
            Mlp::Dense { .. } => {
                self.copy(l, "ffn_gate.weight", R::Gate);
                self.copy(l, "ffn_up.weight", R::Up);
                self.copy(l, "ffn_down.weight", R::Down);
            }
            Mlp::Experts(experts) => self.experts(l, &experts, form),
        }
    }

    fn experts(&mut self, l: usize, experts: &Experts, form: Form) {
        self.copy(l, "ffn_gate_inp.weight", R::Router);
        for (name, role) in [
            ("ffn_gate_inp.bias", R::RouterBias),
            ("exp_probs_b.bias", R::RouterCorrection),
            ("ffn_gate_shexp.weight", R::SharedGate),
            ("ffn_up_shexp.weight", R::SharedUp),
            ("ffn_down_shexp.weight", R::SharedDown),
        ] {
            if self.has(l, role) {
                self.copy(l, name, role);
            }
        }
        let roles: [(_, _, ExpertRole); 6] = [
            ("ffn_gate", "weight", R::ExpertGate),
            ("ffn_up", "weight", R::ExpertUp),
            ("ffn_down", "weight", R::ExpertDown),
            ("ffn_gate", "bias", R::ExpertGateBias),
            ("ffn_up", "bias", R::ExpertUpBias),
            ("ffn_down", "bias", R::ExpertDownBias),
        ];
        for (name, kind, role) in roles.into_iter().take(if experts.bias { 6 } else { 3 }) {
            let each: Vec<Values> =
                (0..experts.count).map(|e| self.values(TensorRole::Layer(l, role(e)))).collect();
            if form == Form::ExpertsApart {
                for (e, values) in each.iter().enumerate() {
                    self.add(&format!("blk.{l}.{name}.{e}.{kind}"), values);
                }
            } else {
                self.stack(&format!("blk.{l}.{name}_exps.{kind}"), &each);
            }
        }
    }
}

/// The model as a converter would write it.
fn as_gguf(model: &Checkpoint, form: Form) -> GgufFile {
    let config = std::fs::read(model.path().join("config.json")).expect("readable");
    let config: Value = serde_json::from_slice(&config).expect("valid JSON");
    let spec = model.spec();
    let arch = match spec.family {
        "llama" | "mixtral" => "llama",
        "deepseek_v3" => "deepseek2",
        "qwen3_moe" => "qwen3moe",
        "gpt_oss" => "gpt-oss",
        other => other,
    };
    let file = GgufFile::default().text("general.architecture", arch);
    let mut writer = Writer { model, spec, arch, file };
    writer.metadata(&config, form);
    let embedding = writer.values(TensorRole::Embedding);
    writer.add("token_embd.weight", &embedding);
    if !spec.tied_output {
        let output = writer.values(TensorRole::Output);
        writer.add("output.weight", &output);
    }
    writer.norm("output_norm.weight", TensorRole::FinalNorm);
    for l in 0..spec.layers.len() {
        let role = |role| TensorRole::Layer(l, role);
        writer.norm(&format!("blk.{l}.attn_norm.weight"), role(R::AttnNorm));
        let before_mlp = if arch == "gpt-oss" { "post_attention_norm" } else { "ffn_norm" };
        writer.norm(&format!("blk.{l}.{before_mlp}.weight"), role(R::MlpNorm));
        if spec.post_norms {
            writer.norm(&format!("blk.{l}.post_attention_norm.weight"), role(R::PostAttnNorm));
            writer.norm(&format!("blk.{l}.post_ffw_norm.weight"), role(R::PostMlpNorm));
        }
        writer.attention(l, form);
        writer.mlp(l, form);
    }
    writer.file
}

fn open(folder: &tempfile::TempDir, file: &GgufFile) -> Checkpoint {
    let path = folder.path().join("model.gguf");
    // A new file each time: the older one may still be mapped.
    drop(std::fs::remove_file(&path));
    std::fs::write(&path, file.bytes()).expect("written");
    Checkpoint::open(&path).expect("a valid file")
}

#[test]
fn every_golden_model_agrees_with_transformers_in_a_gguf_file_too() {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, forms) in [
        ("llama", &[Form::Usual][..]),
        ("llama-odd-heads", &[Form::Usual]),
        ("llama3-rope", &[Form::Usual]),
        ("mixtral", &[Form::Usual, Form::ExpertsApart]),
        ("qwen2", &[Form::Usual]),
        ("qwen3", &[Form::Usual]),
        ("qwen3-moe", &[Form::Usual]),
        ("deepseek-v3", &[Form::Usual, Form::UpJoined]),
        ("gpt-oss", &[Form::Usual, Form::WindowList]),
        ("gemma2", &[Form::Usual, Form::WindowList]),
        ("gemma3", &[Form::Usual, Form::WindowList]),
        ("phi3", &[Form::Usual]),
    ] {
        let (model, expected) = golden(name);
        for form in forms {
            let gguf = open(&folder, &as_gguf(&model, *form));
            assert_eq!(gguf.spec().family, model.spec().family);
            let experts = gguf.spec().moe_layers().next().is_some();
            let spread = Shape { ep: 2, ..Shape::tensor(2) };
            for shape in [Shape::default(), if experts { spread } else { Shape::tensor(3) }] {
                agrees(&format!("{name} as GGUF, {form:?}"), &gguf, &expected, shape);
            }
        }
    }
}

#[test]
fn adapters_made_for_folders_agree_with_peft_in_a_gguf_file_too() {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, adapters, shape) in [
        ("llama", &["llama", "llama-attention"][..], Shape::tensor(3)),
        ("mixtral", &["mixtral"], Shape { ep: 2, ..Shape::tensor(2) }),
    ] {
        let gguf = open(&folder, &as_gguf(&golden(name).0, Form::Usual));
        for adapter in adapters {
            for shape in [Shape::default(), shape] {
                adapted_tests::agrees(adapter, &gguf, shape);
            }
        }
    }
}

#[test]
fn what_a_file_cannot_say_is_as_in_the_model_itself() {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["gemma2", "gemma3", "gpt-oss", "deepseek-v3", "phi3"] {
        let (model, _) = golden(name);
        let gguf = open(&folder, &as_gguf(&model, Form::Usual));
        let (a, b) = (model.spec(), gguf.spec());
        assert_eq!((a.activation, a.embedding_scale), (b.activation, b.embedding_scale), "{name}");
        assert!((a.attention_scale / b.attention_scale - 1.0).abs() < 1e-6, "{name}");
        assert_eq!(a.post_norms, b.post_norms, "{name}");
        assert_eq!((&a.ropes, &a.layers), (&b.ropes, &b.layers), "{name}");
        assert!(!b.norm_plus_one, "{name}: it has been added");
    }
    let (model, _) = golden("gpt-oss");
    assert!(matches!(model.spec().activation, Activation::ClampedSwiglu { .. }));
    let file = as_gguf(&golden("gemma3").0, Form::Usual);
    let scaled =
        open(&folder, &file.f32("gemma3.attention.scale", 0.125).f32("gemma3.rope.freq_base_swa", 5e3));
    assert_eq!(scaled.spec().attention_scale, 0.125);
    assert!((scaled.spec().ropes[1].inv_freq[1] - 5e3f32.powf(-2.0 / 16.0)).abs() < 1e-6);
}

#[test]
fn long_rotations_are_served_up_to_their_original_length() {
    let folder = tempfile::tempdir().expect("a folder");
    let (model, expected) = golden("phi3");
    let factors = |by: f32| (0..model.spec().ropes[0].inv_freq.len()).flat_map(move |_| by.to_le_bytes());
    let pairs = model.spec().ropes[0].inv_freq.len() as u64;
    let file = as_gguf(&model, Form::Usual)
        .u32("phi3.rope.scaling.original_context_length", 256)
        .tensor("rope_factors_long.weight", DType::F32, &[pairs], factors(9.0).collect())
        .tensor("rope_factors_short.weight", DType::F32, &[pairs], factors(1.0).collect());
    let long = open(&folder, &file);
    assert_eq!((long.spec().context, model.spec().context), (256, 512));
    agrees("phi3 with factors", &long, &expected, Shape::default());
    let stretched = open(&folder, &file.f32("phi3.rope.scaling.attn_factor", 1.25));
    assert_eq!(stretched.spec().ropes[0].scale, 1.25);
}
