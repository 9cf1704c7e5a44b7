//! Chat templates: the Jinja programs that checkpoints carry, run as transformers runs them.

use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, Error, ErrorKind};
use serde::Serialize;

use super::TextError;

const NAME: &str = "chat";

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

impl ChatTemplate {
    /// Compiles `template`; `bos` and `eos` are the texts it knows as `bos_token` and `eos_token`.
    ///
    /// # Errors
    /// If it is not a valid template.
    pub fn compile(template: &str, bos: &str, eos: &str) -> Result<Self, TextError> {
        let mut environment = Environment::new();
        let syntax = minijinja::syntax::SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| TextError::Template(reason(&e)))?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", to_json);
        environment
            .add_template_owned(NAME, template.to_owned())
            .map_err(|e| TextError::Template(reason(&e)))?;
        Ok(Self { environment, bos: bos.to_owned(), eos: eos.to_owned() })
    }

    /// The prompt for `messages`. `extra` become variables of the template.
    ///
    /// # Errors
    /// If the template refuses the messages (its own words), or fails.
    pub fn render(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
        extra: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<String, TextError> {
        let mut variables = extra.clone();
        let messages = serde_json::to_value(messages).map_err(|e| TextError::Template(e.to_string()))?;
        variables.insert("messages".into(), messages);
        variables.insert("add_generation_prompt".into(), add_generation_prompt.into());
        variables.insert("bos_token".into(), self.bos.as_str().into());
        variables.insert("eos_token".into(), self.eos.as_str().into());
        let template = self.environment.get_template(NAME).map_err(|e| TextError::Template(reason(&e)))?;
        template
            .render(Value::from(minijinja::value::Serde(&variables)))
            .map_err(|e| TextError::Template(reason(&e)))
    }
}

/// The innermost cause, without the template's source around it.
fn reason(error: &Error) -> String {
    let detail = error.detail().map_or_else(|| error.to_string(), str::to_owned);
    match (error.kind(), error.line()) {
        (ErrorKind::InvalidOperation, _) | (_, None) => detail,
        (_, Some(line)) => format!("{detail} (line {line})"),
    }
}

/// JSON as Python's `json.dumps(…, ensure_ascii=False)` writes it: a space after commas and colons, or `indent`.
fn to_json(value: Value, kwargs: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    // Accepted for templates that name them; they are what is done anyway.
    let _: Option<bool> = kwargs.get("ensure_ascii")?;
    kwargs.assert_all_used()?;
    let json =
        serde_json::to_value(&value).map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    let mut out = String::new();
    write_json(&json, indent, 0, &mut out);
    Ok(Value::from_safe_string(out))
}

fn write_json(value: &serde_json::Value, indent: Option<usize>, depth: usize, out: &mut String) {
    use serde_json::Value as Json;
    let line = |depth: usize, out: &mut String| {
        if let Some(width) = indent {
            out.push('\n');
            out.push_str(&" ".repeat(width * depth));
        }
    };
    let comma = if indent.is_some() { "," } else { ", " };
    match value {
        Json::Array(items) if !items.is_empty() => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                out.push_str(if i > 0 { comma } else { "" });
                line(depth + 1, out);
                write_json(item, indent, depth + 1, out);
            }
            line(depth, out);
            out.push(']');
        }
        Json::Object(fields) if !fields.is_empty() => {
            out.push('{');
            for (i, (key, item)) in fields.iter().enumerate() {
                out.push_str(if i > 0 { comma } else { "" });
                line(depth + 1, out);
                out.push_str(&Json::from(key.as_str()).to_string());
                out.push_str(": ");
                write_json(item, indent, depth + 1, out);
            }
            line(depth, out);
            out.push('}');
        }
        other => out.push_str(&other.to_string()),
    }
}

/// Today's date and time in Python's `strftime` letters.
fn strftime_now(format: &str) -> Result<String, Error> {
    let now = time::OffsetDateTime::now_local().unwrap_or_else(|_| time::OffsetDateTime::now_utc());
    Ok(strftime(format, now))
}

fn strftime(format: &str, now: time::OffsetDateTime) -> String {
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let short = |name: String| name[..3].to_owned();
        match chars.next() {
            Some('d') => out.push_str(&format!("{:02}", now.day())),
            Some('m') => out.push_str(&format!("{:02}", u8::from(now.month()))),
            Some('Y') => out.push_str(&now.year().to_string()),
            Some('y') => out.push_str(&format!("{:02}", now.year().rem_euclid(100))),
            Some('H') => out.push_str(&format!("{:02}", now.hour())),
            Some('M') => out.push_str(&format!("{:02}", now.minute())),
            Some('S') => out.push_str(&format!("{:02}", now.second())),
            Some('B') => out.push_str(&now.month().to_string()),
            Some('b') => out.push_str(&short(now.month().to_string())),
            Some('A') => out.push_str(&now.weekday().to_string()),
            Some('a') => out.push_str(&short(now.weekday().to_string())),
            Some('j') => out.push_str(&format!("{:03}", now.ordinal())),
            Some('%') => out.push('%'),
            Some(other) => out.extend(['%', other]),
            None => out.push('%'),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(template: &str, messages: &[(&str, &str)], prompt: bool) -> Result<String, TextError> {
        let messages: Vec<ChatMessage> = messages
            .iter()
            .map(|(role, content)| ChatMessage { role: role.to_string(), content: content.to_string() })
            .collect();
        ChatTemplate::compile(template, "<s>", "</s>")?.render(&messages, prompt, &serde_json::Map::new())
    }

    const CHATML: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
        {{ '<|im_start|>system\nBe kind<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + \
        message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

    #[test]
    fn templates_render_as_transformers_renders_them() {
        let text =
            "<|im_start|>system\nBe kind<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n";
        assert_eq!(render(CHATML, &[("user", "Hi")], true), Ok(text.into()));
        assert_eq!(
            render(
                "{{ bos_token }}{{ messages[0].content.strip().split(' ')[-1] }}",
                &[("user", " a b ")],
                false
            ),
            Ok("<s>b".into())
        );
        assert_eq!(
            render("{{ messages | tojson }}", &[("user", "é\"")], false),
            Ok(r#"[{"role": "user", "content": "é\""}]"#.into())
        );
        let namespace = "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% if ns.n == 2 %}{% break %}{% endif %}{% endfor %}{{ ns.n }}";
        assert_eq!(render(namespace, &[("a", ""), ("b", ""), ("c", "")], false), Ok("2".into()));
        assert_eq!(render("  {% if true %}\nx\n  {% endif %}\ny", &[], false), Ok("x\ny".into()));
    }

    #[test]
    fn a_templates_own_refusal_is_what_the_client_reads() {
        let refused = render("{{ raise_exception('roles must alternate') }}", &[], false);
        assert_eq!(refused, Err(TextError::Template("roles must alternate".into())));
        assert!(render("{% if %}", &[], false).is_err());
    }

    #[test]
    fn dates_are_written_in_pythons_letters() {
        let date = time::macros::datetime!(2024-07-05 09:03:00 UTC);
        assert_eq!(strftime("%d %b %Y, %A %H:%M %% %q", date), "05 Jul 2024, Friday 09:03 % %q");
    }
}
