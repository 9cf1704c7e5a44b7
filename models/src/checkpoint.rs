//! A checkpoint on disk, of either kind.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::arch::{Layout, names::Naming};
use crate::error::ModelError;
use crate::expected::expected;
use crate::quantize::Quantize;
use crate::roles::{LayerRole, Place, TensorRole};
use crate::slice::{TensorInfo, TensorSlice};
use crate::slices::{Cut, Granularity, SlicePlan, plan_slices};
use crate::spec::{ArchSpec, Mlp};
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
    pub(crate) naming: Naming,
    pub(crate) layout: Layout,
    /// Where tensors alone say what the model computes, one that the decoder does not know must not be passed over: these
    /// are the ones that may. `None` where a configuration says it, and the format's own loader ignores the rest.
    pub(crate) harmless: Option<&'static [&'static str]>,
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
    pub fn tensor(&self, role: TensorRole) -> Result<TensorInfo, ModelError> {
        let place = self.place(role);
        let stored = self.0.tensors.get(&place.name);
        let stored = stored.ok_or_else(|| ModelError::tensor(&self.0.path, &place.name, "is missing"))?;
        stored.part(&place.part)
    }

    /// Where a role's values lie.
    fn place(&self, role: TensorRole) -> Place {
        let Parts { naming, layout, spec, .. } = &*self.0;
        match role {
            TensorRole::Output if spec.tied_output => self.place(TensorRole::Embedding),
            TensorRole::Layer(l, role) => {
                let prefix = naming.layer_prefix(l);
                let place = layout(spec, role).unwrap_or_else(|| naming.layer(role)).under(&prefix);
                match (naming, split_expert(role)) {
                    // Older GGUF files hold each expert in a tensor of its own.
                    (Naming::Gguf, Some(split)) if !self.0.tensors.contains_key(&place.name) => {
                        Place::whole(split).under(&prefix)
                    }
                    _ => place,
                }
            }
            role => Place::whole(naming.global(role)),
        }
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

    /// Cuts the model as it will be once quantized so.
    ///
    /// # Errors
    /// If the degrees of parallelism do not go together, or with the model.
    pub fn slices(&self, cut: &Cut, quantize: Quantize) -> Result<SlicePlan, ModelError> {
        let mut granularity = Granularity::ANY;
        let finest = |role: LayerRole, l: usize, so_far: &mut usize| -> Result<(), ModelError> {
            let tensor = self.tensor(TensorRole::Layer(l, role))?;
            let loaded = quantize.loaded(TensorRole::Layer(l, role), &tensor);
            *so_far = (*so_far).max(loaded.column_granularity(tensor.dtype, tensor.cols));
            Ok(())
        };
        for (l, layer) in self.0.spec.layers.iter().enumerate() {
            finest(LayerRole::O, l, &mut granularity.attention)?;
            match layer.mlp {
                Mlp::Dense { .. } => finest(LayerRole::Down, l, &mut granularity.dense)?,
                Mlp::Experts(experts) => {
                    finest(LayerRole::ExpertDown(0), l, &mut granularity.experts)?;
                    if experts.shared_width > 0 {
                        finest(LayerRole::SharedDown, l, &mut granularity.shared)?;
                    }
                }
            }
        }
        plan_slices(&self.0.spec, granularity, cut)
    }

    /// Every tensor is there, in the shape the configuration says.
    fn check(&self) -> Result<(), ModelError> {
        let s = &self.0.spec;
        s.check().map_err(|reason| ModelError::corrupt(&self.0.path, reason))?;
        let expected = expected(s);
        for (role, rows, cols) in &expected {
            let tensor = self.tensor(*role)?;
            let wrong = |reason| Err(ModelError::tensor(&self.0.path, &tensor.name, reason));
            if (tensor.rows, tensor.cols) != (*rows, *cols) {
                let (r, c) = (tensor.rows, tensor.cols);
                return wrong(format!("is {r} × {c}, the configuration says {rows} × {cols}"));
            }
            if *rows == 1 && tensor.dtype.is_quantized() {
                return wrong(format!("a vector of type {}; F32, F16 and BF16 can be read", tensor.dtype));
            }
        }
        let Some(harmless) = self.0.harmless else { return Ok(()) };
        let known: BTreeSet<String> = expected.iter().map(|(role, ..)| self.place(*role).name).collect();
        let unknown = |name: &&String| !known.contains(*name) && !harmless.contains(&name.as_str());
        // A tensor without elements is what is left of a part that the model does not have.
        let stored = self.0.tensors.iter().filter(|(_, tensor)| tensor.bytes() > 0);
        match stored.map(|(name, _)| name).find(unknown) {
            Some(name) => {
                let reason = format!("is not part of the architecture `{}` as served here", s.family);
                Err(ModelError::tensor(&self.0.path, name, reason))
            }
            None => Ok(()),
        }
    }
}

/// The name of an expert's own tensor, within its layer.
fn split_expert(role: LayerRole) -> Option<String> {
    Some(match role {
        LayerRole::ExpertGate(e) => format!("ffn_gate.{e}.weight"),
        LayerRole::ExpertUp(e) => format!("ffn_up.{e}.weight"),
        LayerRole::ExpertDown(e) => format!("ffn_down.{e}.weight"),
        _ => return None,
    })
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
