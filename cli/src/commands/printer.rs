//! Printing answers as they come.

use std::io::{IsTerminal, Write};
use std::time::Instant;

use foggara_proto::wire::inference as wire;

use crate::answer::AnswerStream;

/// Prints answers as they come, and how fast they came. Of several, the first that has not ended is printed; the others
/// wait for their turn.
pub(crate) struct Printer {
    answers: Answers,
    started: Instant,
    first: Option<Instant>,
    tokens: usize,
    prompt_tokens: u32,
    /// Answers that were cut at the limit.
    cut: usize,
}

impl Printer {
    /// Nothing has come yet.
    pub(crate) fn new() -> Self {
        Self {
            answers: Answers::new(1),
            started: Instant::now(),
            first: None,
            tokens: 0,
            prompt_tokens: 0,
            cut: 0,
        }
    }

    /// Prints until the stream ends.
    pub(crate) async fn print(&mut self, stream: &mut AnswerStream) -> anyhow::Result<()> {
        use wire::generate_response::Event;
        while let Some(message) = stream.message().await? {
            match message.event {
                Some(Event::Delta(delta)) => {
                    if !delta.token_ids.is_empty() {
                        self.first.get_or_insert_with(Instant::now);
                        self.tokens += delta.token_ids.len();
                    }
                    self.answers.add(delta.index, &delta.text);
                }
                Some(Event::Finished(finished)) => {
                    self.prompt_tokens += finished.usage.map_or(0, |usage| usage.prompt_tokens);
                    self.cut += usize::from(finished.reason() == wire::FinishReason::Length);
                    self.answers.end(finished.index);
                }
                Some(Event::Started(started)) => self.answers = Answers::new(started.n as usize),
                None => {}
            }
            let mut out = std::io::stdout().lock();
            out.write_all(self.answers.take().as_bytes())?;
            out.flush()?;
        }
        Ok(())
    }

    /// Ends the line; on a terminal, tells the speed.
    pub(crate) fn end(&self) -> anyhow::Result<()> {
        if !self.answers.ends_with_newline() {
            writeln!(std::io::stdout())?;
        }
        if std::io::stderr().is_terminal() {
            eprintln!("\x1b[2m{}\x1b[0m", self.summary());
        }
        Ok(())
    }

    /// The text of the first answer.
    pub(crate) fn into_text(self) -> String {
        self.answers.list.into_iter().next().map(|answer| answer.text).unwrap_or_default()
    }

    fn summary(&self) -> String {
        let prompt = self.prompt_tokens;
        let Some(first) = self.first else { return format!("[{prompt} prompt tokens, no answer]") };
        let to_first = first.duration_since(self.started).as_millis();
        let seconds = first.elapsed().as_secs_f64();
        let rate = match self.tokens {
            0 | 1 => String::new(),
            tokens => format!(", then {:.0} tok/s", (tokens - 1) as f64 / seconds.max(1e-9)),
        };
        let end = match (self.answers.all_ended(), self.cut) {
            (false, _) => ", interrupted",
            (true, 0) => "",
            (true, _) => ", cut at the limit",
        };
        format!("[{prompt} prompt + {} answer tokens; first after {to_first} ms{rate}{end}]", self.tokens)
    }
}

/// What has come of each answer, and what is printed.
struct Answers {
    list: Vec<Answer>,
    /// The one being printed.
    current: usize,
    /// Of its text.
    printed: usize,
    /// Whether the heading of the current one is still to be printed.
    heading: bool,
}

#[derive(Default, Clone)]
struct Answer {
    text: String,
    ended: bool,
}

impl Answers {
    fn new(n: usize) -> Self {
        Self { list: vec![Answer::default(); n.max(1)], current: 0, printed: 0, heading: n > 1 }
    }

    fn add(&mut self, index: u32, text: &str) {
        if let Some(answer) = self.list.get_mut(index as usize) {
            answer.text.push_str(text);
        }
    }

    fn end(&mut self, index: u32) {
        if let Some(answer) = self.list.get_mut(index as usize) {
            answer.ended = true;
        }
    }

    fn all_ended(&self) -> bool {
        self.list.iter().all(|answer| answer.ended)
    }

    fn ends_with_newline(&self) -> bool {
        self.list.get(self.current).is_some_and(|answer| answer.text.ends_with('\n'))
    }

    /// What can be printed now.
    fn take(&mut self) -> String {
        let mut out = String::new();
        loop {
            let answer = &self.list[self.current];
            if std::mem::take(&mut self.heading) {
                out.push_str(&format!("--- {} of {} ---\n", self.current + 1, self.list.len()));
            }
            out.push_str(&answer.text[self.printed..]);
            self.printed = answer.text.len();
            if !answer.ended || self.current + 1 == self.list.len() {
                return out;
            }
            if !answer.text.ends_with('\n') {
                out.push('\n');
            }
            (self.current, self.printed, self.heading) = (self.current + 1, 0, true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_printed_one_after_the_other() {
        let mut answers = Answers::new(3);
        answers.add(1, "one");
        answers.add(0, "ze");
        assert_eq!(answers.take(), "--- 1 of 3 ---\nze");
        answers.end(1);
        answers.add(2, "two\n");
        assert_eq!(answers.take(), "");
        answers.add(0, "ro");
        answers.end(0);
        assert_eq!(answers.take(), "ro\n--- 2 of 3 ---\none\n--- 3 of 3 ---\ntwo\n");
        assert!(!answers.all_ended() && answers.ends_with_newline());
        answers.end(2);
        assert_eq!((answers.take(), answers.all_ended()), (String::new(), true));
        let mut alone = Answers::new(1);
        alone.add(0, "a");
        alone.add(7, "nobody's");
        assert_eq!(alone.take(), "a");
    }
}
