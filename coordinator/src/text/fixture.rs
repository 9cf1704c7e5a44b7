//! A tokenizer for tests: every byte is a token of that id, and 256 is the special `<|end|>`.

use foggara_models::tokenizer::GgufVocabulary;
use foggara_models::{SpecialTokens, TokenizerSource};

use super::Tokenizer;

/// Id of `<|end|>`.
pub(crate) const END: u32 = 256;

pub(crate) fn byte_tokenizer() -> Tokenizer {
    let printable = |byte: &u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let hidden: Vec<u32> = (0..256).filter(|byte| !printable(byte)).collect();
    let written = |byte: u32| match hidden.iter().position(|hidden| *hidden == byte) {
        Some(place) => 0x100 + u32::try_from(place).expect("small"),
        None => byte,
    };
    let mut tokens: Vec<String> =
        (0..256).filter_map(|byte| char::from_u32(written(byte))).map(String::from).collect();
    tokens.push("<|end|>".into());
    let mut token_types = vec![1; 256];
    token_types.push(3);
    let vocabulary = GgufVocabulary {
        model: "gpt2".into(),
        pre: "gpt-2".into(),
        tokens,
        token_types,
        ..Default::default()
    };
    Tokenizer::from_source(&TokenizerSource::Gguf(vocabulary), &SpecialTokens::default()).expect("usable")
}
