//! Drafts by prompt lookup: what followed the last tokens of a sequence where they stood in it before may well follow again.
//! (Saxena, "Prompt lookup decoding", 2023.)
//!
//! Drafted tokens are computed in one step with the last token, behind it. Each row is sampled as it would have been in a step of
//! its own; as far as what is sampled is what was drafted, the next row is one that would have followed. So drafts change no token:
//! a right one saves a step, a wrong one costs a row.
//!
//! Whether drafts are right is found out on paper. At every token of an answer it is noted whether the lookup had it, drafted or not.
//! A token is drafted when it is right so often lately that it is worth its row ([`Odds::worth`]); text that does not repeat is
//! charged with looking, not with rows. All of it follows from the tokens alone.

use std::collections::HashMap;

use foggara_proto::step::Drafts;

/// So many tokens that stand next to each other are looked for.
const ALIKE: usize = 3;
/// How fast what is known of drafts follows what becomes of them.
const RATE: f32 = 0.125;

/// How likely drafted tokens are to be right.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Odds {
    /// The first after tokens that were looked for.
    found: f32,
    /// One after another that was right.
    going_on: f32,
}

impl Default for Odds {
    /// Nothing is drafted before something was seen to repeat.
    fn default() -> Self {
        Self { found: 0.0, going_on: 0.5 }
    }
}

impl Odds {
    /// What was looked for was `right` or not; `going_on`: so was the one before.
    fn hears(&mut self, going_on: bool, right: bool) {
        let odds = if going_on { &mut self.going_on } else { &mut self.found };
        *odds += RATE * (f32::from(u8::from(right)) - *odds);
    }

    /// How many tokens are worth drafting: each must be as likely as its row costs. A token counts only if all before it are right.
    fn worth(self, going_on: bool, drafts: Drafts) -> usize {
        let price = drafts.price as f32 / 1000.0;
        let (mut likely, mut worth) = (if going_on { self.going_on } else { self.found }, 0);
        while worth < drafts.most as usize && likely > price {
            likely *= self.going_on;
            worth += 1;
        }
        worth
    }
}

/// The lookup of one sequence.
#[derive(Debug, Default)]
pub(super) struct Lookup {
    /// Where what followed them stands when these tokens last came.
    follows: HashMap<[u32; ALIKE], usize>,
    /// Tokens taken in.
    known: usize,
    /// Where the token stands that the next one is thought to be.
    next: Option<usize>,
    /// The last one was thought right.
    going_on: bool,
    odds: Odds,
}

impl Lookup {
    /// Takes in those of `tokens` that are new; what is right counts from `prompt_len` on.
    pub(super) fn follow(&mut self, tokens: &[u32], prompt_len: usize) {
        for at in self.known..tokens.len() {
            let right = self.next.map(|next| tokens[next] == tokens[at]);
            if let Some(right) = right.filter(|_| at >= prompt_len) {
                self.odds.hears(self.going_on, right);
            }
            if let Some(before) = last(&tokens[..at]) {
                self.follows.insert(before, at);
            }
            self.going_on = right == Some(true);
            self.next = match self.next {
                Some(next) if self.going_on => Some(next + 1),
                _ => last(&tokens[..=at]).and_then(|last| self.follows.get(&last).copied()),
            };
        }
        self.known = tokens.len();
    }

    /// What may follow `tokens`, all of which it knows, as far as it is worth it. Goes on into itself: a line that repeats is drafted
    /// as often as it fits.
    pub(super) fn draft(&self, tokens: &[u32], drafts: Drafts) -> Vec<u32> {
        let Some(next) = self.next else { return Vec::new() };
        let mut draft: Vec<u32> = Vec::new();
        for at in next..next + self.odds.worth(self.going_on, drafts) {
            draft.push(tokens.get(at).copied().unwrap_or_else(|| draft[at - tokens.len()]));
        }
        draft
    }
}

