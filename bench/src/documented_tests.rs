//! Measurements that the pages of documentation name are ones that this program takes.

use clap::{CommandFactory, error::ErrorKind};

#[path = "../../tests/src/page.rs"]
#[allow(dead_code, reason = "what the tests of other crates need of it")]
mod page;

use page::{Page, words};

use crate::args::Args;

#[test]
fn every_measurement_of_the_pages_is_one_of_this_program() {
    let (mut seen, mut wrong) = (0, Vec::new());
    for page in Page::all() {
        for command in page.typed(&["foggara-bench", "cargo xtask bench"]) {
            seen += 1;
            // `cargo xtask bench` passes on what stands behind it.
            let words = words(&command).into_iter().skip_while(|word| word == "cargo" || word == "xtask");
            let Err(error) = Args::command().try_get_matches_from(words) else { continue };
            // Pages leave out what is clear.
            if !matches!(error.kind(), ErrorKind::MissingRequiredArgument | ErrorKind::DisplayHelp) {
                wrong.push(format!("{}: {command}: {error}", page.name()));
            }
        }
    }
    assert!(seen > 15, "{seen} measurements");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
