//! Commands that the pages of documentation name are commands of this program, with options that it has.

use clap::error::ErrorKind;

#[path = "../../tests/src/page.rs"]
#[allow(dead_code, reason = "what the tests of other crates need of it")]
mod page;

use page::{Page, words};

#[test]
fn every_command_of_the_pages_is_one_of_this_program() {
    let (mut seen, mut wrong) = (0, Vec::new());
    for page in Page::all() {
        for command in page.typed(&["foggara", "target/release/foggara"]) {
            seen += 1;
            let Err(error) = crate::command_line().try_get_matches_from(words(&command)) else { continue };
            // Pages leave out what is clear, and name commands by their beginnings.
            let may_be = [
                ErrorKind::MissingRequiredArgument,
                ErrorKind::DisplayHelp,
                ErrorKind::DisplayVersion,
                ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand,
                ErrorKind::MissingSubcommand,
            ];
            let said = error.to_string();
            // An option that a sentence only names has no value.
            if !may_be.contains(&error.kind()) && !said.contains("but none was supplied") {
                wrong.push(format!(
                    "{}: {command}: {}",
                    page.name(),
                    said.lines().next().unwrap_or_default()
                ));
            }
        }
    }
    assert!(seen > 80, "{seen} commands");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
