//! How fast memory is read that no cache holds, whatever there is of caches and whoever else uses them: a turn reads lines that
//! have just been flushed. It takes no more memory than a turn reads.

use std::hint::black_box;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::{PARTS, best_of_all, buffer, sum};

/// What each thread reads in a turn: so much that the wait for its first line does not count.
const TURN_BYTES: usize = 8 << 20;

/// Bytes per second of `threads` threads together, measured for about `millis`; 0 where lines cannot be flushed.
pub(super) fn bandwidth(threads: usize, millis: u64) -> u64 {
    let Some(flush) = flush() else { return 0 };
    let part = Duration::from_millis(millis) / PARTS;
    // All flush, then all read: who flushes leaves the memory to the others.
    let (together, goes_on) = (Barrier::new(threads), AtomicBool::new(true));
    let reader = |thread: usize| {
        let buffer = buffer(TURN_BYTES, thread);
        let mut rates = Vec::new();
        for _ in 0..PARTS {
            let (started, mut reading, mut bytes) = (Instant::now(), Duration::ZERO, 0);
            loop {
                flush(&buffer);
                together.wait();
                let turn = Instant::now();
                black_box(sum(&buffer));
                reading += turn.elapsed();
                bytes += size_of_val(&buffer[..]);
                // All do as many turns as the first. It says so again when all have flushed, so have seen this.
                if thread == 0 {
                    goes_on.store(started.elapsed() < part, Ordering::Relaxed);
                }
                together.wait();
                if !goes_on.load(Ordering::Relaxed) {
                    break;
                }
            }
            rates.push(bytes as f64 / reading.as_secs_f64());
        }
        rates
    };
    std::thread::scope(|scope| {
        let reader = &reader;
        let threads: Vec<_> = (0..threads).map(|thread| scope.spawn(move || reader(thread))).collect();
        best_of_all(threads.into_iter().map(|thread| thread.join().expect("the measurement does not panic")))
    })
}

/// What empties all caches of a buffer's lines, if this machine has such a thing.
#[cfg(target_arch = "x86_64")]
fn flush() -> Option<fn(&[f32])> {
    Some(x86::flush)
}

#[cfg(not(target_arch = "x86_64"))]
fn flush() -> Option<fn(&[f32])> {
    None
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::asm;
    use std::arch::x86_64::{__cpuid, __cpuid_count, _mm_clflush, _mm_mfence};

    const FLOATS_OF_A_LINE: usize = 16;

    pub(super) fn flush(buffer: &[f32]) {
        let at_once = at_once();
        for line in buffer.chunks(FLOATS_OF_A_LINE) {
            let line = line.as_ptr();
            // SAFETY: it writes back and forgets a cached line of the buffer, whose contents stay the same; the processor has the
            // first form if it says so, and every one of 64 bits has the second.
            unsafe {
                if at_once {
                    asm!("clflushopt [{line}]", line = in(reg) line, options(nostack, preserves_flags));
                } else {
                    _mm_clflush(line.cast());
                }
            }
        }
        // SAFETY: every processor of 64 bits has it.
        unsafe { _mm_mfence() };
    }

    /// Whether it flushes lines without waiting for each (`CLFLUSHOPT`, forty times as fast on the machine where both were tried).
    fn at_once() -> bool {
        const LEAF: u32 = 7;
        const BIT: u32 = 23;
        __cpuid(0).eax >= LEAF && __cpuid_count(LEAF, 0).ebx >> BIT & 1 == 1
    }
}
