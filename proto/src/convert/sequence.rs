//! `foggara.cluster.v1`: sequences between a front door and a driver.

use super::WireError;
use crate::sequence::{
    FoundRequest, SequenceEnd, SequenceEvent, SequenceParams, SequenceRequest, TokenOutput,
};
use crate::trace::TraceContext;
use crate::wire::cluster as wire;

impl From<SequenceParams> for wire::SequenceParams {
    fn from(p: SequenceParams) -> Self {
        Self {
            max_tokens: p.max_tokens,
            temperature: p.temperature,
            top_p: p.top_p,
            top_k: p.top_k,
            seed: p.seed,
            stop_token_ids: p.stop_token_ids,
            logprobs: p.logprobs,
            prompt_logprobs: p.prompt_logprobs,
            prompt_top_logprobs: p.prompt_top_logprobs,
            min_p: p.min_p,
            repetition_penalty: Some(p.repetition_penalty),
            presence_penalty: p.presence_penalty,
            frequency_penalty: p.frequency_penalty,
            logit_bias: p
                .logit_bias
                .into_iter()
                .map(|(token, bias)| wire::LogitBias { token, bias })
                .collect(),
            allowed_token_ids: p.allowed_token_ids,
            bad_words: p.bad_words.into_iter().map(|tokens| wire::BadWord { tokens }).collect(),
            min_tokens: p.min_tokens,
            held_token_ids: p.held_token_ids,
            adapter: p.adapter,
        }
    }
}

impl From<wire::SequenceParams> for SequenceParams {
    fn from(p: wire::SequenceParams) -> Self {
        Self {
            max_tokens: p.max_tokens,
            temperature: p.temperature,
            top_p: p.top_p,
            top_k: p.top_k,
            seed: p.seed,
            stop_token_ids: p.stop_token_ids,
            logprobs: p.logprobs,
            prompt_logprobs: p.prompt_logprobs,
            prompt_top_logprobs: p.prompt_top_logprobs,
            min_p: p.min_p,
            repetition_penalty: p.repetition_penalty.unwrap_or(1.0),
            presence_penalty: p.presence_penalty,
            frequency_penalty: p.frequency_penalty,
            logit_bias: p.logit_bias.into_iter().map(|entry| (entry.token, entry.bias)).collect(),
            allowed_token_ids: p.allowed_token_ids,
            bad_words: p
                .bad_words
                .into_iter()
                .map(|word| word.tokens)
                .filter(|tokens| !tokens.is_empty())
                .collect(),
            min_tokens: p.min_tokens,
            held_token_ids: p.held_token_ids,
            adapter: p.adapter,
        }
    }
}

impl wire::SubmitRequest {
    /// A request for the driver that holds `driver_epoch` of `group`; `listener` names the stream.
    pub fn new(group: u64, driver_epoch: u64, listener: u64, request: SequenceRequest) -> Self {
        Self {
            group,
            driver_epoch,
            request_id: request.request_id,
            tokens: request.tokens,
            prompt_len: u32::try_from(request.prompt_len).unwrap_or(u32::MAX),
            params: Some(request.params.into()),
            cache_salt: request.cache_salt,
            sibling_of: request.sibling_of,
            tenant: request.tenant,
            weight: request.weight,
            priority: request.priority,
            deadline_ms: request.deadline_ms,
            envelope: request.envelope,
            listener,
            traceparent: request.trace.as_ref().map(ToString::to_string).unwrap_or_default(),
            tracestate: request.trace.map(|trace| trace.state).unwrap_or_default(),
        }
    }
}

impl SequenceRequest {
    /// All that a later driver needs beside the tokens, their prompt's length and the parameters.
    pub fn to_envelope(&self) -> Vec<u8> {
        let rest = Self { tokens: Vec::new(), params: SequenceParams::default(), ..self.clone() };
        let wire = wire::SubmitRequest::new(0, 0, 0, rest);
        prost::Message::encode_to_vec(&wire::SubmitRequest { params: None, prompt_len: 0, ..wire })
    }

