//! `cargo xtask cubins`: the CUDA kernels as machine code, and what each of them takes of a GPU.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, anyhow, bail};
use serde::Serialize;

use crate::{place, process};

/// What compiles: pip's packages of one toolkit, together the few parts of it that are needed.
const PACKAGES: &[&str] = &[
    "nvidia-cuda-nvcc==13.0.*",
    "nvidia-cuda-runtime==13.0.*",
    "nvidia-cuda-crt==13.0.*",
    "nvidia-nvvm==13.0.*",
    "nvidia-cuda-cccl==13.0.*",
];

/// Compile the CUDA kernels to machine code with nvcc: target/cubins/SOURCE.ARCHITECTURE.cubin.
///
/// Needs no GPU. Prints registers and shared memory of each kernel (target/cubins/kernels.json has them, too), and fails if a
/// kernel's variables do not fit into registers. `FOGGARA_CUBINS=target/cubins cargo build --release` then builds a program
/// that starts without a compiler. nvcc is the one that FOGGARA_NVCC names, or on the path, or in /usr/local/cuda, or fetched
/// by pip into .cache/nvcc.
#[derive(clap::Args)]
pub struct Arguments {
    /// Architectures, separated by commas
    #[arg(long, value_delimiter = ',', default_value = TARGETS)]
    targets: Vec<String>,
    /// Only sources whose name contains this
    #[arg(long)]
    only: Option<String>,
}

/// What kernels are compiled for.
const TARGETS: &str = "sm_80,sm_90a,sm_100";

impl Arguments {
    /// Everything, for everything.
    pub fn all() -> Self {
        Self { targets: TARGETS.split(',').map(str::to_owned).collect(), only: None }
    }
}

/// What ptxas says of a kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
struct Kernel {
    source: String,
    architecture: String,
    name: String,
    registers: u32,
    /// Bytes that did not fit into registers, written and read.
    spills: u32,
    /// Bytes of memory for variables that cannot be in registers.
    stack: u32,
    /// Bytes of fixed shared memory.
    shared: u32,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let nvcc = nvcc()?;
    let folder = place::root().join("target/cubins");
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let mut sources = Vec::new();
    for entry in std::fs::read_dir(place::root().join("kernels/cu")).context("reading kernels/cu")? {
        let path = entry?.path();
        let wanted = arguments.only.as_ref().is_none_or(|only| stem(&path).contains(only.as_str()));
        if wanted && path.extension().is_some_and(|extension| extension == "cu") {
            sources.push(path);
        }
    }
    sources.sort();
    let jobs: Vec<(&PathBuf, &String)> = arguments
        .targets
        .iter()
        .flat_map(|target| sources.iter().map(move |source| (source, target)))
        .collect();
    let mut kernels = compile_all(&nvcc, &folder, &jobs)?;
    kernels.sort_by(|a, b| (&a.architecture, &a.source, &a.name).cmp(&(&b.architecture, &b.source, &b.name)));
    print(&kernels);
    let json = serde_json::to_string_pretty(&kernels)?;
    std::fs::write(folder.join("kernels.json"), json + "\n").context("writing kernels.json")?;
    let spilling: Vec<String> = kernels
        .iter()
        .filter(|kernel| kernel.spills > 0)
        .map(|kernel| format!("{} for {}: {} bytes", kernel.name, kernel.architecture, kernel.spills))
        .collect();
    if !spilling.is_empty() {
        bail!("variables that do not fit into registers:\n  {}", spilling.join("\n  "));
    }
    println!(
        "{} sources for {} are in {}.",
        sources.len(),
        arguments.targets.join(", "),
        place::typed(&folder)
    );
    Ok(())
}

fn compile_all(nvcc: &Path, folder: &Path, jobs: &[(&PathBuf, &String)]) -> Result<Vec<Kernel>> {
    let threads = std::thread::available_parallelism().map_or(2, usize::from).min(jobs.len());
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((source, target)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = compile(nvcc, folder, source, target);
                    results.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(result);
                }
            });
        }
    });
    let results = results.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let (mut kernels, mut failures) = (Vec::new(), Vec::new());
    for result in results {
        match result {
            Ok(more) => kernels.extend(more),
            Err(error) => failures.push(format!("{error:#}")),
        }
    }
    if failures.is_empty() { Ok(kernels) } else { Err(anyhow!(failures.join("\n"))) }
}

fn compile(nvcc: &Path, folder: &Path, source: &Path, target: &str) -> Result<Vec<Kernel>> {
    let name = stem(source);
    let cubin = folder.join(format!("{name}.{target}.cubin"));
    let compute = target.replace("sm_", "compute_");
    let mut command = Command::new(nvcc);
    command.args(["-std=c++20", "-cubin", "-Xptxas", "-v"]);
    command.arg(format!("-gencode=arch={compute},code={target}"));
    let output = command.arg("-o").arg(&cubin).arg(source).output();
    let output = output.with_context(|| format!("starting {}", nvcc.display()))?;
    let told = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        let told = told.lines().filter(|line| !line.contains("ptxas info")).collect::<Vec<_>>().join("\n");
        bail!("{name}.cu for {target} does not compile:\n{told}");
    }
    // What it was made from, for the build that takes it up (kernels/build.rs) to compare.
    std::fs::write(cubin.with_extension("from"), made_from(source)?).context("noting the sources")?;
    Ok(parse(&told, &name, target))
}

