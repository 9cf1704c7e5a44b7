//! Says in its first minute on a GPU what works: the driver's layer, a kernel, a recording, cublasLt, NCCL. Every part reports
//! by itself and the next goes on.
//!
//! `cargo run --release -p foggara-kernels --example gpu_check [GPU]`; what passes is `ok`, the status is 1 if anything failed.

#![allow(clippy::print_stdout)]

use std::process::ExitCode;
use std::time::{Duration, Instant};

use foggara_kernels::cuda::nccl::NcclComm;
use foggara_kernels::cuda::op::residual::{Normed, add_and_norm};
use foggara_kernels::cuda::{ActType, Acts, Buffer, Device, DeviceError, Gpu, Launch, doctor};
use half::bf16;

type Outcome = Result<String, String>;
type Part = (&'static str, fn(&Device) -> Outcome);

fn main() -> ExitCode {
    let ordinal = std::env::args().nth(1).and_then(|argument| argument.parse().ok()).unwrap_or(0);
    let survey = doctor::survey();
    println!("driver {:?}, release {:?}", survey.driver, survey.driver_release);
    survey.gpus.iter().for_each(|gpu| println!("{gpu:?}"));
    survey.libraries.iter().for_each(|library| println!("{library:?}"));
    println!("embedded {:?}, missing {:?}", survey.embedded, survey.missing);

    let started = Instant::now();
    let device = match Gpu::open_with(ordinal, &|notice| println!("    {notice}")) {
        Ok(device) => device,
        Err(error) => {
            println!("FAILED open: {error}");
            return ExitCode::FAILURE;
        }
    };
    println!("ok     open: {} in {:.2} s", device.name(), started.elapsed().as_secs_f64());
    let parts: [Part; 9] = [
        ("memory", memory),
        ("round trip", round_trip),
        ("small copies", small_copies),
        ("bandwidth", bandwidth),
        ("kernel", kernel),
        ("recording", recording),
        ("products", products),
        ("refusals", refusals),
        ("nccl", nccl),
    ];
    let mut failed = 0;
    for (name, part) in parts {
        // A thread each: a panic stays in it, and the device must work on any.
        let outcome = std::thread::scope(|scope| scope.spawn(|| part(&device)).join());
        let outcome = outcome.unwrap_or_else(|_| Err("panicked".into()));
        match outcome {
            Ok(told) => println!("ok     {name}: {told}"),
            Err(told) => {
                failed += 1;
                println!("FAILED {name}: {told}");
            }
        }
    }
    println!("launches {:?}", device.driver().launches());
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn text(error: DeviceError) -> String {
    error.to_string()
}

/// The least time of several runs, each waited for.
fn best(
    device: &Device,
    runs: usize,
    mut run: impl FnMut() -> Result<(), DeviceError>,
) -> Result<Duration, String> {
    let mut best = Duration::MAX;
    for _ in 0..runs {
        device.synchronize().map_err(text)?;
        let started = Instant::now();
        run().map_err(text)?;
        device.synchronize().map_err(text)?;
        best = best.min(started.elapsed());
    }
    Ok(best)
}

fn gb(bytes: usize, time: Duration) -> f64 {
    bytes as f64 / time.as_secs_f64() / 1e9
}

/// Values that differ everywhere and are short in binary.
fn values(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 20) as f32 / 2048.0 - 1.0
    };
    std::iter::repeat_with(next).take(len).collect()
}

fn memory(device: &Device) -> Outcome {
    let before = device.driver().memory().map_err(text)?;
    let mut addresses = Vec::new();
    for len in [1, 100, 1000, 1 << 20, 80 << 20] {
        let buffer = device.alloc::<u8>(len).map_err(text)?;
        addresses.push(buffer.view().address());
    }
    if let Some(odd) = addresses.iter().find(|address| *address % 256 != 0) {
        return Err(format!("an address is not aligned: {odd:#x}"));
    }
    let again = device.alloc::<u8>(100).map_err(text)?;
    if again.view().address() != addresses[0] && again.view().address() != addresses[1] {
        return Err("a block was not used again".into());
    }
    let after = device.driver().memory().map_err(text)?;
    let (free, total) = (after.free >> 20, after.total >> 20);
    Ok(format!("{free} of {total} MiB free, {} MiB before", before.free >> 20))
}

