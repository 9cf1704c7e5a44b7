//! What has come of one sequence so far: enough for a stream to begin anywhere in it. Pure.

use std::sync::Arc;

use foggara_proto::sequence::{SequenceEnd, SequenceEvent, SequenceParams, SequenceRequest, TokenOutput};
use foggara_proto::step::HeldSequence;

/// A request, and its answer so far.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    /// Its tokens are the prompt alone.
    request: Arc<SequenceRequest>,
    /// Generated so far.
    tokens: Vec<u32>,
    /// The last of them with their probabilities, if those were asked for: all, unless another driver had the first.
    outputs: Vec<TokenOutput>,
    /// Probabilities of the prompt so far, from its beginning. `None`: another driver had some of them.
    prompt: Option<Vec<TokenOutput>>,
    cached_tokens: Option<u32>,
    end: Option<SequenceEnd>,
}

impl Answer {
    /// Of a request that has just come. What its front door has already is part of the answer.
    pub(super) fn new(mut request: SequenceRequest) -> Self {
        let tokens = request.tokens.split_off(request.prompt_len);
        // Who comes with tokens may have been told of the prompt before.
        let prompt = tokens.is_empty().then(Vec::new);
        Self {
            request: Arc::new(request),
            tokens,
            outputs: Vec::new(),
            prompt,
            cached_tokens: None,
            end: None,
        }
    }

    /// Of a sequence that another driver left at the leader.
    pub(super) fn held(held: &HeldSequence, request: SequenceRequest) -> Self {
        Self { outputs: held.outputs.clone(), prompt: None, end: held.end, ..Self::new(request) }
    }

    pub(super) fn request(&self) -> &Arc<SequenceRequest> {
        &self.request
    }

    /// Tokens generated so far.
    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    pub(super) fn end(&self) -> Option<SequenceEnd> {
        self.end
    }

    /// Whether `request` asks for this very answer, and what it has of it does not contradict.
    pub(super) fn is_of(&self, request: &SequenceRequest) -> bool {
        // A front door does not ask twice for what the prompt's tokens say.
        let asked = |params: &SequenceParams| SequenceParams { prompt_logprobs: false, ..params.clone() };
        let (prompt, known) = request.tokens.split_at(request.prompt_len);
        self.request.tokens == prompt
            && self.request.tenant == request.tenant
            && self.request.cache_salt == request.cache_salt
            && asked(&self.request.params) == asked(&request.params)
            && self.tokens.iter().zip(known).all(|(a, b)| a == b)
    }

    /// All that `request`, which asks for this very answer, does not have yet. `None` if some of it is not here any more.
    pub(super) fn beyond(&self, request: &SequenceRequest) -> Option<SequenceEvent> {
        let has = request.tokens.len() - request.prompt_len;
        let lacking = self.tokens.get(has..).unwrap_or_default();
        let tokens = if request.params.logprobs.is_some() {
            self.outputs.get(self.outputs.len().checked_sub(lacking.len())?..)?.to_vec()
        } else {
            lacking
                .iter()
                .map(|token| TokenOutput { token: *token, logprob: None, top: Vec::new() })
                .collect()
        };
        let prompt = if request.params.prompt_logprobs { self.prompt.clone()? } else { Vec::new() };
        Some(SequenceEvent { prompt, tokens, end: self.end, cached_tokens: self.cached_tokens })
    }

    /// Takes in news.
    pub(super) fn take(&mut self, event: &SequenceEvent) {
        if let (Some(prompt), true) = (&mut self.prompt, self.request.params.prompt_logprobs) {
            prompt.extend_from_slice(&event.prompt);
        }
        self.tokens.extend(event.tokens.iter().map(|output| output.token));
        if self.request.params.logprobs.is_some() {
            self.outputs.extend_from_slice(&event.tokens);
        }
        self.cached_tokens = self.cached_tokens.or(event.cached_tokens);
        self.end = event.end;
    }

