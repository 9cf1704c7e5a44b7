//! A model's tokenizer, from either kind of checkpoint.

use std::collections::HashSet;
use std::sync::Arc;

use foggara_models::{SpecialTokens, TokenizerSource};

use super::{TextError, gguf_vocabulary};

/// Text ↔ token ids. Cheap to clone.
#[derive(Clone)]
pub struct Tokenizer(Arc<Inner>);

struct Inner {
    library: tokenizers::Tokenizer,
    /// Put before a text by us, where the tokenizer's own post-processing does not.
    bos: Option<u32>,
    special: HashSet<u32>,
    /// Tokens are written in GPT-2's alphabet of printable stand-ins for bytes; else in SentencePiece's.
    byte_level: bool,
    size: usize,
}

impl Tokenizer {
    /// Makes a checkpoint's tokenizer work.
    ///
    /// # Errors
    /// If it is damaged or of an unknown kind.
    pub fn from_source(source: &TokenizerSource, special: &SpecialTokens) -> Result<Self, TextError> {
        let wrong = |e: tokenizers::Error| TextError::Tokenizer(e.to_string());
        let (library, bos) = match source {
            TokenizerSource::HfJson(path) => (tokenizers::Tokenizer::from_file(path).map_err(wrong)?, None),
            TokenizerSource::Gguf(vocabulary) => {
                let json = gguf_vocabulary::to_json(vocabulary)?.to_string();
                let library = tokenizers::Tokenizer::from_bytes(json).map_err(wrong)?;
                (library, special.bos.filter(|_| special.add_bos == Some(true)))
            }
        };
        let added = library.get_added_tokens_decoder();
        let special = added.iter().filter(|(_, token)| token.special).map(|(id, _)| *id).collect();
        let decoder =
            library.get_decoder().and_then(|decoder| serde_json::to_string(decoder).ok()).unwrap_or_default();
        let size = library.get_vocab_size(true);
        Ok(Self(Arc::new(Inner { library, bos, special, byte_level: decoder.contains("ByteLevel"), size })))
    }

    /// Token ids of `text`. Special tokens written in it are recognised. With `add_special`, tokens that begin a sequence
    /// are added as the model wants them.
    ///
    /// # Errors
    /// If the library fails.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TextError> {
        let encoding =
            self.0.library.encode_fast(text, add_special).map_err(|e| TextError::Tokenizer(e.to_string()))?;
        let bos = self.0.bos.filter(|bos| add_special && encoding.get_ids().first() != Some(bos));
        Ok(bos.into_iter().chain(encoding.get_ids().iter().copied()).collect())
    }

    /// The bytes a token stands for; empty for ids without a token.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        let Some(token) = self.0.library.id_to_token(id) else { return Vec::new() };
        if self.0.special.contains(&id) {
            return token.into_bytes();
        }
        if self.0.byte_level {
            let mut bytes = Vec::with_capacity(token.len());
            for c in token.chars() {
                match byte_of(c) {
                    Some(byte) => bytes.push(byte),
                    // Not of the alphabet: an added token, written as it is.
                    None => return token.into_bytes(),
                }
            }
            return bytes;
        }
        let byte =
            token.strip_prefix("<0x").and_then(|rest| u8::from_str_radix(rest.strip_suffix('>')?, 16).ok());
        byte.map_or_else(|| token.replace('\u{2581}', " ").into_bytes(), |byte| vec![byte])
    }

    /// Whether a token is a special one: never shown as text.
    pub fn is_special(&self, id: u32) -> bool {
        self.0.special.contains(&id)
    }

    /// Tokens it knows.
    pub fn size(&self) -> usize {
        self.0.size
    }

    /// The text of `ids`, special tokens left out if `skip_special`.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let kept = ids.iter().filter(|id| !skip_special || !self.is_special(**id));
        let bytes: Vec<u8> = kept.flat_map(|id| self.token_bytes(*id)).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// The byte a character of GPT-2's alphabet stands for: printable Latin-1 is itself, the other 68 bytes are U+0100 onwards
/// in order (`bytes_to_unicode` of GPT-2's encoder).
fn byte_of(c: char) -> Option<u8> {
    let code = u32::from(c);
    let printable = |code: u32| matches!(code, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if printable(code) {
        return u8::try_from(code).ok();
    }
    let place = usize::try_from(code.checked_sub(0x100)?).ok()?;
    (0..=255u32).filter(|byte| !printable(*byte)).nth(place).and_then(|byte| u8::try_from(byte).ok())
}

#[cfg(test)]
#[path = "tokenizer_tests.rs"]
mod tests;
