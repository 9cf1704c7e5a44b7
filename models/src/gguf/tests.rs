//! Good files of every type, and every way in which a file can be bad.

use std::path::{Path, PathBuf};

use crate::spec::{Attention, Mlp};
use crate::testing::{
    FFN, GgufFile, HEAD_DIM, HEADS, HIDDEN, KV_HEADS, LAYERS, VOCAB, ggml_number, stored, tiny_gguf,
};
use crate::{
    Checkpoint, Cut, DType, LayerRole, ModelError, Quantize, RopeStyle, Shape, TensorRole, TokenizerSource,
};

const TYPES: [DType; 11] = [
    DType::F32,
    DType::F16,
    DType::BF16,
    DType::Q4_0,
    DType::Q4_1,
    DType::Q5_0,
    DType::Q5_1,
    DType::Q8_0,
    DType::Q4_K,
    DType::Q5_K,
    DType::Q6_K,
];

/// A folder of its own for each test; files in it are opened by [`open`].
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("tiny.gguf")
    }

    fn open_bytes(&self, bytes: &[u8]) -> Result<Checkpoint, ModelError> {
        // A new file each time: an older one may still be mapped.
        drop(std::fs::remove_file(self.file()));
        std::fs::write(self.file(), bytes).expect("written");
        Checkpoint::open(&self.file())
    }

    fn open(&self, file: &GgufFile) -> Result<Checkpoint, ModelError> {
        self.open_bytes(&file.bytes())
    }

    /// The error of a file that must not open: it names the file and says each of `parts`.
    fn refuse(&self, file: &GgufFile, parts: &[&str]) {
        let error = self.open(file).map(drop).expect_err(&format!("{parts:?}")).to_string();
        for part in parts.iter().chain([&"tiny.gguf"]) {
            assert!(error.contains(part), "`{part}` is not in: {error}");
        }
    }
}

#[test]
fn every_type_is_read_where_it_lies() {
    let folder = Folder::new();
    for dtype in TYPES {
        let file = tiny_gguf(dtype);
        let model = folder.open(&file).expect("a good file");
        let spec = model.spec();
        assert_eq!((spec.hidden, spec.layers.len(), spec.heads), (HIDDEN, LAYERS, HEADS));
        assert_eq!((spec.kv_heads(), spec.key_dim(), spec.vocab), (KV_HEADS, HEAD_DIM, VOCAB));
        let Attention::Grouped(attention) = spec.attention else { panic!("grouped") };
        assert!(spec.tied_output && !attention.qkv_bias && spec.ropes[0].style == RopeStyle::Interleaved);
        assert_eq!(spec.layers[0].mlp, Mlp::Dense { width: FFN });
        assert_eq!((spec.context, model.name()), (64, "tiny"));
        let written = |name: &str| &file.tensors.iter().find(|t| t.name == name).expect("written").data;
        for (role, name, rows, cols) in [
            (TensorRole::Embedding, "token_embd.weight", VOCAB, HIDDEN),
            (TensorRole::Output, "token_embd.weight", VOCAB, HIDDEN),
            (TensorRole::Layer(1, LayerRole::Down), "blk.1.ffn_down.weight", HIDDEN, FFN),
        ] {
            let tensor = model.tensor(role).expect("it is there");
            assert_eq!((tensor.dtype, tensor.rows, tensor.cols), (dtype, rows, cols), "{name}");
            let all = model.slice(role, 0..rows, 0..cols).expect("the whole");
            let bytes: Vec<u8> = (0..rows).flat_map(|row| all.row(row, &mut Vec::new()).to_vec()).collect();
            assert!(bytes == *written(name), "{dtype} {name}");
            // A part: rows 3..7 and the columns from 288 on, which lie in the second block of the widest types.
            let from = if cols > 288 { 288 } else { 32 };
            let part = model.slice(role, 3..7, from..cols).expect("cut at a run of 32");
            let first = from / dtype.block_elems() * dtype.block_bytes();
            for row in 0..4 {
                let stored = &written(name)[(3 + row) * dtype.row_bytes(cols)..][..dtype.row_bytes(cols)];
                assert_eq!(part.row(row, &mut Vec::new()), &stored[first..], "{dtype} {name} row {row}");
            }
            assert_eq!(part.col_skip, from % dtype.block_elems());
            let cut = model.slice(role, 0..rows, 16..cols);
            assert_eq!(cut.is_ok(), !dtype.is_quantized(), "{dtype} cut inside a run");
        }
    }
}

