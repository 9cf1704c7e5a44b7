//! Stop strings over a stream of text.

/// Finds the first stop string, and holds back only what may be the beginning of one.
#[derive(Debug)]
pub struct StopMatcher {
    stops: Vec<String>,
    held: String,
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
    /// Looks for any of `stops`; empty ones are ignored.
    pub fn new(stops: &[String]) -> Self {
        Self { stops: stops.iter().filter(|stop| !stop.is_empty()).cloned().collect(), held: String::new() }
    }

    /// Adds text.
    pub fn push(&mut self, text: &str) -> Matched {
        if self.stops.is_empty() {
            return Matched { text: text.to_owned(), stop: None };
        }
        self.held.push_str(text);
        // The earliest; of several that begin there, the first listed.
        let first = self.stops.iter().filter_map(|stop| Some((self.held.find(stop.as_str())?, stop)));
        if let Some((at, stop)) = first.min_by_key(|(at, _)| *at) {
            let matched = Matched { text: self.held[..at].to_owned(), stop: Some(stop.clone()) };
            self.held.clear();
            return matched;
        }
        let keep = self.stops.iter().map(|stop| longest_beginning(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        Matched { text: std::mem::replace(&mut self.held, rest), stop: None }
    }

    /// Ends the stream; returns what was held back.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Bytes at the end of `text` that are a proper beginning of `stop`.
fn longest_beginning(text: &str, stop: &str) -> usize {
    let cuts = stop.char_indices().map(|(at, _)| at).skip(1);
    cuts.filter(|cut| text.ends_with(&stop[..*cut])).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `text` in pieces of every size; the result must not depend on it.
    fn run(text: &str, stops: &[&str]) -> (String, Option<String>) {
        let stops: Vec<String> = stops.iter().map(|s| s.to_string()).collect();
        let mut results = Vec::new();
        for size in 1..=text.chars().count().max(1) {
            let chars: Vec<char> = text.chars().collect();
            let mut matcher = StopMatcher::new(&stops);
            let (mut shown, mut stop) = (String::new(), None);
            for piece in chars.chunks(size) {
                let matched = matcher.push(&piece.iter().collect::<String>());
                shown.push_str(&matched.text);
                if matched.stop.is_some() {
                    stop = matched.stop;
                    break;
                }
            }
            if stop.is_none() {
                shown.push_str(&matcher.finish());
            }
            results.push((shown, stop));
        }
        assert!(results.windows(2).all(|pair| pair[0].0 == pair[1].0), "{results:?}");
        results.swap_remove(0)
    }

    #[test]
    fn the_first_stop_ends_the_text_whatever_the_pieces() {
        for (text, stops, shown, stop) in [
            ("hello world", &["wor"][..], "hello ", Some("wor")),
            ("hello world", &["xyz"], "hello world", None),
            ("aaab", &["aab"], "a", Some("aab")),
            ("one two", &["two", "one"], "", Some("one")),
            ("ends with st", &["stop"], "ends with st", None),
            ("日本語です", &["語"], "日本", Some("語")),
            ("x\n\nUser:", &["\n\nUser:", "\n\n\n"], "x", Some("\n\nUser:")),
            ("", &["a"], "", None),
        ] {
            assert_eq!(run(text, stops), (shown.to_string(), stop.map(str::to_string)), "{text}");
        }
    }
}
