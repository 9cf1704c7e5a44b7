//! Kernels by their names, and how often each was started.

use std::collections::HashMap;
use std::ffi::CString;
use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use cudarc::driver::sys::{self, CUfunction, CUfunction_attribute, CUmodule, CUresult};

use super::api::{Named, refused};
use super::context::{Context, driver_version};
use super::trace;
use crate::cuda::source::Module;
use crate::cuda::{DeviceError, Launch};

/// Dynamic shared memory that every kernel may have without asking, less what it declares itself.
const SHARED_UNASKED: u32 = 48 << 10;

/// Per cent of a multiprocessor's memory that kernels with little shared memory leave to others as shared memory; by default the
/// driver decides. It changes only where no kernel runs: one that needs much of it cannot begin beside one that left little.
const SHARED_SWITCH: &str = "FOGGARA_CUDA_SHARED";
/// Little.
const SHARED_LITTLE: u32 = 24 << 10;

/// All machine code of a GPU.
pub(super) struct Functions {
    /// Each with the source it was made of.
    modules: Vec<(&'static str, CUmodule)>,
    found: RwLock<HashMap<&'static str, Arc<Function>>>,
    /// See [`SHARED_SWITCH`].
    shared_left: Option<i32>,
}

/// One kernel.
pub(super) struct Function {
    handle: CUfunction,
    name: &'static str,
    /// Dynamic shared memory it may have.
    shared: AtomicU32,
    launches: AtomicU64,
}

// SAFETY: a handle of the driver, which any thread may use.
unsafe impl Send for Function {}
// SAFETY: as above; the rest is atomic.
unsafe impl Sync for Function {}

impl Functions {
    /// Loads machine code.
    pub fn load(context: &Context, sources: &[Module]) -> Result<Self, DeviceError> {
        let mut modules = Vec::with_capacity(sources.len());
        for source in sources {
            let mut module: CUmodule = ptr::null_mut();
            // What was embedded may begin at an odd address; this does not.
            let image = source.cubin.to_vec();
            // SAFETY: a whole cubin, whose own header says how long it is; the pointer is to a handle.
            let answer = unsafe { sys::cuModuleLoadData(&raw mut module, image.as_ptr().cast()) };
            context.check_shaped("cuModuleLoadData", answer, || format!("{}.cu", source.file))?;
            modules.push((source.file, module));
        }
        // By default the driver loads a function when it is first started, which may wait for the whole GPU. Later than 12.3
        // it can be told to do it now; what it refuses now it says again at the first start.
        if driver_version()? >= 12040 {
            modules.iter().for_each(|(_, module)| load_all(*module));
        }
        let shared_left = std::env::var(SHARED_SWITCH).ok().and_then(|percent| percent.parse().ok());
        Ok(Self { modules, found: RwLock::default(), shared_left })
    }

    /// The kernel of a launch, with as much shared memory as it wants.
    pub fn get(&self, context: &Context, launch: &Launch) -> Result<Arc<Function>, DeviceError> {
        let known = self.found.read().unwrap_or_else(PoisonError::into_inner).get(launch.kernel).cloned();
        let function = match known {
            Some(function) => function,
            None => self.look_up(context, launch.kernel, launch.shared)?,
        };
        if launch.shared > function.shared.load(Ordering::Relaxed) {
            self.allow_shared(context, &function, launch.shared)?;
        }
        Ok(function)
    }

    /// Lets a kernel have so much dynamic shared memory, or more if it has that already.
    fn allow_shared(&self, context: &Context, function: &Function, bytes: u32) -> Result<(), DeviceError> {
        // One at a time: a smaller wish must not overtake a larger one.
        let _alone = self.found.write().unwrap_or_else(PoisonError::into_inner);
        if bytes <= function.shared.load(Ordering::Relaxed) {
            return Ok(());
        }
        let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let wish = i32::try_from(bytes).unwrap_or(i32::MAX);
        // SAFETY: the function is of a module that is loaded.
        let answer = unsafe { sys::cuFuncSetAttribute(function.handle, attribute, wish) };
        context.check_shaped(function.name, answer, || {
            format!("{bytes} bytes of shared memory, more than this GPU gives a block")
        })?;
        function.shared.store(bytes, Ordering::Relaxed);
        Ok(())
    }

