use std::path::Path;

use super::*;
use crate::checkpoint::Checkpoint;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("made");
    for entry in std::fs::read_dir(from).expect("there").flatten() {
        std::fs::copy(entry.path(), to.join(entry.file_name())).expect("copied");
    }
}

fn manifest(path: &Path) -> Manifest {
    Described::of(path, &Hashes::default(), &mut |_, _, _| true).expect("a model").manifest
}

fn find(dirs: &[&Path], manifest: &Manifest, given: &str, depth: Depth) -> Result<PathBuf, String> {
    let folders = ModelFolders::new(dirs.iter().map(|dir| dir.to_path_buf()).collect());
    folders.find(manifest, Path::new(given), depth, &Hashes::default(), &mut |_, _, _| true)
}

/// Changes one byte, near the end.
fn spoil(path: &Path) {
    let mut bytes = std::fs::read(path).expect("there");
    let at = bytes.len() - 9;
    bytes[at] ^= 1;
    std::fs::write(path, bytes).expect("written");
}

#[test]
fn its_text_says_everything() {
    let manifest = manifest(&golden("llama"));
    let names: Vec<&str> = manifest.files().iter().map(|file| file.name.as_str()).collect();
    assert!(names.contains(&"config.json") && names.contains(&"model.safetensors"), "{names:?}");
    assert!(!names.contains(&"expected.json"), "only what a model consists of");
    let text = manifest.to_text();
    assert_eq!(Manifest::parse(&text), Ok(manifest.clone()));
    assert_eq!(Manifest::parse(&text).map(|m| m.hash()), Ok(manifest.hash()));
    let head = manifest.file("model.safetensors").and_then(|file| file.head).expect("a head");
    assert!(head.bytes > 8 && head.bytes < 1 << 20, "{head:?}");
}

#[test]
fn texts_that_make_no_sense_are_refused() {
    let hash = Hash::of(b"x");
    let line = |name: &str| format!("{TITLE}\n{hash} 5 - - {name}\n");
    assert!(Manifest::parse(&line("a")).is_ok());
    for bad in [
        String::new(),
        TITLE.into(),
        line("../a"),
        line("/a"),
        line(""),
        line("a\tb"),
        line(&"x".repeat(256)),
        format!("{TITLE}\n{hash} 5 - -\n"),
        format!("{TITLE}\n{hash} five - - a\n"),
        format!("{TITLE}\nabc 5 - - a\n"),
        format!("{TITLE}\n{hash} 5 {hash} 6 a\n"),
        format!("{TITLE}\n{hash} {} - - a\n", MAX_PART + 1),
        format!("{}{hash} 5 - - a\n", line("a")),
        "x".repeat(MAX_TEXT + 1),
    ] {
        assert!(Manifest::parse(&bad).is_err(), "{bad:.200}");
    }
}

#[test]
fn files_are_found_by_name_and_size_and_checked() {
    let manifest = manifest(&golden("llama"));
    let here = folder();
    let elsewhere = "/nonesuch/llama";
    let missing = find(&[here.path()], &manifest, elsewhere, Depth::Whole).expect_err("nothing is here");
    let largest = manifest.file("model.safetensors").expect("there");
    for word in ["model.safetensors", &largest.bytes.to_string(), &largest.hash.to_string(), elsewhere] {
        assert!(missing.contains(word), "{missing}");
    }

    let own = here.path().join("llama");
    copy(&golden("llama"), &own);
    assert_eq!(
        find(&[here.path()], &manifest, elsewhere, Depth::Whole),
        Ok(own.clone()),
        "a folder of its own"
    );
    assert_eq!(find(&[&own], &manifest, elsewhere, Depth::Whole), Ok(own.clone()), "directly");
    assert_eq!(find(&[], &manifest, own.to_str().expect("UTF-8"), Depth::Whole), Ok(own.clone()), "as given");

    let weights = own.join("model.safetensors");
    spoil(&weights);
    let differs = find(&[here.path()], &manifest, elsewhere, Depth::Whole).expect_err("differs");
    assert!(differs.contains(&*weights.to_string_lossy()) && differs.contains("differs"), "{differs}");
    assert_eq!(
        find(&[here.path()], &manifest, elsewhere, Depth::Tables),
        Ok(own.clone()),
        "the head is right"
    );
    let second = folder();
    copy(&golden("llama"), second.path());
    let found = find(&[here.path(), second.path()], &manifest, elsewhere, Depth::Whole);
    assert_eq!(found.as_deref(), Ok(second.path()), "the next folder has it");

    std::fs::write(own.join("chat_template.jinja"), "{{ messages }}").expect("written");
    let more = find(&[here.path()], &manifest, elsewhere, Depth::Tables).expect_err("another template");
    assert!(more.contains("chat_template.jinja") && more.contains("not part"), "{more}");
    std::fs::remove_file(own.join("chat_template.jinja")).expect("removed");
    std::fs::remove_file(own.join("config.json")).expect("removed");
    let missing = find(&[here.path()], &manifest, elsewhere, Depth::Tables).expect_err("missing");
    assert!(missing.contains("config.json is missing"), "{missing}");
}

