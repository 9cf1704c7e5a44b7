//! The settings there are: the options of a subcommand, as clap knows them.

use std::any::TypeId;

use clap::{Arg, ArgAction, Command};

/// What a setting's value is in TOML.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Type {
    Text,
    Number,
    Flag,
}

impl Type {
    /// What a value must look like.
    pub(crate) fn wanted(self) -> &'static str {
        match self {
            Self::Text => "a string, in quotes",
            Self::Number => "a whole number, without quotes",
            Self::Flag => "true or false, without quotes",
        }
    }
}

/// One setting.
#[derive(Debug, Clone)]
pub(crate) struct Setting {
    /// Its option. May have a variable that is not in the process's own environment.
    pub(crate) argument: Arg,
    /// Its name in a file: `data_dir`.
    pub(crate) key: String,
    /// Its name in the environment.
    pub(crate) variable: String,
    pub(crate) ty: Type,
    /// Whether it may be given more than once.
    pub(crate) list: bool,
    /// Whether its value must not be shown.
    pub(crate) secret: bool,
    pub(crate) required: bool,
    /// What it is by itself, for people; empty if it is nothing.
    pub(crate) default: String,
    /// What it means.
    pub(crate) help: String,
}

/// Options that are about the start itself.
const NO_SETTINGS: [&str; 3] = ["config", "help", "version"];

/// The settings of a process, in the order of their declaration.
pub(crate) fn settings(command: &Command) -> Vec<Setting> {
    command.get_arguments().filter_map(setting).collect()
}

/// Gives every setting a variable.
pub(super) fn with_variables(command: Command) -> Command {
    command.mut_args(|argument| match (key(&argument), argument.get_env()) {
        // Help would have a third more lines, all alike: its end says it once.
        (Some(key), None) => argument.env(variable(&key)).hide_env(true),
        _ => argument,
    })
}

fn key(argument: &Arg) -> Option<String> {
    let long = argument.get_long()?;
    (!argument.is_hide_set() && !NO_SETTINGS.contains(&long)).then(|| long.replace('-', "_"))
}

fn variable(key: &str) -> String {
    format!("FOGGARA_{}", key.to_uppercase())
}

fn setting(argument: &Arg) -> Option<Setting> {
    let key = key(argument)?;
    let help = argument.get_long_help().or(argument.get_help());
    let help = help.map(ToString::to_string).unwrap_or_default();
    // Where the default is not one value, the text says it in the way that clap does.
    let (help, told) = match help.split_once(" [default: ").or_else(|| help.split_once("\n[default: ")) {
        Some((help, told)) => (help.to_owned(), told.trim_end_matches(']').to_owned()),
        None => (help, String::new()),
    };
    let defaults: Vec<_> =
        argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    let variable = match argument.get_env() {
        Some(name) => name.to_string_lossy().into_owned(),
        None => variable(&key),
    };
    Some(Setting {
        variable,
        ty: type_of(argument),
        list: matches!(argument.get_action(), ArgAction::Append),
        secret: argument.is_hide_env_values_set(),
        required: argument.is_required_set(),
        default: if defaults.is_empty() { told } else { defaults.join(",") },
        help: help.replace('\n', " "),
        argument: argument.clone(),
        key,
    })
}

fn type_of(argument: &Arg) -> Type {
    let parsed = argument.get_value_parser().type_id();
    let is = |types: &[TypeId]| types.iter().any(|one| parsed == *one);
    if is(&[TypeId::of::<bool>()]) {
        Type::Flag
    } else if is(&[TypeId::of::<u16>(), TypeId::of::<u32>(), TypeId::of::<u64>(), TypeId::of::<usize>()]) {
        Type::Number
    } else {
        Type::Text
    }
}
