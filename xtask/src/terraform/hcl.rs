//! As much of Terraform's language as is needed to see which blocks and arguments a file has: pure.

use anyhow::{Result, bail};

/// The content of a file or of a block.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Body {
    /// Arguments: name, and the text of the expression.
    pub arguments: Vec<(String, String)>,
    pub blocks: Vec<Block>,
}

/// `kind "label" { … }`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    pub kind: String,
    pub labels: Vec<String>,
    pub body: Body,
}

impl Body {
    /// The text of an argument.
    pub fn argument(&self, name: &str) -> Option<&str> {
        self.arguments.iter().find(|(found, _)| found == name).map(|(_, text)| text.as_str())
    }

    /// Every expression, those of inner blocks included.
    pub fn expressions(&self) -> Vec<&str> {
        let own = self.arguments.iter().map(|(_, text)| text.as_str());
        own.chain(self.blocks.iter().flat_map(|block| block.body.expressions())).collect()
    }
}

/// Reads a file.
///
/// # Errors
/// With the line at which it is not understood.
pub fn parse(text: &str) -> Result<Body> {
    let mut reader = Reader { text, at: 0 };
    let body = reader.body()?;
    if reader.at < text.len() {
        return reader.fail("a `}` too many");
    }
    Ok(body)
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn fail<T>(&self, what: &str) -> Result<T> {
        bail!("line {}: {what}", self.text[..self.at].matches('\n').count() + 1)
    }

    /// Passes over what means nothing.
    fn blank(&mut self) {
        loop {
            let rest = self.rest();
            let trimmed = rest.trim_start();
            self.at += rest.len() - trimmed.len();
            if trimmed.starts_with('#') || trimmed.starts_with("//") {
                self.at += trimmed.find('\n').unwrap_or(trimmed.len());
            } else {
                return;
            }
        }
    }

    fn word(&mut self) -> Option<&'a str> {
        let rest = self.rest();
        let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '-')).unwrap_or(rest.len());
        self.at += end;
        (end > 0).then_some(&rest[..end])
    }

    /// Until the end of the text, or the `}` that ends the block.
    fn body(&mut self) -> Result<Body> {
        let mut body = Body::default();
        loop {
            self.blank();
            if self.rest().is_empty() || self.rest().starts_with('}') {
                return Ok(body);
            }
            let Some(name) = self.word() else { return self.fail("a name is expected") };
            self.spaces();
            if self.rest().starts_with('=') {
                self.at += 1;
                let text = self.expression()?;
                body.arguments.push((name.into(), text));
            } else {
                body.blocks.push(self.block(name)?);
            }
        }
    }

    fn spaces(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start_matches(' ').len();
    }

    fn block(&mut self, kind: &str) -> Result<Block> {
        let mut labels = Vec::new();
        while self.rest().starts_with('"') {
            let start = self.at + 1;
            self.string()?;
            labels.push(self.text[start..self.at - 1].to_owned());
            self.spaces();
        }
        if !self.rest().starts_with('{') {
            return self.fail("`=` or `{` is expected");
        }
        self.at += 1;
        let body = self.body()?;
        if !self.rest().starts_with('}') {
            return self.fail("a block does not end");
        }
        self.at += 1;
        Ok(Block { kind: kind.into(), labels, body })
    }

    /// Until the end of the line, of which there may be many inside parentheses.
    fn expression(&mut self) -> Result<String> {
        let (start, mut depth) = (self.at, 0_usize);
        while let Some(next) = self.rest().chars().next() {
            match next {
                '"' => {
                    self.string()?;
                    continue;
                }
                '#' => {
                    self.at += self.rest().find('\n').unwrap_or(self.rest().len());
                    continue;
                }
                '(' | '[' | '{' => depth += 1,
                ')' | ']' | '}' if depth == 0 => break,
                ')' | ']' | '}' => depth -= 1,
                '\n' if depth == 0 => break,
                '<' if self.rest().starts_with("<<") => {
                    return self.fail("here-documents are not understood");
                }
                _ => {}
            }
            self.at += next.len_utf8();
        }
        Ok(self.text[start..self.at].trim().to_owned())
    }

    /// A string in quotes, with the expressions in it.
    fn string(&mut self) -> Result<()> {
        self.at += 1;
        while let Some(next) = self.rest().chars().next() {
            match next {
                '\\' => self.at += 1 + self.rest().chars().nth(1).map_or(0, char::len_utf8),
                '"' => {
                    self.at += 1;
                    return Ok(());
                }
                '$' | '%' if self.rest()[1..].starts_with('{') => {
                    self.at += 2;
                    self.interpolation()?;
                }
                _ => self.at += next.len_utf8(),
            }
        }
        self.fail("a string does not end")
    }

    fn interpolation(&mut self) -> Result<()> {
        let mut depth = 1_usize;
        while let Some(next) = self.rest().chars().next() {
            match next {
                '"' => {
                    self.string()?;
                    continue;
                }
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            self.at += next.len_utf8();
            if depth == 0 {
                return Ok(());
            }
        }
        self.fail("an expression in a string does not end")
    }
}

/// The text of a literal string, as it is shown.
pub fn unquoted(text: &str) -> String {
    let inner = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    inner.replace("\\\"", "\"").replace("\\\\", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_and_arguments_are_seen() {
        let text = r#"
# A comment with a { and a "
resource "aws_x" "y" {
  name = "a${b["}"]}c" # why
  list = [
    1, # one
    { k = "v" },
  ]
  inner {
    size = 3
  }
  dynamic "more" {
    for_each = var.all
    content { at = more.value }
  }
}
"#;
        let body = parse(text).expect("it is well formed");
        let block = &body.blocks[0];
        assert_eq!((block.kind.as_str(), block.labels.join(".")), ("resource", "aws_x.y".to_owned()));
        assert_eq!(block.body.argument("name"), Some(r#""a${b["}"]}c" # why"#));
        assert!(block.body.argument("list").is_some_and(|list| list.ends_with(']')));
        assert_eq!(block.body.blocks[0].body.arguments, [("size".to_owned(), "3".to_owned())]);
        assert_eq!(block.body.blocks[1].body.blocks[0].body.argument("at"), Some("more.value"));
        assert_eq!(block.body.expressions().len(), 5);
    }

    #[test]
    fn what_is_malformed_names_its_line() {
        for (text, line) in [("a {\n", 2), ("a = 1\n}", 2), ("a b", 1), ("\n\na = \"x", 3)] {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.starts_with(&format!("line {line}:")), "{text}: {error}");
        }
    }
}
