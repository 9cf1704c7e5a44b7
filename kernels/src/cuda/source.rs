//! The kernels' sources, and machine code made of them: embedded when the program was built, from a folder that remembers, or
//! compiled here and now by NVRTC.

mod cache;
mod nvrtc;

use std::borrow::Cow;

use super::gpu::trace;
pub(super) use nvrtc::Nvrtc;

mod listed {
    include!(concat!(env!("OUT_DIR"), "/sources.rs"));
}

use listed::{HEADERS, SOURCES};

/// Machine code of one source file.
pub struct Module {
    /// The source, without `.cu`.
    pub file: &'static str,
    /// What the driver loads.
    pub cubin: Cow<'static, [u8]>,
}

/// What the compiler is told besides the architecture.
const OPTIONS: &[&str] = &["--std=c++20"];

/// The architecture to compile for on a device of this compute capability. On Hopper with its own instructions (`a`), which
/// later devices do not have.
pub fn architecture((major, minor): (u32, u32)) -> String {
    let own = if (major, minor) == (9, 0) { "a" } else { "" };
    format!("sm_{major}{minor}{own}")
}

/// Machine code of all sources for a device of this compute capability. `notice` hears of what takes long.
///
/// # Errors
/// If something must be compiled and cannot be.
pub fn modules(capability: (u32, u32), notice: &(dyn Fn(&str) + Sync)) -> Result<Vec<Module>, String> {
    let traced = std::env::var_os(trace::SWITCH).is_some();
    // What is embedded keeps no moments.
    let embedded = |file| if traced { None } else { embedded(file, capability) };
    let mut found: Vec<Option<Module>> = SOURCES
        .iter()
        .map(|(file, _)| embedded(file).map(|cubin| Module { file, cubin: Cow::Borrowed(cubin) }))
        .collect();
    if found.iter().any(Option::is_none) {
        let nvrtc = Nvrtc::load()?;
        let architecture = nvrtc.nearest(&architecture(capability), capability)?;
        let mut options = options_for(&architecture);
        options.extend(traced.then(|| trace::OPTION.to_owned()));
        let folder = cache::folder();
        let missing: Vec<usize> = (0..found.len()).filter(|i| found[*i].is_none()).collect();
        let headers: String = HEADERS.iter().flat_map(|(name, text)| [*name, *text]).collect();
        let mut to_compile = Vec::new();
        for i in missing {
            let (file, text) = SOURCES[i];
            let key = cache::key(&[&headers, text, &options.join(" "), &nvrtc.version_text()]);
            let place = folder.as_ref().map(|folder| folder.join(key).join(format!("{file}.cubin")));
            match place.as_deref().and_then(cache::read) {
                Some(cubin) => found[i] = Some(Module { file, cubin: Cow::Owned(cubin) }),
                None => to_compile.push((i, place)),
            }
        }
        if !to_compile.is_empty() {
            compile_all(&nvrtc, &options, to_compile, &mut found, notice)?;
        }
    }
    Ok(found.into_iter().flatten().collect())
}

fn options_for(architecture: &str) -> Vec<String> {
    let common = OPTIONS.iter().map(|option| (*option).to_owned());
    std::iter::once(format!("--gpu-architecture={architecture}")).chain(common).collect()
}

