//! A checkpoint on disk, of either kind.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::ModelError;
use crate::roles::TensorRole;
use crate::slice::{TensorInfo, TensorSlice};
use crate::slices::{Granularity, RankSlice, plan_slices};
use crate::spec::ArchSpec;
use crate::tokenizer::{SpecialTokens, TokenizerSource};
use crate::{gguf, hf};

/// What the readers of both kinds deliver.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) path: PathBuf,
    pub(crate) name: String,
    pub(crate) spec: ArchSpec,
    pub(crate) special: SpecialTokens,
    pub(crate) chat_template: Option<String>,
    pub(crate) tensors: BTreeMap<String, TensorInfo>,
    pub(crate) global_names: [&'static str; 3],
    pub(crate) layer_prefix: &'static str,
    pub(crate) layer_names: [&'static str; 13],
    pub(crate) tokenizer: Option<TokenizerPlace>,
}

/// Where the tokenizer lies.
#[derive(Debug)]
pub(crate) enum TokenizerPlace {
    /// In the file itself.
    Gguf,
    /// A tokenizer.json.
    Json(PathBuf),
}

/// An opened checkpoint: its tables are in memory, its tensors stay in the file. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Checkpoint(Arc<Parts>);

impl Checkpoint {
    /// Opens a GGUF file, a Hugging Face folder, or a folder with exactly one GGUF file in it. Checks that every tensor the
    /// architecture needs is there with the right shape.
    ///
    /// # Errors
    /// Names the file, the tensor or field, and the reason.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let metadata = std::fs::metadata(path).map_err(|e| ModelError::io(path, e))?;
        let parts = if metadata.is_dir() { open_folder(path)? } else { gguf::open(path)? };
        let checkpoint = Self(Arc::new(parts));
        checkpoint.check()?;
        Ok(checkpoint)
    }

    /// The architecture.
    pub fn spec(&self) -> &ArchSpec {
        &self.0.spec
    }

    /// The name it is served under unless told otherwise: the file's stem or the folder's name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The file or folder it was opened from.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// The tokens with a meaning of their own.
    pub fn special(&self) -> &SpecialTokens {
        &self.0.special
    }

    /// The chat template's source, if it has one.
    pub fn chat_template(&self) -> Option<&str> {
        self.0.chat_template.as_deref()
    }

    /// The tokenizer, read anew at each call; `None` if the checkpoint has none (it is then served on token ids alone).
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn tokenizer(&self) -> Result<Option<TokenizerSource>, ModelError> {
        match &self.0.tokenizer {
            None => Ok(None),
            Some(TokenizerPlace::Json(path)) => Ok(Some(TokenizerSource::HfJson(path.clone()))),
            Some(TokenizerPlace::Gguf) => gguf::vocabulary(&self.0.path).map(Some),
        }
    }

    /// A tensor of the decoder; a tied output is the embedding.
    ///
    /// # Errors
    /// If the checkpoint lacks it.
    pub fn tensor(&self, role: TensorRole) -> Result<&TensorInfo, ModelError> {
        let role = match role {
            TensorRole::Output if self.0.spec.tied_output => TensorRole::Embedding,
            role => role,
        };
        let name = self.tensor_name(role);
        self.0.tensors.get(&name).ok_or_else(|| ModelError::tensor(&self.0.path, name, "is missing"))
    }

    /// Rows `rows` and columns `cols` of a tensor.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor) and [`TensorInfo::slice`].
    pub fn slice(
        &self,
        role: TensorRole,
        rows: Range<usize>,
        cols: Range<usize>,
    ) -> Result<TensorSlice, ModelError> {
        self.tensor(role)?.slice(rows, cols)
    }

    /// Bytes of all tensors.
    pub fn total_bytes(&self) -> u64 {
        self.0.tensors.values().map(|tensor| tensor.bytes() as u64).sum()
    }

    /// Cuts the model for `tp` ranks.
    ///
    /// # Errors
    /// If `tp` is out of range.
    pub fn slices(&self, tp: usize) -> Result<Vec<RankSlice>, ModelError> {
        let mut granularity = Granularity { attention: 1, ffn: 1 };
        for layer in 0..self.0.spec.layers {
            let (o, down) = (self.tensor(TensorRole::O(layer))?, self.tensor(TensorRole::Down(layer))?);
            granularity.attention = granularity.attention.max(o.dtype.column_granularity());
            granularity.ffn = granularity.ffn.max(down.dtype.column_granularity());
        }
        plan_slices(&self.0.spec, granularity, tp)
    }

    fn tensor_name(&self, role: TensorRole) -> String {
        match role.place() {
            (None, index) => self.0.global_names[index].to_owned(),
            (Some(layer), index) => format!("{}{layer}.{}", self.0.layer_prefix, self.0.layer_names[index]),
        }
    }

    /// Every tensor is there, in the shape the configuration says.
    fn check(&self) -> Result<(), ModelError> {
        let s = &self.0.spec;
        let corrupt = |reason: String| Err(ModelError::corrupt(&self.0.path, reason));
        for (name, value, most) in [
            ("hidden", s.hidden, 1 << 20),
            ("layers", s.layers, 1 << 12),
            ("heads", s.heads, 1 << 14),
            ("kv_heads", s.kv_heads, 1 << 14),
            ("head_dim", s.head_dim, 1 << 12),
            ("ffn", s.ffn, 1 << 22),
            ("vocab", s.vocab, 1 << 24),
            ("context", s.context, 1 << 28),
        ] {
            if value == 0 || value > most {
                return corrupt(format!("{name} is {value}, must be within 1..={most}"));
            }
        }
        if !s.heads.is_multiple_of(s.kv_heads) {
            return corrupt(format!("{} heads cannot share {} key heads evenly", s.heads, s.kv_heads));
        }
        let (q, kv) = (s.heads * s.head_dim, s.kv_heads * s.head_dim);
        let mut expected = vec![
            (TensorRole::Embedding, s.vocab, s.hidden),
            (TensorRole::FinalNorm, 1, s.hidden),
            (TensorRole::Output, s.vocab, s.hidden),
        ];
        for l in 0..s.layers {
            expected.extend([
                (TensorRole::AttnNorm(l), 1, s.hidden),
                (TensorRole::Q(l), q, s.hidden),
                (TensorRole::K(l), kv, s.hidden),
                (TensorRole::V(l), kv, s.hidden),
                (TensorRole::O(l), s.hidden, q),
                (TensorRole::MlpNorm(l), 1, s.hidden),
                (TensorRole::Gate(l), s.ffn, s.hidden),
                (TensorRole::Up(l), s.ffn, s.hidden),
                (TensorRole::Down(l), s.hidden, s.ffn),
            ]);
            if s.attention_bias {
                let biases =
                    [(TensorRole::QBias(l), q), (TensorRole::KBias(l), kv), (TensorRole::VBias(l), kv)];
                expected.extend(biases.map(|(role, cols)| (role, 1, cols)));
            }
        }
        for (role, rows, cols) in expected {
            let tensor = self.tensor(role)?;
            let wrong = |reason| Err(ModelError::tensor(&self.0.path, &tensor.name, reason));
            if (tensor.rows, tensor.cols) != (rows, cols) {
                let (r, c) = (tensor.rows, tensor.cols);
                return wrong(format!("is {r} × {c}, the configuration says {rows} × {cols}"));
            }
            if rows == 1 && tensor.dtype.is_quantized() {
                return wrong(format!("a vector of type {}; F32, F16 and BF16 can be read", tensor.dtype));
            }
        }
        Ok(())
    }
}

fn open_folder(path: &Path) -> Result<Parts, ModelError> {
    if path.join("config.json").is_file() {
        return hf::open(path);
    }
    let entries = std::fs::read_dir(path).map_err(|e| ModelError::io(path, e))?;
    let is_gguf = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "gguf");
    let mut files: Vec<PathBuf> = entries.filter_map(|e| e.ok().map(|e| e.path())).filter(is_gguf).collect();
    match (files.pop(), files.len()) {
        (Some(file), 0) => gguf::open(&file),
        (Some(_), more) => {
            Err(ModelError::io(path, format!("holds {} GGUF files; give the path of one of them", more + 1)))
        }
        (None, _) => Err(ModelError::io(path, "holds neither a config.json nor a GGUF file")),
    }
}