/// Every header in order of names, and the source.
fn made_from(source: &Path) -> Result<String> {
    let folder = source.parent().unwrap_or(source);
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(folder).context("reading kernels/cu")? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "cuh") {
            files.push(path);
        }
    }
    files.sort();
    files.push(source.to_path_buf());
    let texts = files
        .iter()
        .map(|file| std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display())));
    texts.collect()
}

/// Reads what `ptxas -v` prints of each kernel.
fn parse(told: &str, source: &str, target: &str) -> Vec<Kernel> {
    let mut kernels: BTreeMap<String, Kernel> = BTreeMap::new();
    let mut current: Option<String> = None;
    for line in told.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            current = rest.split('\'').next().map(str::to_owned);
            continue;
        }
        let Some(name) = &current else { continue };
        let (source, architecture) = (source.to_owned(), target.to_owned());
        let kernel = kernels.entry(name.clone()).or_insert_with(|| Kernel {
            source,
            architecture,
            name: name.clone(),
            ..Kernel::default()
        });
        if line.contains("bytes stack frame") {
            kernel.stack += before(line, "bytes stack frame");
            kernel.spills += before(line, "bytes spill stores") + before(line, "bytes spill loads");
        }
        if line.contains(": Used ") {
            kernel.registers = before(line, "registers");
            kernel.shared = before(line, "bytes smem");
        }
    }
    kernels.into_values().collect()
}

/// The number before `words`; 0 where they are not said.
fn before(line: &str, words: &str) -> u32 {
    let said = line.split_once(words).and_then(|(before, _)| before.split_whitespace().last());
    said.and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// One line for each kernel, one column for each architecture: registers, and what is out of the ordinary.
fn print(kernels: &[Kernel]) {
    let mut targets: Vec<&str> = kernels.iter().map(|kernel| kernel.architecture.as_str()).collect();
    targets.dedup();
    let mut rows: BTreeMap<(&str, &str), Vec<&Kernel>> = BTreeMap::new();
    for kernel in kernels {
        rows.entry((&kernel.source, &kernel.name)).or_default().push(kernel);
    }
    let heads: String = targets.iter().map(|target| format!("{target:>22}")).collect();
    println!("{:<16}{:<40}{heads}", "source", "kernel: registers");
    for ((source, name), row) in rows {
        let cells = row.iter().map(|kernel| {
            let mut cell = kernel.registers.to_string();
            for (what, bytes) in
                [("shared", kernel.shared), ("stack", kernel.stack), ("SPILLS", kernel.spills)]
            {
                if bytes > 0 {
                    cell = format!("{cell}, {bytes} {what}");
                }
            }
            format!("{cell:>22}")
        });
        println!("{source:<16}{name:<40}{}", cells.collect::<String>());
    }
}

fn stem(path: &Path) -> String {
    path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The compiler; fetched if it is nowhere.
fn nvcc() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("FOGGARA_NVCC") {
        return Ok(PathBuf::from(named));
    }
    let usual = PathBuf::from("/usr/local/cuda/bin/nvcc");
    if let Some(found) = process::find("nvcc").or_else(|| usual.is_file().then_some(usual)).or_else(fetched) {
        return Ok(found);
    }
    let environment = environment();
    println!("There is no nvcc here: fetching it with pip into {}.", place::typed(&environment));
    process::run(Command::new("python3").args(["-m", "venv"]).arg(&environment))?;
    let python = environment.join("bin/python");
    let pip = ["-m", "pip", "--disable-pip-version-check", "install", "--quiet"];
    process::run(Command::new(python).args(pip).args(PACKAGES))?;
    fetched().with_context(|| format!("pip has put no nvcc into {}", environment.display()))
}

fn environment() -> PathBuf {
    place::cache().join("nvcc")
}

/// The nvcc that pip has fetched.
fn fetched() -> Option<PathBuf> {
    let versions = std::fs::read_dir(environment().join("lib")).ok()?;
    let places =
        versions.filter_map(|entry| Some(entry.ok()?.path().join("site-packages/nvidia/cu13/bin/nvcc")));
    places.into_iter().find(|nvcc| nvcc.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ptxas_says_is_read() {
        let told = "ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'one' for 'sm_90a'
ptxas info    : Function properties for one
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 26 registers, used 1 barriers, 128 bytes smem, 400 bytes cmem[0]
ptxas info    : Compile time = 5.1 ms
ptxas info    : Compiling entry function 'two' for 'sm_90a'
ptxas info    : Function properties for two
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers
";
        let (source, architecture) = ("x".to_owned(), "sm_90a".to_owned());
        let one = Kernel {
            source,
            architecture,
            name: "one".into(),
            registers: 26,
            spills: 16,
            stack: 8,
            shared: 128,
        };
        let two = Kernel { name: "two".into(), registers: 8, spills: 0, stack: 0, shared: 0, ..one.clone() };
        assert_eq!(parse(told, "x", "sm_90a"), [one, two]);
    }
}
