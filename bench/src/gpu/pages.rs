//! Blocks of the cache for requests that come and go: each has as many as its positions need, as a server's have.

use foggara_worker::decoder::StepInput;

use super::serving::{Part, Serving};

/// Which blocks are free, and which each slot has.
#[derive(Debug)]
pub(super) struct Pages {
    /// Positions of a block.
    size: usize,
    free: Vec<u32>,
    held: Vec<Vec<u32>>,
}

impl Pages {
    /// `blocks` of `size` positions, none of them taken by any of `slots`.
    pub(super) fn new(slots: usize, blocks: usize, size: usize) -> Self {
        let free = (0..blocks as u32).rev().collect();
        Self { size, free, held: vec![Vec::new(); slots] }
    }

    /// What slots give back and take before a step of these parts: a part that begins at the first position is of a new request.
    /// `None` if there are too few blocks.
    pub(super) fn before(&mut self, parts: &[Part]) -> Option<StepInput> {
        let mut changes = StepInput::default();
        for part in parts.iter().filter(|part| part.start == 0) {
            let held = &mut self.held[part.slot];
            if !held.is_empty() {
                changes.drops.push(part.slot as u32);
                self.free.append(held);
            }
        }
        for part in parts {
            let needed = (part.start + part.len).div_ceil(self.size);
            let held = &mut self.held[part.slot];
            if let Some(more) = needed.checked_sub(held.len()).filter(|more| *more > 0) {
                let granted = self.free.split_off(self.free.len().checked_sub(more)?);
                held.extend(&granted);
                changes.grants.push((part.slot as u32, granted));
            }
        }
        Some(changes)
    }

    /// Blocks that all have together.
    fn taken(&self) -> usize {
        self.held.iter().map(Vec::len).sum()
    }
}

/// The most blocks that this takes within so many steps.
pub(super) fn most_taken(mut serving: Serving, steps: usize, size: usize) -> usize {
    let slots = serving.streams();
    let mut pages = Pages::new(slots, slots * serving.positions().div_ceil(size), size);
    let taken = (0..steps).map(|_| {
        let parts = serving.next();
        pages.before(&parts).expect("no request has more positions than that").grants.clear();
        pages.taken()
    });
    taken.max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(slot: usize, start: usize, len: usize) -> Part {
        Part { slot, start, len, gives: true }
    }

    #[test]
    fn a_slot_has_what_its_positions_need_and_gives_it_back_for_the_next_request() {
        let mut pages = Pages::new(2, 4, 16);
        let first = pages.before(&[part(0, 0, 17), part(1, 0, 3)]).expect("room");
        assert_eq!((first.drops.len(), first.grants), (0, vec![(0, vec![1, 0]), (1, vec![2])]));
        let same = pages.before(&[part(0, 17, 15), part(1, 3, 1)]).expect("room");
        assert!(same.is_empty(), "{same:?}");
        assert_eq!(pages.before(&[part(0, 32, 1)]).expect("room").grants, [(0, vec![3])]);
        assert!(pages.before(&[part(1, 16, 1)]).is_none(), "all are taken");
        let next = pages.before(&[part(0, 0, 16), part(1, 16, 1)]).expect("room");
        assert_eq!((next.drops, next.grants.len(), pages.taken()), (vec![0], 2, 3));
    }

    #[test]
    fn requests_on_their_way_take_about_their_mean() {
        let (prompt, answer, streams) = (1_000, 1_000, 64);
        let most = most_taken(Serving::new(prompt, answer, streams, 256), 3_000, 16);
        let mean = streams * (prompt + answer / 2) / 16;
        assert!(most > mean && most < mean * 115 / 100, "{most} blocks, {mean} of the mean request");
    }
}
