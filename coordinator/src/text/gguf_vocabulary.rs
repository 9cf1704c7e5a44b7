//! A GGUF vocabulary as a `tokenizer.json`, which the tokenizers library then reads.
//!
//! "gpt2" vocabularies are byte-level BPE and differ in how they split text first; "llama" ones are SentencePiece's, whose
//! merges follow from the scores.

use std::collections::{HashMap, HashSet};

use foggara_models::tokenizer::GgufVocabulary;
use serde_json::{Map, Value, json};

use super::TextError;

/// Most tokens of a vocabulary.
const MAX_TOKENS: usize = 1 << 22;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

/// GPT-2's split.
const SPLIT_GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";
/// GPT-4's split with numbers in groups of up to three, as Llama 3 uses it.
const SPLIT_LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The same with single digits, as Qwen 2 uses it.
const SPLIT_QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The tokenizer.json of a vocabulary.
pub(super) fn to_json(vocabulary: &GgufVocabulary) -> Result<Value, TextError> {
    if vocabulary.tokens.is_empty() || vocabulary.tokens.len() > MAX_TOKENS {
        return Err(TextError::Tokenizer(format!(
            "{} tokens; 1 to {MAX_TOKENS} are expected",
            vocabulary.tokens.len()
        )));
    }
    match vocabulary.model.as_str() {
        "gpt2" => byte_level(vocabulary),
        "llama" => sentencepiece(vocabulary),
        other => Err(TextError::Tokenizer(format!(
            "GGUF tokenizer model `{other}` (gpt2 and llama are supported)"
        ))),
    }
}

/// How byte-level BPE prepares text before it merges.
struct Split {
    normalizer: Value,
    pre_tokenizer: Value,
    /// A piece that is a token is taken whole, whatever the merges say.
    ignore_merges: bool,
}

/// The kinds of `tokenizer.ggml.pre` (<https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp> names them).
fn split(kind: &str) -> Result<Split, TextError> {
    let bytes = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    let pattern = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    let sequence = |parts: Vec<Value>| json!({"type": "Sequence", "pretokenizers": parts});
    let mut split = Split { normalizer: Value::Null, pre_tokenizer: bytes(true), ignore_merges: false };
    match kind {
        "gpt-2" | "phi-2" | "mpt" | "olmo" => {}
        // What llama.cpp does with files that do not say.
        "" | "default" => {
            let parts = [r"[\p{P}$+<=>^~|]+", SPLIT_GPT2, r"\p{N}+", "[0-9]{3}"].map(pattern);
            split.pre_tokenizer = sequence(parts.into_iter().chain([bytes(false)]).collect());
        }
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" => {
            split.pre_tokenizer =
                sequence(vec![json!({"type": "Digits", "individual_digits": true}), bytes(true)]);
        }
        "llama-bpe" | "llama3" | "llama-v3" => {
            split.pre_tokenizer = sequence(vec![pattern(SPLIT_LLAMA3), bytes(false)]);
            split.ignore_merges = true;
        }
        "qwen2" => {
            split.normalizer = json!({"type": "NFC"});
            split.pre_tokenizer = sequence(vec![pattern(SPLIT_QWEN2), bytes(false)]);
        }
        other => {
            return Err(TextError::Tokenizer(format!(
                "GGUF pre-tokenizer `{other}` (default, gpt-2, phi-2, mpt, olmo, smollm, starcoder, refact, command-r, \
                 codeshell, llama-bpe and qwen2 are supported)"
            )));
        }
    }
    Ok(split)
}

fn byte_level(v: &GgufVocabulary) -> Result<Value, TextError> {
    let split = split(&v.pre)?;
    check_merges(v)?;
    let merges: Vec<Value> = v.merges.iter().map(|merge| Value::from(merge.as_str())).collect();
    let decoder =
        json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    let model = json!({"merges": merges, "ignore_merges": split.ignore_merges});
    Ok(document(v, split.normalizer, split.pre_tokenizer, decoder, model))
}

/// Both parts of every merge, and their union, are tokens. (The library panics if not.)
fn check_merges(v: &GgufVocabulary) -> Result<(), TextError> {
    let known: HashSet<&str> = v.tokens.iter().map(String::as_str).collect();
    for (i, merge) in v.merges.iter().enumerate() {
        let parts = merge.split_once(' ').filter(|(left, right)| {
            known.contains(left) && known.contains(right) && known.contains(format!("{left}{right}").as_str())
        });
        if parts.is_none() {
            return Err(TextError::Tokenizer(format!(
                "merge {i} `{merge}` is not of two tokens that make a third"
            )));
        }
    }
    Ok(())
}

fn sentencepiece(v: &GgufVocabulary) -> Result<Value, TextError> {
    if v.scores.len() != v.tokens.len() {
        let (scores, tokens) = (v.scores.len(), v.tokens.len());
        return Err(TextError::Tokenizer(format!("{scores} scores for {tokens} tokens")));
    }
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
    let normalizer = match v.add_space_prefix {
        Some(false) => replace,
        _ => {
            json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u{2581}"}, replace]})
        }
    };
    let decoder = json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "},
        {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
    let unknown =
        v.unknown.and_then(|id| v.tokens.get(id as usize)).map_or(Value::Null, |t| Value::from(t.as_str()));
    let model = json!({"merges": merges_from_scores(v), "unk_token": unknown, "fuse_unk": true, "byte_fallback": true});
    Ok(document(v, normalizer, Value::Null, decoder, model))
}

/// SentencePiece always joins the pair whose union scores best: as merges, every way to cut a token in two known ones,
/// best union first (ties: by the parts' ids, as the Hugging Face converter has it).
fn merges_from_scores(v: &GgufVocabulary) -> Vec<[&str; 2]> {
    let ids: HashMap<&str, usize> =
        v.tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect();
    let mut merges: Vec<(f32, usize, usize, [&str; 2])> = Vec::new();
    for (id, token) in v.tokens.iter().enumerate() {
        if v.token_types.get(id).is_some_and(|ty| *ty != 1) {
            continue;
        }
        for (cut, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(cut);
            if let (Some(l), Some(r)) = (ids.get(left), ids.get(right)) {
                merges.push((v.scores[id], *l, *r, [left, right]));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2)));
    merges.into_iter().map(|(_, _, _, pair)| pair).collect()
}

fn document(
    v: &GgufVocabulary,
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    model: Value,
) -> Value {
    let mut vocab = Map::new();
    let mut added = Vec::new();
    for (id, token) in v.tokens.iter().enumerate() {
        // Of tokens with the same text the first one is encoded to.
        vocab.entry(token.clone()).or_insert_with(|| Value::from(id));
        let ty = v.token_types.get(id).copied().unwrap_or(1);
        if [UNKNOWN, CONTROL, USER_DEFINED].contains(&ty) {
            added.push(
                json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": ty != USER_DEFINED}),
            );
        }
    }
    let mut bpe = json!({"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false});
    if let (Some(bpe), Value::Object(model)) = (bpe.as_object_mut(), model) {
        bpe.insert("vocab".into(), Value::Object(vocab));
        bpe.extend(model);
    }
    json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer, "post_processor": null, "decoder": decoder, "model": bpe})
}
