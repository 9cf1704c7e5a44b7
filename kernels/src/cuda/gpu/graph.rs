//! Work recorded once and started again and again with one call: CUDA graphs.

use std::collections::HashMap;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use cudarc::driver::sys::{self, CUgraph, CUgraphExec, CUstreamCaptureMode};

use super::api::{Named, refused};
use super::functions::Function;
use super::{Gpu, Inner, lock};
use crate::cuda::DeviceError;

/// Whether work is being recorded, and what was asked for meanwhile.
#[derive(Default)]
pub(super) struct Recorder {
    /// Read at every call; the rest only while it is set.
    recording: AtomicBool,
    recorded: Mutex<Recorded>,
}

#[derive(Default)]
struct Recorded {
    /// Memory that was given back: the recording goes on using it.
    memory: Vec<u64>,
    launches: HashMap<&'static str, (Arc<Function>, u64)>,
    /// What was asked for and cannot be recorded.
    refused: Option<&'static str>,
}

/// A recording.
pub(super) struct Graph {
    gpu: Gpu,
    graph: CUgraphExec,
    memory: Vec<u64>,
    launches: Vec<(Arc<Function>, u64)>,
}

// SAFETY: a handle of the driver, which any thread may use; `replay` and `drop` bind the context.
unsafe impl Send for Graph {}

impl Recorder {
    pub fn is_recording(&self) -> bool {
        self.recording.load(Ordering::Acquire)
    }

    /// Starts to record.
    pub fn begin(&self, gpu: &Inner) -> Result<(), DeviceError> {
        if self.recording.swap(true, Ordering::AcqRel) {
            return Err(refused(
                gpu.device_name(),
                "begin_capture",
                String::new(),
                "work is being recorded already",
            ));
        }
        *lock(&self.recorded) = Recorded::default();
        // Relaxed: libraries take memory and load code when they are first used, which the stricter modes take for a mistake.
        // What would be one, `Driver`'s methods refuse themselves.
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream exists, and the context is bound.
        let begun =
            gpu.check("cuStreamBeginCapture", unsafe { sys::cuStreamBeginCapture_v2(gpu.stream, mode) });
        if begun.is_err() {
            self.recording.store(false, Ordering::Release);
        }
        begun
    }

    /// Whether `call`, which cannot be recorded, must be refused; if so, the recording is spoiled.
    pub fn refuses(&self, call: &'static str) -> bool {
        let recording = self.is_recording();
        if recording {
            lock(&self.recorded).refused.get_or_insert(call);
        }
        recording
    }

    /// Whether the recording keeps memory that is given back.
    pub fn keep(&self, address: u64) -> bool {
        let recording = self.is_recording();
        if recording {
            lock(&self.recorded).memory.push(address);
        }
        recording
    }

    /// Whether the recording counts a launch, which does not happen now.
    pub fn count(&self, function: &Arc<Function>) -> bool {
        let recording = self.is_recording();
        if recording {
            let mut recorded = lock(&self.recorded);
            let entry = recorded.launches.entry(function.name()).or_insert_with(|| (function.clone(), 0));
            entry.1 += 1;
        }
        recording
    }
}

impl Graph {
    /// Ends the recording under way.
    pub fn end(gpu: &Gpu) -> Result<Self, DeviceError> {
        let inner = &gpu.0;
        let failed = |reason: &str| refused(inner.device_name(), "end_capture", String::new(), reason);
        if !inner.recorder.is_recording() {
            return Err(failed("no work is being recorded"));
        }
        let mut recording: CUgraph = ptr::null_mut();
        // SAFETY: the stream exists and is being recorded; the pointer is to a handle.
        let answer = unsafe { sys::cuStreamEndCapture(inner.stream, &raw mut recording) };
        inner.recorder.recording.store(false, Ordering::Release);
        let recorded = std::mem::take(&mut *lock(&inner.recorder.recorded));
        // From here on the memory is given back whatever happens.
        let launches = recorded.launches.into_values().collect();
        let mut graph = Self { gpu: gpu.clone(), graph: ptr::null_mut(), memory: recorded.memory, launches };
        inner.check("cuStreamEndCapture", answer)?;
        if recording.is_null() {
            return Err(failed("nothing was recorded: something asked for meanwhile cannot be"));
        }
        let made = match recorded.refused {
            Some(call) => Err(failed(&format!("{call} was asked for meanwhile, which cannot be recorded"))),
            // SAFETY: the recording was just given; the pointer is to a handle.
            None => inner.check("cuGraphInstantiate", unsafe {
                sys::cuGraphInstantiateWithFlags(&raw mut graph.graph, recording, 0)
            }),
        };
        // SAFETY: given by the end of the recording, destroyed once; what was made of it stands by itself.
        unsafe { sys::cuGraphDestroy(recording) };
        made.map(|()| graph)
    }

    /// Starts it on the stream of `gpu`.
    pub fn launch(&self, gpu: &Gpu) -> Result<(), DeviceError> {
        let inner = &gpu.0;
        if !Arc::ptr_eq(inner, &self.gpu.0) {
            return Err(refused(inner.device_name(), "replay", String::new(), "recorded on another GPU"));
        }
        inner.not_recording("replay", 0)?;
        // SAFETY: the graph was made on this GPU; what it uses is there, as the caller of `replay` says, or in `memory`.
        inner.check("cuGraphLaunch", unsafe { sys::cuGraphLaunch(self.graph, inner.stream) })?;
        for (function, launches) in &self.launches {
            function.count(*launches);
        }
        Ok(())
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        let inner = &self.gpu.0;
        if inner.context.bind().is_err() {
            return;
        }
        if !self.graph.is_null() {
            // It may be at work. An error shows at the next call that can tell one.
            if !inner.recorder.is_recording() {
                let _ = inner.wait();
            }
            // SAFETY: made by `end`, destroyed once.
            unsafe { sys::cuGraphExecDestroy(self.graph) };
        }
        for address in self.memory.drain(..) {
            inner.give_back(address);
        }
    }
}
