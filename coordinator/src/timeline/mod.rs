//! What became of a request, and when: the front door's part of it ([`Front`]) and that of each driver ([`Driven`]). Pure: whoever
//! records tells the time.
//!
//! A part takes little memory however long the request is: beyond named limits it only counts.

mod driven;
mod front;
mod gaps;
mod held;
#[cfg(test)]
mod tests;

pub use driven::{Began, Chunk, Driven, End, ListenerChange, Phase, PhaseKind};
pub use front::{Front, Placement};
pub use gaps::{Gaps, SlowToken};
pub use held::{Held, HeldTimes};

/// A point in time: microseconds since 1970.
pub type Micros = u64;

/// What is kept of one list of a part at most; more is counted.
pub const MOST_ENTRIES: usize = 64;

/// One step, as far as its sequences' timelines tell of it. Times are in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Step {
    /// The plan's number; that of the last plan before it if it had none.
    pub number: u64,
    /// Rows of all sequences.
    pub rows: u32,
    /// Of them, those of prompts.
    pub prefill_rows: u32,
    /// How late the plan came.
    pub wait_us: u32,
    /// The forward pass, collectives included.
    pub compute_us: u32,
    /// Of it, inside collectives.
    pub collective_us: u32,
    /// Sampling.
    pub sample_us: u32,
    /// The group went on by itself.
    pub unplanned: bool,
}

/// A list that stops growing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bounded<T> {
    /// The first ones.
    pub first: Vec<T>,
    /// How many more there were.
    pub more: u64,
}

impl<T> Default for Bounded<T> {
    fn default() -> Self {
        Self { first: Vec::new(), more: 0 }
    }
}

impl<T> Bounded<T> {
    /// Adds one; returns whether it was only counted.
    fn push(&mut self, entry: T) -> bool {
        let full = self.first.len() >= MOST_ENTRIES;
        if full {
            self.more += 1;
        } else {
            self.first.push(entry);
        }
        full
    }
}
