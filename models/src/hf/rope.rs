//! The rotation's parameters in config.json.

use serde_json::Value;

use super::config::Config;
use crate::arch::rope::{RopeScaling, inv_freq, yarn_scale};
use crate::error::ModelError;
use crate::spec::{RopeSpec, RopeStyle};

/// Parameters that are read here.
const KNOWN: [&str; 17] = [
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
    "short_factor",
    "long_factor",
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
        let fits = match field.as_str() {
            "rope_type" | "type" => value.is_string(),
            "truncate" => value.is_boolean(),
            "short_factor" | "long_factor" => value.is_array(),
            _ => value.is_number(),
        };
        if !value.is_null() && !fits {
            return Err(ModelError::corrupt(config.path, format!("rope parameter `{field}` is {value}")));
        }
    }
    if let Some(parameters) = parameters.filter(|parameters| !parameters.is_object()) {
        return Err(ModelError::corrupt(config.path, format!("the rope parameters are {parameters}")));
    }
    let field = |name: &str| parameters.and_then(|p| p.get(name)).filter(|value| !value.is_null());
    let number = |name: &str| field(name).and_then(Value::as_f64);
    let theta = match field("rope_theta").or_else(|| config.get("rope_theta")) {
        None => 10_000.0,
        Some(theta) => theta.as_f64().ok_or_else(|| {
            ModelError::corrupt(config.path, format!("field `rope_theta` is {theta}, not a number"))
        })?,
    };
    let kind = kind(parameters);
    let required = |name: &str| {
        let missing = || {
            ModelError::corrupt(config.path, format!("rope parameter `{name}` is missing or not a number"))
        };
        number(name).ok_or_else(missing)
    };
    let original = || original(config, parameters);
    let (mut scale, mut attention, mut divisors) = (1.0, 1.0, Vec::new());
    let all_dim = number("mscale_all_dim").filter(|m| *m != 0.0);
    if let (Some(m), Some(factor), false) =
        (all_dim, number("factor"), matches!(kind, None | Some("default")))
    {
        attention = yarn_scale(factor, m).powi(2);
    }
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
            original: original()?,
        },
        Some("yarn") => {
            let original = original()?;
            let factor = match number("factor") {
                Some(factor) => factor,
                None => config.number("max_position_embeddings")?.unwrap_or(original) / original,
            };
            let given = |name: &str| number(name).filter(|value| *value != 0.0);
            scale = match (number("attention_factor"), given("mscale"), all_dim) {
                (Some(given), ..) => given,
                (None, Some(m), Some(all)) => yarn_scale(factor, m) / yarn_scale(factor, all),
                _ => yarn_scale(factor, 1.0),
            };
            RopeScaling::Yarn {
                factor,
                original,
                fast: given("beta_fast").unwrap_or(32.0),
                slow: given("beta_slow").unwrap_or(1.0),
                truncate: field("truncate").and_then(Value::as_bool).unwrap_or(true),
            }
        }
        Some("longrope" | "su") => {
            let original = original()?;
            let factor = match number("factor") {
                Some(factor) => factor,
                None => config.number("max_position_embeddings")?.unwrap_or(original) / original,
            };
            let stretched = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original.ln()).sqrt() };
            scale = number("attention_factor").unwrap_or(stretched);
            let short =
                field("short_factor").and_then(Value::as_array).map(|list| list.iter().map(Value::as_f64));
            divisors = short.and_then(Iterator::collect::<Option<Vec<f64>>>).unwrap_or_default();
            if divisors.len() != dims / 2 {
                let reason = format!("rope parameter `short_factor` must be a list of {} numbers", dims / 2);
                return Err(ModelError::corrupt(config.path, reason));
            }
            RopeScaling::None
        }
        Some(other) => {
            let served = "default, linear, llama3, yarn and longrope are served";
            return Err(config.unsupported(format!("rope type `{other}` ({served})")));
        }
    };
    let inv_freq = inv_freq(theta, dims, scaling);
    let mut inv_freq = inv_freq.map_err(|reason| ModelError::corrupt(config.path, reason))?;
    for (frequency, divisor) in inv_freq.iter_mut().zip(divisors) {
        *frequency = (f64::from(*frequency) / divisor) as f32;
        if !frequency.is_finite() {
            return Err(ModelError::corrupt(
                config.path,
                format!("rope parameter `short_factor` has {divisor}"),
            ));
        }
    }
    Ok((RopeSpec { style, inv_freq, scale: scale as f32 }, attention as f32))
}

/// What kind of rotation the parameters name.
pub(crate) fn kind(parameters: Option<&Value>) -> Option<&str> {
    let field = |name: &str| parameters?.get(name).filter(|value| !value.is_null());
    field("rope_type").or_else(|| field("type")).map(|kind| kind.as_str().unwrap_or_default())
}

/// Positions before stretching: beside the parameters, or among them, or what the model is made for.
fn original(config: &Config<'_>, parameters: Option<&Value>) -> Result<f64, ModelError> {
    let field = "original_max_position_embeddings";
    let among = parameters.and_then(|p| p.get(field)).and_then(Value::as_f64);
    let whole = config.number("max_position_embeddings")?;
    let original = config.number(field)?.or(among).or(whole);
    original.ok_or_else(|| config.wrong("max_position_embeddings", "a number"))
}

/// Most positions that can be served: LongRoPE (Ding et al., 2024) has one set of divisors up to the original length and
/// another for sequences that are longer, whose keys would all have to be rotated anew when they become so.
pub(super) fn most_positions(
    config: &Config<'_>,
    parameters: Option<&Value>,
) -> Result<Option<usize>, ModelError> {
    match kind(parameters) {
        Some("longrope" | "su") => Ok(Some(original(config, parameters)? as usize)),
        _ => Ok(None),
    }
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