    /// About the memory it takes.
    pub(super) fn bytes(&self) -> usize {
        let output = |output: &TokenOutput| size_of::<TokenOutput>() + 8 * output.top.len();
        let prompt = self.prompt.iter().flatten().map(output).sum::<usize>();
        let words = self.request.tokens.len() + self.tokens.len();
        let fixed = size_of::<Self>() + size_of::<SequenceRequest>() + self.request.envelope.len();
        fixed + 4 * words + self.outputs.iter().map(output).sum::<usize>() + prompt
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(known: &[u32], logprobs: Option<u32>) -> SequenceRequest {
        let params = SequenceParams { max_tokens: 9, logprobs, ..SequenceParams::default() };
        SequenceRequest::new("r", [&[1, 2, 3], known].concat(), 3, params)
    }

    fn output(token: u32) -> TokenOutput {
        TokenOutput { token, logprob: Some(-0.5), top: vec![(token, -0.5)] }
    }

    fn event(tokens: &[u32]) -> SequenceEvent {
        SequenceEvent { tokens: tokens.iter().copied().map(output).collect(), ..SequenceEvent::default() }
    }

    fn tokens(event: Option<SequenceEvent>) -> Option<Vec<u32>> {
        event.map(|event| event.tokens.iter().map(|output| output.token).collect())
    }

    #[test]
    fn a_stream_begins_wherever_its_listener_is() {
        let mut answer = Answer::new(request(&[], None));
        answer.take(&SequenceEvent { cached_tokens: Some(2), ..event(&[7, 8]) });
        answer.take(&SequenceEvent { end: Some(SequenceEnd::Length), ..event(&[9]) });
        for (known, lacking) in
            [(&[][..], &[7, 8, 9][..]), (&[7], &[8, 9]), (&[7, 8, 9], &[]), (&[7, 8, 9, 1], &[])]
        {
            let asked = request(known, None);
            assert!(answer.is_of(&asked), "{known:?}");
            let event = answer.beyond(&asked).expect("all is here");
            assert_eq!((event.end, event.cached_tokens), (Some(SequenceEnd::Length), Some(2)));
            assert_eq!(tokens(Some(event)).as_deref(), Some(lacking));
        }
    }

    #[test]
    fn another_request_is_another() {
        let mut answer = Answer::new(request(&[], None));
        answer.take(&event(&[7, 8]));
        let other = |change: fn(&mut SequenceRequest)| {
            let mut other = request(&[7], None);
            change(&mut other);
            answer.is_of(&other)
        };
        assert!(
            other(|_| {}) && other(|r| r.params.prompt_logprobs = true) && other(|r| r.deadline_ms = Some(1))
        );
        assert!(!other(|r| r.tokens[0] = 9), "prompt");
        assert!(!other(|r| r.tokens[3] = 9), "what it says it has");
        assert!(!other(|r| r.params.seed = 9), "parameters");
        assert!(!other(|r| r.params.adapter = Some(1)), "with an adapter");
        assert!(!other(|r| r.tenant = "t".into()) && !other(|r| r.cache_salt = Some("s".into())));
        assert!(!other(|r| r.prompt_len = 4), "where the prompt ends");
    }

    #[test]
    fn what_another_driver_was_told_is_not_here() {
        let held = HeldSequence {
            sequence: 1,
            tokens: vec![1, 2, 3, 7, 8],
            prompt_len: 3,
            params: request(&[], Some(1)).params,
            envelope: vec![],
            blocks: vec![],
            cached: 4,
            outputs: vec![output(8)],
            end: None,
            reading_prompt: false,
            decodes: true,
        };
        let mut answer = Answer::held(&held, request(&[7, 8], Some(1)));
        answer.take(&event(&[9]));
        assert_eq!(tokens(answer.beyond(&request(&[7], Some(1)))), Some(vec![8, 9]));
        assert_eq!(answer.beyond(&request(&[], Some(1))), None, "the first one's probability");
        assert_eq!(tokens(answer.beyond(&request(&[], None))), Some(vec![7, 8, 9]));
        let mut prompt = request(&[7], Some(1));
        prompt.params.prompt_logprobs = true;
        assert_eq!(answer.beyond(&prompt), None, "the prompt's probabilities");
    }

    #[test]
    fn probabilities_of_the_prompt_are_told_again() {
        let mut asked = request(&[], Some(1));
        asked.params.prompt_logprobs = true;
        let mut answer = Answer::new(asked.clone());
        let before = answer.bytes();
        answer.take(&SequenceEvent { prompt: vec![output(1), output(2)], ..event(&[]) });
        answer.take(&SequenceEvent { prompt: vec![output(3)], ..event(&[7]) });
        let told = answer.beyond(&asked).expect("all is here");
        assert_eq!((told.prompt.len(), told.tokens), (3, vec![output(7)]));
        assert!(answer.bytes() >= before + 4 * size_of::<TokenOutput>());
    }
}
