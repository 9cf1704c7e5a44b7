//! What has come of an answer, and what of a stream that tells it again is new. Pure.

use anyhow::ensure;
use foggara_proto::wire::inference as wire;
use foggara_proto::wire::inference::generate_response::Event;

/// What has come of each of a request's answers.
#[derive(Debug, Default)]
pub(super) struct Told {
    started: bool,
    answers: Vec<Answer>,
}

#[derive(Debug, Default, Clone)]
struct Answer {
    text: String,
    tokens: u32,
    ended: bool,
    /// Bytes at the end of `text`, and tokens, that are going to be told again.
    text_again: usize,
    tokens_again: usize,
}

impl Told {
    /// Of answers of which so many tokens came some other way.
    pub(super) fn beyond(tokens: &[u32]) -> Self {
        let answer = |tokens: &u32| Answer { tokens: *tokens, ..Answer::default() };
        Self { started: false, answers: tokens.iter().map(answer).collect() }
    }

    pub(super) fn has_started(&self) -> bool {
        self.started
    }

    /// Whether all answers have ended.
    pub(super) fn is_whole(&self) -> bool {
        self.started && self.answers.iter().all(|answer| answer.ended)
    }

    /// Tokens of each answer.
    pub(super) fn received(&self) -> Vec<u32> {
        self.answers.iter().map(|answer| answer.tokens).collect()
    }

    /// A stream follows that leaves out what was [`received`](Self::received). Of an answer without a token, that is nothing.
    pub(super) fn goes_on(&mut self) {
        for answer in &mut self.answers {
            answer.text_again = if answer.tokens == 0 { answer.text.len() } else { 0 };
            answer.tokens_again = 0;
        }
    }

    /// A stream follows that tells everything.
    pub(super) fn begins_again(&mut self) {
        for answer in &mut self.answers {
            (answer.text_again, answer.tokens_again) = (answer.text.len(), answer.tokens as usize);
        }
    }

    /// What is new in a message.
    ///
    /// # Errors
    /// If it tells something else than what was told before.
    pub(super) fn take(
        &mut self,
        mut message: wire::GenerateResponse,
    ) -> anyhow::Result<Option<wire::GenerateResponse>> {
        let new = match &mut message.event {
            Some(Event::Started(started)) => {
                let n = (started.n as usize).max(1).max(self.answers.len());
                self.answers.resize(n, Answer::default());
                !std::mem::replace(&mut self.started, true)
            }
            Some(Event::Delta(delta)) => match self.answers.get_mut(delta.index as usize) {
                Some(answer) => answer.add(delta)?,
                None => false,
            },
            Some(Event::Finished(finished)) => match self.answers.get_mut(finished.index as usize) {
                Some(answer) => !std::mem::replace(&mut answer.ended, true),
                None => false,
            },
            None => false,
        };
        Ok(new.then_some(message))
    }
}

impl Answer {
    /// Adds what is new of a delta, and leaves nothing else in it; `false` if nothing is.
    fn add(&mut self, delta: &mut wire::Delta) -> anyhow::Result<bool> {
        let again = self.text_again.min(delta.text.len());
        let from = self.text.len() - self.text_again;
        let same = self.text.as_bytes()[from..from + again] == delta.text.as_bytes()[..again];
        ensure!(same, "the answer that came again is another one; was the model replaced?");
        delta.text.drain(..again);
        self.text_again -= again;
        self.text.push_str(&delta.text);
        let tokens = self.tokens_again.min(delta.token_ids.len());
        delta.token_ids.drain(..tokens);
        delta.logprobs.drain(..tokens.min(delta.logprobs.len()));
        self.tokens_again -= tokens;
        self.tokens += u32::try_from(delta.token_ids.len()).unwrap_or(u32::MAX);
        Ok(!delta.text.is_empty() || !delta.token_ids.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(event: Event) -> wire::GenerateResponse {
        wire::GenerateResponse { event: Some(event) }
    }

    fn started(n: u32) -> wire::GenerateResponse {
        event(Event::Started(wire::Started { n, ..Default::default() }))
    }

    fn delta(index: u32, text: &str, token_ids: &[u32]) -> wire::GenerateResponse {
        event(Event::Delta(wire::Delta {
            index,
            text: text.into(),
            token_ids: token_ids.into(),
            ..Default::default()
        }))
    }

    fn finished(index: u32) -> wire::GenerateResponse {
        event(Event::Finished(wire::Finished { index, ..Default::default() }))
    }

    /// What is new of each message.
    fn new(told: &mut Told, messages: Vec<wire::GenerateResponse>) -> Vec<wire::GenerateResponse> {
        messages.into_iter().filter_map(|message| told.take(message).expect("the same")).collect()
    }

    /// Two answers: of the first an echo and two tokens, of the second the echo alone.
    fn half() -> Told {
        let mut told = Told::default();
        let messages = vec![
            started(2),
            delta(0, "écho", &[]),
            delta(1, "écho", &[]),
            delta(0, "", &[7]),
            delta(0, "ab", &[8]),
        ];
        assert_eq!(new(&mut told, messages.clone()), messages);
        assert_eq!((told.received(), told.is_whole()), (vec![2, 0], false));
        told
    }

    #[test]
    fn what_goes_on_repeats_answers_without_tokens() {
        let mut told = half();
        told.goes_on();
        let rest = new(
            &mut told,
            vec![started(2), delta(0, "c", &[9]), delta(1, "échox", &[5, 6]), finished(0), finished(1)],
        );
        assert_eq!(rest, [delta(0, "c", &[9]), delta(1, "x", &[5, 6]), finished(0), finished(1)]);
        assert_eq!((told.received(), told.is_whole()), (vec![3, 2], true));
        told.goes_on();
        assert!(new(&mut told, vec![started(2), finished(0), finished(1)]).is_empty());
    }

    #[test]
    fn what_begins_again_may_come_in_other_pieces() {
        let mut told = half();
        told.begins_again();
        // It breaks off again in the middle, and goes on from what there is.
        assert!(new(&mut told, vec![started(2), delta(0, "écho", &[]), delta(0, "a", &[7])]).is_empty());
        assert_eq!(told.received(), [2, 0]);
        told.begins_again();
        let rest = new(&mut told, vec![started(2), delta(0, "échoabcd", &[7, 8, 9]), delta(1, "éc", &[])]);
        assert_eq!(rest, [delta(0, "cd", &[9])]);
        assert_eq!(told.received(), [3, 0]);
    }

    #[test]
    fn another_answer_is_none_to_go_on_with() {
        let mut told = half();
        told.begins_again();
        assert!(told.take(delta(0, "éxho", &[])).is_err());
        let mut told = Told::beyond(&[4]);
        assert_eq!(new(&mut told, vec![started(2), delta(0, "x", &[1])]).len(), 2);
        assert_eq!(told.received(), [5, 0]);
    }
}
