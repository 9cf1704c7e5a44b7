//! An architecture as data: everything the one decoder needs to know to run a model.

/// Elements of the largest head.
pub(crate) const MAX_HEAD_DIM: usize = 1 << 12;
/// Experts of the largest layer.
pub(crate) const MAX_EXPERTS: usize = 1 << 12;

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

/// How queries meet keys.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Attention {
    /// Query heads share key and value heads (Ainslie et al., "GQA", 2023); the two extremes are the classic forms.
    Grouped(Grouped),
    /// Keys and values of all heads are made from one short vector, and only that is cached (DeepSeek-AI, "DeepSeek-V2",
    /// 2024, section 2.1).
    Latent(Latent),
}

/// Grouped-query attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grouped {
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Query, key and value projections have biases.
    pub qkv_bias: bool,
    /// The output projection has one.
    pub o_bias: bool,
    /// Each head of queries and keys is normed before it is rotated.
    pub qk_norm: bool,
    /// Each query head has a logit that takes part in the softmax and has no value (OpenAI, gpt-oss, 2025).
    pub sinks: bool,
}

/// Latent attention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Latent {
    /// Width of the vector queries are made from; `None`: of the residual stream itself.
    pub q_rank: Option<usize>,
    /// Width of the vector keys and values are made from.
    pub kv_rank: usize,
    /// Elements of a head that are not rotated.
    pub nope_dim: usize,
    /// Elements that are; their keys are shared by all heads.
    pub rope_dim: usize,
    /// Elements of a head's values.
    pub value_dim: usize,
    /// The down projections and the output projection have biases.
    pub bias: bool,
    /// The up projections are stored head by head, those of keys transposed.
    pub split_up: bool,
    /// Added under the root of the norms of the short vectors.
    pub norm_eps: f32,
}

/// What stands between the gate and the up projection of an MLP.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activation {
    /// silu(gate) · up.
    Silu,
    /// gelu(gate) · up, gelu in its tanh form.
    GeluTanh,
    /// (clamp(up) + 1) · gate′ · sigmoid(alpha · gate′), gate′ = min(gate, limit) (gpt-oss).
    ClampedSwiglu {
        /// Steepness of the sigmoid.
        alpha: f32,
        /// Bound of both.
        limit: f32,
    },
}

/// Which experts a token goes to, and with which weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Routing {
    /// The greatest of a softmax over all experts.
    Softmax {
        /// The chosen weights are divided by their sum.
        renormalize: bool,
    },
    /// The greatest of the sigmoids, of the groups of experts whose two best are best; a correction is added for the choice
    /// only (DeepSeek-AI, "DeepSeek-V3", 2024, section 2.1.2).
    GroupedSigmoid {
        /// Groups of consecutive experts.
        groups: usize,
        /// Groups that may be chosen from.
        top_groups: usize,
        /// The chosen weights are divided by their sum.
        renormalize: bool,
        /// Multiplies the weights.
        scale: f32,
    },
}

/// A layer's experts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Experts {
    /// How many.
    pub count: usize,
    /// How many each token goes to.
    pub top_k: usize,
    /// Width of each.
    pub width: usize,
    /// Width of the expert every token goes to beside them; 0: none.
    pub shared_width: usize,
    /// The choice.
    pub routing: Routing,
    /// Router and experts have biases.
    pub bias: bool,
}

/// What follows attention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mlp {
    /// One MLP.
    Dense {
        /// Its width.
        width: usize,
    },
    /// A mixture of them.
    Experts(Experts),
}

/// What one layer has of its own.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Layer {
    /// Positions a token sees, itself included; `None`: all before it.
    pub window: Option<usize>,
    /// Index into [`ArchSpec::ropes`].
    pub rope: usize,
    /// Its MLP.
    pub mlp: Mlp,
}

/// A decoder's shape and choices.
#[derive(Debug, Clone, PartialEq)]
pub struct ArchSpec {
    /// Name of the architecture in [`crate::arch`]'s table.
    pub family: &'static str,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Positions the model was made for.
    pub context: usize,
    /// Added under the root of RMSNorm.
    pub norm_eps: f32,
    /// Norms are stored as what is added to 1.
    pub norm_plus_one: bool,
    /// What attention and MLP add to the residual stream is normed first.
    pub post_norms: bool,
    /// Multiplies the embedding.
    pub embedding_scale: f32,
    /// How queries meet keys.
    pub attention: Attention,
    /// Multiplies their products.
    pub attention_scale: f32,
    /// Their products x become cap · tanh(x / cap).
    pub attention_softcap: Option<f32>,
    /// Position embeddings; layers name theirs.
    pub ropes: Vec<RopeSpec>,
    /// Of every MLP and expert.
    pub activation: Activation,
    /// Layer by layer.
    pub layers: Vec<Layer>,
    /// Logits x become cap · tanh(x / cap).
    pub logit_softcap: Option<f32>,
    /// The output layer is the embedding.
    pub tied_output: bool,
}

impl ArchSpec {
    /// Key heads in the cache.
    pub fn kv_heads(&self) -> usize {
        match self.attention {
            Attention::Grouped(a) => a.kv_heads,
            Attention::Latent(_) => 1,
        }
    }

    /// Query heads that share a cached key head.
    pub fn heads_per_kv(&self) -> usize {
        self.heads / self.kv_heads()
    }