fn round_trip(device: &Device) -> Outcome {
    let len = 25_000_003;
    let there = values(len, 1);
    let mut buffer = device.alloc::<f32>(len).map_err(text)?;
    buffer.view_mut().fill(0xff).map_err(text)?;
    let up = best(device, 3, || buffer.view_mut().upload(&there))?;
    let mut back = vec![0.0_f32; len];
    let down = best(device, 3, || buffer.view().download(&mut back))?;
    if let Some(at) = (0..len).find(|i| there[*i].to_bits() != back[*i].to_bits()) {
        return Err(format!("element {at}: {} came back as {}", there[at], back[at]));
    }
    // Parts at odd places, and what is beside them stays.
    let part = values(5_000_001, 2);
    buffer.view_mut().slice(7..5_000_008).upload(&part).map_err(text)?;
    buffer.view().slice(0..5_000_009).download(&mut back[..5_000_009]).map_err(text)?;
    if back[..7] != there[..7] || back[7..5_000_008] != part[..] || back[5_000_008] != there[5_000_008] {
        return Err("a part was not written where it belongs".into());
    }
    let bytes = len * 4;
    Ok(format!("{} MB, up {:.1} GB/s, down {:.1} GB/s", bytes / 1_000_000, gb(bytes, up), gb(bytes, down)))
}

fn small_copies(device: &Device) -> Outcome {
    let mut buffer = device.zeros::<u32>(1000 * 64).map_err(text)?;
    let rows: Vec<Vec<u32>> = (0..1000).map(|i| (0..64).map(|j| i * 64 + j).collect()).collect();
    let up = best(device, 3, || {
        rows.iter()
            .enumerate()
            .try_for_each(|(i, row)| buffer.view_mut().slice(i * 64..i * 64 + 64).upload(row))
    })?;
    let back = buffer.download().map_err(text)?;
    if !back.iter().enumerate().all(|(i, value)| i == *value as usize) {
        return Err("values came back wrong".into());
    }
    let mut one = [0_u32; 64];
    let down = best(device, 100, || buffer.view().slice(0..64).download(&mut one))?;
    Ok(format!(
        "256 bytes: up {:.2} µs each, down {:.1} µs",
        up.as_secs_f64() * 1e3,
        down.as_secs_f64() * 1e6
    ))
}

fn bandwidth(device: &Device) -> Outcome {
    let len = 1 << 30;
    let from = device.zeros::<u8>(len).map_err(text)?;
    let mut to = device.alloc::<u8>(len).map_err(text)?;
    to.view_mut().fill(1).map_err(text)?;
    let copy = best(device, 5, || to.view_mut().copy_from(from.view()))?;
    let mut sample = [1_u8; 100];
    to.view().slice(len - 100..len).download(&mut sample).map_err(text)?;
    if sample != [0; 100] {
        return Err("the copy is not what was copied".into());
    }
    let fill = best(device, 5, || to.view_mut().fill(3))?;
    Ok(format!("copy {:.0} GB/s read and written, fill {:.0} GB/s", gb(2 * len, copy), gb(len, fill)))
}

/// `add_and_norm` on the host, in f64.
fn on_the_host(x: &[f32], added: &[f32], weight: &[f32], width: usize, eps: f64) -> (Vec<f32>, Vec<f64>) {
    let summed: Vec<f32> = x.iter().zip(added).map(|(x, added)| x + added).collect();
    let mut out = Vec::with_capacity(x.len());
    for row in summed.chunks(width) {
        let squares: f64 = row.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
        let inverse = 1.0 / (squares / width as f64 + eps).sqrt();
        out.extend(row.iter().zip(weight).map(|(x, weight)| f64::from(*x) * inverse * f64::from(*weight)));
    }
    (summed, out)
}

