//! The files to be scored: texts, or token ids.

use anyhow::Context as _;

/// Largest file.
const MAX_FILE_BYTES: u64 = 256 << 20;
/// Bytes that a coordinator turns into tokens at once.
const PIECE_BYTES: usize = 1 << 20;

/// Reads a file; `-` is standard input.
pub(super) fn read(path: &str) -> anyhow::Result<String> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    let limit = MAX_FILE_BYTES + 1;
    let read = match path {
        "-" => std::io::stdin().take(limit).read_to_end(&mut bytes),
        path => std::fs::File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes)),
    };
    read.with_context(|| path.to_owned())?;
    anyhow::ensure!(bytes.len() as u64 <= MAX_FILE_BYTES, "{path}: more than {MAX_FILE_BYTES} bytes");
    String::from_utf8(bytes).map_err(|e| anyhow::anyhow!("{path}: not UTF-8: {e}"))
}

/// Token ids: a JSON list, or numbers with spaces, commas or line ends between.
pub(super) fn token_ids(text: &str) -> anyhow::Result<Vec<u32>> {
    let inner = text.trim();
    let inner = inner.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(inner);
    let words = inner.split(|c: char| c.is_whitespace() || c == ',').filter(|word| !word.is_empty());
    let id = |word: &str| word.parse().map_err(|_| anyhow::anyhow!("`{word}` is not a token id"));
    words.map(id).collect()
}

/// Cuts a text that is too long for one request at line ends: a tokenizer rarely joins two lines.
pub(super) fn pieces(text: &str) -> Vec<&str> {
    cut(text, PIECE_BYTES)
}

fn cut(mut text: &str, most: usize) -> Vec<&str> {
    let mut pieces = Vec::new();
    while text.len() > most {
        let fits = (1..=most).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
        // Before a line that does not begin with a space: spaces belong to what follows them.
        let bytes = text.as_bytes();
        let line_end =
            (1..=fits).rev().find(|at| bytes[at - 1] == b'\n' && !bytes[*at].is_ascii_whitespace());
        let (piece, rest) = text.split_at(line_end.unwrap_or(fits));
        pieces.push(piece);
        text = rest;
    }
    if !text.is_empty() {
        pieces.push(text);
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_come_in_any_dress() {
        for text in ["[1, 2,3]", "1 2\n3\n", "1,2,3", " [\n1,\n2,\n3\n]\n"] {
            assert_eq!(token_ids(text).ok(), Some(vec![1, 2, 3]), "{text:?}");
        }
        assert_eq!(token_ids("[]").ok(), Some(vec![]));
        for bad in ["a", "1 -2", "[[1], [2]]", "1.5", "4294967296"] {
            assert!(token_ids(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn pieces_end_with_lines_and_lose_nothing() {
        for (text, most, expected) in [
            ("ab\ncd\nef", 7, vec!["ab\ncd\n", "ef"]),
            ("ab\n cd\nef", 4, vec!["ab\n ", "cd\n", "ef"]),
            ("abcdef", 4, vec!["abcd", "ef"]),
            ("aéé", 4, vec!["aé", "é"]),
            ("", 4, vec![]),
        ] {
            let pieces = cut(text, most);
            assert_eq!(pieces, expected);
            assert_eq!(pieces.concat(), text);
        }
    }
}
