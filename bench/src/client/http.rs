//! `/v1/completions` of any OpenAI-compatible server, streamed.

use anyhow::{Context, Result, bail, ensure};
use futures::StreamExt;
use serde_json::{Value, json};

use super::{Ask, Trace};

pub(crate) struct HttpClient {
    http: reqwest::Client,
    completions: String,
    model: String,
}

impl HttpClient {
    pub(super) fn new(url: &str, model: &str) -> Result<Self> {
        let http = super::trust::http(url)?;
        let completions = format!("{}/v1/completions", url.trim_end_matches('/'));
        Ok(Self { http, completions, model: model.to_owned() })
    }

    pub(super) async fn generate(&mut self, ask: Ask) -> Result<Trace> {
        let body = json!({
            "model": self.model,
            "prompt": ask.prompt,
            "max_tokens": ask.max_tokens,
            "temperature": 0,
            "ignore_eos": true,
            "stream": true,
            "stream_options": {"include_usage": true},
            // Counts tokens exactly where the server knows it.
            "return_token_ids": true,
        });
        let mut trace = Trace::start();
        let asked = || format!("POST {}", self.completions);
        let response = self.http.post(&self.completions).json(&body).send().await.with_context(asked)?;
        let status = response.status();
        if !status.is_success() {
            bail!("{}: {status}: {}", asked(), response.text().await.unwrap_or_default());
        }
        let mut bytes = response.bytes_stream();
        let mut lines = Lines::default();
        while let Some(chunk) = bytes.next().await {
            for line in lines.push(&chunk.with_context(asked)?) {
                match line.strip_prefix("data:").map(str::trim) {
                    Some("[DONE]") => return Ok(trace),
                    Some(data) => read(data, &mut trace)?,
                    // Comments and blank lines between events.
                    None => {}
                }
            }
        }
        bail!("the stream ended without [DONE]")
    }
}

/// Notes the tokens of one event.
fn read(data: &str, trace: &mut Trace) -> Result<()> {
    let event: Value = serde_json::from_str(data).with_context(|| format!("event {data}"))?;
    ensure!(event.get("error").is_none_or(Value::is_null), "the server says: {data}");
    if let Some(choice) = event["choices"].get(0) {
        let tokens = match choice["token_ids"].as_array() {
            Some(ids) => ids.len(),
            None => usize::from(choice["text"].as_str().is_some_and(|text| !text.is_empty())),
        };
        trace.arrived(tokens);
    }
    if let Some(count) = event["usage"]["completion_tokens"].as_u64() {
        trace.counted(count as usize);
    }
    Ok(())
}

/// The models served at `url`.
pub(super) async fn models(url: &str) -> Result<Vec<String>> {
    let url = format!("{}/v1/models", url.trim_end_matches('/'));
    let text = get(&url).await?;
    let listed: Value = serde_json::from_str(&text).with_context(|| format!("{url}: {text}"))?;
    let models = listed["data"].as_array().with_context(|| format!("{url} has no `data`: {text}"))?;
    Ok(models.iter().filter_map(|model| model["id"].as_str().map(str::to_owned)).collect())
}

/// The body of `url`.
pub(crate) async fn get(url: &str) -> Result<String> {
    let response = super::trust::http(url)?.get(url).send().await.with_context(|| format!("GET {url}"))?;
    response.error_for_status()?.text().await.with_context(|| format!("GET {url}"))
}

/// Whole lines out of pieces of bytes.
#[derive(Default)]
struct Lines(Vec<u8>);

impl Lines {
    fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        self.0.extend_from_slice(bytes);
        let Some(end) = self.0.iter().rposition(|byte| *byte == b'\n') else { return Vec::new() };
        let whole: Vec<u8> = self.0.drain(..=end).collect();
        String::from_utf8_lossy(&whole).lines().map(str::to_owned).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_put_together_from_pieces() {
        let mut lines = Lines::default();
        assert!(lines.push(b"data: {\"a\"").is_empty());
        assert_eq!(lines.push(b":1}\r\n\nda"), ["data: {\"a\":1}", ""]);
        assert_eq!(lines.push(b"ta: [DONE]\n"), ["data: [DONE]"]);
    }

    #[test]
    fn tokens_are_counted_by_id_by_text_and_by_usage() {
        let mut trace = Trace::start();
        let mut event = |data: &str| read(data, &mut trace).map(|()| trace.tokens());
        let counted = |tokens: Result<usize>| tokens.expect("a good event");
        assert_eq!(counted(event(r#"{"choices":[{"text":"","token_ids":[7,8]}]}"#)), 2);
        assert_eq!(counted(event(r#"{"choices":[{"text":"a"}],"usage":null}"#)), 3);
        assert_eq!(counted(event(r#"{"choices":[{"text":"","finish_reason":"length"}]}"#)), 3);
        assert_eq!(counted(event(r#"{"choices":[],"usage":{"completion_tokens":9}}"#)), 9);
        assert!(event(r#"{"error":{"message":"no"}}"#).is_err());
        assert!(event("{").is_err());
    }
}
