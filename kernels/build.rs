//! Lists the CUDA sources, so that a file put into `cu/` is all there is to do; and machine code where it was made beforehand
//! (`cargo xtask cubins`, then `FOGGARA_CUBINS=target/cubins cargo build`).

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=cu");
    println!("cargo:rerun-if-env-changed=FOGGARA_CUBINS");

    let mut text = String::from("/// Every source: the file's name without `.cu`, and what is in it.\n");
    text += "pub static SOURCES: &[(&str, &str)] = &[\n";
    for file in files(&root.join("cu"), "cu") {
        writeln!(text, "    ({:?}, include_str!({:?})),", stem(&file), file).expect("memory");
    }
    text += "];\n/// Every header that sources include.\npub static HEADERS: &[(&str, &str)] = &[\n";
    for file in files(&root.join("cu"), "cuh") {
        writeln!(text, "    (\"{}.cuh\", include_str!({:?})),", stem(&file), file).expect("memory");
    }
    text += "];\n/// Machine code that was made beforehand: source, architecture, bytes.\n";
    text += "pub static CUBINS: &[(&str, &str, &[u8])] = &[\n";
    if let Some(folder) = env::var_os("FOGGARA_CUBINS") {
        // Relative to the workspace's root, where it is typed.
        let folder = root.parent().unwrap_or(&root).join(folder);
        println!("cargo:rerun-if-changed={}", folder.display());
        for file in files(&folder, "cubin") {
            let name = stem(&file);
            let Some((source, architecture)) = name.rsplit_once('.') else { continue };
            let made_from = fs::read_to_string(file.with_extension("from")).unwrap_or_default();
            if made_from != from_now(&root.join("cu"), source) {
                panic!("{} was made from other sources than these: run `cargo xtask cubins`", file.display());
            }
            writeln!(text, "    ({source:?}, {architecture:?}, include_bytes!({file:?})),").expect("memory");
        }
    }
    text += "];\n";
    fs::write(out.join("sources.rs"), text).expect("writing sources.rs");
}

/// Every header in order of names, and the source: what machine code is made from.
fn from_now(folder: &Path, source: &str) -> String {
    let mut all = files(folder, "cuh");
    all.push(folder.join(source).with_extension("cu"));
    all.iter().map(|file| fs::read_to_string(file).unwrap_or_default()).collect()
}

/// The files of a folder with this extension, in order of their names.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("reading {}: {e}", folder.display()));
    let paths = entries.map(|entry| entry.expect("a folder's entry").path());
    let mut paths: Vec<_> = paths.filter(|path| path.extension().is_some_and(|e| e == extension)).collect();
    paths.sort();
    paths
}

fn stem(file: &Path) -> String {
    file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
}