    /// The reverse of [`to_envelope`](Self::to_envelope).
    ///
    /// # Errors
    /// If it is none.
    pub fn from_envelope(
        envelope: &[u8],
        tokens: Vec<u32>,
        prompt_len: usize,
        params: SequenceParams,
    ) -> Result<Self, WireError> {
        let wire: wire::SubmitRequest =
            prost::Message::decode(envelope).map_err(|e| WireError::new("envelope", e.to_string()))?;
        let prompt_len = u32::try_from(prompt_len).unwrap_or(u32::MAX);
        wire::SubmitRequest { tokens, prompt_len, params: Some(params.into()), ..wire }.try_into()
    }
}

impl From<FoundRequest> for wire::FoundRequest {
    fn from(f: FoundRequest) -> Self {
        let FoundRequest { model, group, prompt, envelope } = f;
        Self { model, group: group.unwrap_or(0), prompt, envelope }
    }
}

impl From<wire::FoundRequest> for FoundRequest {
    fn from(f: wire::FoundRequest) -> Self {
        let wire::FoundRequest { model, group, prompt, envelope } = f;
        Self { model, group: Some(group).filter(|group| *group != 0), prompt, envelope }
    }
}

impl TryFrom<wire::SubmitRequest> for SequenceRequest {
    type Error = WireError;

    fn try_from(r: wire::SubmitRequest) -> Result<Self, WireError> {
        let params = r.params.ok_or_else(|| WireError::new("params", "missing"))?;
        let prompt_len = checked_prompt_len(r.prompt_len, r.tokens.len())?;
        Ok(Self {
            request_id: r.request_id,
            tokens: r.tokens,
            prompt_len,
            params: params.into(),
            cache_salt: r.cache_salt,
            sibling_of: r.sibling_of,
            tenant: r.tenant,
            // A sender that knows no weights leaves 0.
            weight: r.weight.max(1),
            priority: r.priority,
            deadline_ms: r.deadline_ms,
            // It has been routed.
            session: None,
            envelope: r.envelope,
            at: None,
            named: false,
            trace: TraceContext::parse(&r.traceparent, &r.tracestate),
        })
    }
}

/// `prompt_len` must lie in `1..=tokens`.
pub(super) fn checked_prompt_len(prompt_len: u32, tokens: usize) -> Result<usize, WireError> {
    let prompt_len = prompt_len as usize;
    if prompt_len == 0 || prompt_len > tokens {
        return Err(WireError::new("prompt_len", format!("{prompt_len} is not in 1..={tokens}")));
    }
    Ok(prompt_len)
}

impl From<TokenOutput> for wire::TokenOutput {
    fn from(t: TokenOutput) -> Self {
        let top = t.top.into_iter().map(|(token, logprob)| wire::TokenChoice { token, logprob }).collect();
        Self { token: t.token, logprob: t.logprob, top }
    }
}

impl From<wire::TokenOutput> for TokenOutput {
    fn from(t: wire::TokenOutput) -> Self {
        let top = t.top.into_iter().map(|c| (c.token, c.logprob)).collect();
        Self { token: t.token, logprob: t.logprob, top }
    }
}

/// The wire value of an end.
pub(super) fn end_to_wire(end: Option<SequenceEnd>) -> i32 {
    let end = match end {
        None => wire::SequenceEnd::Unspecified,
        Some(SequenceEnd::StopToken) => wire::SequenceEnd::StopToken,
        Some(SequenceEnd::Length) => wire::SequenceEnd::Length,
    };
    end.into()
}

/// The end a wire value stands for.
pub(super) fn end_from_wire(end: i32) -> Result<Option<SequenceEnd>, WireError> {
    match wire::SequenceEnd::try_from(end) {
        Ok(wire::SequenceEnd::Unspecified) => Ok(None),
        Ok(wire::SequenceEnd::StopToken) => Ok(Some(SequenceEnd::StopToken)),
        Ok(wire::SequenceEnd::Length) => Ok(Some(SequenceEnd::Length)),
        Err(_) => Err(WireError::new("end", format!("unknown value {end}"))),
    }
}

impl From<SequenceEvent> for wire::SequenceEvent {
    fn from(e: SequenceEvent) -> Self {
        Self {
            prompt: e.prompt.into_iter().map(Into::into).collect(),
            tokens: e.tokens.into_iter().map(Into::into).collect(),
            end: end_to_wire(e.end),
            cached_tokens: e.cached_tokens,
        }
    }
}

impl TryFrom<wire::SequenceEvent> for SequenceEvent {
    type Error = WireError;

