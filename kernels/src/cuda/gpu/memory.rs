//! Memory of a GPU, kept for the next request when it is given back.
//!
//! Taking memory from the driver and giving it back waits for the whole GPU. Steps ask for the same sizes again and again, so
//! small blocks stay here.

use std::collections::HashMap;
use std::sync::Mutex;

use cudarc::driver::sys::{self, CUdeviceptr, CUresult};

use super::api::Named;
use super::{Inner, lock};
use crate::cuda::DeviceError;

/// Blocks larger than this go back to the driver: weights and caches, which come and go once.
const KEPT_BLOCK: usize = 64 << 20;
/// Bytes kept at most.
const KEPT_TOTAL: usize = 512 << 20;

/// The blocks of one GPU.
#[derive(Default)]
pub(super) struct Memory(Mutex<Blocks>);

#[derive(Default)]
struct Blocks {
    /// Every block's bytes, in use or not.
    sizes: HashMap<CUdeviceptr, usize>,
    /// Blocks that nobody uses, by their bytes.
    unused: HashMap<usize, Vec<CUdeviceptr>>,
    kept: usize,
}

impl Memory {
    /// A block of at least so many bytes. The driver aligns to 256 at least.
    pub fn take(&self, gpu: &Inner, bytes: usize) -> Result<CUdeviceptr, DeviceError> {
        let bytes = rounded(bytes);
        let mut blocks = lock(&self.0);
        if let Some(address) = blocks.unused.get_mut(&bytes).and_then(Vec::pop) {
            blocks.kept -= bytes;
            return Ok(address);
        }
        let mut address: CUdeviceptr = 0;
        // SAFETY: the context is bound; the pointer is to an address.
        let mut answer = unsafe { sys::cuMemAlloc_v2(&raw mut address, bytes) };
        if answer == CUresult::CUDA_ERROR_OUT_OF_MEMORY && blocks.kept > 0 && !gpu.recorder.is_recording() {
            gpu.wait()?;
            blocks.give_all_back();
            // SAFETY: as above.
            answer = unsafe { sys::cuMemAlloc_v2(&raw mut address, bytes) };
        }
        gpu.check_shaped("cuMemAlloc", answer, || format!("{bytes} bytes"))?;
        blocks.sizes.insert(address, bytes);
        Ok(address)
    }

    /// Takes a block back. What was started before may still use it; what is started from now on does so after it.
    pub fn put(&self, gpu: &Inner, address: CUdeviceptr) {
        let mut blocks = lock(&self.0);
        let Some(bytes) = blocks.sizes.get(&address).copied() else {
            debug_assert!(false, "{address:#x} was not given, or was given back");
            return;
        };
        if bytes <= KEPT_BLOCK && blocks.kept + bytes <= KEPT_TOTAL {
            blocks.kept += bytes;
            blocks.unused.entry(bytes).or_default().push(address);
            return;
        }
        // The driver waits, too, but does not promise it. An error shows at the next call that can tell one.
        let _ = gpu.wait();
        blocks.sizes.remove(&address);
        // SAFETY: given by the driver, given back once, used by nothing.
        unsafe { sys::cuMemFree_v2(address) };
    }

    /// Bytes that nobody uses.
    pub fn kept(&self) -> usize {
        lock(&self.0).kept
    }

    /// Gives everything back to the driver, at the end: what nobody uses, and what the GPU's own parts took.
    pub fn clear(&self) {
        for (address, _) in std::mem::take(&mut *lock(&self.0)).sizes {
            // SAFETY: given by the driver, given back once; no buffer is left, for each holds the GPU.
            unsafe { sys::cuMemFree_v2(address) };
        }
    }
}

impl Blocks {
    fn give_all_back(&mut self) {
        for address in self.unused.drain().flat_map(|(_, addresses)| addresses) {
            self.sizes.remove(&address);
            // SAFETY: given by the driver, given back once; the stream was waited for.
            unsafe { sys::cuMemFree_v2(address) };
        }
        self.kept = 0;
    }
}

/// The size of block for a request: up to an eighth more, so that requests that differ a little share blocks. Large ones are
/// taken as they are.
fn rounded(bytes: usize) -> usize {
    let bytes = bytes.max(1).next_multiple_of(512);
    if bytes > 4 << 20 {
        return bytes;
    }
    let step = (bytes.next_power_of_two() / 16).max(512);
    bytes.next_multiple_of(step)
}

#[cfg(test)]
mod tests {
    use super::rounded;

    #[test]
    fn blocks_are_little_larger_than_requests() {
        assert_eq!(rounded(0), 512);
        assert_eq!(rounded(513), 1024);
        assert_eq!(rounded(4 << 20), 4 << 20);
        assert_eq!(rounded((64 << 20) + 1), (64 << 20) + 512);
        for bytes in (1..(4 << 20)).step_by(997) {
            let block = rounded(bytes);
            assert!(block >= bytes && block <= bytes + bytes / 8 + 512, "{bytes}: {block}");
        }
    }
}
