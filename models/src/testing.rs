//! Checkpoints made in memory, for tests: any tensor and any field can be right or wrong.
#![allow(missing_docs)]

use std::path::Path;

use crate::dtype::DType;

/// The tiny checkpoints of `tests/golden` without experts.
pub const GOLDEN_DENSE: [&str; 9] = [
    "gemma2",
    "gemma3",
    "llama",
    "llama-odd-heads",
    "llama3-rope",
    "mistral-window",
    "phi3",
    "qwen2",
    "qwen3",
];
/// Those with experts.
pub const GOLDEN_WITH_EXPERTS: [&str; 4] = ["deepseek-v3", "gpt-oss", "mixtral", "qwen3-moe"];

/// A metadata value with its type's number, as bytes.
fn tagged(ty: u32, bytes: &[u8]) -> Vec<u8> {
    [&ty.to_le_bytes()[..], bytes].concat()
}

fn text(value: &str) -> Vec<u8> {
    [&(value.len() as u64).to_le_bytes()[..], value.as_bytes()].concat()
}

/// ggml's number of a type.
pub fn ggml_number(dtype: DType) -> u32 {
    match dtype {
        DType::F32 => 0,
        DType::F16 => 1,
        DType::Q4_0 => 2,
        DType::Q4_1 => 3,
        DType::Q5_0 => 6,
        DType::Q5_1 => 7,
        DType::Q8_0 => 8,
        DType::Q4_K => 12,
        DType::Q5_K => 13,
        DType::Q6_K => 14,
        DType::BF16 => 30,
    }
}

/// A tensor to be written. Rows are written before columns, as people do; files have it the other way round.
#[derive(Debug, Clone)]
pub struct Tensor {
    pub name: String,
    pub shape: Vec<u64>,
    /// ggml's number.
    pub ty: u32,
    pub data: Vec<u8>,
}

/// A GGUF file to be.
#[derive(Debug, Clone)]
pub struct GgufFile {
    pub magic: [u8; 4],
    pub version: u32,
    /// Keys and values, these with their type.
    pub metadata: Vec<(String, Vec<u8>)>,
    pub tensors: Vec<Tensor>,
    pub alignment: usize,
    /// Added to the offset of the tensor with this name.
    pub shift: Option<(String, i64)>,
}

impl Default for GgufFile {
    fn default() -> Self {
        Self {
            magic: *b"GGUF",
            version: 3,
            metadata: Vec::new(),
            tensors: Vec::new(),
            alignment: 32,
            shift: None,
        }
    }
}

impl GgufFile {
    pub fn raw(mut self, key: &str, ty: u32, bytes: &[u8]) -> Self {
        self.metadata.retain(|(known, _)| known != key);
        self.metadata.push((key.into(), tagged(ty, bytes)));
        self
    }

    pub fn u32(self, key: &str, value: u32) -> Self {
        self.raw(key, 4, &value.to_le_bytes())
    }

    pub fn f32(self, key: &str, value: f32) -> Self {
        self.raw(key, 6, &value.to_le_bytes())
    }

    pub fn bool(self, key: &str, value: bool) -> Self {
        self.raw(key, 7, &[u8::from(value)])
    }

    pub fn text(self, key: &str, value: &str) -> Self {
        self.raw(key, 8, &text(value))
    }

    pub fn texts(self, key: &str, values: &[&str]) -> Self {
        let all: Vec<u8> = values.iter().flat_map(|value| text(value)).collect();
        self.array(key, 8, values.len(), &all)
    }

    /// An array of `count` elements of the type numbered `ty`.
    pub fn array(self, key: &str, ty: u32, count: usize, bytes: &[u8]) -> Self {
        let head = [&ty.to_le_bytes()[..], &(count as u64).to_le_bytes()].concat();
        self.raw(key, 9, &[&head, bytes].concat())
    }

    pub fn without(mut self, key: &str) -> Self {
        self.metadata.retain(|(known, _)| known != key);
        self.tensors.retain(|tensor| tensor.name != key);
        self
    }

    pub fn tensor(mut self, name: &str, dtype: DType, shape: &[u64], data: Vec<u8>) -> Self {
        self.tensors.retain(|tensor| tensor.name != name);
        self.tensors.push(Tensor { name: name.into(), shape: shape.to_vec(), ty: ggml_number(dtype), data });
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            out.extend(text(key));
            out.extend(value);
        }
        let mut offset = 0u64;
        for tensor in &self.tensors {
            out.extend(text(&tensor.name));
            out.extend((tensor.shape.len() as u32).to_le_bytes());
            tensor.shape.iter().rev().for_each(|size| out.extend(size.to_le_bytes()));
            out.extend(tensor.ty.to_le_bytes());
            let shift = self.shift.as_ref().filter(|(name, _)| *name == tensor.name).map_or(0, |(_, by)| *by);
            out.extend(offset.wrapping_add_signed(shift).to_le_bytes());
            offset = (offset + tensor.data.len() as u64).next_multiple_of(self.alignment as u64);
        }
        for tensor in &self.tensors {
            out.resize(out.len().next_multiple_of(self.alignment), 0);
            out.extend(&tensor.data);
        }
        out
    }
}

/// Bytes of a safetensors file. `dtype` is the format's own name, so that it can be one that is not supported.
pub fn safetensors(tensors: &[(&str, &str, &[usize], Vec<u8>)]) -> Vec<u8> {
    let mut at = 0;
    let entries: Vec<String> = tensors
        .iter()
        .map(|(name, dtype, shape, data)| {
            let from = at;
            at += data.len();
            format!("{name:?}:{{\"dtype\":{dtype:?},\"shape\":{shape:?},\"data_offsets\":[{from},{at}]}}")
        })
        .collect();
    let mut header = format!("{{{}}}", entries.join(","));
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header.as_bytes());
    tensors.iter().for_each(|(.., data)| out.extend(data));
    out
}

