//! An architecture as data: everything the one decoder needs to know to run a model.

/// Elements of the largest head.
pub(crate) const MAX_HEAD_DIM: usize = 1 << 12;

/// Which elements of a head are rotated together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeStyle {
    /// (0, 1), (2, 3) …: query and key rows as GGUF stores them for Llama.
    Interleaved,
    /// (0, n/2), (1, n/2 + 1) …: as Hugging Face stores them.
    Half,
}

/// The rotary position embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeSpec {
    /// Which elements pair up.
    pub style: RopeStyle,
    /// Radians per position for each pair, any scaling of long contexts already applied.
    pub inv_freq: Vec<f32>,
    /// Multiplies sines and cosines (1 unless the scaling has an attention factor).
    pub scale: f32,
}

/// A decoder's shape and choices.
#[derive(Debug, Clone, PartialEq)]
pub struct ArchSpec {
    /// Name of the architecture in [`crate::arch`]'s table.
    pub family: &'static str,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Width of the MLP.
    pub ffn: usize,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Positions the model was made for.
    pub context: usize,
    /// Added under the root of RMSNorm.
    pub norm_eps: f32,
    /// Position embedding.
    pub rope: RopeSpec,
    /// The output layer is the embedding.
    pub tied_output: bool,
    /// Query, key, value and output projections have biases.
    pub attention_bias: bool,
}

impl ArchSpec {
    /// Query heads that share a key head.
    pub fn heads_per_kv(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Sizes are those of a model that can be, and go together.
    pub(crate) fn check(&self) -> Result<(), String> {
        for (name, value, most) in [
            ("hidden", self.hidden, 1 << 20),
            ("layers", self.layers, 1 << 12),
            ("heads", self.heads, 1 << 14),
            ("kv_heads", self.kv_heads, 1 << 14),
            ("head_dim", self.head_dim, MAX_HEAD_DIM),
            ("ffn", self.ffn, 1 << 22),
            ("vocab", self.vocab, 1 << 24),
            ("context", self.context, 1 << 28),
        ] {
            if value == 0 || value > most {
                return Err(format!("{name} is {value}, must be within 1..={most}"));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(format!("{} heads cannot share {} key heads evenly", self.heads, self.kv_heads));
        }
        if self.rope.inv_freq.len() * 2 > self.head_dim {
            let rotated = self.rope.inv_freq.len() * 2;
            return Err(format!("{rotated} rotated elements in heads of {}", self.head_dim));
        }
        if !(self.norm_eps.is_finite() && self.norm_eps >= 0.0) {
            return Err(format!("the norms' epsilon is {}", self.norm_eps));
        }
        Ok(())
    }
}