fn kernel(device: &Device) -> Outcome {
    let mut worst = 0.0_f64;
    for (rows, width) in [(1, 1), (7, 577), (33, 4096), (512, 4096)] {
        let (x, added, weight) = (values(rows * width, 3), values(rows * width, 4), values(width, 5));
        let (summed, expected) = on_the_host(&x, &added, &weight, width, 1e-6);
        for ty in [ActType::F32, ActType::Bf16] {
            let mut on_device = device.upload(&x).map_err(text)?;
            let added = device.upload(&added).map_err(text)?;
            let weight = device.upload(&weight).map_err(text)?;
            let mut out = Acts::alloc(device, ty, rows * width).map_err(text)?;
            let (out_view, x_view) = (Some(out.view_mut()), on_device.view_mut());
            add_and_norm(out_view, x_view, Some(added.view()), None, weight.view(), rows, width, 1e-6)
                .map_err(text)?;
            let sums = on_device.download().map_err(text)?;
            if sums != summed {
                return Err(format!("{rows} × {width}: the sums are not the same"));
            }
            let tolerance = if ty == ActType::F32 { 1e-5 } else { 1e-2 };
            for (i, (got, expected)) in out.download().map_err(text)?.iter().zip(&expected).enumerate() {
                let error = (f64::from(*got) - expected).abs() / expected.abs().max(0.1);
                if error.is_nan() || error > tolerance {
                    return Err(format!("{rows} × {width} {ty:?}, element {i}: {got} for {expected}"));
                }
                worst = worst.max(if ty == ActType::F32 { error } else { 0.0 });
            }
        }
    }
    let mut x = device.zeros::<f32>(4096).map_err(text)?;
    let weight = device.zeros::<f32>(4096).map_err(text)?;
    let mut out = Acts::alloc(device, ActType::Bf16, 4096).map_err(text)?;
    let many = best(device, 5, || {
        (0..1000).try_for_each(|_| {
            add_and_norm(Some(out.view_mut()), x.view_mut(), None, None, weight.view(), 1, 4096, 1e-6)
        })
    })?;
    Ok(format!("worst relative error {worst:.1e}, {:.2} µs a launch", many.as_secs_f64() * 1e3))
}

fn recording(device: &Device) -> Outcome {
    let driver = device.driver();
    if !driver.can_capture() {
        return Err("this device records nothing".into());
    }
    let (rows, width) = (4, 1024);
    let (start, step, weight) = (vec![0.0; rows * width], vec![0.5; rows * width], vec![1.0; width]);
    let mut x = device.upload(&start).map_err(text)?;
    let (step, weight) = (device.upload(&step).map_err(text)?, device.upload(&weight).map_err(text)?);
    let mut copied = device.zeros::<f32>(rows * width).map_err(text)?;
    let launched = |device: &Device| -> u64 {
        let counts = device.driver().launches();
        counts.iter().filter(|(name, _)| name.starts_with("add_and_norm")).map(|(_, count)| count).sum()
    };
    let before = launched(device);
    driver.begin_capture().map_err(text)?;
    let recorded = (0..100).try_for_each(|_| {
        // Memory taken and given back meanwhile stays with the recording.
        let mut scratch = device.alloc::<f32>(rows * width)?;
        scratch.view_mut().copy_from(step.view())?;
        add_and_norm(
            Normed::default(),
            x.view_mut(),
            Some(scratch.view()),
            None,
            weight.view(),
            rows,
            width,
            1e-6,
        )
    });
    let recorded = recorded.and_then(|()| copied.view_mut().copy_from(x.view()));
    let captured = driver.end_capture().map_err(text)?;
    recorded.map_err(text)?;
    if x.download().map_err(text)?[0] != 0.0 {
        return Err("what was recorded was done at once".into());
    }
    // SAFETY: every buffer that was recorded is still there.
    let replay = best(device, 5, || unsafe { driver.replay(&captured) })?;
    let (x_now, copied) = (x.download().map_err(text)?, copied.download().map_err(text)?);
    if x_now.iter().any(|x| *x != 250.0) || copied != x_now {
        return Err(format!("5 times 100 halves are {}, and copied {}", x_now[0], copied[0]));
    }
    if launched(device) - before != 500 {
        return Err(format!("{} launches were counted for 500", launched(device) - before));
    }
    drop(captured);
    // What cannot be recorded is refused, says so at the end, too, and nothing is broken by it.
    driver.begin_capture().map_err(text)?;
    let refused =
        x.download().is_err() && device.synchronize().is_err() && x.view_mut().upload(&start).is_err();
    let ended = driver.end_capture();
    if !refused || ended.is_ok() {
        return Err("what cannot be recorded was not refused".into());
    }
    x.view_mut().upload(&start).map_err(text)?;
    device.synchronize().map_err(text)?;
    Ok(format!("200 nodes in {:.0} µs; refusals are clean", replay.as_secs_f64() * 1e6))
}