    fn try_from(e: wire::SequenceEvent) -> Result<Self, WireError> {
        Ok(Self {
            prompt: e.prompt.into_iter().map(Into::into).collect(),
            tokens: e.tokens.into_iter().map(Into::into).collect(),
            end: end_from_wire(e.end)?,
            cached_tokens: e.cached_tokens,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params() -> SequenceParams {
        SequenceParams {
            max_tokens: 7,
            temperature: 0.5,
            top_p: 0.9,
            top_k: 3,
            seed: 11,
            stop_token_ids: vec![2],
            logprobs: Some(4),
            prompt_logprobs: true,
            prompt_top_logprobs: 5,
            min_p: 0.25,
            repetition_penalty: 1.5,
            presence_penalty: -0.5,
            frequency_penalty: 2.0,
            logit_bias: vec![(7, -100.0), (1, 0.5)],
            allowed_token_ids: vec![1, 7, 9],
            bad_words: vec![vec![4], vec![5, 6]],
            min_tokens: 6,
            held_token_ids: vec![8],
            adapter: Some(9),
        }
    }

    #[test]
    fn a_request_survives_the_wire() {
        let request = SequenceRequest {
            cache_salt: Some("salt".into()),
            sibling_of: Some("r".into()),
            tenant: "t".into(),
            weight: 3,
            priority: -4,
            deadline_ms: Some(500),
            envelope: vec![9, 8],
            trace: Some(TraceContext { trace_id: 7, span_id: 8, sampled: true, state: "a=1".into() }),
            ..SequenceRequest::new("r#1", vec![1, 2, 3], 2, params())
        };
        let wire = wire::SubmitRequest::new(5, 9, 77, request.clone());
        assert_eq!((wire.group, wire.driver_epoch, wire.listener), (5, 9, 77));
        assert_eq!(SequenceRequest::try_from(wire), Ok(request.clone()));
        let envelope = request.to_envelope();
        let back = SequenceRequest::from_envelope(&envelope, request.tokens.clone(), 2, params());
        assert_eq!(back, Ok(request));
        assert!(SequenceRequest::from_envelope(&[255; 9], vec![1], 1, params()).is_err());
    }

    #[test]
    fn what_is_found_of_a_request_survives_the_wire() {
        for group in [None, Some(4)] {
            let found = FoundRequest { model: "m".into(), group, prompt: vec![1, 2], envelope: vec![3] };
            assert_eq!(FoundRequest::from(wire::FoundRequest::from(found.clone())), found);
        }
    }

    #[test]
    fn what_an_older_sender_leaves_out_asks_for_nothing() {
        let wire = wire::SequenceParams { max_tokens: 1, top_p: 1.0, ..wire::SequenceParams::default() };
        assert_eq!(SequenceParams::from(wire), SequenceParams::default());
        let empty = wire::BadWord { tokens: vec![] };
        let wire = wire::SequenceParams { bad_words: vec![empty], ..SequenceParams::default().into() };
        assert_eq!(
            SequenceParams::from(wire),
            SequenceParams::default(),
            "an empty word would be everywhere"
        );
    }

    #[test]
    fn a_request_without_a_weight_has_the_least() {
        let mut wire = wire::SubmitRequest::new(5, 9, 1, SequenceRequest::new("r", vec![1], 1, params()));
        wire.weight = 0;
        assert_eq!(SequenceRequest::try_from(wire).map(|request| request.weight), Ok(1));
    }

    #[test]
    fn a_prompt_length_outside_the_tokens_is_refused() {
        for (prompt_len, ok) in [(0, false), (1, true), (3, true), (4, false)] {
            assert_eq!(checked_prompt_len(prompt_len, 3).is_ok(), ok, "{prompt_len}");
        }
    }

    #[test]
    fn events_survive_the_wire_and_unknown_ends_are_refused() {
        for end in [None, Some(SequenceEnd::StopToken), Some(SequenceEnd::Length)] {
            let token = TokenOutput { token: 4, logprob: Some(-0.25), top: vec![(4, -0.25), (9, -2.0)] };
            let event = SequenceEvent {
                prompt: vec![token.clone()],
                tokens: vec![token],
                end,
                cached_tokens: Some(5),
            };
            assert_eq!(SequenceEvent::try_from(wire::SequenceEvent::from(event.clone())), Ok(event));
        }
        assert!(end_from_wire(77).is_err());
    }
}
