//! A configuration file: flat TOML, whose values are checked by the options' own parsers.

use std::error::Error as _;
use std::ops::Range;
use std::path::{Path, PathBuf};

use clap::Command;
use clap::error::{ContextKind, ContextValue};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::options::{Setting, Type};
use crate::secret;

/// More is no configuration.
const MAX_BYTES: u64 = 1 << 20;

/// What is wrong with a file: which, where in it, and what.
#[derive(Debug, thiserror::Error)]
#[error("{}{}: {reason}", path.display(), line.map(|line| format!(":{line}")).unwrap_or_default())]
pub(crate) struct FileError {
    path: PathBuf,
    /// From 1.
    line: Option<usize>,
    reason: String,
}

/// What a file says of one setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) key: String,
    /// As an option would say them.
    pub(crate) values: Vec<String>,
    /// From 1.
    pub(crate) line: usize,
}

/// What a file says.
#[derive(Debug, Clone, Default)]
pub(crate) struct ConfigFile {
    pub(crate) entries: Vec<Entry>,
}

impl ConfigFile {
    /// Reads `path`, which may only have `settings`.
    ///
    /// # Errors
    /// If it cannot be read, is no TOML, has a key that is no setting or a value that its option would not take, or holds a
    /// secret that other users of the machine could read.
    pub(crate) fn read(path: &Path, settings: &[Setting]) -> Result<Self, FileError> {
        let fails = |reason: String| FileError { path: path.into(), line: None, reason };
        let metadata = std::fs::metadata(path).map_err(|e| fails(e.to_string()))?;
        if metadata.len() > MAX_BYTES {
            return Err(fails(format!("{} bytes; the limit is {MAX_BYTES}", metadata.len())));
        }
        let text = std::fs::read_to_string(path).map_err(|e| fails(e.to_string()))?;
        let file = Self::parse(&text, settings).map_err(|(line, reason)| FileError {
            path: path.into(),
            line,
            reason,
        })?;
        let is_secret = |key: &str| settings.iter().any(|setting| setting.secret && setting.key == key);
        if let Some(entry) = file.entries.iter().find(|entry| is_secret(&entry.key)) {
            secret::check_private(path, &metadata).map_err(|e| fails(format!("{}: {e}", entry.key)))?;
        }
        Ok(file)
    }

    /// The same, of a text. Errors have their line.
    fn parse(text: &str, settings: &[Setting]) -> Result<Self, (Option<usize>, String)> {
        let line = |span: Range<usize>| text[..span.start.min(text.len())].matches('\n').count() + 1;
        let table = DeTable::parse(text)
            .map_err(|error| (error.span().map(line), error.message().trim().to_owned()))?;
        let mut entries = Vec::new();
        for (key, value) in table.get_ref() {
            let (at, key) = (line(key.span()), key.get_ref().as_ref());
            let setting = settings.iter().find(|setting| setting.key == key);
            let setting = setting.ok_or_else(|| (Some(at), unknown(key, settings)))?;
            let values = values(setting, value).map_err(|reason| (Some(at), format!("{key}: {reason}")))?;
            for value in &values {
                accepted(setting, value).map_err(|reason| (Some(at), format!("{key}: {reason}")))?;
            }
            entries.push(Entry { key: key.to_owned(), values, line: at });
        }
        entries.sort_by_key(|entry| entry.line);
        Ok(Self { entries })
    }

    /// What the file says of `key`.
    pub(crate) fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.key == key)
    }

    /// Makes what it says the defaults of `command`.
    pub(crate) fn apply(&self, command: Command) -> Command {
        command.mut_args(|argument| {
            let key = argument.get_long().map(|long| long.replace('-', "_"));
            match key.and_then(|key| self.entry(&key)) {
                Some(entry) if !argument.is_hide_set() && !entry.values.is_empty() => {
                    argument.required(false).default_values(entry.values.clone())
                }
                _ => argument,
            }
        })
    }
}

/// A value as an option would say it: one text, or several.
fn values(setting: &Setting, value: &Spanned<DeValue<'_>>) -> Result<Vec<String>, String> {
    match value.get_ref() {
        DeValue::Array(elements) if setting.list => {
            elements.iter().map(|element| scalar(setting.ty, element.get_ref())).collect()
        }
        DeValue::Array(_) => Err(format!("takes one value, not an array: {}", setting.ty.wanted())),
        one => Ok(vec![scalar(setting.ty, one)?]),
    }
}

fn scalar(ty: Type, value: &DeValue<'_>) -> Result<String, String> {
    match (ty, value) {
        (Type::Text, DeValue::String(text)) => Ok(text.to_string()),
        (Type::Flag, DeValue::Boolean(flag)) => Ok(flag.to_string()),
        (Type::Number, DeValue::Integer(number)) => {
            let digits = number.as_str().replace('_', "");
            let value = i128::from_str_radix(&digits, number.radix());
            value.map(|value| value.to_string()).map_err(|_| format!("`{digits}` is too large"))
        }
        (ty, found) => Err(format!("must be {}, and is of type {}", ty.wanted(), found.type_str())),
    }
}

/// Whether the option's own parser takes the value.
fn accepted(setting: &Setting, value: &str) -> Result<(), String> {
    let long = setting.argument.get_long().unwrap_or_default();
    let argument = setting.argument.clone().required(false);
    let alone = Command::new("file").no_binary_name(true).disable_help_flag(true).arg(argument);
    match alone.try_get_matches_from([format!("--{long}={value}")]) {
        Ok(_) => Ok(()),
        Err(_) if setting.secret => Err("is not valid".into()),
        Err(error) => Err(format!("`{value}`: {}", reason(&error))),
    }
}

fn reason(error: &clap::Error) -> String {
    if let Some(source) = error.source() {
        return source.to_string();
    }
    if let Some(ContextValue::Strings(valid)) = error.get(ContextKind::ValidValue)
        && !valid.is_empty()
    {
        return format!("must be one of {}", valid.join(", "));
    }
    "is not valid".into()
}

/// Names the setting that was meant, if one is near.
fn unknown(key: &str, settings: &[Setting]) -> String {
    let plain = key.replace('-', "_").to_lowercase();
    let same = settings.iter().find(|setting| setting.key == plain).map(|setting| setting.key.clone());
    match same.or_else(|| nearest(&plain, settings)) {
        Some(near) => format!("there is no setting `{key}`; did you mean `{near}`?"),
        None => {
            let all: Vec<_> = settings.iter().map(|setting| setting.key.as_str()).collect();
            format!("there is no setting `{key}`; there are {}", all.join(", "))
        }
    }
}

/// What clap would propose for an option of that name.
fn nearest(key: &str, settings: &[Setting]) -> Option<String> {
    let arguments = settings.iter().map(|setting| setting.argument.clone().required(false));
    let command = Command::new("file").no_binary_name(true).disable_help_flag(true).args(arguments);
    let error = command.try_get_matches_from([format!("--{}", key.replace('_', "-"))]).err()?;
    match error.get(ContextKind::SuggestedArg)? {
        ContextValue::String(option) => Some(option.trim_start_matches('-').replace('-', "_")),
        ContextValue::Strings(options) => {
            options.first().map(|option| option.trim_start_matches('-').replace('-', "_"))
        }
        _ => None,
    }
}
