//! How to sample: the arguments that `generate` and `chat` share.

use clap::Args;
use foggara_proto::wire::inference as wire;

/// How to sample.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingArguments {
    /// Tokens to generate at most [default: what the context leaves]
    #[arg(long, value_name = "N")]
    max_tokens: Option<u32>,
    /// Tokens before which nothing ends the answer [default: 0]
    #[arg(long, value_name = "N")]
    min_tokens: Option<u32>,
    /// 0 is greedy [default: 1]
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Sample from the likeliest tokens whose probabilities sum to P [default: 1]
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Sample from the K likeliest tokens [default: all]
    #[arg(long, value_name = "K")]
    top_k: Option<u32>,
    /// Leave out tokens less likely than this share of the likeliest one, 0 to 1 [default: 0]
    #[arg(long, value_name = "P")]
    min_p: Option<f32>,
    /// Above 1, makes tokens of prompt and answer less likely, 0.01 to 100 [default: 1]
    #[arg(long, value_name = "X")]
    repetition_penalty: Option<f32>,
    /// Makes tokens less likely that are in the answer, -2 to 2 [default: 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    presence_penalty: Option<f32>,
    /// Makes tokens less likely each time they are in the answer, -2 to 2 [default: 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    frequency_penalty: Option<f32>,
    /// Add BIAS, -100 to 100, to the logit of token ID (may be repeated)
    #[arg(long, value_name = "ID=BIAS", value_parser = bias)]
    logit_bias: Vec<(u32, f32)>,
    /// Sample only these tokens
    #[arg(long, value_name = "ID,…", value_delimiter = ',')]
    allowed_token_ids: Vec<u32>,
    /// Never sample these tokens
    #[arg(long, value_name = "ID,…", value_delimiter = ',')]
    banned_token_ids: Vec<u32>,
    /// Never write this (may be repeated)
    #[arg(long = "bad-word", value_name = "TEXT")]
    bad_words: Vec<String>,
    /// Same seed, same answer
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// End where this text would appear (may be repeated)
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// End at these tokens, beside the model's own
    #[arg(long, value_name = "ID,…", value_delimiter = ',')]
    stop_token_ids: Vec<u32>,
    /// Print what ended the answer, too
    #[arg(long)]
    include_stop: bool,
    /// Go on past the model's end tokens
    #[arg(long)]
    ignore_eos: bool,
    /// Print special tokens, which have no text otherwise
    #[arg(long)]
    special_tokens: bool,
    /// Answers to give, one after the other [default: 1]
    #[arg(short, long, value_name = "N")]
    n: Option<u32>,
    /// Lower is sooner, -1000 to 1000 [default: 0]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    priority: Option<i32>,
    /// Share what is cached of prompts only with requests of the same salt
    #[arg(long, value_name = "TEXT")]
    cache_salt: Option<String>,
    /// Milliseconds after which an answer that has not begun is of no use
    #[arg(long, value_name = "MS")]
    deadline_ms: Option<u64>,
}

impl SamplingArguments {
    /// As the service takes them.
    pub(crate) fn to_wire(&self) -> wire::SamplingParams {
        wire::SamplingParams {
            max_tokens: self.max_tokens,
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            seed: self.seed,
            stop: self.stop.clone(),
            stop_token_ids: self.stop_token_ids.clone(),
            ignore_eos: self.ignore_eos,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias: self.logit_bias.iter().copied().collect(),
            allowed_token_ids: self.allowed_token_ids.clone(),
            banned_token_ids: self.banned_token_ids.clone(),
            bad_words: self.bad_words.clone(),
            min_tokens: self.min_tokens.unwrap_or(0),
            include_stop_str_in_output: self.include_stop,
            n: self.n,
        }
    }

    /// What to tell of the answer.
    pub(crate) fn output(&self, echo: bool) -> wire::OutputOptions {
        wire::OutputOptions { echo, special_tokens: self.special_tokens, ..wire::OutputOptions::default() }
    }

    /// Answers asked for.
    pub(crate) fn n(&self) -> usize {
        self.n.unwrap_or(1) as usize
    }

    /// Lower is sooner.
    pub(crate) fn priority(&self) -> i32 {
        self.priority.unwrap_or(0)
    }

    /// From the request's arrival.
    pub(crate) fn deadline_ms(&self) -> Option<u64> {
        self.deadline_ms
    }

    /// Whom to share the cache with.
    pub(crate) fn cache_salt(&self) -> Option<String> {
        self.cache_salt.clone()
    }
}

/// Parses `ID=BIAS`.
fn bias(text: &str) -> Result<(u32, f32), String> {
    let parsed = text.split_once('=').and_then(|(id, bias)| Some((id.parse().ok()?, bias.parse().ok()?)));
    parsed.ok_or_else(|| format!("`{text}` is not a token id, `=` and a number"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        sampling: SamplingArguments,
    }

    #[test]
    fn arguments_become_what_they_say() {
        let line = "x --min-p 0.1 --presence-penalty -1.5 --logit-bias 5=-3.5 --logit-bias 7=2 --stop-token-ids 1,2 \
            --bad-word so --min-tokens 3 -n 2 --priority -7 --include-stop";
        let sampling = Line::try_parse_from(line.split_whitespace()).expect("valid").sampling;
        let wire = sampling.to_wire();
        assert_eq!(
            (wire.min_p, wire.presence_penalty, wire.frequency_penalty),
            (Some(0.1), Some(-1.5), None)
        );
        assert_eq!(wire.logit_bias, [(5, -3.5), (7, 2.0)].into());
        assert_eq!((wire.stop_token_ids, wire.bad_words), (vec![1, 2], vec!["so".to_owned()]));
        assert_eq!((wire.min_tokens, wire.n, wire.include_stop_str_in_output), (3, Some(2), true));
        assert_eq!((sampling.priority(), sampling.n(), sampling.cache_salt()), (-7, 2, None));
        for wrong in ["--logit-bias 5", "--logit-bias x=1", "--logit-bias 5=x", "--n -1"] {
            let line = ["x"].into_iter().chain(wrong.split(' '));
            assert!(Line::try_parse_from(line).is_err(), "{wrong}");
        }
    }
}
