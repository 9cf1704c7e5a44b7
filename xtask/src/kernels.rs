//! `cargo xtask kernels`: the CUDA kernels, compiled for the host.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};

use crate::{place, process};

/// Compile the CUDA kernels for the host, where their tests run: target/cuda-host/libfoggara_twin.so.
///
/// Only what changed is compiled. Tests that are run by `cargo xtask test` have this done for them.
#[derive(clap::Args)]
pub struct Arguments {
    /// Also look for mistakes that are not seen otherwise, into a folder of its own; slow. Prints how tests use it.
    #[arg(long, value_enum)]
    find: Option<Mistakes>,
}

/// What can be looked for.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Mistakes {
    /// Accesses outside of what a thread has, and undefined behaviour.
    Memory,
    /// Threads that write what others read or write, with no barrier between them.
    Races,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let (build, sanitizer, options) = match arguments.find {
        None => (Build::PLAIN, "", ""),
        Some(Mistakes::Memory) => (Build::MEMORY, "asan", "ASAN_OPTIONS=detect_leaks=0"),
        Some(Mistakes::Races) => {
            (Build::RACES, "tsan", "TSAN_OPTIONS=ignore_noninstrumented_modules=1:halt_on_error=1 setarch -R")
        }
    };
    if build.todo()? {
        build.run()?;
    }
    let library = build.library();
    println!("{} is built.", place::typed(&library));
    if arguments.find.is_some() {
        println!(
            "FOGGARA_TWIN={} LD_PRELOAD=$(g++ -print-file-name=lib{sanitizer}.so) {options} TESTS --test-threads=1",
            library.display()
        );
    }
    Ok(())
}

/// One way to compile them.
pub struct Build {
    folder: &'static str,
    flags: &'static [&'static str],
}

/// What every file is compiled with. No contraction: products and sums are rounded as they are written, on every machine.
const FLAGS: &[&str] = &[
    "-std=c++20",
    "-O2",
    "-g1",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
    "-DFOGGARA_HOST",
    // What a GPU takes for an error, or does otherwise than this machine would, ends the process.
    "-fsanitize=alignment,bounds,shift,signed-integer-overflow,integer-divide-by-zero,float-cast-overflow",
    "-fno-sanitize-recover=all",
];

/// Compilers that run at once.
fn at_once() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from)
}

impl Build {
    pub const PLAIN: Self = Self { folder: "target/cuda-host", flags: &[] };
    const MEMORY: Self = Self {
        folder: "target/cuda-host-memory",
        flags: &["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"],
    };
    const RACES: Self =
        Self { folder: "target/cuda-host-races", flags: &["-fsanitize=thread", "-DFOGGARA_RACES"] };

    fn folder(&self) -> PathBuf {
        place::root().join(self.folder)
    }

    fn library(&self) -> PathBuf {
        self.folder().join("libfoggara_twin.so")
    }

    /// Whether anything changed since the library was built.
    pub fn todo(&self) -> Result<bool> {
        let newest = sources()?.iter().chain(&headers()?).map(|path| changed(path)).max().flatten();
        let listed = fs::read_to_string(self.folder().join("files")).unwrap_or_default();
        Ok(changed(&self.library()) <= newest || listed != self.list()?)
    }

    /// Everything that the library is made from, and how.
    fn list(&self) -> Result<String> {
        let flags = FLAGS.iter().chain(self.flags).map(|flag| (*flag).to_owned());
        let files = sources()?.into_iter().map(|path| path.display().to_string());
        Ok(flags.chain(files).collect::<Vec<_>>().join("\n"))
    }

