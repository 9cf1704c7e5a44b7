//! A GGUF vocabulary as a `tokenizer.json`, which the tokenizers library then reads.
//!
//! "gpt2" vocabularies are byte-level BPE and differ in how they split text first; "llama" ones are SentencePiece's, whose
//! merges follow from the scores.

use std::collections::HashMap;

use foggara_models::tokenizer::GgufVocabulary;
use serde_json::{Map, Value, json};

use super::TextError;

/// Most tokens of a vocabulary.
const MAX_TOKENS: usize = 1 << 22;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

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

fn byte_level(v: &GgufVocabulary) -> Result<Value, TextError> {
    let plain = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    let split = |pattern: &str| {
        json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
            plain(false)]})
    };
    let mut ignore_merges = false;
    let pre = match v.pre.as_str() {
        "" | "default" | "gpt-2" => plain(true),
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" => {
            json!({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": true}, plain(true)]})
        }
        "llama-bpe" | "llama3" | "llama-v3" => {
            ignore_merges = true;
            split(SPLIT_LLAMA3)
        }
        "qwen2" => split(SPLIT_QWEN2),
        other => {
            return Err(TextError::Tokenizer(format!(
                "GGUF pre-tokenizer `{other}` (default, gpt-2, smollm, starcoder, refact, command-r, codeshell, llama-bpe, \
                 qwen2 are supported)"
            )));
        }
    };
    let merges: Vec<Value> = v.merges.iter().map(|merge| Value::from(merge.as_str())).collect();
    let decoder =
        json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    Ok(document(v, Value::Null, pre, decoder, json!({"merges": merges, "ignore_merges": ignore_merges})))
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
        vocab.insert(token.clone(), Value::from(id));
        let ty = v.token_types.get(id).copied().unwrap_or(1);
        if ty == CONTROL || ty == USER_DEFINED {
            added.push(
                json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": ty == CONTROL}),
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
