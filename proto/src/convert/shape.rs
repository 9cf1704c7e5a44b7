//! `foggara.admin.v1.Shape`.

use crate::shape::Shape;
use crate::wire::admin as wire;

impl From<Shape> for wire::Shape {
    fn from(s: Shape) -> Self {
        Self { tp: s.tp, dp: s.dp, pp: s.pp, ep: s.ep }
    }
}

impl From<wire::Shape> for Shape {
    fn from(s: wire::Shape) -> Self {
        Self { tp: s.tp, dp: s.dp, pp: s.pp, ep: s.ep }
    }
}

impl wire::Deployment {
    /// The shape it asks for, or was asked for.
    pub fn shape(&self) -> Shape {
        Shape { tp: self.tp, dp: self.dp, pp: self.pp, ep: self.ep }
    }

    /// The same in another shape.
    #[must_use]
    pub fn shaped(self, shape: Shape) -> Self {
        Self { tp: shape.tp, dp: shape.dp, pp: shape.pp, ep: shape.ep, ..self }
    }
}
