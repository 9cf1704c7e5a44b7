//! What a tensor is for, whatever its file calls it and wherever in a larger tensor it lies.

/// A tensor of the decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TensorRole {
    /// vocabulary × hidden.
    Embedding,
    /// hidden.
    FinalNorm,
    /// vocabulary × hidden; the embedding itself where the two are tied.
    Output,
    /// One of a layer's.
    Layer(usize, LayerRole),
}

/// A tensor of a layer. Matrices are output × input features.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum LayerRole {
    AttnNorm,
    /// heads · head_dim × hidden.
    Q,
    /// kv_heads · head_dim × hidden.
    K,
    V,
    /// hidden × heads · out_dim.
    O,
    QBias,
    KBias,
    VBias,
    OBias,
    /// head_dim: norms of each head of queries and keys.
    QNorm,
    KNorm,
    /// heads: logits without a value.
    Sinks,
    /// Latent attention: q_rank × hidden, its bias and norm, heads · (nope + rope) × q_rank (or × hidden).
    QDown,
    QDownBias,
    QDownNorm,
    QUp,
    /// kv_rank + rope × hidden, its bias, the norm of the first part, heads · (nope + value) × kv_rank.
    KvDown,
    KvDownBias,
    KvDownNorm,
    KvUp,
    /// The same of one head, where these are stored apart: kv_rank × nope (transposed), value × kv_rank.
    KeyUp(usize),
    ValueUp(usize),
    /// hidden: of what attention adds to the residual stream.
    PostAttnNorm,
    MlpNorm,
    /// width × hidden.
    Gate,
    Up,
    /// hidden × width.
    Down,
    /// The same of the expert every token goes to.
    SharedGate,
    SharedUp,
    SharedDown,
    PostMlpNorm,
    /// experts × hidden.
    Router,
    /// experts.
    RouterBias,
    /// experts: added for the choice only.
    RouterCorrection,
    /// width × hidden.
    ExpertGate(usize),
    ExpertUp(usize),
    /// hidden × width.
    ExpertDown(usize),
    ExpertGateBias(usize),
    ExpertUpBias(usize),
    ExpertDownBias(usize),
}

/// Where in a stored tensor a role's values lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    /// It is all of it.
    Whole,
    /// Rows `first..first + count` of a matrix, or elements of a vector.
    Rows {
        /// The first.
        first: usize,
        /// How many.
        count: usize,
    },
    /// One matrix of a stack.
    Stacked {
        /// Which.
        index: usize,
    },
    /// One of several vectors.
    StackedVector {
        /// Which.
        index: usize,
    },
    /// One matrix of a stack that is stored input × output features; of the output features every `step`th from `first`.
    /// Of a stack of vectors, such elements of one of them.
    Strided {
        /// Which matrix or vector.
        index: usize,
        /// First output feature.
        first: usize,
        /// To the next.
        step: usize,
    },
}

/// A stored tensor's name, and the part of it that is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) name: String,
    pub(crate) part: Part,
}

impl Place {
    pub(crate) fn whole(name: impl Into<String>) -> Self {
        Self { name: name.into(), part: Part::Whole }
    }

    pub(crate) fn rows(name: impl Into<String>, first: usize, count: usize) -> Self {
        Self { name: name.into(), part: Part::Rows { first, count } }
    }

    pub(crate) fn stacked(name: impl Into<String>, index: usize) -> Self {
        Self { name: name.into(), part: Part::Stacked { index } }
    }

    pub(crate) fn stacked_vector(name: impl Into<String>, index: usize) -> Self {
        Self { name: name.into(), part: Part::StackedVector { index } }
    }

    pub(crate) fn strided(name: impl Into<String>, index: usize, first: usize, step: usize) -> Self {
        Self { name: name.into(), part: Part::Strided { index, first, step } }
    }

    /// The same within a layer's own names.
    pub(crate) fn under(self, prefix: &str) -> Self {
        Self { name: format!("{prefix}{}", self.name), ..self }
    }
}