#[test]
fn a_file_cut_anywhere_is_refused_and_nothing_panics() {
    let folder = Folder::new();
    let file = tiny_gguf(DType::Q4_0).texts("tokenizer.ggml.tokens", &["a", "b"]).array(
        "tokenizer.ggml.scores",
        6,
        2,
        &[0; 8],
    );
    let bytes = file.bytes();
    let data: usize = file.tensors.iter().map(|t| t.data.len().next_multiple_of(32)).sum();
    let header = bytes.len() - data;
    for len in (0..header + 64).chain((header..bytes.len()).step_by(997)).chain([bytes.len() - 1]) {
        let error = folder.open_bytes(&bytes[..len]).map(drop).expect_err("cut off").to_string();
        assert!(error.contains("tiny.gguf"), "{len} bytes: {error}");
        let says = if len < 4 || len > header { "truncated" } else { "" };
        assert!(error.contains(says), "{len} bytes: {error}");
    }
    folder.open_bytes(&bytes).expect("whole again");
}

#[test]
fn a_flipped_byte_in_the_header_never_panics() {
    let folder = Folder::new();
    let file =
        tiny_gguf(DType::Q8_0).text("tokenizer.ggml.model", "llama").texts("tokenizer.ggml.tokens", &["a"]);
    let bytes = file.bytes();
    let data: usize = file.tensors.iter().map(|t| t.data.len().next_multiple_of(32)).sum();
    for at in 0..bytes.len() - data {
        for flip in [0x01, 0x80, 0xff] {
            let mut bad = bytes.clone();
            bad[at] ^= flip;
            // Some flips change nothing that matters; all of them end in a model or an error.
            if let Ok(model) = folder.open_bytes(&bad) {
                model.tokenizer().map(drop).ok();
                model
                    .slices(&Cut::even(Shape::tensor(3)), Quantize::None)
                    .expect("an accepted model can be cut");
            }
        }
    }
}

#[test]
fn heads_of_files_are_checked() {
    let folder = Folder::new();
    let good = tiny_gguf(DType::F16);
    folder.refuse(&GgufFile { magic: *b"GGML", ..good.clone() }, &["not a GGUF file"]);
    for version in [0, 1, 4, 3u32.swap_bytes()] {
        folder.refuse(&GgufFile { version, ..good.clone() }, &["GGUF version", "2 and 3 can be read"]);
    }
    folder.open(&GgufFile { version: 2, ..good.clone() }).expect("version 2 has the same layout");
    for at in [8, 16] {
        let mut bytes = good.bytes();
        bytes[at..at + 8].copy_from_slice(&u64::MAX.to_le_bytes());
        let error = folder.open_bytes(&bytes).map(drop).expect_err("absurd counts").to_string();
        assert!(error.contains("header says"), "{error}");
    }
    let error = folder.open_bytes(b"").map(drop).expect_err("empty");
    assert!(error.to_string().contains("truncated"), "{error}");
    let missing = Checkpoint::open(Path::new("/no/such/model.gguf")).map(drop);
    assert!(matches!(missing, Err(ModelError::Io { .. })), "{missing:?}");
}

