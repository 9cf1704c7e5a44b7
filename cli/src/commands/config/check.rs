//! `foggara config check`

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};
use clap::error::{ContextKind, ContextValue};
use clap::{ArgMatches, FromArgMatches as _};

use super::places;
use crate::commands::{coordinator, worker};
use crate::config::{ConfigFile, Effective, Kind, Setting, effective, settings};

/// Checks every file, and fails if one is wrong.
pub(super) fn run(out: &mut impl Write, files: &[PathBuf], kind: Option<Kind>) -> anyhow::Result<()> {
    let mut wrong = 0;
    for path in files {
        let kind = kind.or_else(|| Kind::of_file(path));
        let kind = kind.with_context(|| {
            format!(
                "{}: say --kind coordinator or --kind worker; its name begins with neither",
                path.display()
            )
        })?;
        let findings = one(out, path, kind)?;
        findings.iter().try_for_each(|finding| writeln!(out, "wrong: {finding}"))?;
        if findings.is_empty() {
            writeln!(out, "{}: ok", path.display())?;
        }
        wrong += findings.len();
    }
    out.flush()?;
    match wrong {
        0 => Ok(()),
        1 => bail!("one thing is wrong with the configuration"),
        more => bail!("{more} things are wrong with the configuration"),
    }
}

/// Prints what one file comes to, and gives what is wrong.
fn one(out: &mut impl Write, path: &Path, kind: Kind) -> anyhow::Result<Vec<String>> {
    let command = kind.command(&crate::command_line());
    let settings = settings(&command);
    let file = match ConfigFile::read(path, &settings) {
        Ok(file) => file,
        Err(error) => return Ok(vec![error.to_string()]),
    };
    writeln!(out, "# {}: {}", path.display(), kind.name())?;
    let command = file.apply(command);
    // What is required is missed only after this: with it missing, there would be nothing to print.
    let relaxed = command.clone().mut_args(|argument| argument.required(false));
    let matches = match relaxed.try_get_matches_from([kind.name()]) {
        Ok(matches) => matches,
        // A variable: the file's values have been looked at.
        Err(error) => return Ok(vec![in_environment(&error, &settings)]),
    };
    print(out, &effective(&settings, &file, &matches))?;
    match command.try_get_matches_from([kind.name()]) {
        Ok(matches) => Ok(meaning(kind, &matches)),
        Err(error) => Ok(missing(&error)),
    }
}

fn print(out: &mut impl Write, rows: &[Effective]) -> std::io::Result<()> {
    let text = |row: &Effective| match &row.value {
        Some(value) => format!("{} = {value}", row.key),
        None => format!("{}: not set", row.key),
    };
    let width = rows.iter().map(|row| text(row).chars().count()).max().unwrap_or(0).min(60);
    rows.iter().try_for_each(|row| match row.value {
        Some(_) => writeln!(out, "{:width$}  # {}", text(row), row.source),
        None => writeln!(out, "{}", text(row)),
    })
}

/// A variable whose value makes no sense, as clap says it.
fn in_environment(error: &clap::Error, settings: &[Setting]) -> String {
    let named = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(option)) => settings
            .iter()
            .find(|setting| {
                option.starts_with(&format!("--{} ", setting.argument.get_long().unwrap_or_default()))
            })
            .map(|setting| format!("{}: ", setting.variable)),
        _ => None,
    };
    let text = error.to_string();
    let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
    format!("{}{first}", named.unwrap_or_default())
}

/// Each setting that must be there and is not.
fn missing(error: &clap::Error) -> Vec<String> {
    match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::Strings(options)) => {
            let key = |option: &String| {
                let long = option.split([' ', '=']).next().unwrap_or_default();
                long.trim_start_matches('-').replace('-', "_")
            };
            options.iter().map(|option| format!("{}: is not set, and must be", key(option))).collect()
        }
        _ => vec![error.to_string().lines().next().unwrap_or_default().to_owned()],
    }
}

/// What is wrong with settings that can all be read.
fn meaning(kind: Kind, matches: &ArgMatches) -> Vec<String> {
    let outcome = match kind {
        Kind::Coordinator => coordinator::Arguments::from_arg_matches(matches)
            .map_err(|error| anyhow!("{}", error.to_string().trim_end().trim_start_matches("error: ")))
            .and_then(|arguments| Ok(arguments.settings()?))
            .map(|settings| {
                let places = places::of_coordinator(&settings);
                (settings.check().map_err(|e| e.to_string()), places, settings.tls)
            }),
        Kind::Worker => worker::Arguments::from_arg_matches(matches)
            .map_err(|error| anyhow!("{}", error.to_string().trim_end().trim_start_matches("error: ")))
            .and_then(|arguments| Ok(arguments.settings()?))
            .map(|settings| {
                let places = places::of_worker(&settings);
                (settings.check().map_err(|e| e.to_string()), places, settings.tls)
            }),
    };
    match outcome {
        Ok((checked, places, tls)) => {
            let tls = tls.and_then(|files| foggara_tls::Tls::load(files).err());
            let places = places.iter().filter_map(places::Place::wrong);
            checked.err().into_iter().chain(places).chain(tls.map(|error| error.to_string())).collect()
        }
        Err(error) => vec![error.to_string()],
    }
}
