//! From a sequence's outputs to a choice's events.

use std::sync::Arc;

use foggara_proto::sequence::{SequenceEnd, TokenOutput};

use super::{Event, FinishReason, Token, Usage};
use crate::front_door::models::ServedModel;
use crate::front_door::request::GenerationRequest;
use crate::text::{Detokenizer, StopMatcher};

/// Turns outputs into events. What comes of them does not depend on how many come at once.
pub(super) struct Shape {
    model: Arc<ServedModel>,
    detokenizer: Option<Detokenizer>,
    stops: StopMatcher,
    stop_ids: Vec<u32>,
    include_stop: bool,
    /// Tokens before which no stop string counts.
    min_tokens: usize,
    prompt: Prompt,
    prompt_tokens: usize,
    cached_tokens: usize,
    /// Tokens generated and not past a stop string.
    shown: usize,
}

/// What is to be told of the prompt.
struct Prompt {
    /// Whether it has not been told yet.
    wanted: bool,
    /// Its text, if it is echoed.
    text: String,
    /// Alternatives to tell of in an echo.
    echo: Option<usize>,
    /// Alternatives to tell of apart from an echo.
    scored: Option<usize>,
    /// Tokens that come with log-probabilities before it can be told, and those that have come.
    expected: usize,
    tokens: Vec<Token>,
}

type Finish = (FinishReason, Option<String>, Option<u32>);

impl Shape {
    /// For the choice `index` of a request.
    pub(super) fn new(request: &GenerationRequest, index: usize) -> Self {
        let params = &request.sequence.params;
        let first = index == 0;
        let prompt = Prompt {
            wanted: first && request.tells_prompt(),
            text: request.prompt_text.clone().filter(|_| first).unwrap_or_default(),
            echo: request.echo_logprobs,
            scored: request.prompt_logprobs,
            expected: if params.prompt_logprobs { request.sequence.prompt_len } else { 0 },
            tokens: Vec::new(),
        };
        let tokenizer = request.model.tokenizer.clone();
        Self {
            model: Arc::clone(&request.model),
            detokenizer: tokenizer.map(|tokenizer| Detokenizer::new(tokenizer, request.special)),
            stops: StopMatcher::new(&request.stop, request.include_stop),
            stop_ids: params.stop_token_ids.clone(),
            include_stop: request.include_stop,
            min_tokens: params.min_tokens as usize,
            prompt,
            prompt_tokens: if first { request.sequence.prompt_len } else { 0 },
            cached_tokens: 0,
            shown: 0,
        }
    }

    fn bytes(&self, id: u32) -> Vec<u8> {
        self.model.tokenizer.as_ref().map(|tokenizer| tokenizer.token_bytes(id)).unwrap_or_default()
    }

    fn token(&self, output: TokenOutput) -> Token {
        let top = output.top.into_iter().map(|(id, logprob)| (id, self.bytes(id), logprob)).collect();
        Token { id: output.token, bytes: self.bytes(output.token), logprob: output.logprob, top }
    }

    /// Notes how much of the prompt was in the cache, if that is told. Of a prompt that others count, nothing is.
    pub(super) fn cached(&mut self, told: Option<u32>) {
        if let Some(tokens) = told {
            self.cached_tokens = (tokens as usize).min(self.prompt_tokens);
        }
    }

    /// Collects the prompt's tokens; the event comes when all are there.
    pub(super) fn prompt(&mut self, outputs: Vec<TokenOutput>) -> Option<Event> {
        let tokens: Vec<Token> = outputs.into_iter().map(|output| self.token(output)).collect();
        let prompt = &mut self.prompt;
        prompt.tokens.extend(tokens);
        if !prompt.wanted || prompt.tokens.len() < prompt.expected {
            return None;
        }
        prompt.wanted = false;
        let tokens = std::mem::take(&mut prompt.tokens);
        let with = |count: Option<usize>| count.map(|count| cut(&tokens, count)).unwrap_or_default();
        let (echoed, scored) = (with(prompt.echo), with(prompt.scored));
        Some(Event::Prompt { text: std::mem::take(&mut prompt.text), tokens: echoed, scored })
    }

    /// Text and tokens of a step, and the end if it has come.
    pub(super) fn tokens(
        &mut self,
        outputs: Vec<TokenOutput>,
        end: Option<SequenceEnd>,
    ) -> (Option<Event>, Option<Event>) {
        let count = outputs.len();
        let (mut text, mut tokens, mut finish) = (String::new(), Vec::new(), None);
        for (i, output) in outputs.into_iter().enumerate() {
            let id = output.token;
            tokens.push(self.token(output));
            self.shown += 1;
            let ends = end == Some(SequenceEnd::StopToken) && i + 1 == count && self.stop_ids.contains(&id);
            if ends {
                finish = Some((FinishReason::Stop, None, Some(id)));
                if !self.include_stop {
                    break;
                }
            }
            let piece = self.detokenizer.as_mut().map(|detokenizer| detokenizer.push(id)).unwrap_or_default();
            if let Some(stop) = self.show(&piece, &mut text) {
                finish = Some((FinishReason::Stop, Some(stop), None));
                break;
            }
        }
        if finish.is_none() {
            finish = end.map(|end| match end {
                SequenceEnd::StopToken => (FinishReason::Stop, None, None),
                SequenceEnd::Length => (FinishReason::Length, None, None),
            });
        }
        if finish.as_ref().is_some_and(|(_, stop, _)| stop.is_none()) {
            // What was held back turned out to be text.
            let rest = self.detokenizer.as_mut().map(Detokenizer::finish).unwrap_or_default();
            if let Some(stop) = self.show(&rest, &mut text) {
                finish = Some((FinishReason::Stop, Some(stop), None));
            } else {
                text.push_str(&self.stops.finish());
            }
        }
        let delta = (!text.is_empty() || !tokens.is_empty()).then_some(Event::Delta { text, tokens });
        (delta, finish.map(|finish| self.finished(finish)))
    }

    /// Adds what may be shown of `piece` to `text`; the stop string if it completes one.
    fn show(&mut self, piece: &str, text: &mut String) -> Option<String> {
        if self.shown <= self.min_tokens {
            text.push_str(&self.stops.push_exempt(piece));
            return None;
        }
        let matched = self.stops.push(piece);
        text.push_str(&matched.text);
        matched.stop
    }

    fn finished(&self, (reason, stop_string, stop_token): Finish) -> Event {
        let usage = Usage {
            prompt_tokens: self.prompt_tokens,
            cached_tokens: self.cached_tokens,
            completion_tokens: self.shown,
        };
        Event::Finished { reason, stop_string, stop_token, usage }
    }
}

/// The tokens with at most `count` alternatives.
fn cut(tokens: &[Token], count: usize) -> Vec<Token> {
    let few = |token: &Token| Token { top: token.top.iter().take(count).cloned().collect(), ..token.clone() };
    tokens.iter().map(few).collect()
}
