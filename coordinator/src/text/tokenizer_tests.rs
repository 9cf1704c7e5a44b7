//! The tokenizer against the reference's token ids, and the two kinds of checkpoint against each other.

use std::path::PathBuf;

use foggara_models::Checkpoint;
use foggara_models::tokenizer::GgufVocabulary;
use serde_json::Value;

use super::*;
use crate::text::{ChatMessage, ChatTemplate};

/// The folder of real models that `cargo xtask setup` fills.
fn models() -> PathBuf {
    let default = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../.cache/models");
    std::env::var_os("FOGGARA_MODELS").map_or_else(default, PathBuf::from)
}

fn tokenizer(name: &str) -> Tokenizer {
    let path = models().join(name);
    let model = Checkpoint::open(&path).unwrap_or_else(|e| panic!("{e}; run `cargo xtask setup`"));
    let source = model.tokenizer().expect("readable").expect("it has one");
    Tokenizer::from_source(&source, model.special()).expect("usable")
}

#[test]
fn both_checkpoints_give_the_references_tokens() {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/expected/smollm2-135m.json");
    let expected: Value = serde_json::from_str(&std::fs::read_to_string(file).expect("there")).expect("JSON");
    let ids = |value: &Value| -> Vec<u32> {
        value.as_array().expect("a list").iter().map(|v| v.as_u64().expect("an id") as u32).collect()
    };
    let (gguf, hf) = (tokenizer("smollm2-135m-instruct-q4_1.gguf"), tokenizer("smollm2-135m"));
    for case in expected["chat"].as_array().expect("a list") {
        let text = case["prompt_text"].as_str().expect("a text");
        assert_eq!(gguf.encode(text, true), Ok(ids(&case["prompt_tokens"])));
        assert_eq!(hf.encode(text, true), Ok(ids(&case["prompt_tokens"])));
        for tokenizer in [&gguf, &hf] {
            assert_eq!(tokenizer.decode(&ids(&case["greedy_tokens"]), true), case["greedy_text"]);
        }
    }
    for case in expected["teacher_forced"].as_array().expect("a list") {
        let text = case["text"].as_str().expect("a text");
        assert_eq!(gguf.encode(text, true), Ok(ids(&case["tokens"])));
        assert_eq!(hf.encode(text, true), Ok(ids(&case["tokens"])));
    }
    let corpus = "Numbers 1234567890, 3.14; naïve café — 日本語のテキスト 🤖👩‍👩‍👧 \t\ttabs\n\n\n  spaces   \
        fn main() { println!(\"{:?}\", x); } don't I'LL we've \u{0} \u{7f} عربي русский <|im_end|> <|endoftext|>";
    for cut in corpus.char_indices().map(|(at, _)| at) {
        let ids = gguf.encode(&corpus[cut..], true).expect("any text has tokens");
        assert_eq!(hf.encode(&corpus[cut..], true).as_ref(), Ok(&ids));
        assert_eq!(gguf.decode(&ids, false), corpus[cut..], "text comes back as it was");
    }
}

#[test]
fn both_checkpoints_render_the_references_prompts() {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/expected/smollm2-135m.json");
    let expected: Value = serde_json::from_str(&std::fs::read_to_string(file).expect("there")).expect("JSON");
    for name in ["smollm2-135m-instruct-q4_1.gguf", "smollm2-135m"] {
        let model =
            Checkpoint::open(&models().join(name)).unwrap_or_else(|e| panic!("{e}; run `cargo xtask setup`"));
        let special = model.special();
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let template = model.chat_template().expect("it has one");
        let template = ChatTemplate::compile(template, &text(&special.bos_text), &text(&special.eos_text));
        let template = template.expect("valid");
        for case in expected["chat"].as_array().expect("a list") {
            let content = case["user"].as_str().expect("a text").to_owned();
            let messages = [ChatMessage { role: "user".into(), content }];
            let rendered = template.render(&messages, true, &serde_json::Map::new());
            assert_eq!(rendered.as_deref(), Ok(case["prompt_text"].as_str().expect("a text")), "{name}");
        }
    }
}