#[test]
fn claimed_lengths_allocate_nothing() {
    let folder = Folder::new();
    let good = tiny_gguf(DType::F16);
    let huge = u64::MAX.to_le_bytes();
    // A text, an array of numbers and one of texts, each said to be longer than any memory.
    for (key, ty, value) in [
        ("a.text", 8, huge.to_vec()),
        ("an.array", 9, [&4u32.to_le_bytes()[..], &huge].concat()),
        ("an.array.of.texts", 9, [&8u32.to_le_bytes()[..], &huge].concat()),
        ("an.array.of.arrays", 9, [&9u32.to_le_bytes()[..], &huge].concat()),
        ("an.unknown.type", 77, vec![]),
        ("an.array.of.an.unknown.type", 9, [&77u32.to_le_bytes()[..], &[1, 0, 0, 0, 0, 0, 0, 0]].concat()),
    ] {
        folder.refuse(&good.clone().raw(key, ty, &value), &[key]);
    }
    for (name, shape) in [
        ("token_embd.weight", vec![u64::MAX, u64::MAX]),
        ("token_embd.weight", vec![1 << 40, HIDDEN as u64]),
        ("blk.0.attn_q.weight", vec![1 << 62, 1 << 62, 1 << 62, 1 << 62]),
        ("blk.0.attn_q.weight", vec![1, 1, 1, 1, 1]),
        ("blk.0.attn_q.weight", vec![]),
        ("blk.0.attn_q.weight", vec![0, 0]),
    ] {
        let mut bad = good.clone();
        bad.tensors.iter_mut().find(|t| t.name == name).expect("there").shape = shape;
        folder.refuse(&bad, &[name]);
    }
    for (key, value) in [
        ("llama.embedding_length", u32::MAX),
        ("llama.attention.head_count", 1),
        ("llama.attention.head_count", 0),
        ("llama.attention.key_length", u32::MAX),
        ("llama.attention.head_count_kv", 0),
        ("llama.attention.head_count_kv", 3),
        ("llama.block_count", u32::MAX),
        ("llama.block_count", 0),
        ("llama.context_length", 0),
        ("llama.feed_forward_length", u32::MAX),
        ("llama.rope.dimension_count", u32::MAX),
        ("llama.rope.dimension_count", 7),
        ("llama.rope.dimension_count", 64),
    ] {
        folder.refuse(&good.clone().u32(key, value), &[]);
    }
    // One byte more than any head there is: refused before frequencies are made for it.
    let wide = good.u32("llama.embedding_length", 1 << 31).u32("llama.attention.head_count", 1);
    folder.refuse(&wide, &["rotated elements"]);
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let folder = Folder::new();
    let good = tiny_gguf(DType::Q4_0);
    let name = "blk.1.ffn_up.weight";
    for (number, said) in
        [(10, "Q2_K"), (11, "Q3_K"), (20, "IQ4_NL"), (24, "I8"), (39, "MXFP4"), (4242, "type 4242")]
    {
        let mut bad = good.clone();
        bad.tensors.iter_mut().find(|t| t.name == name).expect("there").ty = number;
        folder.refuse(&bad, &[name, said, "not supported", "Q4_K"]);
    }
    let shifted = |by| GgufFile { shift: Some((name.into(), by)), ..good.clone() };
    folder.refuse(&shifted(1 << 40), &[name, "past the end of the file"]);
    folder.refuse(&shifted(-(1 << 40)), &[name, "past the end of the file"]);
    folder.refuse(&shifted(-32), &["blk.1.", "overlap"]);
    folder.refuse(&shifted(8), &[name, "not aligned to 32"]);
    folder.refuse(&good.clone().without(name), &[name, "is missing"]);
    folder.refuse(&good.clone().without("token_embd.weight"), &["token_embd.weight", "is missing"]);
    let narrow = stored(DType::Q4_0, FFN * HIDDEN / 2, 1);
    let shape = [FFN as u64 / 2, HIDDEN as u64];
    folder.refuse(&good.clone().tensor(name, DType::Q4_0, &shape, narrow), &[name, "256 × 256", "512 × 256"]);
    let odd = good.clone().tensor(name, DType::Q4_0, &[32, 33], vec![0; 18 * 33]);
    folder.refuse(&odd, &[name, "not whole blocks of Q4_0"]);
    let norm = stored(DType::Q8_0, HIDDEN, 1);
    let norm = good.clone().tensor("output_norm.weight", DType::Q8_0, &[HIDDEN as u64], norm);
    folder.refuse(&norm, &["output_norm.weight", "a vector of type Q8_0"]);
    let mut twice = good.clone();
    twice.tensors.push(twice.tensors[3].clone());
    folder.refuse(&twice, &["is there twice"]);
    // A tensor that the decoder would pass over changes what the model computes.
    let strange =
        good.clone().tensor("blk.0.attn_q_norm.weight", DType::F32, &[32], stored(DType::F32, 32, 1));
    folder.refuse(&strange, &["blk.0.attn_q_norm.weight", "not part of the architecture `llama`"]);
    let half = good.tensor("blk.0.attn_q.bias", DType::F32, &[HIDDEN as u64], stored(DType::F32, HIDDEN, 1));
    folder.refuse(&half, &["blk.0.attn_k.bias", "is missing"]);
}

