//! The groups of ranks that one rank exchanges with: all of them, and parts of its shape.

use std::time::{Duration, Instant};

use foggara_kernels::collective::{AbortHandle, Collective, CollectiveError, CollectiveStats, Solo};
use foggara_models::Shape;

use super::StepInput;
use super::patience::{self, Patience};

/// A part of a group that has collectives of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Tells it apart from the group's other parts: no two have the same.
    pub number: u64,
    /// Its ranks, in order.
    pub ranks: Vec<usize>,
}

/// The parts that rank `rank` is in, in the order in which every rank must join them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Parts {
    /// Ranks that split tensors with it, where these are not the whole group.
    pub tp: Option<Part>,
    /// Ranks of its stage, where they exchange rows and are not the whole group.
    pub stage: Option<Part>,
    /// The rank before it in the pipeline, and itself.
    pub previous: Option<Part>,
    /// Itself, and the rank after it.
    pub next: Option<Part>,
}

impl Parts {
    /// Of a group of this shape.
    pub fn of(shape: Shape, rank: usize) -> Self {
        let (stage_ranks, place) = (shape.stage_ranks(), shape.place(rank));
        let first = place.stage * stage_ranks;
        let part = |kind: u64, which: usize, ranks: Vec<usize>| {
            Some(Part { number: kind << 32 | which as u64, ranks })
        };
        let first_of_tp = first + place.dp * shape.tp;
        let pair = |stage: usize| {
            let before = (stage - 1) * stage_ranks + rank % stage_ranks;
            part(3, before, vec![before, before + stage_ranks])
        };
        Self {
            tp: if shape.ranks() == shape.tp {
                None
            } else {
                part(1, first_of_tp, (first_of_tp..first_of_tp + shape.tp).collect())
            },
            stage: if shape.dp == 1 || shape.pp == 1 {
                None
            } else {
                part(2, place.stage, (first..first + stage_ranks).collect())
            },
            previous: if place.stage == 0 { None } else { pair(place.stage) },
            next: if place.stage + 1 == shape.pp { None } else { pair(place.stage + 1) },
        }
    }
}

/// One rank's ends of all its collectives.
pub struct Comms {
    all: Box<dyn Collective>,
    tp: Option<Box<dyn Collective>>,
    stage: Option<Box<dyn Collective>>,
    previous: Option<Box<dyn Collective>>,
    next: Option<Box<dyn Collective>>,
    patience: Patience,
    /// Inside a step: when its last collective began, or the step.
    last: Option<Instant>,
}

impl Comms {
    /// Joins rank `rank`'s parts of a group of this shape with `join`; `all` are all of its ranks. Parts of one rank need no
    /// joining.
    ///
    /// # Errors
    /// Those of `join`.
    pub fn join<E>(
        shape: Shape,
        all: Box<dyn Collective>,
        join: impl Fn(&Part) -> Result<Box<dyn Collective>, E>,
    ) -> Result<Self, E> {
        let parts = Parts::of(shape, all.rank());
        let join = |part: &Part| -> Result<Box<dyn Collective>, E> {
            if part.ranks.len() == 1 { Ok(Box::<Solo>::default()) } else { join(part) }
        };
        Ok(Self {
            all,
            tp: parts.tp.as_ref().map(join).transpose()?,
            stage: parts.stage.as_ref().map(join).transpose()?,
            previous: parts.previous.as_ref().map(join).transpose()?,
            next: parts.next.as_ref().map(join).transpose()?,
            patience: Patience::default(),
            last: None,
        })
    }

    /// A step with rows begins: until it ends, a collective may take as long as the steps before let expect.
    pub fn begin_step(&mut self, input: &StepInput) {
        self.patience.begin(patience::size(input));
        self.last = Some(Instant::now());
    }

    /// The step is done.
    pub fn end_step(&mut self) {
        self.pace();
        self.patience.end();
        self.last = None;
    }

    /// Inside a step: how long the collective that is about to begin may take.
    fn pace(&mut self) -> Option<Duration> {
        let last = self.last.as_mut()?;
        let now = Instant::now();
        self.patience.stretch(now.duration_since(std::mem::replace(last, now)));
        Some(self.patience.allowed())
    }

    /// All ranks of the group.
    pub fn all(&mut self) -> &mut dyn Collective {
        let allowed = self.pace();
        paced(&mut *self.all, allowed)
    }

