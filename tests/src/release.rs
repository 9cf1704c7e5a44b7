//! Other releases of the program, without building them: what a program says of itself lies in one place in it, as text
//! (`foggara_proto::version`), and is written over. All it does is decided by what it finds there.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use foggara_proto::version::Build;

use crate::paths;
use crate::process::text;

/// Begins what a program says of itself.
const BEGIN: &[u8] = b"foggara-build version=";

/// The program as another release, in `folder`.
pub fn another(folder: &Path, change: impl FnOnce(&mut Build)) -> PathBuf {
    let mut build = Build::own();
    change(&mut build);
    let mut program = std::fs::read(paths::foggara()).expect("it can be read");
    let places: Vec<usize> = found(&program, BEGIN);
    let [place] = places[..] else { panic!("it says what it is in {} places", places.len()) };
    // Spaces follow, and then something else.
    let after = &program[place + BEGIN.len()..];
    let length = BEGIN.len() + after.windows(2).position(|two| two == b"  ").expect("there is room");
    let room = length + program[place + length..].iter().take_while(|byte| **byte == b' ').count();
    let said = format!("foggara-build {build}");
    assert!(said.len() < room, "room for {said}");
    let said = format!("{said:room$}");
    program[place..place + room].copy_from_slice(said.as_bytes());
    let path = folder.join(format!("foggara-{}", build.version));
    std::fs::write(&path, program).expect("the folder can be written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("it is ours");
    let says = Command::new(&path).arg("--version").output().expect("it can be run");
    assert!(text(&says).contains(&format!("foggara {}", build.version)), "{}", text(&says));
    path
}

/// The release after this one: the same protocol, and a state format more.
pub fn next(folder: &Path) -> PathBuf {
    another(folder, |build| {
        build.version = next_version();
        build.formats.newest += 1;
    })
}

/// The number of that one.
pub fn next_version() -> String {
    format!("{}.next", Build::own().version)
}

/// Where some bytes are.
fn found(all: &[u8], wanted: &[u8]) -> Vec<usize> {
    let first = wanted[0];
    let begins = all.iter().enumerate().filter(|(_, byte)| **byte == first).map(|(at, _)| at);
    begins.filter(|at| all[*at..].starts_with(wanted)).collect()
}
