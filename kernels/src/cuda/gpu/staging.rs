//! Bytes between host and GPU, by way of memory that the GPU can reach by itself.
//!
//! What is uploaded is copied into a ring first: so the caller may go on at once, and copying in and sending overlap.

use std::collections::VecDeque;
use std::ptr;

use cudarc::driver::sys::{self, CUevent};

use super::Inner;
use super::api::Named;
use crate::cuda::DeviceError;

/// Bytes of the ring of uploads.
const RING: usize = 32 << 20;
/// Bytes sent or received at once: large enough to be at full speed, small enough to overlap with copying.
const CHUNK: usize = 4 << 20;
/// Begin of each piece, for the host's and the GPU's sake.
const ALIGN: usize = 256;

/// The ring of uploads. Positions count on for ever; a byte's place is its position modulo [`RING`].
pub(super) struct Up {
    ring: *mut u8,
    /// Where the next piece goes.
    head: usize,
    /// Pieces on their way: where each ends, and what happens then.
    pending: VecDeque<(usize, CUevent)>,
    /// Where the oldest of them begins.
    tail: usize,
    /// Events to be used again.
    events: Vec<CUevent>,
}

/// Two pieces of downloads: while one is received the other is copied out.
pub(super) struct Down {
    pieces: *mut u8,
    events: [CUevent; 2],
}

impl Default for Up {
    fn default() -> Self {
        Self { ring: ptr::null_mut(), head: 0, pending: VecDeque::new(), tail: 0, events: Vec::new() }
    }
}

impl Default for Down {
    fn default() -> Self {
        Self { pieces: ptr::null_mut(), events: [ptr::null_mut(); 2] }
    }
}

