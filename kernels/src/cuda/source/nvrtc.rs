//! NVRTC: CUDA C++ to machine code, in memory.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr;

use crate::cuda::library::{Library, Wanted, table};

type Program = *mut c_void;

table! {
    /// What is asked of the compiler; its answers are `nvrtcResult`, 0 for success.
    struct Functions {
        version: c"nvrtcVersion" fn(*mut c_int, *mut c_int) -> c_int;
        error_text: c"nvrtcGetErrorString" fn(c_int) -> *const c_char;
        count_architectures: c"nvrtcGetNumSupportedArchs" fn(*mut c_int) -> c_int;
        architectures: c"nvrtcGetSupportedArchs" fn(*mut c_int) -> c_int;
        create: c"nvrtcCreateProgram" fn(
            *mut Program, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char
        ) -> c_int;
        destroy: c"nvrtcDestroyProgram" fn(*mut Program) -> c_int;
        compile: c"nvrtcCompileProgram" fn(Program, c_int, *const *const c_char) -> c_int;
        log_size: c"nvrtcGetProgramLogSize" fn(Program, *mut usize) -> c_int;
        log: c"nvrtcGetProgramLog" fn(Program, *mut c_char) -> c_int;
        cubin_size: c"nvrtcGetCUBINSize" fn(Program, *mut usize) -> c_int;
        cubin: c"nvrtcGetCUBIN" fn(Program, *mut c_char) -> c_int;
    }
}

/// The compiler.
pub(in crate::cuda) struct Nvrtc {
    functions: Functions,
    version: (c_int, c_int),
    library: &'static Library,
}

/// A program that is given back whatever happens.
struct Owned<'a>(&'a Functions, Program);

impl Drop for Owned<'_> {
    fn drop(&mut self) {
        // SAFETY: made by `create`, destroyed once.
        unsafe { (self.0.destroy)(&raw mut self.1) };
    }
}

impl Nvrtc {
    /// Finds it.
    ///
    /// # Errors
    /// If it is nowhere, with how to get it.
    pub(in crate::cuda) fn load() -> Result<Self, String> {
        let library = Wanted::Nvrtc.find()?;
        // SAFETY: the types are those of nvrtc.h.
        let functions = unsafe { Functions::load(library)? };
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both pointers are to integers.
        let answer = unsafe { (functions.version)(&raw mut major, &raw mut minor) };
        let nvrtc = Self { functions, version: (major, minor), library };
        nvrtc.check("nvrtcVersion", answer)?;
        Ok(nvrtc)
    }

    /// Its version: the toolkit's.
    pub(in crate::cuda) fn version_text(&self) -> String {
        format!("{}.{}", self.version.0, self.version.1)
    }

    /// The architecture wanted, or the nearest below that this compiler knows and that runs on such a device.
    pub(super) fn nearest(&self, wanted: &str, (major, minor): (u32, u32)) -> Result<String, String> {
        let known = self.architectures()?;
        let own = major * 10 + minor;
        if known.contains(&own) {
            return Ok(wanted.to_owned());
        }
        let nearest = known.iter().filter(|known| **known / 10 == major && **known < own).max();
        nearest.map(|nearest| format!("sm_{nearest}")).ok_or_else(|| {
            format!(
                "NVRTC {} ({}) does not know {wanted}, only {known:?}: a later one is needed",
                self.version_text(),
                self.library.path()
            )
        })
    }

    fn architectures(&self) -> Result<Vec<u32>, String> {
        let mut count = 0;
        // SAFETY: the pointer is to an integer.
        let answer = unsafe { (self.functions.count_architectures)(&raw mut count) };
        self.check("nvrtcGetNumSupportedArchs", answer)?;
        let mut known = vec![0 as c_int; usize::try_from(count).unwrap_or_default()];
        // SAFETY: there is room for as many as were announced.
        let answer = unsafe { (self.functions.architectures)(known.as_mut_ptr()) };
        self.check("nvrtcGetSupportedArchs", answer)?;
        Ok(known.into_iter().filter_map(|known| u32::try_from(known).ok()).collect())
    }