/// Compiles what is missing, on as many threads as there are sources and cores.
fn compile_all(
    nvrtc: &Nvrtc,
    options: &[String],
    to_compile: Vec<(usize, Option<std::path::PathBuf>)>,
    found: &mut [Option<Module>],
    notice: &(dyn Fn(&str) + Sync),
) -> Result<(), String> {
    let count = to_compile.len();
    let started = std::time::Instant::now();
    notice(&format!(
        "compiling {count} kernel sources for {} with NVRTC {} (once; remembered in {})",
        options[0].trim_start_matches("--gpu-architecture="),
        nvrtc.version_text(),
        cache::folder().map_or_else(|| "no folder".into(), |folder| folder.display().to_string()),
    ));
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(count);
    let next = std::sync::atomic::AtomicUsize::new(0);
    let results = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((i, place)) =
                    to_compile.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
                {
                    let (file, text) = SOURCES[*i];
                    let result = nvrtc.compile(file, text, HEADERS, options);
                    if let (Ok(cubin), Some(place)) = (&result, place)
                        && let Err(error) = cache::write(place, cubin)
                    {
                        notice(&format!("{} could not be written: {error}", place.display()));
                    }
                    results.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((*i, result));
                }
            });
        }
    });
    for (i, result) in results.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        let file = SOURCES[i].0;
        found[i] = Some(Module { file, cubin: Cow::Owned(result?) });
    }
    notice(&format!("compiled {count} kernel sources in {:.1} s", started.elapsed().as_secs_f64()));
    Ok(())
}

/// Embedded machine code that runs on such a device: made for exactly it, or of the same major version and no later minor one.
fn embedded(file: &str, capability: (u32, u32)) -> Option<&'static [u8]> {
    let own = listed::CUBINS.iter().filter(|(source, ..)| *source == file);
    let fitting =
        own.filter_map(|(_, architecture, cubin)| Some((fitness(architecture, capability)?, *cubin)));
    fitting.max_by_key(|(fitness, _)| *fitness).map(|(_, cubin)| cubin)
}

/// How well machine code for `made_for` fits a device; `None` where it does not run.
fn fitness(made_for: &str, capability: (u32, u32)) -> Option<u32> {
    if made_for == architecture(capability) {
        return Some(u32::MAX);
    }
    // What has a letter (`sm_90a`) runs on its own device only.
    let number: u32 = made_for.strip_prefix("sm_")?.parse().ok()?;
    (number / 10 == capability.0 && number % 10 <= capability.1).then_some(number)
}

/// What versions of the embedded machine code there are, for `foggara doctor`.
pub fn embedded_architectures() -> Vec<&'static str> {
    let mut all: Vec<&str> = listed::CUBINS.iter().map(|(_, architecture, _)| *architecture).collect();
    all.sort_unstable();
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hopper_gets_its_own_instructions() {
        assert_eq!(architecture((9, 0)), "sm_90a");
        assert_eq!(architecture((8, 0)), "sm_80");
        assert_eq!(architecture((10, 3)), "sm_103");
    }

    #[test]
    fn machine_code_runs_on_its_own_generation() {
        let best = |have: &[&'static str], capability| {
            let fitting = have.iter().filter_map(|made| Some((fitness(made, capability)?, *made)));
            fitting.max().map(|(_, made)| made)
        };
        let have = ["sm_80", "sm_90a", "sm_100", "sm_86", "sm_100a"];
        assert_eq!(best(&have, (8, 0)), Some("sm_80"));
        assert_eq!(best(&have, (8, 9)), Some("sm_86"));
        assert_eq!(best(&have, (9, 0)), Some("sm_90a"));
        assert_eq!(best(&have, (10, 3)), Some("sm_100"));
        assert_eq!(best(&have, (12, 0)), None);
    }

    /// NVRTC needs no GPU. For other devices than this one see `cargo xtask cubins`.
    #[test]
    fn every_source_compiles_for_hopper() {
        let nvrtc = match Nvrtc::load() {
            Ok(nvrtc) => nvrtc,
            Err(reason) => {
                eprintln!("skipped: {reason}");
                return;
            }
        };
        let options = options_for("sm_90a");
        let mut found: Vec<Option<Module>> = SOURCES.iter().map(|_| None).collect();
        let all = (0..SOURCES.len()).map(|i| (i, None)).collect();
        compile_all(&nvrtc, &options, all, &mut found, &|_| {}).expect("sources that compile");
        for module in found {
            let module = module.expect("compiled");
            assert!(module.cubin.starts_with(b"\x7fELF"), "{}", module.file);
        }
    }
}
