//! Products of dense matrices by NVIDIA's cublasLt, where it is found.

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;

use cudarc::driver::sys::CUstream;

use super::Inner;
use super::api::Named;
use crate::cuda::DeviceError;
use crate::cuda::library::{Wanted, table};

/// An opaque thing of the library's.
type Handle = *mut c_void;

// The library's numbers (cublasLt.h, library_types.h).
const COMPUTE_32F: c_int = 68;
const R_32F: c_int = 0;
const R_16BF: c_int = 14;
const DESC_TRANSA: c_int = 3;
const DESC_TRANSB: c_int = 4;
const OP_N: c_int = 0;
const OP_T: c_int = 1;
const PREF_MAX_WORKSPACE_BYTES: c_int = 1;
const PREF_REDUCTION_SCHEME_MASK: c_int = 3;
/// No sum is cut into parts, so that a row's does not depend on how many rows there are.
const REDUCTION_SCHEME_NONE: u32 = 0;
/// Least alignment of A, B, C and D follow each other from here.
const PREF_MIN_ALIGNMENT_A_BYTES: c_int = 5;

/// Bytes of scratch memory: what NVIDIA advises for Hopper.
const WORKSPACE: usize = 32 << 20;
/// Plans kept: prompts come in any length, so that there is no end of them.
const PLANS: usize = 1024;

/// An algorithm, as the library describes it to itself.
#[repr(C)]
#[derive(Clone, Copy)]
struct Algorithm {
    data: [u64; 8],
}

/// What it thinks of one.
#[repr(C)]
struct Heuristic {
    algorithm: Algorithm,
    workspace: usize,
    state: c_int,
    waves: f32,
    reserved: [c_int; 4],
}

table! {
    /// What is asked of the library; its answers are `cublasStatus_t`, 0 for success.
    struct Functions {
        create: c"cublasLtCreate" fn(*mut Handle) -> c_int;
        destroy: c"cublasLtDestroy" fn(Handle) -> c_int;
        status_text: c"cublasLtGetStatusString" fn(c_int) -> *const c_char;
        desc_create: c"cublasLtMatmulDescCreate" fn(*mut Handle, c_int, c_int) -> c_int;
        desc_set: c"cublasLtMatmulDescSetAttribute" fn(Handle, c_int, *const c_void, usize) -> c_int;
        desc_destroy: c"cublasLtMatmulDescDestroy" fn(Handle) -> c_int;
        layout_create: c"cublasLtMatrixLayoutCreate" fn(*mut Handle, c_int, u64, u64, i64) -> c_int;
        layout_destroy: c"cublasLtMatrixLayoutDestroy" fn(Handle) -> c_int;
        preference_create: c"cublasLtMatmulPreferenceCreate" fn(*mut Handle) -> c_int;
        preference_set: c"cublasLtMatmulPreferenceSetAttribute" fn(
            Handle, c_int, *const c_void, usize
        ) -> c_int;
        preference_destroy: c"cublasLtMatmulPreferenceDestroy" fn(Handle) -> c_int;
        heuristic: c"cublasLtMatmulAlgoGetHeuristic" fn(
            Handle, Handle, Handle, Handle, Handle, Handle, Handle, c_int, *mut Heuristic, *mut c_int
        ) -> c_int;
        matmul: c"cublasLtMatmul" fn(
            Handle, Handle, *const c_void, *const c_void, Handle, *const c_void, Handle, *const c_void,
            *const c_void, Handle, *mut c_void, Handle, *const Algorithm, *mut c_void, usize, CUstream
        ) -> c_int;
    }
}

/// `out` (rows × n, f32) = `x` (rows × k, bf16) · `w` (n × k, bf16)ᵀ.
pub(super) struct Product {
    pub out: u64,
    pub out_stride: usize,
    pub x: u64,
    pub w: u64,
    pub rows: usize,
    pub n: usize,
    pub k: usize,
}

/// The library as one GPU uses it; opened at the first product.
#[derive(Default)]
pub(super) enum Products {
    #[default]
    Untried,
    /// Not found, or it cannot be used.
    Absent,
    Open(Box<Opened>),
}

pub(super) struct Opened {
    functions: Functions,
    handle: Handle,
    workspace: u64,
    plans: HashMap<Key, Plan>,
}

/// What an algorithm depends on: sizes, and how the addresses are aligned.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    rows: usize,
    n: usize,
    k: usize,
    out_stride: usize,
    alignment: [u32; 3],
}

/// Everything about one shape of product. Handles of the library, destroyed by [`Opened::forget`].
struct Plan {
    desc: Handle,
    w: Handle,
    x: Handle,
    out: Handle,
    /// `None`: the library has none for this shape.
    algorithm: Option<Algorithm>,
}

