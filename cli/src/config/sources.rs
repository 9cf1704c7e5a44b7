//! Where each setting's value came from.

use clap::ArgMatches;
use clap::parser::ValueSource;

use super::{ConfigFile, Setting};

/// What a setting comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Effective {
    pub(crate) key: String,
    /// As it would be in a file; `None` if it is not set.
    pub(crate) value: Option<String>,
    /// For people: `file, line 3`, `FOGGARA_LOG`, `default`.
    pub(crate) source: String,
}

/// What every setting comes to, in their order.
pub(crate) fn effective(settings: &[Setting], file: &ConfigFile, matches: &ArgMatches) -> Vec<Effective> {
    settings.iter().map(|setting| of(setting, file, matches)).collect()
}

fn of(setting: &Setting, file: &ConfigFile, matches: &ArgMatches) -> Effective {
    let id = setting.argument.get_id().as_str();
    let raw = matches.get_raw(id).into_iter().flatten();
    let values: Vec<_> = raw.map(|value| value.to_string_lossy().into_owned()).collect();
    let source = match (matches.value_source(id), file.entry(&setting.key)) {
        (Some(ValueSource::CommandLine), _) => "option".into(),
        (Some(ValueSource::EnvVariable), _) => setting.variable.clone(),
        (_, Some(entry)) => format!("file, line {}", entry.line),
        (_, None) => "default".into(),
    };
    let value = match (values.as_slice(), setting.secret) {
        ([], _) => None,
        (_, true) => Some("(hidden)".into()),
        (values, false) if setting.list => Some(format!(
            "[{}]",
            values.iter().map(|value| setting.shown(value)).collect::<Vec<_>>().join(", ")
        )),
        ([value, ..], false) => Some(setting.shown(value)),
    };
    let value = value.or_else(|| {
        Some(setting.default.clone()).filter(|told| !told.is_empty()).map(|told| format!("({told})"))
    });
    Effective { key: setting.key.clone(), value, source }
}

impl Setting {
    /// A value as TOML writes it.
    pub(crate) fn shown(&self, value: &str) -> String {
        match self.ty {
            super::Type::Text => format!("{value:?}"),
            super::Type::Number | super::Type::Flag => value.to_owned(),
        }
    }
}