#[test]
fn bytes_of_tokens_are_the_bytes_of_the_text() {
    let gguf = tokenizer("smollm2-135m-instruct-q4_1.gguf");
    assert_eq!(gguf.token_bytes(1), b"<|im_start|>");
    assert!(gguf.is_special(1) && !gguf.is_special(100));
    assert_eq!(gguf.decode(&gguf.encode("<|im_start|>hi", true).expect("tokens"), true), "hi");
    assert!(gguf.token_bytes(1_000_000).is_empty() && gguf.vocab_size() == 49_152);
    let all: Vec<u8> = (0..256u32).flat_map(|i| char::from_u32(0x100 + i)).filter_map(byte_of).collect();
    assert_eq!(all.len(), 68);
}

fn sentencepiece() -> GgufVocabulary {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).to_vec();
    tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    let pieces = ["▁", "h", "e", "l", "o", "he", "ll", "hell", "hello", "▁hello", "lo"];
    tokens.extend(pieces.map(String::from));
    let mut token_types = vec![2, 3, 3];
    token_types.extend([6; 256]);
    token_types.extend([1; 11]);
    let mut scores = vec![0.0; 259];
    scores.extend([-9.0, -9.1, -9.2, -9.3, -9.4, -1.0, -2.0, -3.0, -4.0, -5.0, -1.5]);
    GgufVocabulary {
        model: "llama".into(),
        tokens,
        scores,
        token_types,
        unknown: Some(0),
        ..Default::default()
    }
}

#[test]
fn sentencepiece_vocabularies_merge_by_score_and_fall_back_to_bytes() {
    let special = SpecialTokens { bos: Some(1), add_bos: Some(true), ..Default::default() };
    let tokenizer =
        Tokenizer::from_source(&TokenizerSource::Gguf(sentencepiece()), &special).expect("usable");
    // h e l l o: "he" joins first, then "lo" (which leaves a lone l): the best union at each step, not the longest token.
    assert_eq!(tokenizer.encode("hello", true), Ok(vec![1, 259, 264, 262, 269]));
    let ids = tokenizer.encode("é", false).expect("tokens");
    assert_eq!(ids, [259, 3 + 0xc3, 3 + 0xa9]);
    assert_eq!(tokenizer.decode(&ids, true), " é");
}

/// The 256 bytes as tokens in GPT-2's alphabet, then `merged`.
fn byte_level(pre: &str, merges: &[(&str, &str)]) -> Tokenizer {
    let mut alphabet: Vec<(u8, String)> =
        (0..0x200).filter_map(char::from_u32).filter_map(|c| Some((byte_of(c)?, c.to_string()))).collect();
    alphabet.sort();
    let mut tokens: Vec<String> = alphabet.into_iter().map(|(_, token)| token).collect();
    tokens.extend(merges.iter().map(|(left, right)| format!("{left}{right}")));
    tokens.push("<|end|>".into());
    let mut token_types = vec![1; tokens.len()];
    token_types[tokens.len() - 1] = 3;
    let merges = merges.iter().map(|(left, right)| format!("{left} {right}")).collect();
    let vocabulary = GgufVocabulary {
        model: "gpt2".into(),
        pre: pre.into(),
        tokens,
        token_types,
        merges,
        ..Default::default()
    };
    Tokenizer::from_source(&TokenizerSource::Gguf(vocabulary), &SpecialTokens::default()).expect("usable")
}

