//! Tokens to text as they come.

use super::Tokenizer;

/// The text of one stream, token by token. Never shows half a character: bytes wait until the token that completes them.
#[derive(Debug)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    /// Whether special tokens are written out.
    special: bool,
    pending: Vec<u8>,
}

impl Detokenizer {
    /// A new stream. Special tokens have no text, unless `special` says that they are written out.
    pub fn new(tokenizer: Tokenizer, special: bool) -> Self {
        Self { tokenizer, special, pending: Vec::new() }
    }

    /// Adds a token; returns the text that is complete now.
    pub fn push(&mut self, token: u32) -> String {
        if self.special || !self.tokenizer.is_special(token) {
            self.pending.extend(self.tokenizer.token_bytes(token));
        }
        take_complete(&mut self.pending)
    }

    /// Ends the stream; returns what is left, as far as it is text.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
    }
}

/// Takes everything but the beginning of a character at the end. Bytes that can be no part of any are replaced.
fn take_complete(bytes: &mut Vec<u8>) -> String {
    let mut text = String::new();
    loop {
        match std::str::from_utf8(bytes) {
            Ok(valid) => {
                text.push_str(valid);
                bytes.clear();
                return text;
            }
            Err(error) => {
                let valid = error.valid_up_to();
                text.push_str(&String::from_utf8_lossy(&bytes[..valid]));
                let Some(invalid) = error.error_len() else {
                    bytes.drain(..valid);
                    return text;
                };
                text.push(char::REPLACEMENT_CHARACTER);
                bytes.drain(..valid + invalid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_wait_until_they_are_whole() {
        for (chunks, expected) in [
            (vec![&b"a\xe2"[..], b"\x82", b"\xac!"], vec!["a", "", "€!"]),
            (vec![b"\xff\xc3", b"\xa9"], vec!["\u{fffd}", "é"]),
            (vec![b"\xf0\x9f", b"x"], vec!["", "\u{fffd}x"]),
        ] {
            let mut pending = Vec::new();
            for (chunk, expected) in chunks.iter().zip(expected) {
                pending.extend_from_slice(chunk);
                assert_eq!(take_complete(&mut pending), expected);
            }
        }
    }
}