    fn look_up(
        &self,
        context: &Context,
        name: &'static str,
        wanted: u32,
    ) -> Result<Arc<Function>, DeviceError> {
        let text = CString::new(name).unwrap_or_default();
        for (_, module) in &self.modules {
            let mut handle: CUfunction = ptr::null_mut();
            // SAFETY: the module is loaded; the name ends with zero; the pointer is to a handle.
            let answer = unsafe { sys::cuModuleGetFunction(&raw mut handle, *module, text.as_ptr()) };
            if answer == CUresult::CUDA_ERROR_NOT_FOUND {
                continue;
            }
            context.check_shaped("cuModuleGetFunction", answer, || name.to_owned())?;
            let mut own = 0;
            let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
            // SAFETY: the function was just given; the pointer is to an integer.
            let answer = unsafe { sys::cuFuncGetAttribute(&raw mut own, attribute, handle) };
            context.check_shaped("cuFuncGetAttribute", answer, || name.to_owned())?;
            let own = u32::try_from(own).unwrap_or_default();
            // Those with much of it want room for several blocks.
            let percent = if own + wanted > SHARED_LITTLE { Some(100) } else { self.shared_left };
            if let Some(percent) = percent {
                let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
                // SAFETY: the function was just given.
                let answer = unsafe { sys::cuFuncSetAttribute(handle, attribute, percent) };
                context.check_shaped("cuFuncSetAttribute", answer, || format!("{name}: {percent} %"))?;
            }
            let shared = SHARED_UNASKED.saturating_sub(own).into();
            let function = Arc::new(Function { handle, name, shared, launches: AtomicU64::new(0) });
            let mut found = self.found.write().unwrap_or_else(PoisonError::into_inner);
            // Another thread may have been faster; its counter counts.
            return Ok(found.entry(name).or_insert(function).clone());
        }
        Err(refused(&context.name, name, String::new(), "there is no kernel of this name in kernels/cu"))
    }

    /// Launches of each so far, by name.
    pub fn counts(&self) -> Vec<(&'static str, u64)> {
        let found = self.found.read().unwrap_or_else(PoisonError::into_inner);
        let mut counts: Vec<_> = found
            .values()
            .map(|function| (function.name, function.launches.load(Ordering::Relaxed)))
            .collect();
        counts.sort_unstable();
        counts
    }

    /// What kernels kept of their moments.
    pub fn moments(&self) -> Vec<trace::Moment> {
        self.modules.iter().flat_map(|(file, module)| trace::read(*module, file)).collect()
    }

    /// Gives all of it back; nothing may be started any more.
    pub fn unload(&self) {
        for (_, module) in &self.modules {
            // SAFETY: loaded by `load`, unloaded once.
            unsafe { sys::cuModuleUnload(*module) };
        }
    }
}

impl Function {
    pub fn handle(&self) -> CUfunction {
        self.handle
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    /// So many more launches.
    pub fn count(&self, launches: u64) {
        self.launches.fetch_add(launches, Ordering::Relaxed);
    }
}

/// Has the driver load every function of a module now.
fn load_all(module: CUmodule) {
    let mut count = 0;
    // SAFETY: the module is loaded; the pointer is to an integer.
    if unsafe { sys::cuModuleGetFunctionCount(&raw mut count, module) } != CUresult::CUDA_SUCCESS {
        return;
    }
    let mut functions: Vec<CUfunction> = vec![ptr::null_mut(); count as usize];
    // SAFETY: the module is loaded, and there is room for so many handles.
    let answer = unsafe { sys::cuModuleEnumerateFunctions(functions.as_mut_ptr(), count, module) };
    if answer == CUresult::CUDA_SUCCESS {
        for function in functions.into_iter().filter(|function| !function.is_null()) {
            // SAFETY: a function of a module that is loaded.
            unsafe { sys::cuFuncLoad(function) };
        }
    }
}