    /// The ranks that split tensors with this one.
    pub fn tp(&mut self) -> &mut dyn Collective {
        let allowed = self.pace();
        paced(self.tp.as_deref_mut().unwrap_or(&mut *self.all), allowed)
    }

    /// The ranks of this one's stage.
    pub fn stage(&mut self) -> &mut dyn Collective {
        let allowed = self.pace();
        paced(self.stage.as_deref_mut().unwrap_or(&mut *self.all), allowed)
    }

    /// Takes rows from the stage before; nothing on the first.
    ///
    /// # Errors
    /// Any [`CollectiveError`].
    pub fn receive(&mut self, rows: &mut [f32]) -> Result<(), CollectiveError> {
        let allowed = self.pace();
        self.previous.as_deref_mut().map_or(Ok(()), |previous| paced(previous, allowed).pass(rows))
    }

    /// Gives rows to the stage after; nothing on the last.
    ///
    /// # Errors
    /// Any [`CollectiveError`].
    pub fn send(&mut self, rows: &mut [f32]) -> Result<(), CollectiveError> {
        let allowed = self.pace();
        self.next.as_deref_mut().map_or(Ok(()), |next| paced(next, allowed).pass(rows))
    }

    /// Whether there is one stage only.
    pub fn is_one_stage(&self) -> bool {
        self.previous.is_none() && self.next.is_none()
    }

    /// Whether there is a stage after.
    pub fn has_next(&self) -> bool {
        self.next.is_some()
    }

    fn each(&self) -> impl Iterator<Item = &dyn Collective> {
        let parts = [&self.tp, &self.stage, &self.previous, &self.next];
        std::iter::once(&*self.all).chain(parts.into_iter().filter_map(|part| part.as_deref()))
    }

    /// Bounds each following call outside steps; `None` waits until the group ends.
    pub fn set_deadline(&mut self, deadline: Option<Duration>) {
        self.all.set_deadline(deadline);
        for part in [&mut self.tp, &mut self.stage, &mut self.previous, &mut self.next].into_iter().flatten()
        {
            part.set_deadline(deadline);
        }
    }

    /// This rank.
    pub fn rank(&self) -> usize {
        self.all.rank()
    }

    /// Ranks in the group.
    pub fn size(&self) -> usize {
        self.all.size()
    }

    /// Ends all of it from another thread.
    pub fn abort_handle(&self) -> AbortHandle {
        AbortHandle::all(self.each().map(Collective::abort_handle).collect())
    }

    /// What all of it has cost so far.
    pub fn stats(&self) -> CollectiveStats {
        self.each().map(Collective::stats).fold(CollectiveStats::default(), |a, b| CollectiveStats {
            calls: a.calls + b.calls,
            bytes: a.bytes + b.bytes,
            nanos: a.nanos + b.nanos,
            wait_nanos: a.wait_nanos + b.wait_nanos,
        })
    }
}

/// `part` with this deadline, if there is one for it.
fn paced(part: &mut dyn Collective, allowed: Option<Duration>) -> &mut dyn Collective {
    if allowed.is_some() {
        part.set_deadline(allowed);
    }
    part
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn every_part_is_known_by_all_its_ranks_and_by_one_number() {
        for (tp, dp, pp) in [(1, 1, 1), (3, 1, 1), (2, 2, 1), (1, 2, 1), (2, 1, 3), (2, 2, 2)] {
            let shape = Shape { tp, dp, pp, ep: 1 };
            let mut known: BTreeMap<u64, (Vec<usize>, Vec<usize>)> = BTreeMap::new();
            for rank in 0..shape.ranks() {
                let parts = Parts::of(shape, rank);
                for part in [parts.tp, parts.stage, parts.previous, parts.next].into_iter().flatten() {
                    let entry = known.entry(part.number).or_insert((part.ranks.clone(), Vec::new()));
                    assert_eq!(entry.0, part.ranks, "{shape}");
                    entry.1.push(rank);
                }
            }
            for (ranks, members) in known.values() {
                assert_eq!(ranks, members, "{shape}");
            }
            let pairs =
                known.values().filter(|(ranks, _)| ranks.len() == 2 && ranks[1] - ranks[0] == tp * dp);
            assert!(pairs.count() >= (pp - 1) * tp * dp);
        }
        assert_eq!(Parts::of(Shape::tensor(4), 2), Parts::default(), "the whole group does");
    }
}
