//! Stop strings over a stream of text.

use std::ops::Range;

/// Finds the first stop string, and holds back only what may be the beginning of one.
///
/// The first is the one that is complete first (of several that end together, the longest), so that what is found does
/// not depend on how the text was cut into pieces.
#[derive(Debug)]
pub struct StopMatcher {
    stops: Vec<String>,
    /// Whether the stop string itself is shown.
    shown: bool,
    held: String,
    /// Bytes of `held` in which no stop string may end.
    exempt: usize,
}

/// What came of a piece of text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matched {
    /// Text to show.
    pub text: String,
    /// The stop string that ended the stream: nothing more is to be shown.
    pub stop: Option<String>,
}

impl StopMatcher {
    /// Looks for any of `stops`; empty ones match nothing. The one that is found is part of the text if `shown`.
    pub fn new(stops: &[String], shown: bool) -> Self {
        Self { stops: stops.to_vec(), shown, held: String::new(), exempt: 0 }
    }

    /// Adds text.
    pub fn push(&mut self, text: &str) -> Matched {
        self.held.push_str(text);
        if let Some((range, stop)) = self.first_match() {
            let mut text = std::mem::take(&mut self.held);
            text.truncate(if self.shown { range.end } else { range.start });
            return Matched { text, stop: Some(stop) };
        }
        Matched { text: self.release(), stop: None }
    }

    /// Adds text in which no stop string may end, though one may begin. Returns text to show.
    pub fn push_exempt(&mut self, text: &str) -> String {
        self.held.push_str(text);
        self.exempt = self.held.len();
        self.release()
    }

    /// Lets go of all that cannot be the beginning of a stop string.
    fn release(&mut self) -> String {
        let keep = self.stops.iter().map(|stop| longest_beginning(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        self.exempt = self.exempt.saturating_sub(self.held.len());
        std::mem::replace(&mut self.held, rest)
    }

    /// Ends the stream; returns what was held back.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Where the first complete stop string lies in the held text, and which it is.
    fn first_match(&self) -> Option<(Range<usize>, String)> {
        let found = self.stops.iter().filter(|stop| !stop.is_empty()).filter_map(|stop| {
            let mut from = (self.exempt + 1).saturating_sub(stop.len()).min(self.held.len());
            while !self.held.is_char_boundary(from) {
                from += 1;
            }
            let start = from + self.held[from..].find(stop.as_str())?;
            Some((start..start + stop.len(), stop))
        });
        let first = found.min_by_key(|(range, _)| (range.end, range.start));
        first.map(|(range, stop)| (range, stop.clone()))
    }
}

/// Bytes at the end of `text` that are a proper beginning of `stop`.
fn longest_beginning(text: &str, stop: &str) -> usize {
    let cuts = stop.char_indices().map(|(at, _)| at).skip(1);
    cuts.filter(|cut| text.ends_with(&stop[..*cut])).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Feeds `text` in pieces of `size` characters; returns what was shown and what stopped it.
    fn run(text: &str, stops: &[&str], size: usize) -> (String, Option<String>) {
        let stops: Vec<String> = stops.iter().map(|s| s.to_string()).collect();
        let chars: Vec<char> = text.chars().collect();
        let mut matcher = StopMatcher::new(&stops, false);
        let mut shown = String::new();
        for piece in chars.chunks(size) {
            let matched = matcher.push(&piece.iter().collect::<String>());
            shown.push_str(&matched.text);
            if matched.stop.is_some() {
                return (shown, matched.stop);
            }
        }
        shown.push_str(&matcher.finish());
        (shown, None)
    }

    #[test]
    fn the_first_stop_ends_the_text_whatever_the_pieces() {
        for (text, stops, shown, stop) in [
            ("hello world", &["wor"][..], "hello ", Some("wor")),
            ("hello world", &["xyz"], "hello world", None),
            ("hello world", &["", "d"], "hello worl", Some("d")),
            ("aaab", &["aab"], "a", Some("aab")),
            ("one two", &["two", "one"], "", Some("one")),
            ("ends with st", &["stop"], "ends with st", None),
            ("日本語です", &["語"], "日本", Some("語")),
            ("x\n\nUser:", &["\n\nUser:", "\n\n\n"], "x", Some("\n\nUser:")),
            // "b" is complete before "abc" is; of "ab" and "b", which end together, the longer one counts.
            ("abcd", &["abc", "b"], "a", Some("b")),
            ("xabc", &["b", "ab"], "x", Some("ab")),
            ("", &["a"], "", None),
        ] {
            for size in 1..=text.chars().count().max(1) {
                assert_eq!(
                    run(text, stops, size),
                    (shown.to_string(), stop.map(str::to_string)),
                    "{text:?} by {size}"
                );
            }
        }
    }

    #[test]
    fn only_what_may_begin_a_stop_is_held_back() {
        let mut matcher = StopMatcher::new(&["</end>".to_string()], false);
        assert_eq!(matcher.push("a <b"), Matched { text: "a <b".into(), stop: None });
        assert_eq!(matcher.push(" </"), Matched { text: " ".into(), stop: None });
        assert_eq!(matcher.push("em>"), Matched { text: "</em>".into(), stop: None });
        assert_eq!(matcher.finish(), "");
    }

    proptest! {
        /// Against the plain reading: the shortest beginning of the text that ends with a stop string.
        #[test]
        fn agrees_with_looking_at_every_beginning(
            text in "[abé]{0,24}", stops in prop::collection::vec("[abé]{1,4}", 0..4), size in 1usize..6,
        ) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let ends = text.char_indices().map(|(at, c)| at + c.len_utf8());
            let expected = ends.into_iter().find_map(|end| {
                let ending = stops.iter().filter(|stop| text[..end].ends_with(**stop));
                ending.map(|stop| stop.len()).max().map(|len| &text[..end - len])
            });
            let (shown, stopped) = run(&text, &stops, size);
            prop_assert_eq!(shown, expected.unwrap_or(&text));
            prop_assert_eq!(stopped.is_some(), expected.is_some());
        }

        /// The same where nothing may end in the first characters and the stop string is shown.
        #[test]
        fn no_stop_string_ends_where_none_may(
            text in "[abé]{0,24}", stops in prop::collection::vec("[abé]{1,4}", 0..4), exempt in 0usize..12,
        ) {
            let ends = text.char_indices().map(|(at, c)| at + c.len_utf8()).skip(exempt);
            let expected = ends.into_iter().find(|end| stops.iter().any(|stop| text[..*end].ends_with(stop.as_str())));
            let mut matcher = StopMatcher::new(&stops, true);
            let (mut shown, mut stopped) = (String::new(), false);
            for (place, c) in text.chars().enumerate() {
                if place < exempt {
                    shown.push_str(&matcher.push_exempt(&c.to_string()));
                    continue;
                }
                let matched = matcher.push(&c.to_string());
                shown.push_str(&matched.text);
                stopped = matched.stop.is_some();
                if stopped {
                    break;
                }
            }
            if !stopped {
                shown.push_str(&matcher.finish());
            }
            prop_assert_eq!(shown, &text[..expected.unwrap_or(text.len())]);
            prop_assert_eq!(stopped, expected.is_some());
        }
    }
}
