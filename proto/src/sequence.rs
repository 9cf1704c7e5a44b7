//! One sequence on its way through the cluster: what is asked of it and what comes out.

use crate::trace::TraceContext;

/// What the sampler needs to know of a sequence. Defaults are already filled in, limits already checked.
#[derive(Debug, Clone, PartialEq)]
pub struct SequenceParams {
    /// Tokens to generate at most, counted from the end of the prompt.
    pub max_tokens: u32,
    /// 0 is greedy.
    pub temperature: f32,
    /// In (0, 1].
    pub top_p: f32,
    /// 0: all tokens.
    pub top_k: u32,
    /// Key of the counter-based random numbers.
    pub seed: u64,
    /// Every token id that ends the sequence.
    pub stop_token_ids: Vec<u32>,
    /// Alternatives to report with each token; `None`: no log-probabilities.
    pub logprobs: Option<u32>,
    /// Report the log-probabilities of the prompt too.
    pub prompt_logprobs: bool,
    /// Alternatives to report with each token of the prompt.
    pub prompt_top_logprobs: u32,
    /// Tokens less likely than this share of the likeliest one are left out; 0: none are.
    pub min_p: f32,
    /// Divides (or multiplies, below 0) the logits of tokens that are in the prompt or the answer; 1: changes nothing.
    pub repetition_penalty: f32,
    /// Taken from the logit of every token that is in the answer.
    pub presence_penalty: f32,
    /// Taken from the logit of a token once for each time it is in the answer.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Only these tokens may be sampled; empty: all.
    pub allowed_token_ids: Vec<u32>,
    /// Sequences of tokens that the answer must not contain; none is empty.
    pub bad_words: Vec<Vec<u32>>,
    /// Tokens that are generated before one of `stop_token_ids` may be.
    pub min_tokens: u32,
    /// Tokens that `min_tokens` holds back beside `stop_token_ids`.
    pub held_token_ids: Vec<u32>,
    /// The number of the low-rank adapter that computes it; `None`: the model alone.
    pub adapter: Option<u64>,
}

impl Default for SequenceParams {
    /// One greedy token and nothing else.
    fn default() -> Self {
        Self {
            max_tokens: 1,
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            seed: 0,
            stop_token_ids: Vec::new(),
            logprobs: None,
            prompt_logprobs: false,
            prompt_top_logprobs: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            allowed_token_ids: Vec::new(),
            bad_words: Vec::new(),
            min_tokens: 0,
            held_token_ids: Vec::new(),
            adapter: None,
        }
    }
}

/// A sequence as a front door hands it to a driver, and a driver to a leader.
#[derive(Debug, Clone, PartialEq)]
pub struct SequenceRequest {
    /// The client's name for it, unique in the cluster.
    pub request_id: String,
    /// The prompt, then what was already generated (when a stream goes on after a fault).
    pub tokens: Vec<u32>,
    /// How many of `tokens` are the prompt.
    pub prompt_len: usize,
    /// How to sample.
    pub params: SequenceParams,
    /// Only sequences with the same salt share cached blocks of their prompts.
    pub cache_salt: Option<String>,
    /// The request id of the first of several choices for one prompt, of which this is another.
    pub sibling_of: Option<String>,
    /// Whose request it is; empty: nobody's in particular.
    pub tenant: String,
    /// The tenant's share of tokens, relative to other tenants' shares; at least 1.
    pub weight: u32,
    /// Lower is sooner.
    pub priority: i32,
    /// Milliseconds from its arrival after which it is of no use any more.
    pub deadline_ms: Option<u64>,
    /// Requests with the same key are best answered by the same group. For the front door's router alone.
    pub session: Option<String>,
    /// The request as the front door has it, for the one that attaches should this one die. Nobody else reads it.
    pub envelope: Vec<u8>,
    /// The group that has it already, if it is still there. For the front door's router alone.
    pub at: Option<u64>,
    /// Whether the request id is the client's own, under which it may send the request again, to any front door. For the front
    /// door's router alone.
    pub named: bool,
    /// The span that it is part of.
    pub trace: Option<TraceContext>,
}

impl SequenceRequest {
    /// A request like any other: nobody's, of ordinary priority, by itself.
    pub fn new(
        request_id: impl Into<String>,
        tokens: Vec<u32>,
        prompt_len: usize,
        params: SequenceParams,
    ) -> Self {
        Self {
            request_id: request_id.into(),
            tokens,
            prompt_len,
            params,
            cache_salt: None,
            sibling_of: None,
            tenant: String::new(),
            weight: 1,
            priority: 0,
            deadline_ms: None,
            session: None,
            envelope: Vec::new(),
            at: None,
            named: false,
            trace: None,
        }
    }
}

/// A request that a driver knows by its id, as the front door that took it left it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundRequest {
    /// The deployment.
    pub model: String,
    /// The group that has its sequences, if one still does.
    pub group: Option<u64>,
    /// Its prompt.
    pub prompt: Vec<u32>,
    /// See [`SequenceRequest::envelope`].
    pub envelope: Vec<u8>,
}

/// A token with what is known of its probability.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenOutput {
    /// Its id.
    pub token: u32,
    /// Natural logarithm of its probability before temperature and truncation; absent unless asked for, and for the
    /// first token of a prompt.
    pub logprob: Option<f32>,
    /// The likeliest tokens at this position, best first.
    pub top: Vec<(u32, f32)>,
}

/// Why a sequence ended by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SequenceEnd {
    /// It sampled one of its stop tokens (the last token reported).
    StopToken,
    /// It reached `max_tokens` or the context.
    Length,
}

/// News of one sequence.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SequenceEvent {
    /// Log-probabilities of prompt tokens, in order, when asked for.
    pub prompt: Vec<TokenOutput>,
    /// Sampled tokens, in order.
    pub tokens: Vec<TokenOutput>,
    /// Set in the last event.
    pub end: Option<SequenceEnd>,
    /// In the first event: how many tokens of the prompt were found in the cache.
    pub cached_tokens: Option<u32>,
}
