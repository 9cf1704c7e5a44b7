//! What a text's tokens came to, for people and for programs.

use std::io::Write;

use serde_json::{Value, json};

use super::windows::Window;
use crate::output::table;

/// A token and how likely it was.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Token {
    pub(super) id: u32,
    pub(super) text: String,
    /// Natural logarithm; absent for the first token of a text.
    pub(super) logprob: Option<f32>,
}

/// A text that has been scored.
#[derive(Debug)]
pub(super) struct Scored {
    pub(super) name: String,
    pub(super) tokens: Vec<Token>,
    pub(super) windows: Vec<Window>,
}

/// Negative log-likelihood of some tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Sum {
    nll: f64,
    tokens: usize,
}

impl Sum {
    fn of(tokens: &[Token]) -> Self {
        let logprobs = tokens.iter().filter_map(|token| token.logprob);
        logprobs.fold(Self::default(), |sum, logprob| Self {
            nll: sum.nll - f64::from(logprob),
            tokens: sum.tokens + 1,
        })
    }

    fn add(self, other: Self) -> Self {
        Self { nll: self.nll + other.nll, tokens: self.tokens + other.tokens }
    }

    /// For each token; nothing where there is none.
    fn mean(self) -> Option<f64> {
        (self.tokens > 0).then(|| self.nll / self.tokens as f64)
    }

    fn as_json(self) -> Value {
        json!({"scored": self.tokens, "nll": self.mean(), "perplexity": self.mean().map(f64::exp)})
    }

    fn row(self, name: &str, tokens: usize) -> Vec<String> {
        let shown = |value: Option<f64>| value.map_or_else(|| "-".into(), |value| format!("{value:.4}"));
        let (nll, perplexity) = (shown(self.mean()), shown(self.mean().map(f64::exp)));
        vec![name.into(), tokens.to_string(), self.tokens.to_string(), nll, perplexity]
    }
}

impl Scored {
    fn windows(&self) -> impl Iterator<Item = (&Window, Sum)> {
        let sum = |window: &Window| Sum::of(&self.tokens[window.scored_from..window.tokens.end]);
        self.windows.iter().map(move |window| (window, sum(window)))
    }
}

/// One row for each text, or for each window, and one for all.
pub(super) fn print(out: &mut impl Write, texts: &[Scored], each_window: bool) -> std::io::Result<()> {
    let (mut rows, mut total, mut tokens) = (Vec::new(), Sum::default(), 0);
    for text in texts {
        let sum = Sum::of(&text.tokens);
        if each_window && text.windows.len() > 1 {
            for (window, sum) in text.windows() {
                let name = format!("{}[{}..{}]", text.name, window.tokens.start, window.tokens.end);
                rows.push(sum.row(&name, window.tokens.len()));
            }
        }
        rows.push(sum.row(&text.name, text.tokens.len()));
        (total, tokens) = (total.add(sum), tokens + text.tokens.len());
    }
    if texts.len() > 1 {
        rows.push(total.row("all", tokens));
    }
    table(out, &["text", "tokens", "scored", "nll", "perplexity"], &rows)
}

/// The documented shape.
pub(super) fn as_json(model: &str, window: usize, stride: usize, texts: &[Scored]) -> Value {
    let token = |token: &Token| json!({"id": token.id, "text": token.text, "logprob": token.logprob});
    let text = |text: &Scored| {
        let window = |(window, sum): (&Window, Sum)| {
            let mut value = sum.as_json();
            value["start"] = window.tokens.start.into();
            value["end"] = window.tokens.end.into();
            value
        };
        let mut value = Sum::of(&text.tokens).as_json();
        value["text"] = text.name.clone().into();
        value["windows"] = text.windows().map(window).collect();
        value["tokens"] = text.tokens.iter().map(token).collect();
        value
    };
    let total = texts.iter().map(|text| Sum::of(&text.tokens)).fold(Sum::default(), Sum::add);
    json!({"model": model, "window": window, "stride": stride, "texts": texts.iter().map(text).collect::<Vec<_>>(),
        "all": total.as_json()})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::score::windows::windows;

    fn scored() -> Scored {
        let token =
            |id: u32| Token { id, text: format!("t{id}"), logprob: (id > 0).then_some(-f32::from(id as u8)) };
        Scored { name: "a".into(), tokens: (0..4).map(token).collect(), windows: windows(4, 3, 1) }
    }

    #[test]
    fn figures_add_up() {
        let value = as_json("m", 3, 1, &[scored(), scored()]);
        assert_eq!((value["all"]["scored"].as_u64(), value["all"]["nll"].as_f64()), (Some(6), Some(2.0)));
        let text = &value["texts"][0];
        assert_eq!(text["perplexity"].as_f64(), Some(2f64.exp()));
        assert_eq!(text["tokens"][0], json!({"id": 0, "text": "t0", "logprob": null}));
        let nll: Vec<_> = (0..2).map(|i| text["windows"][i]["nll"].as_f64()).collect();
        assert_eq!(nll, [Some(1.5), Some(3.0)]);
    }

    #[test]
    fn people_get_rows() {
        let mut out = Vec::new();
        print(&mut out, &[scored(), scored()], true).expect("memory");
        let text = String::from_utf8_lossy(&out).into_owned();
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines.len(), 8, "{text}");
        assert_eq!(lines[2], ["a[1..4]", "3", "1", "3.0000", "20.0855"]);
        assert_eq!(lines[7], ["all", "8", "6", "2.0000", "7.3891"]);
        let nothing = Scored { name: "empty".into(), tokens: vec![], windows: vec![] };
        let mut out = Vec::new();
        print(&mut out, &[nothing], false).expect("memory");
        assert!(String::from_utf8_lossy(&out).contains("empty  0       0       -    -"), "{out:?}");
    }
}
