//! How one replica of a model is divided.

use std::fmt;

use serde::{Deserialize, Serialize};

/// `tp · dp · pp` ranks hold a replica: every layer is cut over tp, the batch over dp, the layers over pp. Where a model has
/// experts, the tp · dp ranks of a stage hold them in `ep` parts. The rank of stage `s`, data-parallel index `d` and
/// tensor-parallel index `t` is `s · dp · tp + d · tp + t`.
///
/// In a wish, 0 leaves a number to the placement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Shape {
    /// Tensor-parallel ranks.
    pub tp: u32,
    /// Data-parallel parts: each has a KV cache of its own.
    pub dp: u32,
    /// Pipeline stages.
    pub pp: u32,
    /// Parts over which a stage's experts are spread.
    pub ep: u32,
}

/// Most ranks of one replica.
pub const MAX_RANKS: u32 = 64;

/// A shape that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct ShapeError {
    /// Which number.
    pub field: &'static str,
    /// What is wrong with it.
    pub reason: String,
}

impl Shape {
    /// One rank.
    pub const SOLO: Self = Self { tp: 1, dp: 1, pp: 1, ep: 1 };

    /// Tensor parallelism alone.
    pub const fn tensor(tp: u32) -> Self {
        Self { tp, ..Self::SOLO }
    }

    /// Ranks of a replica; a number that is left open counts as 1.
    pub fn ranks(self) -> u32 {
        self.stage_ranks().saturating_mul(self.pp.max(1))
    }

    /// Ranks of one stage.
    pub fn stage_ranks(self) -> u32 {
        self.tp.max(1).saturating_mul(self.dp.max(1))
    }

    /// Whether no number is left open.
    pub fn is_fixed(self) -> bool {
        self.tp > 0 && self.dp > 0 && self.pp > 0 && self.ep > 0
    }

    /// The numbers that are given, where `chosen` has them too.
    pub fn allows(self, chosen: Self) -> bool {
        let same = |wish: u32, value: u32| wish == 0 || wish == value;
        same(self.tp, chosen.tp)
            && same(self.dp, chosen.dp)
            && same(self.pp, chosen.pp)
            && same(self.ep, chosen.ep)
    }

    /// Checks what can be known without the model. Numbers left open pass.
    ///
    /// # Errors
    /// If there are too many ranks, or `ep` does not divide the ranks of a stage.
    pub fn check(self) -> Result<(), ShapeError> {
        for (field, value) in [("tp", self.tp), ("dp", self.dp), ("pp", self.pp), ("ep", self.ep)] {
            if value > MAX_RANKS {
                return Err(ShapeError { field, reason: format!("{value}, must be within 1..={MAX_RANKS}") });
            }
        }
        let ranks = self.ranks();
        if ranks > MAX_RANKS {
            let reason = format!(
                "a replica of tp {} · dp {} · pp {} has {ranks} ranks, at most {MAX_RANKS}",
                self.tp.max(1),
                self.dp.max(1),
                self.pp.max(1)
            );
            return Err(ShapeError { field: "tp", reason });
        }
        let known = self.tp > 0 && self.dp > 0 && self.ep > 0;
        if known && !self.stage_ranks().is_multiple_of(self.ep) {
            let reason = format!(
                "{}, must divide the {} ranks of a stage (tp {} · dp {})",
                self.ep,
                self.stage_ranks(),
                self.tp,
                self.dp
            );
            return Err(ShapeError { field: "ep", reason });
        }
        Ok(())
    }

    /// Checks it against the model.
    ///
    /// # Errors
    /// If experts are to be spread and there are none, or not as many, or there are more stages than layers.
    pub fn check_model(self, layers: usize, experts: usize) -> Result<(), ShapeError> {
        if self.pp as usize > layers {
            let reason = format!("{} stages, but the model has {layers} layers", self.pp);
            return Err(ShapeError { field: "pp", reason });
        }
        if self.ep > 1 && experts == 0 {
            let reason = format!("{}, but the model has no experts: only 1 is possible", self.ep);
            return Err(ShapeError { field: "ep", reason });
        }
        if self.ep as usize > experts.max(1) {
            let reason = format!("{} parts, but the model has {experts} experts", self.ep);
            return Err(ShapeError { field: "ep", reason });
        }
        Ok(())
    }
}

/// As in `tp2·dp1·pp1·ep2`; a number that is left open is `?`.
impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (name, value)) in
            [("tp", self.tp), ("dp", self.dp), ("pp", self.pp), ("ep", self.ep)].into_iter().enumerate()
        {
            let dot = if i > 0 { "·" } else { "" };
            match value {
                0 => write!(f, "{dot}{name}?")?,
                value => write!(f, "{dot}{name}{value}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_read_as_people_write_them() {
        assert_eq!(Shape { tp: 2, dp: 1, pp: 3, ep: 0 }.to_string(), "tp2·dp1·pp3·ep?");
        assert_eq!(Shape::SOLO.to_string(), "tp1·dp1·pp1·ep1");
    }

    #[test]
    fn what_is_left_open_is_allowed_and_what_is_given_is_kept() {
        let chosen = Shape { tp: 4, dp: 2, pp: 1, ep: 8 };
        for (tp, ep, allowed) in [(0, 0, true), (4, 0, true), (0, 8, true), (2, 0, false), (4, 4, false)] {
            assert_eq!(Shape { tp, dp: 0, pp: 0, ep }.allows(chosen), allowed, "{tp} {ep}");
        }
        assert!(chosen.is_fixed() && !Shape { pp: 0, ..chosen }.is_fixed());
    }

    #[test]
    fn what_cannot_be_names_its_field() {
        let shape = |tp, dp, pp, ep| Shape { tp, dp, pp, ep };
        for (wrong, field) in [
            (shape(65, 1, 1, 1), "tp"),
            (shape(8, 8, 2, 1), "tp"),
            (shape(u32::MAX, u32::MAX, 1, 1), "tp"),
            (shape(1, 1, 65, 1), "pp"),
            (shape(2, 1, 1, 4), "ep"),
            (shape(3, 2, 1, 4), "ep"),
        ] {
            assert_eq!(wrong.check().map_err(|e| e.field), Err(field), "{wrong}");
        }
        for right in [shape(3, 2, 2, 6), shape(64, 1, 1, 64), shape(0, 0, 0, 4), shape(0, 0, 0, 0)] {
            assert_eq!(right.check(), Ok(()), "{right}");
        }
    }

    #[test]
    fn the_model_has_a_say() {
        let shape = |pp, ep| Shape { tp: 2, dp: 1, pp, ep };
        for (wish, layers, experts, outcome) in [
            (shape(2, 1), 2, 0, Ok(())),
            (shape(3, 1), 2, 0, Err("pp: 3 stages, but the model has 2 layers")),
            (shape(1, 2), 2, 0, Err("ep: 2, but the model has no experts: only 1 is possible")),
            (shape(1, 2), 2, 8, Ok(())),
            (shape(1, 16), 2, 8, Err("ep: 16 parts, but the model has 8 experts")),
        ] {
            let got = wish.check_model(layers, experts).map_err(|e| e.to_string());
            assert_eq!(got, outcome.map_err(str::to_owned));
        }
    }
}
