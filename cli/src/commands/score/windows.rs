//! Cutting a long text into windows that fit the context.

use std::ops::Range;

/// Tokens that go through the model at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Window {
    /// Their places in the text.
    pub(super) tokens: Range<usize>,
    /// From here on they count; those before are context only.
    pub(super) scored_from: usize,
}

/// Windows of `window` tokens, each `stride` further on. Every token but the first, which nothing precedes, counts in
/// exactly one: in the first that holds it. `stride` is below `window`.
pub(super) fn windows(tokens: usize, window: usize, stride: usize) -> Vec<Window> {
    let mut windows = Vec::new();
    let (mut start, mut scored_from) = (0, 1);
    while scored_from < tokens {
        let end = (start + window).min(tokens);
        windows.push(Window { tokens: start..end, scored_from });
        (start, scored_from) = (start + stride, end);
    }
    windows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_but_the_first_counts_once() {
        for tokens in 0..40 {
            for window in 2..12 {
                for stride in 1..window {
                    let cut = windows(tokens, window, stride);
                    let counted: Vec<usize> = cut.iter().flat_map(|w| w.scored_from..w.tokens.end).collect();
                    let expected: Vec<usize> = (1..tokens).collect();
                    assert_eq!(counted, expected, "{tokens} {window} {stride}");
                    for w in &cut {
                        assert!(w.tokens.len() <= window && w.scored_from > w.tokens.start, "{w:?}");
                        assert_eq!(w.tokens.start % stride, 0);
                    }
                }
            }
        }
    }

    #[test]
    fn later_windows_have_context() {
        let cut = windows(10, 4, 2);
        let ranges: Vec<_> = cut.iter().map(|w| (w.tokens.clone(), w.scored_from)).collect();
        assert_eq!(ranges, [(0..4, 1), (2..6, 4), (4..8, 6), (6..10, 8)]);
        assert_eq!(windows(4, 4, 2).len(), 1);
    }
}
