//! The twin's memory: each buffer between two pages that nobody may touch, its end as close to the second as it can be.

use std::collections::BTreeMap;

use super::Memory;

/// Every buffer begins at a multiple of this.
const ALIGNMENT: usize = 256;

/// What stands between a buffer's end and the page behind it.
const CANARY: u8 = 0xc5;

/// Every byte of fresh memory: NaN in all types of floats, and no index of anything.
const POISON: u8 = 0xff;

/// The buffers there are.
#[derive(Default)]
pub struct Allocations {
    total: u64,
    taken: u64,
    /// By where each begins.
    buffers: BTreeMap<u64, Buffer>,
}

struct Buffer {
    bytes: usize,
    mapping: usize,
    mapped: usize,
}

impl Allocations {
    pub fn new(total: u64) -> Self {
        Self { total, ..Self::default() }
    }

    pub fn memory(&self) -> Memory {
        Memory { free: self.total - self.taken, total: self.total }
    }

    /// Whether so many bytes there are inside of one buffer.
    pub fn has(&self, address: u64, bytes: usize) -> bool {
        let before = self.buffers.range(..=address).next_back();
        before.is_some_and(|(begin, buffer)| {
            let from = address - begin;
            from <= buffer.bytes as u64 && bytes as u64 <= buffer.bytes as u64 - from
        })
    }

    pub fn alloc(&mut self, bytes: usize) -> Result<u64, String> {
        if bytes as u64 > self.total - self.taken {
            return Err(format!("out of memory: {} bytes are free", self.total - self.taken));
        }
        let page = page();
        let room = bytes.next_multiple_of(ALIGNMENT);
        let inner = room.next_multiple_of(page);
        let mapped = inner + 2 * page;
        // SAFETY: a new mapping, of which all but the first and the last page are made accessible and filled.
        let (mapping, address) = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            let mapping = libc::mmap(std::ptr::null_mut(), mapped, libc::PROT_NONE, flags, -1, 0);
            if mapping == libc::MAP_FAILED {
                return Err(format!("mmap: {}", std::io::Error::last_os_error()));
            }
            let first = mapping.cast::<u8>().add(page);
            if libc::mprotect(first.cast(), inner, libc::PROT_READ | libc::PROT_WRITE) != 0 {
                let error = std::io::Error::last_os_error();
                libc::munmap(mapping, mapped);
                return Err(format!("mprotect: {error}"));
            }
            let address = first.add(inner - room);
            std::ptr::write_bytes(first, CANARY, inner - room);
            std::ptr::write_bytes(address, POISON, bytes);
            std::ptr::write_bytes(address.add(bytes), CANARY, room - bytes);
            (mapping as usize, address as u64)
        };
        self.taken += bytes as u64;
        self.buffers.insert(address, Buffer { bytes, mapping, mapped });
        Ok(address)
    }

    /// # Safety
    /// Nothing uses the buffer any more.
    ///
    /// # Panics
    /// If there is no such buffer, or something was written next to it.
    pub unsafe fn free(&mut self, address: u64) {
        let buffer = self.buffers.remove(&address);
        let buffer = buffer.unwrap_or_else(|| panic!("host twin: no buffer begins at {address:#x}"));
        self.taken -= buffer.bytes as u64;
        let page = page();
        let begin = address as usize - buffer.mapping - page;
        let inner = buffer.mapped - 2 * page;
        // SAFETY: all of this buffer's mapping but its two guard pages, which is unmapped once.
        let written = unsafe {
            let first = (buffer.mapping as *const u8).add(page);
            let memory = std::slice::from_raw_parts(first, inner);
            let before =
                memory[..begin].iter().rposition(|&byte| byte != CANARY).map(|at| at as i64 - begin as i64);
            let behind = memory[begin + buffer.bytes..].iter().position(|&byte| byte != CANARY);
            let written = before.or(behind.map(|at| (buffer.bytes + at) as i64));
            libc::munmap(buffer.mapping as *mut libc::c_void, buffer.mapped);
            written
        };
        // While a test fails already, its own message is what matters.
        if let Some(at) = written.filter(|_| !std::thread::panicking()) {
            panic!("host twin: byte {at} of a buffer of {} bytes was written", buffer.bytes);
        }
    }
}

fn page() -> usize {
    // SAFETY: no memory is touched.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}