    /// Elements of a cached key (and of a query that meets it).
    pub fn key_dim(&self) -> usize {
        match self.attention {
            Attention::Grouped(a) => a.head_dim,
            Attention::Latent(a) => a.kv_rank + a.rope_dim,
        }
    }

    /// Elements of a cached value.
    pub fn value_dim(&self) -> usize {
        match self.attention {
            Attention::Grouped(a) => a.head_dim,
            Attention::Latent(a) => a.kv_rank,
        }
    }

    /// Elements of a head that the output projection takes.
    pub fn out_dim(&self) -> usize {
        match self.attention {
            Attention::Grouped(a) => a.head_dim,
            Attention::Latent(a) => a.value_dim,
        }
    }

    /// Layers with experts, and these.
    pub fn moe_layers(&self) -> impl Iterator<Item = (usize, Experts)> + '_ {
        self.layers.iter().enumerate().filter_map(|(l, layer)| match layer.mlp {
            Mlp::Experts(experts) => Some((l, experts)),
            Mlp::Dense { .. } => None,
        })
    }

    /// The width of a layer's MLP, or of the part of it that every token goes through.
    pub fn dense_width(&self, layer: usize) -> usize {
        match self.layers[layer].mlp {
            Mlp::Dense { width } => width,
            Mlp::Experts(experts) => experts.shared_width,
        }
    }

    /// Sizes are those of a model that can be, and go together.
    pub(crate) fn check(&self) -> Result<(), String> {
        let mut sizes = vec![
            ("hidden", self.hidden, 1 << 20),
            ("layers", self.layers.len(), 1 << 12),
            ("heads", self.heads, 1 << 14),
            ("kv_heads", self.kv_heads(), 1 << 14),
            ("vocab", self.vocab, 1 << 24),
            ("context", self.context, 1 << 28),
        ];
        match self.attention {
            Attention::Grouped(a) => sizes.push(("head_dim", a.head_dim, MAX_HEAD_DIM)),
            Attention::Latent(a) => sizes.extend([
                ("q_rank", a.q_rank.unwrap_or(1), 1 << 20),
                ("kv_rank", a.kv_rank, MAX_HEAD_DIM),
                ("nope_dim", a.nope_dim, MAX_HEAD_DIM),
                ("rope_dim", a.rope_dim, MAX_HEAD_DIM),
                ("value_dim", a.value_dim, MAX_HEAD_DIM),
            ]),
        }
        for layer in &self.layers {
            match layer.mlp {
                Mlp::Dense { width } => sizes.push(("ffn", width, 1 << 22)),
                Mlp::Experts(e) => sizes.extend([
                    ("experts", e.count, MAX_EXPERTS),
                    ("experts per token", e.top_k, e.count),
                    ("expert width", e.width, 1 << 22),
                    ("shared expert width", e.shared_width.max(1), 1 << 22),
                ]),
            }
            sizes.push(("window", layer.window.unwrap_or(1), usize::MAX));
        }
        if let Some((name, value, most)) =
            sizes.into_iter().find(|(_, value, most)| *value == 0 || value > most)
        {
            return Err(format!("{name} is {value}, must be within 1..={most}"));
        }
        if !self.heads.is_multiple_of(self.kv_heads()) {
            return Err(format!("{} heads cannot share {} key heads evenly", self.heads, self.kv_heads()));
        }
        self.check_rope()?;
        for (_, experts) in self.moe_layers() {
            check_routing(&experts)?;
        }
        let latent_eps = if let Attention::Latent(a) = self.attention { a.norm_eps } else { 0.0 };
        for (name, value) in [
            ("the norms' epsilon", self.norm_eps),
            ("the short vectors' epsilon", latent_eps),
            ("the embedding's scale", self.embedding_scale),
            ("attention's scale", self.attention_scale),
            ("attention's softcap", self.attention_softcap.unwrap_or(1.0)),
            ("the logits' softcap", self.logit_softcap.unwrap_or(1.0)),
        ] {
            let positive = value > 0.0 || (value == 0.0 && name.ends_with("epsilon"));
            if !(value.is_finite() && positive) {
                return Err(format!("{name} is {value}"));
            }
        }
        Ok(())
    }

    fn check_rope(&self) -> Result<(), String> {
        let room = match self.attention {
            Attention::Grouped(a) => a.head_dim,
            Attention::Latent(a) => a.rope_dim,
        };
        for rope in &self.ropes {
            if rope.inv_freq.len() * 2 > room {
                return Err(format!("{} rotated elements in heads of {room}", rope.inv_freq.len() * 2));
            }
        }
        match self.layers.iter().find(|layer| layer.rope >= self.ropes.len()) {
            Some(layer) => Err(format!("a layer names rotation {} of {}", layer.rope, self.ropes.len())),
            None => Ok(()),
        }
    }
}

fn check_routing(experts: &Experts) -> Result<(), String> {
    let Routing::GroupedSigmoid { groups, top_groups, scale, .. } = experts.routing else { return Ok(()) };
    let Experts { count, top_k, .. } = *experts;
    if groups == 0 || !count.is_multiple_of(groups) {
        return Err(format!("{count} experts cannot be in {groups} groups"));
    }
    if top_groups == 0 || top_groups > groups || top_groups * (count / groups) < top_k {
        return Err(format!("{top_groups} of {groups} groups of {} for {top_k} experts", count / groups));
    }
    if !(scale.is_finite() && scale > 0.0) {
        return Err(format!("the experts' weights are scaled by {scale}"));
    }
    Ok(())
}
