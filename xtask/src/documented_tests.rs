//! What the pages of documentation say to type for `cargo` is there: tasks, examples, tests.

use std::path::Path;

use clap::{CommandFactory, error::ErrorKind};

#[path = "../../tests/src/page.rs"]
#[allow(dead_code, reason = "what the tests of other crates need of it")]
mod page;

use page::{Page, words};

use crate::{Arguments, place};

#[test]
fn every_task_of_the_pages_is_one() {
    let (mut seen, mut wrong) = (0, Vec::new());
    for page in Page::all() {
        for command in page.typed(&["cargo xtask"]) {
            seen += 1;
            let words = words(&command).into_iter().skip(1);
            let Err(error) = Arguments::command().try_get_matches_from(words) else { continue };
            if error.kind() != ErrorKind::DisplayHelp {
                wrong.push(format!("{}: {command}: {error}", page.name()));
            }
        }
    }
    assert!(seen > 15, "{seen} tasks");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What follows an option.
fn value<'a>(words: &'a [String], option: &str) -> Option<&'a str> {
    let at = words.iter().position(|word| word == option)?;
    words.get(at + 1).map(String::as_str)
}

/// Whether a source below `folder` has this word.
fn is_named(folder: &Path, word: &str) -> bool {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).any(|path| match path.is_dir() {
        true => path.file_name().is_some_and(|name| name == word) || is_named(&path, word),
        false => {
            path.file_stem().is_some_and(|name| name == word)
                || std::fs::read_to_string(&path).is_ok_and(|text| text.contains(word))
        }
    })
}

#[test]
fn examples_and_tests_that_the_pages_name_are_there() {
    let (mut seen, mut missing) = (0, Vec::new());
    for page in Page::all() {
        for command in page.typed(&["cargo run", "cargo test"]) {
            seen += 1;
            let words = words(&command);
            let (own, after) =
                words.split_at(words.iter().position(|word| word == "--").unwrap_or(words.len()));
            let of = value(own, "-p").or(value(own, "--package")).unwrap_or("foggara-tests");
            let folder = place::root().join(of.trim_start_matches("foggara-"));
            let there = match value(own, "--example") {
                Some(example) => folder.join(format!("examples/{example}.rs")).exists(),
                // The last word that is no option says which tests, by their paths.
                None => {
                    let test = own.iter().chain(after).rfind(|word| !word.starts_with('-'));
                    test.is_some_and(|test| test.split("::").all(|part| is_named(&folder, part)))
                }
            };
            if !there {
                missing.push(format!("{}: {command}", page.name()));
            }
        }
    }
    assert!(seen > 8, "{seen} commands");
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}