fn products(device: &Device) -> Outcome {
    let mut told = String::new();
    for (rows, n, k, stride) in
        [(9, 64, 64, 64), (33, 1000, 520, 1040), (512, 4096, 4096, 4096), (4096, 8192, 4096, 8192)]
    {
        let bits = |len, seed| -> Vec<u16> {
            values(len, seed).into_iter().map(|x| bf16::from_f32(x).to_bits()).collect()
        };
        let (x, w) = (bits(rows * k, 6), bits(n * k, 7));
        let (x_there, w_there) = (device.upload(&x).map_err(text)?, device.upload(&w).map_err(text)?);
        let mut out = device.alloc::<f32>(rows * stride).map_err(text)?;
        out.view_mut().fill(0xff).map_err(text)?;
        let (to, x_at, w_at) = (out.view().address(), x_there.view().address(), w_there.view().address());
        // SAFETY: the buffers have so many elements.
        let run = || unsafe { device.driver().dense_product(to, stride, x_at, w_at, rows, n, k) };
        match run() {
            None => return Err(format!("{rows} × {n} × {k}: no product (is cublasLt found?)")),
            Some(outcome) => outcome.map_err(text)?,
        }
        let got = out.download().map_err(text)?;
        let value = |bits: u16| f64::from(bf16::from_bits(bits).to_f32());
        let mut worst = 0.0_f64;
        for i in 0..2000 {
            let (r, o) = (i * 7919 % rows, i * 104_729 % n);
            let products = x[r * k..][..k].iter().zip(&w[o * k..][..k]).map(|(x, w)| value(*x) * value(*w));
            let expected: f64 = products.sum();
            let error = (f64::from(got[r * stride + o]) - expected).abs();
            if error.is_nan() || error > 1e-4 * (k as f64) {
                return Err(format!(
                    "{rows} × {n} × {k}: row {r}, output {o}: {} for {expected}",
                    got[r * stride + o]
                ));
            }
            worst = worst.max(error);
        }
        if stride > n && got[n..stride].iter().any(|gap| !gap.is_nan()) {
            return Err(format!("{rows} × {n} × {k}: wrote between rows"));
        }
        // In a recording, too.
        device.driver().begin_capture().map_err(text)?;
        let outcome = run();
        let captured = device.driver().end_capture().map_err(text)?;
        outcome.unwrap_or(Ok(())).map_err(text)?;
        out.view_mut().fill(0xff).map_err(text)?;
        // SAFETY: the buffers are still there.
        unsafe { device.driver().replay(&captured) }.map_err(text)?;
        if out.download().map_err(text)?.iter().zip(&got).any(|(a, b)| a.to_bits() != b.to_bits()) {
            return Err(format!("{rows} × {n} × {k}: recorded, it gives another result"));
        }
        let time = best(device, 10, || run().unwrap_or(Ok(())))?;
        let rate = 2.0 * (rows * n * k) as f64 / time.as_secs_f64() / 1e12;
        told += &format!("{rows} × {n} × {k}: {rate:.1} TFLOP/s, worst error {worst:.1e}; ");
    }
    Ok(told.trim_end_matches("; ").to_owned())
}

