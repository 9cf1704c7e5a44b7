//! The rotation's parameters in config.json.

use serde_json::Value;

use super::config::Config;
use crate::arch::rope::{RopeScaling, inv_freq, yarn_scale};
use crate::error::ModelError;
use crate::spec::{RopeSpec, RopeStyle};

/// Parameters that are read here.
const KNOWN: [&str; 15] = [
    "rope_type",
    "type",
    "rope_theta",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
    "partial_rotary_factor",
    "beta_fast",
    "beta_slow",
    "truncate",
    "mscale",
    "mscale_all_dim",
    "attention_factor",
    // Of Hugging Face's own making: the cache's length, not a rotation.
    "max_position_embeddings",
];

/// The rotation of `dims` elements, and what else multiplies attention's scale (1 but for models that say `mscale_all_dim`).
pub(crate) fn spec(
    config: &Config<'_>,
    parameters: Option<&Value>,
    dims: usize,
    style: RopeStyle,
) -> Result<(RopeSpec, f32), ModelError> {
    for (field, value) in parameters.and_then(Value::as_object).into_iter().flatten() {
        if !value.is_null() && !KNOWN.contains(&field.as_str()) {
            let reason = format!("rope parameter `{field}` ({value}): what it changes is not known here");
            return Err(config.unsupported(reason));
        }
    }
    let field = |name: &str| parameters.and_then(|p| p.get(name)).filter(|value| !value.is_null());
    let number = |name: &str| field(name).and_then(Value::as_f64);
    let theta = match field("rope_theta").or_else(|| config.get("rope_theta")) {
        None => 10_000.0,
        Some(theta) => theta.as_f64().ok_or_else(|| {
            ModelError::corrupt(config.path, format!("field `rope_theta` is {theta}, not a number"))
        })?,
    };
    let kind = field("rope_type").or_else(|| field("type")).map(|kind| kind.as_str().unwrap_or_default());
    let required = |name: &str| {
        let missing = || {
            ModelError::corrupt(config.path, format!("rope parameter `{name}` is missing or not a number"))
        };
        number(name).ok_or_else(missing)
    };
    // Positions before stretching: with the scaling, or beside it, or what the model is made for.
    let original = || {
        let places = [number("original_max_position_embeddings")];
        let beside = config.number("original_max_position_embeddings")?;
        let whole = config.number("max_position_embeddings")?;
        places[0].or(beside).or(whole).ok_or_else(|| config.wrong("max_position_embeddings", "a number"))
    };
    let (mut scale, mut attention) = (1.0, 1.0);
    let scaling = match kind {
        None | Some("default") => {
            if let Some(unused) =
                ["mscale", "attention_factor", "beta_fast"].into_iter().find(|f| field(f).is_some())
            {
                let reason = format!("rope parameter `{unused}` of a rotation that is not stretched");
                return Err(config.unsupported(reason));
            }
            RopeScaling::None
        }
        Some("linear") => RopeScaling::Linear { factor: required("factor")? },
        Some("llama3") => RopeScaling::Llama3 {
            factor: required("factor")?,
            low: required("low_freq_factor")?,
            high: required("high_freq_factor")?,
            original: required("original_max_position_embeddings")?,
        },
        Some("yarn") => {
            let original = original()?;
            let factor = match number("factor") {
                Some(factor) => factor,
                None => config.number("max_position_embeddings")?.unwrap_or(original) / original,
            };
            let (m, m_all) =
                (number("mscale").filter(|m| *m != 0.0), number("mscale_all_dim").filter(|m| *m != 0.0));
            scale = match (number("attention_factor"), m, m_all) {
                (Some(given), ..) => given,
                (None, Some(m), Some(all)) => yarn_scale(factor, m) / yarn_scale(factor, all),
                _ => yarn_scale(factor, 1.0),
            };
            attention = m_all.map_or(1.0, |m| yarn_scale(factor, m).powi(2));
            RopeScaling::Yarn {
                factor,
                original,
                fast: number("beta_fast").unwrap_or(32.0),
                slow: number("beta_slow").unwrap_or(1.0),
                truncate: field("truncate").and_then(Value::as_bool).unwrap_or(true),
            }
        }
        Some(other) => {
            let served = "default, linear, llama3 and yarn are served";
            return Err(config.unsupported(format!("rope type `{other}` ({served})")));
        }
    };
    let inv_freq = inv_freq(theta, dims, scaling);
    let inv_freq = inv_freq.map_err(|reason| ModelError::corrupt(config.path, reason))?;
    Ok((RopeSpec { style, inv_freq, scale: scale as f32 }, attention as f32))
}

/// The share of a head's elements that is rotated.
pub(crate) fn partial_factor(config: &Config<'_>) -> Result<f64, ModelError> {
    let inside =
        config.rope_parameters().and_then(|p| p.get("partial_rotary_factor")).and_then(Value::as_f64);
    Ok(match inside {
        Some(factor) => factor,
        None => config.number("partial_rotary_factor")?.unwrap_or(1.0),
    })
}

/// Refuses a share other than the whole, for architectures that do not have one.
pub(crate) fn refuse_partial(config: &Config<'_>) -> Result<(), ModelError> {
    match partial_factor(config)? {
        1.0 => Ok(()),
        other => Err(config.unsupported(format!("`partial_rotary_factor` {other} (1 is served here)"))),
    }
}