#[test]
fn metadata_that_changes_numbers_is_understood_or_refused() {
    let folder = Folder::new();
    let good = tiny_gguf(DType::F16);
    folder.refuse(&good.clone().text("general.architecture", "mamba"), &["`mamba`", "served: llama, "]);
    folder.refuse(&good.clone().without("general.architecture"), &["general.architecture", "is missing"]);
    folder
        .refuse(&good.clone().u32("general.architecture", 3), &["general.architecture", "is 3, not a text"]);
    folder.refuse(&good.clone().text("llama.block_count", "two"), &["llama.block_count", "\"two\""]);
    folder.refuse(&good.clone().without("llama.context_length"), &["llama.context_length", "is missing"]);
    for key in ["llama.expert_shared_count", "llama.attention.sliding_window", "llama.some_new_thing"] {
        folder.refuse(&good.clone().u32(key, 8), &[key, "not supported"]);
        folder.open(&good.clone().u32(key, 0)).expect("switched off");
    }
    folder.refuse(&good.clone().text("llama.rope.scaling.type", "longrope"), &["rope scaling `longrope`"]);
    folder.refuse(&good.clone().f32("llama.rope.freq_base", f32::NAN), &["theta NaN"]);
    folder.refuse(&good.clone().f32("llama.rope.freq_base", 0.0), &["theta 0"]);
    folder.refuse(
        &good.clone().f32("llama.attention.layer_norm_rms_epsilon", f32::INFINITY),
        &["epsilon is inf"],
    );
    folder.refuse(&good.clone().u32("general.alignment", 24), &["general.alignment"]);
    let mut twice = good.clone();
    twice.metadata.push(twice.metadata[2].clone());
    folder.refuse(&twice, &["is there twice"]);

    let frequencies =
        |file: &GgufFile| folder.open(file).expect("a good file").spec().ropes[0].inv_freq.clone();
    let plain = frequencies(&good);
    assert_eq!((plain.len(), plain[0]), (HEAD_DIM / 2, 1.0));
    let linear = good.clone().text("llama.rope.scaling.type", "linear").f32("llama.rope.scaling.factor", 4.0);
    assert_eq!(frequencies(&linear)[0], 0.25);
    assert_eq!(
        frequencies(&good.clone().f32("llama.rope.scaling.factor", 4.0))[0],
        0.25,
        "linear by default"
    );
    assert_eq!(frequencies(&linear.text("llama.rope.scaling.type", "none")), plain);
    let factors = |factors: &[f32]| {
        let bytes = factors.iter().flat_map(|factor| factor.to_le_bytes()).collect();
        good.clone().tensor("rope_freqs.weight", DType::F32, &[factors.len() as u64], bytes)
    };
    assert_eq!(frequencies(&factors(&[8.0; HEAD_DIM / 2]))[0], 0.125);
    folder.refuse(&factors(&[8.0; 3]), &["rope_freqs.weight", "1 × 3 factors for 16 frequencies"]);
    folder.refuse(&factors(&[0.0; HEAD_DIM / 2]), &["rope_freqs.weight", "the factor 0"]);
}

