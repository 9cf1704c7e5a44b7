//! Chat templates: the Jinja programs that checkpoints carry, run as transformers runs them
//! (<https://huggingface.co/docs/transformers/chat_templating_writing>).

use std::error::Error as _;
use std::fmt;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, escape_formatter};
use serde::Serialize;

use super::TextError;
use super::python::{JsonStyle, json_dumps, strftime};

const NAME: &str = "chat";
/// Widest indentation of `tojson`.
const MAX_INDENT: usize = 16;

/// A turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ChatMessage {
    /// "system", "user", "assistant" …
    pub role: String,
    /// What was said.
    pub content: String,
}

/// A compiled template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate").field("bos", &self.bos).field("eos", &self.eos).finish_non_exhaustive()
    }
}

/// The client's mistake, as the template's `raise_exception` words it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

impl ChatTemplate {
    /// Compiles `template`; `bos` and `eos` are the texts it knows as `bos_token` and `eos_token`.
    ///
    /// # Errors
    /// If it is not a valid template.
    pub fn compile(template: &str, bos: &str, eos: &str) -> Result<Self, TextError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| text_error(&e))?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Refusal(message)))
        });
        // In UTC, so that every coordinator writes the same.
        environment
            .add_function("strftime_now", |format: &str| strftime(format, time::OffsetDateTime::now_utc()));
        environment.add_filter("tojson", to_json);
        // As Python prints them.
        environment.set_formatter(|out, state, value| match value.kind() {
            ValueKind::Bool => Ok(out.write_str(if value.is_true() { "True" } else { "False" })?),
            ValueKind::None => Ok(out.write_str("None")?),
            _ => escape_formatter(out, state, value),
        });
        let template = without_generation_tags(template);
        environment.add_template_owned(NAME, template).map_err(|e| text_error(&e))?;
        Ok(Self { environment, bos: bos.to_owned(), eos: eos.to_owned() })
    }

    /// The prompt for `messages`. `extra` become variables of the template; they cannot replace the messages.
    ///
    /// # Errors
    /// If the template refuses the messages (its own words), or fails.
    pub fn render(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
        extra: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<String, TextError> {
        let json = |e: serde_json::Error| TextError::Template(e.to_string());
        // Templates ask whether these are none, not only whether they are defined.
        let mut variables = serde_json::Map::new();
        variables.insert("tools".into(), serde_json::Value::Null);
        variables.insert("documents".into(), serde_json::Value::Null);
        variables.extend(extra.iter().map(|(name, value)| (name.clone(), value.clone())));
        variables.insert("messages".into(), serde_json::to_value(messages).map_err(json)?);
        variables.insert("add_generation_prompt".into(), add_generation_prompt.into());
        variables.insert("bos_token".into(), self.bos.as_str().into());
        variables.insert("eos_token".into(), self.eos.as_str().into());
        let template = self.environment.get_template(NAME).map_err(|e| text_error(&e))?;
        template.render(Value::from(Serde(&variables))).map_err(|e| text_error(&e))
    }
}

/// The innermost cause, without the template's source around it.
fn text_error(error: &Error) -> TextError {
    let mut cause = error.source();
    while let Some(inner) = cause {
        if let Some(Refusal(message)) = inner.downcast_ref() {
            return TextError::Refused(message.clone());
        }
        cause = inner.source();
    }
    let kind = error.kind();
    let what = error.detail().map_or_else(|| kind.to_string(), |detail| format!("{kind}: {detail}"));
    TextError::Template(match error.line() {
        Some(line) => format!("{what} (line {line})"),
        None => what,
    })
}

/// `{% generation %}` marks what training learns from and changes nothing here. It becomes a block that is always taken, so
/// that whitespace around it is trimmed as transformers trims it.
fn without_generation_tags(template: &str) -> String {
    let mut out = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let end = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let inside =
            tag[..end].trim_start_matches("{%").trim_end_matches("%}").trim_matches(['-', '+']).trim();
        match inside {
            "generation" => out.push_str(&tag[..end].replacen("generation", "if true", 1)),
            "endgeneration" => out.push_str(&tag[..end].replacen("endgeneration", "endif", 1)),
            _ => out.push_str(&tag[..end]),
        }
        rest = &tag[end..];
    }
    out + rest
}

/// The filter `tojson` with the options transformers gives it.
fn to_json(value: Value, kwargs: Kwargs) -> Result<Value, Error> {
    let style = JsonStyle {
        indent: kwargs.get::<Option<usize>>("indent")?.map(|indent| indent.min(MAX_INDENT)),
        separators: kwargs.get::<Option<Vec<String>>>("separators")?.and_then(|list| {
            let [item, key] = <[String; 2]>::try_from(list).ok()?;
            Some((item, key))
        }),
        sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        ensure_ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
    };
    kwargs.assert_all_used()?;
    let json = serde_json::to_value(&value);
    let json = json.map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    Ok(Value::from_safe_string(json_dumps(&json, &style)))
}

#[cfg(test)]
#[path = "chat_template_tests.rs"]
mod tests;
