//! How long a rank waits for another inside a step before it takes it for hung.
//!
//! A *stretch* is the time from one collective to the next: what a layer takes, with the wait for the slowest rank. Steps of a
//! size have stretches of a length, and a step of twice the size takes at most twice as long. So what was seen of recent steps
//! bounds what a rank that computes may take, and only one that hangs takes four times as much. A rank that computes for long
//! itself grants the others as much: their part is like its own.

use std::time::Duration;

use super::StepInput;

/// While nothing is known of any step.
pub(super) const UNKNOWN: Duration = Duration::from_secs(10);
/// Never less: a busy host gives a rank no processor for a while.
pub(super) const LEAST: Duration = Duration::from_secs(2);
/// Never more.
pub(super) const MOST: Duration = Duration::from_secs(30);
/// Of what is expected.
const TIMES: u32 = 4;
/// Attention to this many positions takes no longer than all else that a row costs in a layer.
const POSITIONS_OF_A_ROW: u64 = 1024;
/// Powers of two up to beyond the largest step.
const CLASSES: usize = 40;

/// Judges the others by what steps have taken so far.
#[derive(Debug)]
pub(super) struct Patience {
    /// The longest stretch of recent steps, by the power of two that their size came to.
    longest: [Option<Duration>; CLASSES],
    class: usize,
    /// Of the step under way, from what is known.
    expected: Option<Duration>,
    /// The longest of the step under way.
    stretch: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { longest: [None; CLASSES], class: 0, expected: None, stretch: Duration::ZERO }
    }
}

impl Patience {
    /// A step of this [`size`] begins.
    pub(super) fn begin(&mut self, size: u64) {
        self.class = class(size);
        self.expected = self.expect(self.class);
        self.stretch = Duration::ZERO;
    }

    /// A stretch of the step is over.
    pub(super) fn stretch(&mut self, time: Duration) {
        self.stretch = self.stretch.max(time);
    }

    /// The step is done.
    pub(super) fn end(&mut self) {
        let longest = &mut self.longest[self.class];
        // One pause is forgotten after some steps.
        let before = longest.map_or(Duration::ZERO, |before| before * 7 / 8);
        *longest = Some(self.stretch.max(before));
    }

    /// How long the next collective of the step may take. What has taken long here may take as long elsewhere.
    pub(super) fn allowed(&self) -> Duration {
        match self.expected {
            Some(expected) => expected.max(self.stretch).saturating_mul(TIMES).clamp(LEAST, MOST),
            None => UNKNOWN.max(self.stretch.saturating_mul(TIMES).min(MOST)),
        }
    }

    /// The longest stretch that steps of this class can have: that of larger ones, or a multiple of that of smaller ones, which
    /// may be far too much and so allows no more than knowing nothing does.
    fn expect(&self, class: usize) -> Option<Duration> {
        let larger = self.longest[class..].iter().flatten().next().copied();
        larger.or_else(|| {
            let (smaller, time) =
                self.longest[..class].iter().enumerate().rev().find_map(|(c, time)| Some((c, (*time)?)))?;
            let multiple = time.saturating_mul(1 << (class - smaller).min(31));
            Some(multiple.min(time.max(UNKNOWN / TIMES)))
        })
    }
}

fn class(size: u64) -> usize {
    let power = size.max(1).checked_next_power_of_two().map_or(64, u64::trailing_zeros);
    (power as usize).min(CLASSES - 1)
}

/// What a step takes, in rows that attend to nothing.
pub(super) fn size(input: &StepInput) -> u64 {
    let rows = |segment: &super::Segment| {
        let (start, len) = (u64::from(segment.start), u64::from(segment.len));
        len + len * (start + len) / POSITIONS_OF_A_ROW
    };
    input.segments.iter().map(rows).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoder::Segment;

    const MILLIS: Duration = Duration::from_millis(1);

    /// After steps of these sizes with stretches of these milliseconds.
    fn after(steps: &[(u64, u32)]) -> Patience {
        let mut patience = Patience::default();
        for (size, millis) in steps {
            patience.begin(*size);
            patience.stretch(MILLIS * *millis);
            patience.stretch(MILLIS);
            patience.end();
        }
        patience
    }

    #[test]
    fn what_is_allowed_follows_from_what_was_seen() {
        for (what, steps, size, allowed) in [
            ("nothing is known", &[][..], 8, UNKNOWN),
            ("quick steps", &[(8, 20)], 8, LEAST),
            ("slow steps", &[(8, 900)], 8, MILLIS * 3_600),
            ("a smaller one", &[(8, 900)], 1, MILLIS * 3_600),
            ("eight times as large", &[(8, 100)], 64, MILLIS * 3_200),
            ("the nearest size below tells", &[(1, 700), (32, 400)], 64, MILLIS * 3_200),
            ("the nearest size above tells", &[(64, 800), (512, 5_000)], 33, MILLIS * 3_200),
            ("much larger than any before", &[(1, 1_000)], 1 << 20, UNKNOWN),
            ("beyond all numbers", &[(1, 1)], u64::MAX, UNKNOWN),
            ("small ones took long already", &[(1, 3_000)], 1 << 20, MILLIS * 12_000),
            ("however long", &[(8, 60_000)], 8, MOST),
        ] {
            let mut patience = after(steps);
            patience.begin(size);
            assert_eq!(patience.allowed(), allowed, "{what}");
        }
    }

    #[test]
    fn a_rank_that_takes_long_itself_grants_others_as_much() {
        for steps in [&[][..], &[(8, 20)]] {
            let mut patience = after(steps);
            patience.begin(8);
            patience.stretch(MILLIS * 5_000);
            assert_eq!(patience.allowed(), MILLIS * 20_000);
            patience.stretch(MILLIS);
            assert_eq!(patience.allowed(), MILLIS * 20_000, "the longest counts");
        }
    }

    #[test]
    fn a_pause_is_forgotten_after_some_steps() {
        let mut patience = after(&[(1, 2_000)]);
        let mut last = MOST;
        for _ in 0..16 {
            patience.begin(1);
            assert!(patience.allowed() <= last);
            last = patience.allowed();
            patience.stretch(MILLIS);
            patience.end();
        }
        assert_eq!(last, LEAST);
    }

    #[test]
    fn long_contexts_count() {
        let segment = |start, len| Segment { slot: 0, start, len, logits_from: 0 };
        let size =
            |segments: &[Segment]| size(&StepInput { segments: segments.to_vec(), ..StepInput::default() });
        assert_eq!(size(&[]), 0);
        assert_eq!(size(&[segment(0, 1), segment(5, 1)]), 2);
        assert_eq!(size(&[segment(0, 256)]), 256 + 64);
        assert_eq!(size(&[segment(1024 * 64 - 256, 256)]), 256 * 65);
    }
}