#[test]
fn an_alignment_of_its_own_is_kept() {
    let folder = Folder::new();
    for alignment in [8, 4096] {
        let file =
            GgufFile { alignment, ..tiny_gguf(DType::Q5_1) }.u32("general.alignment", alignment as u32);
        let model = folder.open(&file).expect("a good file");
        let last = model.slice(TensorRole::FinalNorm, 0..1, 0..HIDDEN).expect("the last tensor");
        assert_eq!(last.row(0, &mut Vec::new()), file.tensors.last().expect("some").data);
    }
}

#[test]
fn the_vocabulary_and_special_tokens_are_read() {
    let folder = Folder::new();
    let plain = folder.open(&tiny_gguf(DType::F16)).expect("a good file");
    assert!(plain.tokenizer().expect("readable").is_none(), "served on token ids alone");
    let numbers = |values: &[i32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>();
    let file = tiny_gguf(DType::F16)
        .text("tokenizer.ggml.model", "llama")
        .texts("tokenizer.ggml.tokens", &["<unk>", "<s>", "</s>", "ü"])
        .array("tokenizer.ggml.scores", 6, 4, &[0.0f32, 1.0, -2.5, 3.0].map(f32::to_le_bytes).concat())
        .array("tokenizer.ggml.token_type", 5, 4, &numbers(&[2, 3, 3, 1]))
        .u32("tokenizer.ggml.bos_token_id", 1)
        .u32("tokenizer.ggml.eos_token_id", 2)
        .u32("tokenizer.ggml.eot_token_id", 3)
        .u32("tokenizer.ggml.unknown_token_id", 0)
        .bool("tokenizer.ggml.add_space_prefix", false)
        .text("tokenizer.chat_template", "{{ messages }}");
    let model = folder.open(&file).expect("a good file");
    let special = model.special();
    assert_eq!(
        (special.bos, &special.eos[..], special.pad, special.add_bos),
        (Some(1), &[2, 3][..], None, Some(true))
    );
    assert_eq!((special.bos_text.as_deref(), special.eos_text.as_deref()), (Some("<s>"), Some("</s>")));
    assert_eq!(model.chat_template(), Some("{{ messages }}"));
    let Ok(Some(TokenizerSource::Gguf(vocabulary))) = model.tokenizer() else { panic!("it has one") };
    assert_eq!(vocabulary.tokens, ["<unk>", "<s>", "</s>", "ü"]);
    assert_eq!(vocabulary.scores, [0.0, 1.0, -2.5, 3.0]);
    assert_eq!(vocabulary.token_types, [2, 3, 3, 1]);
    assert_eq!((vocabulary.unknown, vocabulary.add_space_prefix), (Some(0), Some(false)));
    let wrong = folder.open(&file.clone().array("tokenizer.ggml.scores", 4, 4, &[0; 16])).expect("opens");
    assert!(wrong.tokenizer().is_ok(), "whole numbers are numbers");
    let wrong = folder.open(&file.texts("tokenizer.ggml.scores", &["a"])).expect("opens");
    let error = wrong.tokenizer().map(drop).expect_err("texts are not scores").to_string();
    assert!(error.contains("tokenizer.ggml.scores"), "{error}");
}

#[test]
fn a_folder_may_hold_one_gguf_file() {
    let folder = Folder::new();
    let path = folder.0.path();
    let error = Checkpoint::open(path).map(drop).expect_err("empty").to_string();
    assert!(error.contains("neither a config.json nor a GGUF file"), "{error}");
    std::fs::write(folder.file(), tiny_gguf(DType::F16).bytes()).expect("written");
    assert_eq!(Checkpoint::open(path).expect("the one").name(), "tiny");
    std::fs::copy(folder.file(), path.join("other.gguf")).expect("copied");
    let error = Checkpoint::open(path).map(drop).expect_err("two").to_string();
    assert!(error.contains("holds 2 GGUF files"), "{error}");
}

#[test]
fn numbers_of_types_are_ggmls() {
    for dtype in TYPES {
        assert_eq!(DType::from_ggml(ggml_number(dtype)), Ok(dtype));
    }
}
