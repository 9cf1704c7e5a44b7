//! Which rows the steps of a server have that is never without requests: prompts of one length, answers of another, so many at
//! once. Whoever is done makes room for a new request, whose prompt is read beside what is decoded.

/// A request: its prompt is read first, then its answer is decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Request {
    /// Positions of the prompt that were read.
    read: usize,
    /// Tokens of the answer.
    made: usize,
}

/// Rows of one request in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) slot: usize,
    /// The first of its positions.
    pub(super) start: usize,
    pub(super) len: usize,
    /// Whether its last row gives a token.
    pub(super) gives: bool,
}

/// All requests, and how long each is.
#[derive(Debug, Clone)]
pub(super) struct Serving {
    prompt: usize,
    output: usize,
    /// Most rows of a step.
    rows: usize,
    requests: Vec<Request>,
    /// Slots whose prompts are being read, those that came first in front.
    reading: std::collections::VecDeque<usize>,
}

impl Serving {
    /// `streams` requests (at most `rows`), spread evenly over their answers: as they are after some time.
    pub(super) fn new(prompt: usize, output: usize, streams: usize, rows: usize) -> Self {
        assert!(prompt > 0 && output > 0 && streams <= rows, "every request decodes in every step");
        let made =
            |slot: usize| Request { read: prompt, made: 1 + slot * output.saturating_sub(1) / streams };
        Self {
            prompt,
            output,
            rows,
            requests: (0..streams).map(made).collect(),
            reading: std::collections::VecDeque::new(),
        }
    }

    /// Requests at once.
    pub(super) fn streams(&self) -> usize {
        self.requests.len()
    }

    /// Of the longest request.
    pub(super) fn positions(&self) -> usize {
        self.prompt + self.output
    }

    /// The next step: a row of each request that decodes, and of prompts as many as there is room for.
    pub(super) fn next(&mut self) -> Vec<Part> {
        let mut parts = Vec::new();
        for (slot, request) in self.requests.iter_mut().enumerate() {
            if request.read < self.prompt {
                continue;
            }
            parts.push(Part { slot, start: self.prompt + request.made - 1, len: 1, gives: true });
            request.made += 1;
            if request.made >= self.output {
                *request = Request { read: 0, made: 0 };
                self.reading.push_back(slot);
            }
        }
        let mut room = self.rows - parts.len();
        // Those that ended in this step begin in the next.
        let decoded: Vec<usize> = parts.iter().map(|part| part.slot).collect();
        while let Some(slot) = self.reading.front().copied().filter(|_| room > 0) {
            if decoded.binary_search(&slot).is_ok() {
                break;
            }
            let request = &mut self.requests[slot];
            let len = room.min(self.prompt - request.read);
            let gives = request.read + len == self.prompt;
            parts.push(Part { slot, start: request.read, len, gives });
            request.read += len;
            room -= len;
            if !gives {
                break;
            }
            request.made = 1;
            self.reading.pop_front();
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(parts: &[Part]) -> usize {
        parts.iter().filter(|part| part.gives).count()
    }

    #[test]
    fn a_request_reads_its_prompt_and_then_decodes_one_by_one() {
        let mut serving = Serving::new(5, 3, 1, 4);
        let steps: Vec<Vec<(usize, usize, bool)>> = (0..6)
            .map(|_| serving.next().iter().map(|part| (part.start, part.len, part.gives)).collect())
            .collect();
        let decode = |at: usize| vec![(at, 1, true)];
        let read = |at: usize, len: usize| vec![(at, len, at + len == 5)];
        // An answer's first token is that of its prompt, and its last is not fed again.
        assert_eq!(steps, [decode(5), decode(6), read(0, 4), read(4, 1), decode(5), decode(6)]);
    }

    #[test]
    fn as_many_prompts_are_read_as_answers_end() {
        let (prompt, output, streams, rows) = (100, 100, 16, 64);
        let mut serving = Serving::new(prompt, output, streams, rows);
        let (mut read, mut made) = (0, 0);
        for _ in 0..2_000 {
            let parts = serving.next();
            assert!(parts.iter().map(|part| part.len).sum::<usize>() <= rows, "no more rows than fit");
            assert!(parts.iter().all(|part| part.start + part.len < prompt + output), "within its positions");
            let mut slots: Vec<usize> = parts.iter().map(|part| part.slot).collect();
            slots.sort_unstable();
            slots.dedup();
            assert_eq!(slots.len(), parts.len(), "a request has one part of a step");
            read += parts.iter().filter(|part| part.start < prompt).map(|part| part.len).sum::<usize>();
            made += tokens(&parts);
        }
        let off = read.abs_diff(made * prompt / output);
        assert!(off <= streams * prompt, "{read} positions read for {made} tokens");
        assert!(made > 2_000 * streams / 2, "{made} tokens");
    }
}