/// Stored elements of `dtype` that are finite and not all alike.
pub fn stored(dtype: DType, elements: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 8
    };
    // The highest byte of every number decides its size. Scales of blocks are halves at even places.
    let width = if dtype == DType::F32 { 4 } else { 2 };
    let (low, span) = match dtype {
        DType::F32 | DType::BF16 => (0x3d, 3),
        DType::F16 => (0x2c, 16),
        _ => (0x18, 16),
    };
    (0..elements / dtype.block_elems() * dtype.block_bytes())
        .map(|i| match i % width == width - 1 {
            true => (low + next() % span) as u8 | ((next() & 1) << 7) as u8,
            false => next() as u8,
        })
        .collect()
}

/// Sizes of the model that [`tiny_gguf`] and [`tiny_folder`] make.
pub const HIDDEN: usize = 256;
pub const HEADS: usize = 8;
pub const KV_HEADS: usize = 2;
pub const HEAD_DIM: usize = 32;
pub const FFN: usize = 512;
pub const VOCAB: usize = 40;
pub const LAYERS: usize = 2;

/// A Llama of a few thousand weights, its matrices of type `dtype`.
pub fn tiny_gguf(dtype: DType) -> GgufFile {
    let file = GgufFile::default()
        .text("general.architecture", "llama")
        .u32("llama.block_count", LAYERS as u32)
        .u32("llama.context_length", 64)
        .u32("llama.embedding_length", HIDDEN as u32)
        .u32("llama.feed_forward_length", FFN as u32)
        .u32("llama.attention.head_count", HEADS as u32)
        .u32("llama.attention.head_count_kv", KV_HEADS as u32)
        .f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .f32("llama.rope.freq_base", 10_000.0);
    let kv = KV_HEADS * HEAD_DIM;
    let mut seed = 0;
    let mut matrix = |file: GgufFile, name: &str, rows: usize, cols: usize| {
        seed += 1;
        file.tensor(name, dtype, &[rows as u64, cols as u64], stored(dtype, rows * cols, seed))
    };
    let vector = |file: GgufFile, name: &str| {
        file.tensor(name, DType::F32, &[HIDDEN as u64], stored(DType::F32, HIDDEN, 77))
    };
    let mut file = matrix(file, "token_embd.weight", VOCAB, HIDDEN);
    for layer in 0..LAYERS {
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        file = vector(file, &name("attn_norm"));
        for (part, rows, cols) in [
            ("attn_q", HIDDEN, HIDDEN),
            ("attn_k", kv, HIDDEN),
            ("attn_v", kv, HIDDEN),
            ("attn_output", HIDDEN, HIDDEN),
            ("ffn_gate", FFN, HIDDEN),
            ("ffn_up", FFN, HIDDEN),
            ("ffn_down", HIDDEN, FFN),
        ] {
            file = matrix(file, &name(part), rows, cols);
        }
        file = vector(file, &name("ffn_norm"));
    }
    vector(file, "output_norm.weight")
}

/// config.json of the same model.
pub fn tiny_config() -> serde_json::Value {
    serde_json::json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "intermediate_size": FFN,
        "vocab_size": VOCAB,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": true,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": [2, 3],
    })
}

/// Names and shapes of the same model's tensors in Hugging Face's way.
pub fn tiny_tensors() -> Vec<(String, Vec<usize>)> {
    let kv = KV_HEADS * HEAD_DIM;
    let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![VOCAB, HIDDEN])];
    for layer in 0..LAYERS {
        let part =
            |name: &str, shape: &[usize]| (format!("model.layers.{layer}.{name}.weight"), shape.to_vec());
        tensors.extend([
            part("input_layernorm", &[HIDDEN]),
            part("self_attn.q_proj", &[HIDDEN, HIDDEN]),
            part("self_attn.k_proj", &[kv, HIDDEN]),
            part("self_attn.v_proj", &[kv, HIDDEN]),
            part("self_attn.o_proj", &[HIDDEN, HIDDEN]),
            part("post_attention_layernorm", &[HIDDEN]),
            part("mlp.gate_proj", &[FFN, HIDDEN]),
            part("mlp.up_proj", &[FFN, HIDDEN]),
            part("mlp.down_proj", &[HIDDEN, FFN]),
        ]);
    }
    tensors.push(("model.norm.weight".to_owned(), vec![HIDDEN]));
    tensors
}

/// Bytes of a safetensors file with `tensors` in type `dtype` (F32, F16 or BF16).
pub fn tiny_safetensors(dtype: DType, tensors: &[(String, Vec<usize>)]) -> Vec<u8> {
    let tensors: Vec<_> = tensors
        .iter()
        .enumerate()
        .map(|(i, (name, shape))| {
            (name.as_str(), dtype.name(), shape.as_slice(), stored(dtype, shape.iter().product(), i as u32))
        })
        .collect();
    safetensors(&tensors)
}

/// Writes the same model as a Hugging Face folder.
pub fn tiny_folder(folder: &Path, dtype: DType) -> std::io::Result<()> {
    std::fs::write(folder.join("config.json"), tiny_config().to_string())?;
    std::fs::write(folder.join("model.safetensors"), tiny_safetensors(dtype, &tiny_tensors()))
}
