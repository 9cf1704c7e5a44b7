//! When the tokens of one answer arrived.

use std::time::Instant;

/// One message with tokens in it.
#[derive(Debug, Clone, Copy)]
struct Arrival {
    at: Instant,
    tokens: usize,
}

/// The course of one request.
#[derive(Debug)]
pub(crate) struct Trace {
    sent: Instant,
    arrivals: Vec<Arrival>,
    /// Generated tokens as the server counted them at the end.
    counted: Option<usize>,
}

impl Trace {
    /// A request is sent now.
    pub(crate) fn start() -> Self {
        Self { sent: Instant::now(), arrivals: Vec::new(), counted: None }
    }

    /// Tokens have arrived now.
    pub(super) fn arrived(&mut self, tokens: usize) {
        if tokens > 0 {
            self.arrivals.push(Arrival { at: Instant::now(), tokens });
        }
    }

    /// The server says it generated this many.
    pub(super) fn counted(&mut self, tokens: usize) {
        self.counted = Some(tokens);
    }

    /// Generated tokens: the server's count where it gave one.
    pub(crate) fn tokens(&self) -> usize {
        self.counted.unwrap_or_else(|| self.arrivals.iter().map(|arrival| arrival.tokens).sum())
    }

    /// When the request was sent.
    pub(crate) fn sent(&self) -> Instant {
        self.sent
    }

    /// When the first token came.
    pub(crate) fn first(&self) -> Option<Instant> {
        self.arrivals.first().map(|arrival| arrival.at)
    }

    /// When the last token came.
    pub(crate) fn last(&self) -> Option<Instant> {
        self.arrivals.last().map(|arrival| arrival.at)
    }

    /// Seconds from sending to the first token.
    pub(crate) fn first_token_seconds(&self) -> Option<f64> {
        Some((self.first()? - self.sent).as_secs_f64())
    }

    /// Tokens per second after the first message, by the server's count.
    pub(crate) fn decode_rate(&self) -> Option<f64> {
        let seconds = (self.last()? - self.first()?).as_secs_f64();
        let tokens = self.tokens().checked_sub(self.arrivals.first()?.tokens)?;
        (seconds > 0.0).then(|| tokens as f64 / seconds)
    }

    /// Seconds between consecutive messages with tokens: what a reader sees.
    pub(crate) fn gaps(&self) -> impl Iterator<Item = f64> {
        self.arrivals.windows(2).map(|pair| (pair[1].at - pair[0].at).as_secs_f64())
    }

    /// The same between messages that both came within `from` and `to`.
    pub(crate) fn gaps_within(&self, from: Instant, to: Instant) -> impl Iterator<Item = f64> {
        let within = move |arrival: &Arrival| (from..=to).contains(&arrival.at);
        let pairs = self.arrivals.windows(2).filter(move |pair| within(&pair[0]) && within(&pair[1]));
        pairs.map(|pair| (pair[1].at - pair[0].at).as_secs_f64())
    }

    /// Messages with tokens so far.
    pub(crate) fn messages(&self) -> usize {
        self.arrivals.len()
    }

    /// Tokens that came after `from`, until `to`.
    pub(crate) fn tokens_within(&self, from: Instant, to: Instant) -> usize {
        let within = self.arrivals.iter().filter(|arrival| arrival.at > from && arrival.at <= to);
        within.map(|arrival| arrival.tokens).sum()
    }
}

/// Tokens per second of several traces together while all of them were decoding: from the moment when the last of them had
/// its first token to the moment when the first had its last. `None` if there is no such time.
pub(crate) fn common_decode_rate(traces: &[Trace]) -> Option<f64> {
    let from = traces.iter().map(Trace::first).collect::<Option<Vec<_>>>()?.into_iter().max()?;
    let to = traces.iter().map(Trace::last).collect::<Option<Vec<_>>>()?.into_iter().min()?;
    let seconds = to.checked_duration_since(from)?.as_secs_f64();
    let tokens: usize = traces.iter().map(|trace| trace.tokens_within(from, to)).sum();
    (seconds > 0.0).then(|| tokens as f64 / seconds)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A trace whose messages of two tokens came at `millis` after `start`.
    fn trace(start: Instant, millis: &[u64]) -> Trace {
        let arrival = |ms: &u64| Arrival { at: start + Duration::from_millis(*ms), tokens: 2 };
        Trace { sent: start, arrivals: millis.iter().map(arrival).collect(), counted: None }
    }

    #[test]
    fn one_trace() {
        let trace = trace(Instant::now(), &[100, 150, 200, 300]);
        assert_eq!(trace.tokens(), 8);
        assert_eq!(trace.first_token_seconds(), Some(0.1));
        assert!((trace.decode_rate().expect("four messages") - 30.0).abs() < 1e-9);
        let gaps: Vec<f64> = trace.gaps().collect();
        assert_eq!(gaps, [0.05, 0.05, 0.1]);
        let at = |ms| trace.sent + Duration::from_millis(ms);
        assert_eq!(trace.gaps_within(at(150), at(299)).collect::<Vec<f64>>(), [0.05]);
    }

    #[test]
    fn the_servers_count_wins() {
        let mut trace = trace(Instant::now(), &[100, 200]);
        trace.counted(12);
        assert_eq!(trace.tokens(), 12);
        assert!((trace.decode_rate().expect("two messages") - 100.0).abs() < 1e-9);
    }

    #[test]
    fn an_answer_without_tokens_has_no_rate() {
        let empty = trace(Instant::now(), &[]);
        assert_eq!((empty.first_token_seconds(), empty.decode_rate()), (None, None));
        assert_eq!(trace(Instant::now(), &[5]).decode_rate(), None);
    }

    #[test]
    fn together_means_while_all_decode() {
        let start = Instant::now();
        let traces = [trace(start, &[100, 200, 300, 400]), trace(start, &[200, 300, 400, 500])];
        // From 200 ms to 400 ms: two messages of two tokens from each.
        assert!((common_decode_rate(&traces).expect("they overlap") - 40.0).abs() < 1e-9);
        let apart = [trace(start, &[100, 200]), trace(start, &[300, 400])];
        assert_eq!(common_decode_rate(&apart), None);
    }
}
