//! A model's tokenizer, from either kind of checkpoint.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use foggara_models::{SpecialTokens, TokenizerSource};
use serde_json::Value;

use super::{TextError, gguf_vocabulary};

/// Text ↔ token ids. Cheap to clone.
#[derive(Clone)]
pub struct Tokenizer(Arc<Inner>);

struct Inner {
    library: tokenizers::Tokenizer,
    /// Put before a text by us, where the tokenizer's own post-processing does not.
    bos: Option<u32>,
    special: HashSet<u32>,
    alphabet: Alphabet,
    vocab_size: usize,
    /// Bytes of text that one token can stand for at most; `None` where that is not known.
    longest_token: Option<usize>,
}

/// How tokens are written in the vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Alphabet {
    /// GPT-2's printable stand-ins for bytes.
    Bytes,
    /// SentencePiece's: "▁" for a space, "<0x0A>" for a byte.
    Pieces,
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_size", &self.0.vocab_size).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Makes a checkpoint's tokenizer work.
    ///
    /// # Errors
    /// If it is damaged or of an unknown kind.
    pub fn from_source(source: &TokenizerSource, special: &SpecialTokens) -> Result<Self, TextError> {
        let (mut library, bos) = match source {
            TokenizerSource::HfJson(path) => {
                // The library panics on some damaged files.
                let library = std::panic::catch_unwind(|| tokenizers::Tokenizer::from_file(path));
                let library = library.unwrap_or_else(|_| Err("damaged".into()));
                let file = path.display();
                (library.map_err(|e| TextError::Tokenizer(format!("{file}: {e}")))?, None)
            }
            TokenizerSource::Gguf(vocabulary) => {
                let json = gguf_vocabulary::to_json(vocabulary)?.to_string();
                let library = tokenizers::Tokenizer::from_bytes(json);
                let bos = special.bos.filter(|_| special.add_bos == Some(true));
                (library.map_err(|e| TextError::Tokenizer(e.to_string()))?, bos)
            }
        };
        // Training settings some files carry: a prompt is never cut or filled up in silence.
        library.with_padding(None);
        let whole = library.with_truncation(None);
        whole.map_err(|e| TextError::Tokenizer(e.to_string()))?;

        let added = library.get_added_tokens_decoder();
        let special = added.iter().filter(|(_, token)| token.special).map(|(id, _)| *id).collect();
        let alphabet = alphabet(&library)?;
        let vocab_size = library.get_vocab_size(true);
        let mut inner = Inner { library, bos, special, alphabet, vocab_size, longest_token: None };
        let absorbs_space = added.values().any(|token| token.lstrip || token.rstrip);
        if !absorbs_space && keeps_length(&inner.library) {
            let lengths = inner.ids().filter_map(|id| inner.token_bytes(id)).map(|bytes| bytes.len());
            inner.longest_token = lengths.max();
        }
        Ok(Self(Arc::new(inner)))
    }

    /// Token ids of `text`. Special tokens written in it are recognised. With `add_special`, tokens that begin a sequence
    /// are added as the model wants them.
    ///
    /// # Errors
    /// If the library fails.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TextError> {
        let encoding = self.0.library.encode_fast(text, add_special);
        let encoding = encoding.map_err(|e| TextError::Tokenizer(e.to_string()))?;
        let bos = self.0.bos.filter(|bos| add_special && encoding.get_ids().first() != Some(bos));
        Ok(bos.into_iter().chain(encoding.get_ids().iter().copied()).collect())
    }

    /// Tokens that a text of so many bytes has at least: tells cheaply that a text is too long. Tokenizing may need some
    /// hundred bytes of memory per byte of text.
    pub fn fewest_tokens(&self, text_bytes: usize) -> usize {
        self.0.longest_token.map_or(0, |longest| text_bytes / longest.max(1))
    }

    /// The bytes a token stands for, which may be a part of a character; empty for ids without a token.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        self.0.token_bytes(id).unwrap_or_default()
    }

    /// Whether a token is a special one: never shown as text.
    pub fn is_special(&self, id: u32) -> bool {
        self.0.special.contains(&id)
    }

    /// Tokens it knows.
    pub fn vocab_size(&self) -> usize {
        self.0.vocab_size
    }

    /// The text of `ids`, special tokens left out if `skip_special`. Ids without a token have no text.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let kept = ids.iter().filter(|id| !skip_special || !self.is_special(**id));
        let bytes: Vec<u8> = kept.flat_map(|id| self.token_bytes(*id)).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Inner {
    /// Ids that may have a token.
    fn ids(&self) -> impl Iterator<Item = u32> {
        0..u32::try_from(self.vocab_size).unwrap_or(u32::MAX)
    }

    fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        let token = self.library.id_to_token(id)?;
        if self.special.contains(&id) {
            return Some(token.into_bytes());
        }
        Some(match self.alphabet {
            Alphabet::Bytes => {
                // Characters beyond the alphabet: an added token, written as it is.
                token.chars().map(byte_of).collect::<Option<Vec<u8>>>().unwrap_or_else(|| token.into_bytes())
            }
            Alphabet::Pieces => match byte_piece(&token) {
                Some(byte) => vec![byte],
                None => token.replace('\u{2581}', " ").into_bytes(),
            },
        })
    }
}

/// Which alphabet the tokenizer's decoder reads.
fn alphabet(library: &tokenizers::Tokenizer) -> Result<Alphabet, TextError> {
    let unknown = |name: &str| {
        TextError::Tokenizer(format!("decoder `{name}` (byte-level and SentencePiece ones are supported)"))
    };
    let Some(decoder) = library.get_decoder() else { return Err(unknown("none")) };
    let names = types(decoder)?;
    if names.iter().any(|name| name == "ByteLevel") {
        return Ok(Alphabet::Bytes);
    }
    let pieces = ["Sequence", "Metaspace", "Replace", "ByteFallback", "Fuse", "Strip"];
    match names.iter().find(|name| !pieces.contains(&name.as_str())) {
        None => Ok(Alphabet::Pieces),
        Some(other) => Err(unknown(other)),
    }
}

/// Whether no step before the vocabulary can make a text shorter.
fn keeps_length(library: &tokenizers::Tokenizer) -> bool {
    let growing = ["Sequence", "Prepend", "Replace"];
    let Some(normalizer) = library.get_normalizer() else { return true };
    types(normalizer).is_ok_and(|names| names.iter().all(|name| growing.contains(&name.as_str())))
}

/// The types named anywhere in a part of the pipeline.
fn types(part: &impl serde::Serialize) -> Result<Vec<String>, TextError> {
    fn collect(value: &Value, names: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                names.extend(fields.get("type").and_then(Value::as_str).map(str::to_owned));
                fields.values().for_each(|value| collect(value, names));
            }
            Value::Array(items) => items.iter().for_each(|value| collect(value, names)),
            _ => {}
        }
    }
    let json = serde_json::to_value(part).map_err(|e| TextError::Tokenizer(e.to_string()))?;
    let mut names = Vec::new();
    collect(&json, &mut names);
    Ok(names)
}

/// The byte that a piece like "<0x0A>" stands for.
fn byte_piece(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_byte = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_byte.then(|| u8::from_str_radix(digits, 16).ok())?
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
