//! Prints how fast weights of each format are repacked from a mapped file that the page cache holds, beside copying it.
//!
//! `cargo run --release -p foggara-kernels --example pack_rate [threads]`

#![allow(clippy::print_stdout)]

use std::io::Write;
use std::time::Instant;

use foggara_kernels::op::panels::WeightMatrix;
use foggara_kernels::{ThreadPool, WeightType};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const ROWS: usize = 8192;
const COLS: usize = 4096;
const ROUNDS: usize = 3;

/// Calls `f` with the file's bytes, mapped afresh each time, as loading finds them; the best bytes/s.
fn rate(file: &std::fs::File, bytes: usize, mut f: impl FnMut(&[u8])) -> Result<f64> {
    let mut best = 0.0f64;
    for _ in 0..ROUNDS {
        // SAFETY: a new mapping of `bytes` bytes that the file has; nobody changes it.
        let base = unsafe { mmap(std::ptr::null_mut(), bytes, ProtFlags::READ, MapFlags::SHARED, file, 0) }?;
        // SAFETY: as above.
        let mapped = unsafe { std::slice::from_raw_parts(base.cast::<u8>(), bytes) };
        let started = Instant::now();
        f(mapped);
        best = best.max(bytes as f64 / started.elapsed().as_secs_f64());
        // SAFETY: mapped above, and borrowed by nobody any more.
        unsafe { munmap(base, bytes) }?;
    }
    Ok(best / 1e9)
}

fn main() -> Result<()> {
    let threads = std::env::args().nth(1).map_or(Ok(1), |threads| threads.parse())?;
    let pool = ThreadPool::new(threads);
    println!("GB/s of {ROWS} × {COLS}, {threads} thread(s) packing, 1 copying");
    for ty in WeightType::ALL {
        let row_bytes = ty.row_bytes(COLS);
        let bytes = ROWS * row_bytes;
        let mut file = tempfile::tempfile()?;
        let row: Vec<u8> = (0..row_bytes).map(|i| (i % 61) as u8).collect();
        (0..ROWS).try_for_each(|_| file.write_all(&row))?;
        let mut kept = vec![0u8; bytes];
        let copy = rate(&file, bytes, |mapped| {
            kept.copy_from_slice(mapped);
            std::hint::black_box(&mut kept);
        })?;
        let copy_fresh = rate(&file, bytes, |mapped| drop(std::hint::black_box(mapped.to_vec())))?;
        let packed = rate(&file, bytes, |mapped| {
            let mut packer = WeightMatrix::packer(ty, ROWS, COLS, 0, COLS).expect("sizes agree");
            packer.push_with(&pool, ROWS, |row| &mapped[row * row_bytes..][..row_bytes]).expect("whole rows");
            std::hint::black_box(packer.finish().expect("all rows"));
        })?;
        println!(
            "{ty:5} copied {copy:5.2}, copied to fresh memory {copy_fresh:5.2}, packed {packed:5.2} ({:.0} %)",
            packed / copy * 100.0
        );
    }
    Ok(())
}