    /// Machine code of one source, which may include the headers: names and texts.
    ///
    /// # Errors
    /// What the compiler says.
    pub(super) fn compile(
        &self,
        file: &str,
        text: &str,
        headers: &[(&str, &str)],
        options: &[String],
    ) -> Result<Vec<u8>, String> {
        let c = |text: &str| CString::new(text).map_err(|e| format!("{file}.cu: {e}"));
        let (text, name) = (c(text)?, c(&format!("{file}.cu"))?);
        let names = headers.iter().map(|(name, _)| c(name)).collect::<Result<Vec<_>, _>>()?;
        let headers = headers.iter().map(|(_, text)| c(text)).collect::<Result<Vec<_>, _>>()?;
        let options = options.iter().map(|option| c(option)).collect::<Result<Vec<_>, _>>()?;
        let pointers =
            |texts: &[CString]| -> Vec<*const c_char> { texts.iter().map(|text| text.as_ptr()).collect() };
        let (header_pointers, name_pointers) = (pointers(&headers), pointers(&names));
        let pointers = pointers(&options);
        let f = &self.functions;
        let mut program: Program = ptr::null_mut();
        // SAFETY: all texts end with zero and live longer than the call; there are as many names as headers.
        let answer = unsafe {
            let (count, headers, names) =
                (headers.len() as c_int, header_pointers.as_ptr(), name_pointers.as_ptr());
            (f.create)(&raw mut program, text.as_ptr(), name.as_ptr(), count, headers, names)
        };
        self.check("nvrtcCreateProgram", answer)?;
        let program = Owned(f, program);
        let count = c_int::try_from(pointers.len()).unwrap_or(c_int::MAX);
        // SAFETY: the program exists; there are so many options.
        let answer = unsafe { (f.compile)(program.1, count, pointers.as_ptr()) };
        if let Err(error) = self.check("nvrtcCompileProgram", answer) {
            return Err(format!("{file}.cu does not compile: {error}\n{}", self.log(&program)));
        }
        let mut size = 0;
        // SAFETY: the program exists, the pointer is to a size.
        let answer = unsafe { (f.cubin_size)(program.1, &raw mut size) };
        self.check("nvrtcGetCUBINSize", answer)?;
        let mut cubin = vec![0_u8; size];
        // SAFETY: there is room for as many bytes as were announced.
        let answer = unsafe { (f.cubin)(program.1, cubin.as_mut_ptr().cast()) };
        self.check("nvrtcGetCUBIN", answer)?;
        if !cubin.starts_with(b"\x7fELF") {
            return Err(format!("{file}.cu: NVRTC {} gave no machine code", self.version_text()));
        }
        Ok(cubin)
    }

    /// What the compiler says of a program.
    fn log(&self, program: &Owned<'_>) -> String {
        let mut size = 0;
        // SAFETY: the program exists, the pointer is to a size.
        if unsafe { (self.functions.log_size)(program.1, &raw mut size) } != 0 {
            return String::new();
        }
        let mut log = vec![0_u8; size];
        // SAFETY: there is room for as many bytes as were announced.
        if unsafe { (self.functions.log)(program.1, log.as_mut_ptr().cast()) } != 0 {
            return String::new();
        }
        String::from_utf8_lossy(&log).trim_end_matches('\0').trim_end().to_owned()
    }

    fn check(&self, call: &str, answer: c_int) -> Result<(), String> {
        if answer == 0 {
            return Ok(());
        }
        // SAFETY: gives a text of the library for every number.
        let text = unsafe {
            let text = (self.functions.error_text)(answer);
            if text.is_null() { "".into() } else { CStr::from_ptr(text).to_string_lossy() }
        };
        Err(format!("{call}: {text} ({answer})"))
    }
}