impl Products {
    /// Starts a product, or says that there is no library for it (or none that does this shape).
    ///
    /// # Safety
    /// The context is bound, and the addresses have so many elements.
    pub unsafe fn multiply(&mut self, gpu: &Inner, product: &Product) -> Option<Result<(), DeviceError>> {
        if product.rows == 0 || product.n == 0 || product.k == 0 {
            return None;
        }
        if matches!(self, Self::Untried) {
            *self = match Opened::open(gpu) {
                Ok(Some(opened)) => Self::Open(Box::new(opened)),
                Ok(None) => Self::Absent,
                Err(error) => return Some(Err(error)),
            };
        }
        let Self::Open(opened) = self else { return None };
        // SAFETY: as the caller says.
        unsafe { opened.multiply(gpu, product) }.transpose()
    }

    /// Gives everything back, after the stream was waited for; the workspace goes with the GPU's other memory.
    pub fn close(&mut self) {
        if let Self::Open(opened) = self {
            opened.forget();
            // SAFETY: made by `open`, destroyed once.
            unsafe { (opened.functions.destroy)(opened.handle) };
        }
        *self = Self::Absent;
    }
}

impl Opened {
    /// The library, if it is there and complete.
    fn open(gpu: &Inner) -> Result<Option<Self>, DeviceError> {
        let Ok(library) = Wanted::CublasLt.find() else { return Ok(None) };
        // SAFETY: the types are those of cublasLt.h.
        let Ok(functions) = (unsafe { Functions::load(library) }) else { return Ok(None) };
        let mut handle = ptr::null_mut();
        // SAFETY: the context is bound; the pointer is to a handle.
        let answer = unsafe { (functions.create)(&raw mut handle) };
        functions.check(gpu, "cublasLtCreate", answer, String::new)?;
        match gpu.pool.take(gpu, WORKSPACE) {
            Ok(workspace) => Ok(Some(Self { functions, handle, workspace, plans: HashMap::new() })),
            Err(error) => {
                // SAFETY: made above, destroyed once.
                unsafe { (functions.destroy)(handle) };
                Err(error)
            }
        }
    }

    unsafe fn multiply(&mut self, gpu: &Inner, product: &Product) -> Result<Option<()>, DeviceError> {
        let aligned = |address: u64| 1 << address.trailing_zeros().min(8);
        let Product { out, out_stride, x, w, rows, n, k } = *product;
        let key = Key { rows, n, k, out_stride, alignment: [aligned(w), aligned(x), aligned(out)] };
        if !self.plans.contains_key(&key) {
            if self.plans.len() >= PLANS {
                self.forget();
            }
            let plan = self.plan(gpu, &key)?;
            self.plans.insert(key, plan);
        }
        let plan = &self.plans[&key];
        let Some(algorithm) = &plan.algorithm else { return Ok(None) };
        let (one, zero) = (1.0_f32, 0.0_f32);
        // SAFETY: the addresses have the elements that the layouts describe, as the caller says; all handles are of this
        // library and exist; factors are read during the call.
        let answer = unsafe {
            (self.functions.matmul)(
                self.handle,
                plan.desc,
                (&raw const one).cast(),
                w as *const c_void,
                plan.w,
                x as *const c_void,
                plan.x,
                (&raw const zero).cast(),
                out as *const c_void,
                plan.out,
                out as *mut c_void,
                plan.out,
                algorithm,
                self.workspace as *mut c_void,
                WORKSPACE,
                gpu.stream,
            )
        };
        self.functions.check(gpu, "cublasLtMatmul", answer, || shape(&key))?;
        Ok(Some(()))
    }

    /// Everything about a shape, with the library's best algorithm for it.
    fn plan(&self, gpu: &Inner, key: &Key) -> Result<Plan, DeviceError> {
        let null = ptr::null_mut();
        let mut plan = Plan { desc: null, w: null, x: null, out: null, algorithm: None };
        let mut preference = null;
        let algorithm = self
            .describe(gpu, key, &mut plan, &mut preference)
            .map(|()| self.best_algorithm(&plan, preference));
        if !preference.is_null() {
            // SAFETY: made by `describe`, destroyed once.
            unsafe { (self.functions.preference_destroy)(preference) };
        }
        match algorithm {
            Ok(algorithm) => Ok(Plan { algorithm, ..plan }),
            Err(error) => {
                self.destroy(&plan);
                Err(error)
            }
        }
    }

