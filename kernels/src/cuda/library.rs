//! NVIDIA's libraries, found where they are usually put: by the loader, by pip, by Debian and by NVIDIA's installer.
//!
//! Nothing is linked, so one binary runs with a GPU and without. What is asked of a library is a [`table!`] of its functions,
//! looked up at once: a library that lacks one is not used, and says so, instead of failing on first use.

use std::ffi::{CStr, CString, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// A library that is looked for at run time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// The run-time compiler of CUDA C++.
    Nvrtc,
    /// Products of dense matrices.
    CublasLt,
    /// Collectives between GPUs.
    Nccl,
}

/// A library that is there. Never unloaded.
#[derive(Debug)]
pub struct Library {
    handle: *mut c_void,
    wanted: Wanted,
}

// SAFETY: a handle of the loader may be used by any thread.
unsafe impl Send for Library {}
// SAFETY: as above; the loader has its own lock.
unsafe impl Sync for Library {}

impl Wanted {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Nvrtc, Self::CublasLt, Self::Nccl];

    /// As people call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nvrtc => "NVRTC",
            Self::CublasLt => "cublasLt",
            Self::Nccl => "NCCL",
        }
    }

    /// What it is for.
    pub fn purpose(self) -> &'static str {
        match self {
            Self::Nvrtc => "compiles the kernels at the first start",
            Self::CublasLt => "products of many rows; our own kernels do without it",
            Self::Nccl => "collectives between GPUs",
        }
    }

    /// The command that gets it.
    pub fn install(self) -> &'static str {
        match self {
            Self::Nvrtc => "pip install 'nvidia-cuda-nvrtc==13.0.*'",
            Self::CublasLt => "pip install 'nvidia-cublas==13.*'",
            Self::Nccl => "pip install nvidia-nccl-cu13",
        }
    }

    /// File names, the most wanted first.
    fn files(self) -> &'static [&'static str] {
        match self {
            Self::Nvrtc => &["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"],
            Self::CublasLt => &["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"],
            Self::Nccl => &["libnccl.so.2", "libnccl.so"],
        }
    }

    /// The version that the library says it has.
    ///
    /// # Errors
    /// If it does not say.
    pub fn version(self, library: &Library) -> Result<String, String> {
        let symbol = library.symbol(self.version_symbol())?;
        // SAFETY: the functions have these types (nvrtc.h, cublasLt.h, nccl.h); the pointers are to integers.
        unsafe {
            match self {
                Self::Nvrtc => {
                    let ask: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int =
                        std::mem::transmute(symbol);
                    let (mut major, mut minor) = (0, 0);
                    ask(&raw mut major, &raw mut minor);
                    Ok(format!("{major}.{minor}"))
                }
                Self::CublasLt => {
                    let ask: unsafe extern "C" fn() -> usize = std::mem::transmute(symbol);
                    let version = ask();
                    // 13.1.0 is 130100, 12.8.4 is 120804.
                    Ok(format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100))
                }
                Self::Nccl => {
                    let ask: unsafe extern "C" fn(*mut c_int) -> c_int = std::mem::transmute(symbol);
                    let mut version = 0;
                    ask(&raw mut version);
                    Ok(format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100))
                }
            }
        }
    }

    fn version_symbol(self) -> &'static CStr {
        match self {
            Self::Nvrtc => c"nvrtcVersion",
            Self::CublasLt => c"cublasLtGetVersion",
            Self::Nccl => c"ncclGetVersion",
        }
    }

    /// The library, looked for once in a process.
    ///
    /// # Errors
    /// If it is nowhere: where it was looked for, and how to get it.
    pub fn find(self) -> Result<&'static Library, String> {
        static FOUND: [OnceLock<Result<Library, String>>; 3] = [const { OnceLock::new() }; 3];
        FOUND[self as usize].get_or_init(|| self.look()).as_ref().map_err(Clone::clone)
    }

    fn look(self) -> Result<Library, String> {
        let mut refusals = Vec::new();
        let mut load = |file: &Path| match load(file) {
            Ok(handle) => Some(Library { handle, wanted: self }),
            Err(refusal) => {
                refusals.push(refusal);
                None
            }
        };
        // What the user says comes first, then what the loader knows, then the usual places.
        let in_folders = |folders: Vec<PathBuf>, load: &mut dyn FnMut(&Path) -> Option<Library>| {
            let files =
                self.files().iter().flat_map(|file| folders.iter().map(move |folder| folder.join(file)));
            files.filter(|file| file.is_file()).find_map(|file| {
                self.load_companions(&file);
                load(&file)
            })
        };
        let by_name = |load: &mut dyn FnMut(&Path) -> Option<Library>| {
            self.files().iter().find_map(|file| load(Path::new(file)))
        };
        let found = in_folders(folders_of("FOGGARA_CUDA_PATH"), &mut load)
            .or_else(|| by_name(&mut load))
            .or_else(|| in_folders(usual_folders(), &mut load))
            .or_else(|| in_folders(folders_python_tells(), &mut load));
        found.ok_or_else(|| {
            // A file that is there and does not load says more than one that is not there.
            let mut told: Vec<String> =
                refusals.into_iter().filter(|r| !r.contains("No such file")).collect();
            told.dedup();
            let told = if told.is_empty() { String::new() } else { format!(" ({})", told.join("; ")) };
            format!(
                "{} not found{told}. Get it with `{}`, or say in FOGGARA_CUDA_PATH in which folder {} is",
                self.name(),
                self.install(),
                self.files()[0]
            )
        })
    }

    /// NVRTC opens its built-in functions by file name only, which the loader does not find in a folder it does not know;
    /// one that is already loaded it does.
    fn load_companions(self, file: &Path) {
        let (Self::Nvrtc, Some(folder)) = (self, file.parent()) else { return };
        for companion in entries(folder) {
            let name = companion.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.starts_with("libnvrtc-builtins.so") {
                let _ = load(&companion);
            }
        }
    }
}

