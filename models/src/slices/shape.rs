//! The shape of a replica: how many ranks, and what each is to the others.

use std::fmt;
use std::ops::Range;

use crate::error::ModelError;

/// Ranks a group may have.
pub const MAX_RANKS: usize = 64;

/// Degrees of parallelism of a replica, each at least 1.
///
/// Attention is split over `tp` ranks and the batch over `dp`; layers over `pp` stages; the experts of a layer are spread over
/// `ep` parts of the tp · dp ranks of a stage, each expert split over the tp · dp / ep ranks of its part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Shape {
    /// Tensor parallel.
    pub tp: usize,
    /// Data parallel.
    pub dp: usize,
    /// Pipeline parallel.
    pub pp: usize,
    /// Expert parallel.
    pub ep: usize,
}

/// Where a rank stands in its shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RankPlace {
    /// Pipeline stage.
    pub stage: usize,
    /// Which part of the batch it works on.
    pub dp: usize,
    /// Which part of attention it holds.
    pub tp: usize,
}

impl Default for Shape {
    /// One rank.
    fn default() -> Self {
        Self::tensor(1)
    }
}

impl Shape {
    /// `tp` ranks that split every tensor.
    pub const fn tensor(tp: usize) -> Self {
        Self { tp, dp: 1, pp: 1, ep: 1 }
    }

    /// Ranks of a replica.
    pub const fn ranks(&self) -> usize {
        self.tp * self.dp * self.pp
    }

    /// Ranks of a pipeline stage.
    pub const fn stage_ranks(&self) -> usize {
        self.tp * self.dp
    }

    /// Ranks among which each expert is split.
    pub const fn expert_split(&self) -> usize {
        self.stage_ranks() / self.ep
    }

    /// Where rank `rank` stands: stages outermost, then parts of the batch, then parts of attention.
    pub const fn place(&self, rank: usize) -> RankPlace {
        let in_stage = rank % self.stage_ranks();
        RankPlace { stage: rank / self.stage_ranks(), dp: in_stage / self.tp, tp: in_stage % self.tp }
    }

    /// The reverse of [`place`](Self::place).
    pub const fn rank(&self, place: RankPlace) -> usize {
        (place.stage * self.dp + place.dp) * self.tp + place.tp
    }

    /// The part of the experts that a rank holds, 0..ep.
    pub const fn expert_part(&self, rank: usize) -> usize {
        rank % self.stage_ranks() / self.expert_split()
    }

    /// The ranks, within their stage, that hold the experts of `part`.
    pub const fn part_ranks(&self, part: usize) -> Range<usize> {
        part * self.expert_split()..(part + 1) * self.expert_split()
    }

    /// Each degree is at least 1, they go together, and there are not too many ranks.
    ///
    /// # Errors
    /// Names the degree and its limit.
    pub fn check(&self) -> Result<(), ModelError> {
        let wrong = |reason: String| Err(ModelError::Slices(reason));
        for (name, degree) in [("tp", self.tp), ("dp", self.dp), ("pp", self.pp), ("ep", self.ep)] {
            if degree == 0 || degree > MAX_RANKS {
                return wrong(format!("{name} is {degree}, must be within 1..={MAX_RANKS}"));
            }
        }
        if self.ranks() > MAX_RANKS {
            return wrong(format!("tp · dp · pp is {}, at most {MAX_RANKS}", self.ranks()));
        }
        if !self.stage_ranks().is_multiple_of(self.ep) {
            return wrong(format!("ep is {}, must divide tp · dp, which is {}", self.ep, self.stage_ranks()));
        }
        Ok(())
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = [("tp", self.tp), ("dp", self.dp), ("pp", self.pp), ("ep", self.ep)];
        let parts: Vec<String> = all
            .into_iter()
            .filter(|(name, degree)| *degree != 1 || *name == "tp")
            .map(|(name, degree)| format!("{name} {degree}"))
            .collect();
        f.write_str(&parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rank_has_a_place_of_its_own() {
        let shape = Shape { tp: 2, dp: 3, pp: 2, ep: 3 };
        for rank in 0..shape.ranks() {
            assert_eq!(shape.rank(shape.place(rank)), rank);
        }
        assert_eq!(shape.place(7), RankPlace { stage: 1, dp: 0, tp: 1 });
        assert_eq!((shape.expert_split(), shape.expert_part(9), shape.part_ranks(1)), (2, 1, 2..4));
        assert_eq!(shape.to_string(), "tp 2, dp 3, pp 2, ep 3");
    }

    #[test]
    fn degrees_that_do_not_go_together_are_named() {
        for (shape, said) in [
            (Shape { tp: 0, ..Shape::default() }, "tp is 0"),
            (Shape { pp: 65, ..Shape::default() }, "pp is 65"),
            (Shape { tp: 16, dp: 8, ..Shape::default() }, "tp · dp · pp is 128"),
            (Shape { tp: 3, ep: 2, ..Shape::default() }, "ep is 2, must divide tp · dp, which is 3"),
        ] {
            let error = shape.check().expect_err(said).to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