    /// Compiles what changed, and links.
    pub fn run(&self) -> Result<()> {
        let (folder, library, list) = (self.folder(), self.library(), self.list()?);
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        let headers = headers()?.iter().map(|path| changed(path)).max().flatten();
        let flags = [FLAGS, self.flags].concat().join("\n");
        let all_anew = fs::read_to_string(folder.join("flags")).unwrap_or_default() != flags;
        // Noted last, and forgotten first: a build cut short begins anew.
        let _ = fs::remove_file(folder.join("files"));
        let mut objects = Vec::new();
        let mut stale = Vec::new();
        for source in sources()? {
            let name = source.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let object = folder.join(name + ".o");
            if all_anew || changed(&object) <= changed(&source).max(headers) {
                stale.push((source, object.clone()));
            }
            objects.push(object);
        }
        let include = place::root().join("kernels/cu");
        let commands = stale.into_iter().map(|(source, object)| {
            let mut command = compiler();
            command.args(FLAGS).args(self.flags);
            if source.extension().is_some_and(|extension| extension == "cpp") {
                // Threads are played here: what it does is no thread's own, and it says itself what is.
                command.arg("-fno-sanitize=thread");
            }
            command.arg("-I").arg(&include).args(["-x", "c++", "-c"]);
            command.arg(source).arg("-o").arg(object);
            command
        });
        if all_anew {
            remove_objects(&objects)?;
            fs::write(folder.join("flags"), flags).context("noting the flags")?;
        }
        run_all(commands.collect())?;
        // Under another name first: who has the old one loaded keeps it.
        let new = folder.join("libfoggara_twin.so.new");
        let mut link = compiler();
        link.args(FLAGS).args(self.flags).args(["-shared", "-pthread", "-o"]).arg(&new).args(&objects);
        if self.flags.is_empty() {
            link.arg("-Wl,-z,defs");
        }
        process::run(link.args(["-ldl"]))?;
        fs::rename(&new, &library).with_context(|| format!("writing {}", library.display()))?;
        fs::write(folder.join("files"), list).context("noting the files")
    }
}

fn remove_objects(objects: &[PathBuf]) -> Result<()> {
    for object in objects.iter().filter(|object| object.exists()) {
        fs::remove_file(object).with_context(|| format!("removing {}", object.display()))?;
    }
    Ok(())
}

fn compiler() -> Command {
    Command::new(std::env::var_os("CXX").unwrap_or_else(|| "g++".into()))
}

/// Runs every command, a few at a time, and expects success of all.
fn run_all(commands: Vec<Command>) -> Result<()> {
    let mut running: Vec<(String, Child)> = Vec::new();
    let mut failed = Vec::new();
    let mut finish = |running: &mut Vec<(String, Child)>| -> Result<()> {
        let (shown, mut child) = running.remove(0);
        if !child.wait().with_context(|| format!("waiting for `{shown}`"))?.success() {
            failed.push(shown);
        }
        Ok(())
    };
    for mut command in commands {
        if running.len() >= at_once() {
            finish(&mut running)?;
        }
        let shown = process::shown(&command);
        println!("$ {shown}");
        let child = command.spawn().with_context(|| format!("starting `{shown}`"))?;
        running.push((shown, child));
    }
    while !running.is_empty() {
        finish(&mut running)?;
    }
    if !failed.is_empty() {
        bail!("failed: `{}`", failed.join("`, `"));
    }
    Ok(())
}

/// What is compiled, in order.
fn sources() -> Result<Vec<PathBuf>> {
    let mut found = files("kernels/cu", &["cu"])?;
    found.extend(files("kernels/cu/host", &["cpp", "cu"])?);
    Ok(found)
}

/// What those include.
fn headers() -> Result<Vec<PathBuf>> {
    let mut found = files("kernels/cu", &["cuh"])?;
    found.extend(files("kernels/cu/host", &["h"])?);
    Ok(found)
}

fn files(folder: &str, extensions: &[&str]) -> Result<Vec<PathBuf>> {
    let folder = place::root().join(folder);
    let mut found = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|found| extensions.iter().any(|wanted| found == *wanted)) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// When a file last changed; `None` where there is none.
fn changed(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}