impl Library {
    /// The address of a function.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn symbol(&self, name: &CStr) -> Result<*mut c_void, String> {
        // SAFETY: the handle is the loader's, the name ends with zero.
        let address = unsafe { libc::dlsym(self.handle, name.as_ptr()) };
        if address.is_null() {
            let name = name.to_string_lossy();
            return Err(format!("{} ({}) is too old: it has no {name}", self.wanted.name(), self.path()));
        }
        Ok(address)
    }

    /// The file it was loaded from.
    pub fn path(&self) -> String {
        let name = self.wanted.version_symbol();
        // SAFETY: the handle is the loader's; `info` is only read if the loader says that it filled it in.
        unsafe {
            let mut info: libc::Dl_info = std::mem::zeroed();
            let address = libc::dlsym(self.handle, name.as_ptr());
            if address.is_null() || libc::dladdr(address, &raw mut info) == 0 || info.dli_fname.is_null() {
                return self.wanted.files()[0].to_owned();
            }
            CStr::from_ptr(info.dli_fname).to_string_lossy().into_owned()
        }
    }
}

/// Functions of a library: a struct of pointers to them, filled by name.
macro_rules! table {
    ($(#[$about:meta])* $vis:vis struct $name:ident {
        $($field:ident: $symbol:literal fn($($argument:ty),* $(,)?) -> $answer:ty;)*
    }) => {
        $(#[$about])*
        $vis struct $name {
            $($vis $field: unsafe extern "C" fn($($argument),*) -> $answer,)*
        }
        impl $name {
            /// Looks every function up.
            ///
            /// # Errors
            /// If one is missing.
            ///
            /// # Safety
            /// The functions of the library have these types.
            $vis unsafe fn load(library: &$crate::cuda::library::Library) -> Result<Self, String> {
                Ok(Self { $($field: {
                    let address = library.symbol($symbol)?;
                    // SAFETY: as the caller says.
                    unsafe {
                        std::mem::transmute::<
                            *mut std::ffi::c_void,
                            unsafe extern "C" fn($($argument),*) -> $answer,
                        >(address)
                    }
                },)* })
            }
        }
    };
}
pub(super) use table;

fn load(file: &Path) -> Result<*mut c_void, String> {
    let name = CString::new(file.as_os_str().as_encoded_bytes()).map_err(|e| e.to_string())?;
    // SAFETY: loading runs the library's initialisers, which do nothing that could hurt us: they are NVIDIA's.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    if !handle.is_null() {
        return Ok(handle);
    }
    // SAFETY: says in this thread why the call before failed; the text is copied at once.
    let why = unsafe {
        let why = libc::dlerror();
        if why.is_null() {
            "no reason given".to_owned()
        } else {
            CStr::from_ptr(why).to_string_lossy().into_owned()
        }
    };
    Err(why)
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    // The newest version first, as far as names tell.
    paths.sort_by(|a, b| b.cmp(a));
    paths
}

/// Folders in which the libraries of an installation at `base` may be: of the toolkit, or of pip's `nvidia` packages.
fn folders_at(base: &Path) -> Vec<PathBuf> {
    let own = ["", "lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib"];
    let mut folders: Vec<PathBuf> = own.iter().map(|own| base.join(own)).collect();
    folders.extend(entries(base).into_iter().map(|package| package.join("lib")));
    folders.retain(|folder| folder.is_dir());
    folders
}

fn folders_of(variable: &str) -> Vec<PathBuf> {
    let value = std::env::var_os(variable).unwrap_or_default();
    std::env::split_paths(&value)
        .filter(|base| base.is_absolute())
        .flat_map(|base| folders_at(&base))
        .collect()
}

fn usual_folders() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = ["CUDA_PATH", "CUDA_HOME"].into_iter().flat_map(folders_of).collect();
    folders.extend(folders_at(Path::new("/usr/local/cuda")));
    let versions = entries(Path::new("/usr/local")).into_iter();
    let is_cuda = |path: &PathBuf| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("cuda-"));
    folders.extend(versions.filter(is_cuda).flat_map(|base| folders_at(&base)));
    // Python's environments: the active one, and those whose Python is on the path.
    let path = std::env::var_os("PATH").unwrap_or_default();
    let pythons = std::env::split_paths(&path).filter(|folder| folder.join("python3").exists());
    let mut environments: Vec<PathBuf> =
        std::env::var_os("VIRTUAL_ENV").map(PathBuf::from).into_iter().collect();
    environments.extend(pythons.filter_map(|folder| Some(folder.parent()?.to_path_buf())));
    for environment in environments {
        for version in entries(&environment.join("lib")) {
            for packages in ["site-packages", "dist-packages"] {
                folders.extend(folders_at(&version.join(packages).join("nvidia")));
            }
        }
    }
    folders
}

/// Asks Python itself: for user packages and whatever else it knows.
fn folders_python_tells() -> Vec<PathBuf> {
    static TOLD: OnceLock<Vec<PathBuf>> = OnceLock::new();
    let ask = || {
        let mut python = std::process::Command::new("python3");
        let output = python.args(["-c", r"import sys; print('\n'.join(sys.path))"]).output().ok()?;
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        let lines = told.lines().filter(|line| line.starts_with('/'));
        Some(lines.flat_map(|line| folders_at(&Path::new(line).join("nvidia"))).collect())
    };
    TOLD.get_or_init(|| ask().unwrap_or_default()).clone()
}