impl Up {
    /// Sends bytes. The context is bound, and `to` has room for them.
    pub fn copy(&mut self, gpu: &Inner, to: u64, from: &[u8]) -> Result<(), DeviceError> {
        if self.ring.is_null() && !from.is_empty() {
            self.ring = pinned(gpu, RING)?;
        }
        let mut at = to;
        for piece in from.chunks(CHUNK) {
            let offset = self.room(gpu, piece.len())?;
            let answer =
                |answer| gpu.check_shaped("cuMemcpyHtoDAsync", answer, || format!("{} bytes", from.len()));
            // SAFETY: the ring has room for the piece at the offset, which the GPU has read before it was given.
            unsafe {
                let staged = self.ring.add(offset);
                ptr::copy_nonoverlapping(piece.as_ptr(), staged, piece.len());
                answer(sys::cuMemcpyHtoDAsync_v2(at, staged.cast(), piece.len(), gpu.stream))?;
            }
            let event = match self.events.pop() {
                Some(event) => event,
                None => event(gpu)?,
            };
            // SAFETY: event and stream exist.
            answer(unsafe { sys::cuEventRecord(event, gpu.stream) })?;
            self.pending.push_back((self.head, event));
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// A place for so many bytes, in one piece; waits until what is there was sent.
    fn room(&mut self, gpu: &Inner, bytes: usize) -> Result<usize, DeviceError> {
        let (begin, end) = next_piece(self.head, bytes);
        while end - self.tail > RING {
            let Some((sent, event)) = self.pending.pop_front() else {
                // Everything was sent.
                self.tail = begin;
                break;
            };
            // SAFETY: the event exists and was recorded.
            let answer = unsafe { sys::cuEventSynchronize(event) };
            self.events.push(event);
            self.tail = sent;
            gpu.check("cuEventSynchronize", answer)?;
        }
        self.head = end;
        Ok(begin % RING)
    }

    /// Gives everything back, after the stream was waited for.
    pub fn close(&mut self) {
        let pending = self.pending.drain(..).map(|(_, event)| event);
        for event in pending.chain(self.events.drain(..)) {
            // SAFETY: made by `event`, destroyed once.
            unsafe { sys::cuEventDestroy_v2(event) };
        }
        unpin(&mut self.ring);
    }
}

/// Where a piece of so many bytes begins and ends if the last ended at `head`: pieces do not go around the ring's end.
fn next_piece(head: usize, bytes: usize) -> (usize, usize) {
    let begin = head.next_multiple_of(ALIGN);
    let left = RING - begin % RING;
    let begin = if bytes > left { begin + left } else { begin };
    (begin, begin + bytes)
}

impl Down {
    /// Receives bytes, and waits for them. The context is bound, and `from` has so many.
    pub fn copy(&mut self, gpu: &Inner, from: u64, to: &mut [u8]) -> Result<(), DeviceError> {
        if to.is_empty() {
            return gpu.wait();
        }
        if self.pieces.is_null() {
            self.events = [event(gpu)?, event(gpu)?];
            self.pieces = pinned(gpu, 2 * CHUNK)?;
        }
        let whole = to.len();
        let answer = |answer| gpu.check_shaped("cuMemcpyDtoHAsync", answer, || format!("{whole} bytes"));
        let receive = |i: usize| {
            let bytes = CHUNK.min(whole - i * CHUNK);
            // SAFETY: `from` has so many bytes, a piece has room for them, and what was in it was copied out.
            unsafe {
                let piece = self.pieces.add(i % 2 * CHUNK);
                answer(sys::cuMemcpyDtoHAsync_v2(
                    piece.cast(),
                    from + (i * CHUNK) as u64,
                    bytes,
                    gpu.stream,
                ))?;
                answer(sys::cuEventRecord(self.events[i % 2], gpu.stream))
            }
        };
        receive(0)?;
        for (i, part) in to.chunks_mut(CHUNK).enumerate() {
            if (i + 1) * CHUNK < whole {
                receive(i + 1)?;
            }
            // SAFETY: the event exists and was recorded; after it the piece holds so many bytes.
            unsafe {
                answer(sys::cuEventSynchronize(self.events[i % 2]))?;
                ptr::copy_nonoverlapping(self.pieces.add(i % 2 * CHUNK), part.as_mut_ptr(), part.len());
            }
        }
        Ok(())
    }

    /// Gives everything back, after the stream was waited for.
    pub fn close(&mut self) {
        if !self.pieces.is_null() {
            for event in self.events {
                // SAFETY: made by `event`, destroyed once.
                unsafe { sys::cuEventDestroy_v2(event) };
            }
        }
        unpin(&mut self.pieces);
    }
}

/// Host memory that the GPU reaches by itself.
pub(super) fn pinned(gpu: &Inner, bytes: usize) -> Result<*mut u8, DeviceError> {
    let mut address = ptr::null_mut();
    // SAFETY: the context is bound; the pointer is to an address.
    let answer = unsafe { sys::cuMemHostAlloc(&raw mut address, bytes, 0) };
    gpu.check_shaped("cuMemHostAlloc", answer, || format!("{bytes} bytes"))?;
    Ok(address.cast())
}

pub(super) fn unpin(address: &mut *mut u8) {
    if !address.is_null() {
        // SAFETY: made by `pinned`, given back once. If the GPU is lost, that fails, and the system takes it back at the end.
        unsafe { sys::cuMemFreeHost(address.cast()) };
        *address = ptr::null_mut();
    }
}

pub(super) fn event(gpu: &Inner) -> Result<CUevent, DeviceError> {
    let mut event: CUevent = ptr::null_mut();
    let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
    // SAFETY: the context is bound; the pointer is to a handle.
    gpu.check("cuEventCreate", unsafe { sys::cuEventCreate(&raw mut event, flags) })?;
    Ok(event)
}

#[cfg(test)]
mod tests {
    use super::{ALIGN, CHUNK, RING, next_piece};

    #[test]
    fn pieces_lie_in_the_ring_and_in_order() {
        let mut head = 0;
        for i in 0..1000 {
            let bytes = (i * 7_919_317) % CHUNK + 1;
            let (begin, end) = next_piece(head, bytes);
            assert!(begin >= head && begin % ALIGN == 0 && end - begin == bytes);
            assert!(begin % RING + bytes <= RING, "{begin} {bytes}");
            head = end;
        }
        assert_eq!(next_piece(RING - 256, 257), (RING, RING + 257));
        assert_eq!(next_piece(RING - 256, 256), (RING - 256, RING));
    }
}