    /// Describes a shape to the library. It thinks in columns: a matrix of rows is to it the transposed one of columns, so that
    /// it is asked for outᵀ (n × rows) = w (n × k) · xᵀ (k × rows).
    fn describe(
        &self,
        gpu: &Inner,
        key: &Key,
        plan: &mut Plan,
        preference: &mut Handle,
    ) -> Result<(), DeviceError> {
        let f = &self.functions;
        let check = |call, answer| f.check(gpu, call, answer, || shape(key));
        let (rows, n, k) = (key.rows as u64, key.n as u64, key.k as u64);
        let stride = |stride: usize| i64::try_from(stride).unwrap_or(i64::MAX);
        // SAFETY: every handle is used after it was made; attributes are integers of the sizes given, read during the call.
        unsafe {
            check("cublasLtMatmulDescCreate", (f.desc_create)(&raw mut plan.desc, COMPUTE_32F, R_32F))?;
            for (attribute, value) in [(DESC_TRANSA, OP_T), (DESC_TRANSB, OP_N)] {
                let answer =
                    (f.desc_set)(plan.desc, attribute, (&raw const value).cast(), size_of::<c_int>());
                check("cublasLtMatmulDescSetAttribute", answer)?;
            }
            let layout = |to: &mut Handle, kind, height, width, stride| {
                check("cublasLtMatrixLayoutCreate", (f.layout_create)(to, kind, height, width, stride))
            };
            layout(&mut plan.w, R_16BF, k, n, stride(key.k))?;
            layout(&mut plan.x, R_16BF, k, rows, stride(key.k))?;
            layout(&mut plan.out, R_32F, n, rows, stride(key.out_stride))?;
            check("cublasLtMatmulPreferenceCreate", (f.preference_create)(preference))?;
            let set = |attribute, value: *const c_void, bytes| {
                let answer = (f.preference_set)(*preference, attribute, value, bytes);
                check("cublasLtMatmulPreferenceSetAttribute", answer)
            };
            let bytes = WORKSPACE as u64;
            set(PREF_MAX_WORKSPACE_BYTES, (&raw const bytes).cast(), size_of::<u64>())?;
            let scheme = REDUCTION_SCHEME_NONE;
            set(PREF_REDUCTION_SCHEME_MASK, (&raw const scheme).cast(), size_of::<u32>())?;
            let [w, x, out] = key.alignment;
            for (attribute, bytes) in (PREF_MIN_ALIGNMENT_A_BYTES..).zip([w, x, out, out]) {
                set(attribute, (&raw const bytes).cast(), size_of::<u32>())?;
            }
        }
        Ok(())
    }

    /// The library's choice; `None` where it has none (odd strides, for one): these are left to our own kernels.
    fn best_algorithm(&self, plan: &Plan, preference: Handle) -> Option<Algorithm> {
        let Plan { desc, w, x, out, .. } = *plan;
        let mut found = Heuristic {
            algorithm: Algorithm { data: [0; 8] },
            workspace: 0,
            state: 0,
            waves: 0.0,
            reserved: [0; 4],
        };
        let mut count = 0;
        // SAFETY: all handles exist; there is room for one answer, and one is asked for.
        let answer = unsafe {
            let (found, count) = (&raw mut found, &raw mut count);
            (self.functions.heuristic)(self.handle, desc, w, x, out, out, preference, 1, found, count)
        };
        let usable = answer == 0 && count > 0 && found.state == 0 && found.workspace <= WORKSPACE;
        usable.then_some(found.algorithm)
    }

    fn destroy(&self, plan: &Plan) {
        // SAFETY: made by `plan`, destroyed once.
        unsafe {
            for layout in [plan.w, plan.x, plan.out].into_iter().filter(|layout| !layout.is_null()) {
                (self.functions.layout_destroy)(layout);
            }
            if !plan.desc.is_null() {
                (self.functions.desc_destroy)(plan.desc);
            }
        }
    }

    /// Gives all plans back. What was started with them goes on: the library has read them.
    fn forget(&mut self) {
        let plans: Vec<Plan> = self.plans.drain().map(|(_, plan)| plan).collect();
        plans.iter().for_each(|plan| self.destroy(plan));
    }
}

impl Functions {
    fn check(
        &self,
        gpu: &Inner,
        call: &'static str,
        answer: c_int,
        shape: impl FnOnce() -> String,
    ) -> Result<(), DeviceError> {
        if answer == 0 {
            return Ok(());
        }
        // SAFETY: gives a text of the library for every number.
        let text = unsafe {
            let text = (self.status_text)(answer);
            if text.is_null() { "".into() } else { CStr::from_ptr(text).to_string_lossy() }
        };
        let device = gpu.device_name().to_owned();
        Err(DeviceError { device, call, shape: shape(), reason: format!("{text} ({answer})"), lost: false })
    }
}

fn shape(key: &Key) -> String {
    format!("{} rows, {} × {} weights, stride {}", key.rows, key.n, key.k, key.out_stride)
}