fn last(tokens: &[u32]) -> Option<[u32; ALIKE]> {
    tokens.last_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drafts(most: u32, price: u32) -> Drafts {
        Drafts { most, price }
    }

    /// A lookup that knows `tokens` and has been right or wrong so often before.
    fn lookup(tokens: &[u32], found: f32, going_on: f32) -> Lookup {
        let mut lookup = Lookup::default();
        lookup.follow(tokens, tokens.len());
        lookup.odds = Odds { found, going_on };
        lookup
    }

    #[test]
    fn what_followed_the_last_tokens_is_drafted() {
        for (tokens, expected, what) in [
            (&[1, 2, 3, 4, 5, 6, 1, 2, 3][..], &[4, 5, 6, 1][..], "as before"),
            (&[1, 2, 3, 4, 5, 9, 2, 3, 4, 6, 1, 2, 3, 4], &[5, 9, 2, 3], "on where it was right before"),
            (&[7, 2, 3, 4, 9, 8, 2, 3, 5, 9, 1, 8, 2, 3], &[5, 9, 1, 8], "the last place"),
            (&[1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3], &[4, 1, 2, 3], "over its own end"),
            (&[5, 1, 2, 1, 2, 1], &[2, 1, 2, 1], "a line of two"),
            (&[9, 9, 9, 9], &[9, 9, 9, 9], "of one"),
            (&[1, 2, 3, 4, 2, 3], &[], "two alike are not enough"),
            (&[1, 2, 3, 4, 5, 6], &[], "nothing repeats"),
            (&[1, 2], &[], "hardly anything is there"),
            (&[], &[], "nothing is there"),
        ] {
            assert_eq!(lookup(tokens, 1.0, 1.0).draft(tokens, drafts(4, 100)), expected, "{what}");
        }
    }

    #[test]
    fn a_draft_is_as_long_as_it_is_worth() {
        for (going_on, found, after, most, price, expected) in [
            (false, 0.9, 0.9, 8, 200, 8),
            (false, 0.9, 0.8, 8, 200, 7),
            (false, 0.5, 0.5, 8, 200, 2),
            (true, 0.0, 0.5, 8, 200, 2),
            (true, 0.0, 0.9, 3, 200, 3),
            (false, 0.2, 0.9, 8, 200, 0),
            (false, 0.3, 0.9, 8, 200, 4),
            (false, 1.0, 1.0, 8, 1000, 0),
            (false, 1.0, 1.0, 8, 999, 8),
            (false, 1.0, 1.0, 0, 0, 0),
            (true, 0.0, 0.0, 8, 0, 0),
        ] {
            let odds = Odds { found, going_on: after };
            let what = format!("{odds:?} {going_on} {most} {price}");
            assert_eq!(odds.worth(going_on, drafts(most, price)), expected, "{what}");
        }
    }

    /// How many tokens would be drafted after each of `answer`.
    fn lengths(prompt: &[u32], answer: &[u32]) -> Vec<usize> {
        let (mut tokens, mut lookup) = (prompt.to_vec(), Lookup::default());
        let after = |token: &u32| {
            tokens.push(*token);
            lookup.follow(&tokens, prompt.len());
            lookup.draft(&tokens, drafts(8, 250)).len()
        };
        answer.iter().map(after).collect()
    }

    #[test]
    fn drafts_grow_while_they_are_right_and_stop_when_they_are_not() {
        let text: Vec<u32> = (100..140).collect();
        let right = lengths(&text, &text);
        assert_eq!(right[..3], [0, 0, 0], "it is not found yet, or has never been right");
        assert_eq!(right[3], 1, "it goes on");
        assert!(right.is_sorted() && right[20..39].iter().all(|length| *length == 8), "{right:?}");
        // Three tokens of the text at a time, each time with something else behind.
        let wrong: Vec<u32> = (0..36).flat_map(|i| [100 + i, 101 + i, 102 + i, i]).collect();
        let at_all: usize = lengths(&text, &wrong).iter().sum();
        assert_eq!(at_all, 0, "never right, never drafted");
        let both = lengths(&text, &[&text[..], &wrong].concat());
        let last = both.iter().rposition(|length| *length > 0).expect("the text repeats");
        assert!((40..100).contains(&last), "drafts end after {last} tokens");
    }

    #[test]
    fn what_is_known_follows_from_the_tokens() {
        let tokens: Vec<u32> = (0..200).map(|i| i * i % 17 % 5).collect();
        let mut whole = Lookup::default();
        whole.follow(&tokens, 20);
        let mut parts = Lookup::default();
        for end in (0..=200).step_by(8) {
            parts.follow(&tokens[..end], 20);
        }
        assert_eq!((whole.next, whole.going_on, whole.odds), (parts.next, parts.going_on, parts.odds));
        assert_eq!(whole.follows, parts.follows);
        assert_ne!(whole.odds, Odds::default());
    }
}