fn refusals(device: &Device) -> Outcome {
    let total = device.driver().memory().map_err(text)?.total as usize;
    let Err(too_much) = device.alloc::<u8>(total + (1 << 30)) else {
        return Err("more than all memory".into());
    };
    let launch = |kernel, threads, shared| {
        let launch = Launch { kernel, grid: [1, 1, 1], threads, shared };
        // As many arguments as any of them has: the driver reads them before it refuses.
        let mut nothing = 0_u64;
        let mut args = [(&raw mut nothing).cast(); 16];
        // SAFETY: none of these is started.
        unsafe { device.driver().launch(&launch, &mut args) }
    };
    let Err(unknown) = launch("no_such_kernel", 32, 0) else { return Err("an unknown kernel".into()) };
    let Err(wide) = launch("add_and_norm_f32", 2048, 0) else { return Err("2048 threads".into()) };
    let Err(greedy) = launch("add_and_norm_f32", 32, 1 << 20) else { return Err("1 MiB shared".into()) };
    for error in [&too_much, &unknown, &wide, &greedy] {
        println!("    {error}");
        if error.lost {
            return Err(format!("the device is said to be lost: {error}"));
        }
    }
    device.synchronize().map_err(text)?;
    Ok("four mistakes were told, and the device goes on".into())
}

/// A group of one: the library, its calls and their order on the stream. More GPUs need more processes.
fn nccl(device: &Device) -> Outcome {
    let started = Instant::now();
    let id = NcclComm::unique_id().map_err(text)?;
    let comm = NcclComm::join(device, &id, 0, 1, Duration::from_secs(60)).map_err(text)?;
    let joined = started.elapsed();
    let there = values(4097, 8);
    let mut buffer = device.upload(&there).map_err(text)?;
    let mut out = device.zeros::<f32>(4097).map_err(text)?;
    comm.all_reduce(buffer.view_mut()).map_err(text)?;
    comm.broadcast(buffer.view_mut(), 0).map_err(text)?;
    let same = |out: &Buffer<f32>| out.download().map_err(text).map(|out| out == there);
    comm.all_gather(out.view_mut(), buffer.view()).map_err(text)?;
    let gathered = same(&out)?;
    out.view_mut().fill(0).map_err(text)?;
    comm.reduce_scatter(out.view_mut(), buffer.view()).map_err(text)?;
    let scattered = same(&out)?;
    out.view_mut().fill(0).map_err(text)?;
    comm.exchange(out.view_mut(), &[4097], buffer.view(), &[4097]).map_err(text)?;
    let exchanged = same(&out)?;
    if !(gathered && scattered && exchanged) {
        return Err(format!("gathered {gathered}, scattered {scattered}, exchanged {exchanged}"));
    }
    device.driver().begin_capture().map_err(text)?;
    let recorded = comm.all_reduce(buffer.view_mut());
    let captured = device.driver().end_capture().map_err(text)?;
    recorded.map_err(text)?;
    // SAFETY: the buffer is still there.
    unsafe { device.driver().replay(&captured) }.map_err(text)?;
    if !same(&buffer)? {
        return Err("recorded, a sum over one rank changed something".into());
    }
    drop(captured);
    comm.health().map_err(text)?;
    let ending = Instant::now();
    comm.abort();
    if comm.all_reduce(buffer.view_mut()).is_ok() {
        return Err("a group that was ended goes on".into());
    }
    device.synchronize().map_err(text)?;
    let (joined, ended) = (joined.as_secs_f64(), ending.elapsed().as_secs_f64());
    Ok(format!("one rank: joined in {joined:.2} s, every call, recorded too, ended in {ended:.2} s"))
}