#[test]
fn parts_alone_make_a_checkpoint_that_can_be_opened() {
    for name in ["llama", "llama-odd-heads"] {
        let manifest = manifest(&golden(name));
        let here = folder();
        for part in manifest.parts() {
            let bytes = read_part(&golden(name).join(&part.file), 0, part.bytes).expect("there");
            assert_eq!(Hash::of(&bytes), part.hash);
            std::fs::write(here.path().join(&part.file), bytes).expect("written");
        }
        assemble(&manifest, here.path()).expect("all parts are there");
        let whole = Checkpoint::open(&golden(name)).expect("a model");
        let parts = Checkpoint::open(&manifest.open_path(here.path())).expect("its tables are there");
        assert_eq!(parts.spec(), whole.spec());
        assert_eq!(parts.total_bytes(), whole.total_bytes());
        let elsewhere = find(&[here.path()], &manifest, "/nonesuch", Depth::Tables);
        assert_eq!(elsewhere.as_deref(), Ok(here.path()));
        assert!(find(&[here.path()], &manifest, "/nonesuch", Depth::Whole).is_err());
    }
}

#[test]
fn a_gguf_file_is_a_model_too() {
    let here = folder();
    let path = here.path().join("Tiny.gguf");
    std::fs::write(&path, crate::testing::tiny_gguf(crate::DType::F32).bytes()).expect("written");
    let manifest = manifest(&path);
    assert_eq!(manifest.files().len(), 1);
    let parts = folder();
    for part in manifest.parts() {
        let bytes = read_part(&path, 0, part.bytes).expect("there");
        std::fs::write(parts.path().join(&part.file), bytes).expect("written");
    }
    assemble(&manifest, parts.path()).expect("all parts are there");
    let opened = Checkpoint::open(&manifest.open_path(parts.path())).expect("its tables are there");
    assert_eq!(opened.spec(), Checkpoint::open(&path).expect("a model").spec());
    let found = find(&[here.path()], &manifest, "/nonesuch/Tiny.gguf", Depth::Whole);
    assert_eq!(found.as_deref(), Ok(here.path()));
}

#[test]
fn hashes_are_remembered_until_a_file_changes() {
    let (here, cache) = (folder(), folder());
    let path = here.path().join("file");
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(60);
    let write = |text: &str, when| {
        std::fs::write(&path, text).expect("written");
        std::fs::File::options()
            .write(true)
            .open(&path)
            .and_then(|file| file.set_modified(when))
            .expect("set");
    };
    let hash = |hashes: &Hashes| {
        let mut read = false;
        let hash = hashes.of(&path, &mut |_, done, total| {
            read |= done == total;
            true
        });
        (hash.expect("there"), read)
    };
    write("one", long_ago);
    let hashes = Hashes::new(Some(cache.path().into()));
    assert_eq!(hash(&hashes), (Hash::of(b"one"), true));
    assert_eq!(hash(&hashes), (Hash::of(b"one"), false));
    let other = Hashes::new(Some(cache.path().into()));
    assert_eq!(hash(&other), (Hash::of(b"one"), false), "another process knows it too");
    write("two", long_ago + std::time::Duration::from_secs(1));
    assert_eq!(hash(&other), (Hash::of(b"two"), true));
    // One that has just changed may do so again within the clock's grain.
    write("now", std::time::SystemTime::now());
    assert_eq!(hash(&other), (Hash::of(b"now"), true));
    assert_eq!(hash(&other), (Hash::of(b"now"), true));
    let stopped = Hashes::default().of(&path, &mut |_, _, _| false).expect_err("stopped");
    assert!(stopped.to_string().contains("cancelled"), "{stopped}");
    std::fs::write(cache.path().join("hashes.txt"), "rubbish\n1 2 3\n").expect("written");
    assert_eq!(
        hash(&Hashes::new(Some(cache.path().into()))).0,
        Hash::of(b"now"),
        "what is damaged is left out"
    );
}

#[test]
fn pieces_of_a_file_are_the_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("f");
    let bytes: Vec<u8> = (0..600_000u32).map(|i| (i % 251) as u8).collect();
    std::fs::write(&path, &bytes).expect("written");
    let pieces: Vec<_> = read_pieces(path.clone(), 600_000).map(|piece| piece.expect("there")).collect();
    assert_eq!((pieces.len(), pieces.concat()), (3, bytes), "256 KiB each");
    let beyond: Vec<_> = read_pieces(path, 600_001).collect();
    assert!(beyond.len() == 3 && beyond[2].is_err(), "it ends early");
}