#[test]
fn each_kind_of_byte_level_vocabulary_splits_text_its_own_way() {
    let merges = [
        ("1", "2"),
        ("12", "3"),
        ("123", "4"),
        ("Ġ", "1"),
        ("!", "!"),
        ("!!", "Ċ"),
        ("a", "!"),
        ("e", "\u{301}"),
    ];
    for (pre, text, expected) in [
        ("gpt-2", "a1234!!\n", vec!["a", "1234", "!!", "\n"]),
        ("gpt-2", " 12", vec![" ", "12"]),
        ("", "a1234!!\n", vec!["a", "123", "4", "!!", "\n"]),
        ("smollm", "a1234!!\n", vec!["a", "1", "2", "3", "4", "!!", "\n"]),
        ("smollm", " 12", vec![" ", "1", "2"]),
        ("llama-bpe", "a1234!!\n", vec!["a", "123", "4", "!!\n"]),
        ("qwen2", "a1234!!\n", vec!["a", "1", "2", "3", "4", "!!\n"]),
        ("qwen2", "<|end|>a!", vec!["<|end|>", "a", "!"]),
    ] {
        let tokenizer = byte_level(pre, &merges[..7]);
        let ids = tokenizer.encode(text, true).expect("tokens");
        let texts: Vec<String> = ids.iter().map(|id| tokenizer.decode(&[*id], false)).collect();
        assert_eq!(texts, expected, "{pre:?} {text:?}");
    }
    let composed = byte_level("qwen2", &[]).encode("e\u{301}", true);
    assert_eq!(composed, Ok(vec![0xc3, 0xa9]), "Qwen composes letters and accents first");
}

#[test]
fn long_runs_are_no_trouble_and_their_length_bounds_the_tokens() {
    let tokenizer = tokenizer("smollm2-135m-instruct-q4_1.gguf");
    for unit in [" ", "a", "7", "\n", "!", "\u{3000}", "日", "\u{0}", "<|im_end|>", "<|im_"] {
        let text = unit.repeat(20_000 / unit.len()) + "x";
        let ids = tokenizer.encode(&text, true).expect("tokens");
        assert_eq!(tokenizer.decode(&ids, false), text);
        assert!(tokenizer.fewest_tokens(text.len()) <= ids.len());
    }
    assert!(tokenizer.fewest_tokens(1 << 20) > 1 << 12, "one token is no longer than 256 bytes");
    let empty = tokenizer.encode("", true).expect("no tokens");
    assert!(empty.is_empty() && tokenizer.fewest_tokens(0) == 0);
}

/// A merge into a token that is longer than all there are.
const OUT_OF_BOUNDS: &str =
    r#"{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": ["a b"]}}"#;

#[test]
fn damaged_vocabularies_are_refused() {
    let special = SpecialTokens::default();
    let refused = |vocabulary: GgufVocabulary| {
        let source = TokenizerSource::Gguf(vocabulary);
        Tokenizer::from_source(&source, &special).expect_err("refused").to_string()
    };
    let gpt2 = |tokens: &[&str], merges: &[&str]| GgufVocabulary {
        model: "gpt2".into(),
        tokens: tokens.iter().map(|token| token.to_string()).collect(),
        merges: merges.iter().map(|merge| merge.to_string()).collect(),
        ..Default::default()
    };
    for merge in ["a c", "c b", "a b", "ab", "a b a", " b", ""] {
        assert!(refused(gpt2(&["a", "b", "ba"], &["b a", merge])).contains(&format!("merge 1 `{merge}`")));
    }
    let mut few = sentencepiece();
    few.scores.pop();
    assert!(refused(few).contains("scores"));
    for json in ["", "{}", "[1]", r#"{"model": {"type": "Nope"}}"#, OUT_OF_BOUNDS] {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), json).expect("written");
        let source = TokenizerSource::HfJson(file.path().into());
        let error = Tokenizer::from_source(&source, &special).expect_err("refused").to_string();
        assert!(error.contains(file.path().to_str().expect("a name")), "{error}");
    }
}

#[test]
fn unknown_kinds_are_refused_by_name() {
    let special = SpecialTokens::default();
    let refused = |vocabulary: GgufVocabulary| {
        Tokenizer::from_source(&TokenizerSource::Gguf(vocabulary), &special).expect_err("refused").to_string()
    };
    let tokens = vec!["a".to_string()];
    let wrong_model = GgufVocabulary { model: "rwkv".into(), tokens: tokens.clone(), ..Default::default() };
    assert!(refused(wrong_model).contains("`rwkv`"));
    let wrong_pre =
        GgufVocabulary { model: "gpt2".into(), pre: "mystery".into(), tokens, ..Default::default() };
    assert!(refused(wrong_pre).contains("`mystery`"));
    assert!(refused(GgufVocabulary { model: "gpt2".into(), ..Default::default() }).contains("0 tokens"));
}
