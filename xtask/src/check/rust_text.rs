//! Rust source without its comments and the insides of its strings: what is left is code.

/// The code of `source`, line by line as it was; comments are gone and strings are empty.
pub fn code(source: &str) -> String {
    let mut rest = source;
    let mut code = String::with_capacity(source.len());
    while let Some(first) = rest.chars().next() {
        let skipped = comment(rest).or_else(|| literal(rest, code.chars().next_back()));
        let length = skipped.unwrap_or(first.len_utf8());
        let (taken, after) = rest.split_at(length.min(rest.len()));
        match skipped {
            None => code.push(first),
            // Lines keep their numbers.
            Some(_) => code.extend(taken.chars().filter(|c| *c == '\n')),
        }
        rest = after;
    }
    code
}

/// The length of the comment that `text` begins with.
fn comment(text: &str) -> Option<usize> {
    if text.starts_with("//") {
        return Some(text.find('\n').unwrap_or(text.len()));
    }
    if !text.starts_with("/*") {
        return None;
    }
    let (mut depth, mut at) = (0_usize, 0);
    while at < text.len() {
        let here = &text.as_bytes()[at..];
        if here.starts_with(b"/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if here.starts_with(b"*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return Some(at);
            }
        } else {
            at += 1;
        }
    }
    Some(text.len())
}

/// The length of the string or character that `text` begins with, after the character `before`.
fn literal(text: &str, before: Option<char>) -> Option<usize> {
    let in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let raw = ["r", "br", "cr"]
        .iter()
        .find_map(|prefix| text.strip_prefix(prefix).map(|rest| (prefix.len(), rest)));
    if let Some((prefix, rest)) = raw.filter(|_| !in_word) {
        let hashes = rest.bytes().take_while(|byte| *byte == b'#').count();
        if rest[hashes..].starts_with('"') {
            let end = format!("\"{}", "#".repeat(hashes));
            let inside = prefix + hashes + 1;
            return Some(text[inside..].find(&end).map_or(text.len(), |at| inside + at + end.len()));
        }
    }
    match text.as_bytes() {
        [b'"', ..] => Some(quoted(text, b'"')),
        [b'\'', b'\\', ..] => Some(quoted(text, b'\'')),
        // A lifetime has no second quote.
        [b'\'', ..] => {
            let second = text.chars().nth(1)?;
            text[1 + second.len_utf8()..].starts_with('\'').then_some(2 + second.len_utf8())
        }
        _ => None,
    }
}

/// The length of a quotation with escapes.
fn quoted(text: &str, quote: u8) -> usize {
    let mut at = 1;
    while at < text.len() {
        match text.as_bytes()[at] {
            b'\\' => at += 2,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    text.len()
}

/// The words of `code`: identifiers and keywords.
pub fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_strings_go() {
        for (source, expected) in [
            ("a // unsafe\nb", "a \nb"),
            ("a /* x /* y */ z */ b", "a  b"),
            ("f(\"unsafe \\\" more\") + 1", "f() + 1"),
            ("f(r#\"a \" b\"#, br\"x\")", "f(, )"),
            ("'\"' '\\'' 'a 'static", "  'a 'static"),
            ("for x in \"// no comment\" {}", "for x in  {}"),
            ("/* open\n", "\n"),
            ("'é' \"é\"", " "),
            ("bar\"x\"", "bar"),
        ] {
            assert_eq!(code(source), expected, "{source}");
        }
    }
}
