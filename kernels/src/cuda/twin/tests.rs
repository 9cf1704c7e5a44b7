//! The twin catches what a GPU would forgive, or take for an answer.

use std::process::Command;

use crate::cuda::testing::host_twin;
use crate::cuda::{Arg, Buffer, Device, DeviceError, Launch};

fn try_launch(
    device: &Device,
    kernel: &'static str,
    threads: u32,
    shared: u32,
    args: &[Arg],
) -> Result<(), DeviceError> {
    // SAFETY: every test gives the kernel's parameters; what some do with them is the host twin's to catch.
    unsafe { device.launch(&Launch { kernel, grid: [2, 1, 1], threads, shared }, args) }
}

fn launch(device: &Device, kernel: &'static str, shared: u32, args: &[Arg]) {
    try_launch(device, kernel, 64, shared, args).unwrap();
}

fn pointer<T: bytemuck::Pod>(buffer: &Buffer<T>) -> Arg {
    Arg::Ptr(buffer.view().address())
}

/// What ends the process, and what it says then.
const FATAL: [(&str, &str); 14] = [
    ("read_behind", "fault_read, block (0, 0, 0), thread 0 of 64: no memory at"),
    ("read_before", ": 0 bytes from there"),
    ("shuffle", "warp 0: lanes 0000ffff in __shfl_xor_sync with mask ffffffff"),
    ("barrier", "warp 0: lanes 0000007f in __syncthreads"),
    ("too_few_arrive", "warp 0: lanes 00000001 wait for a round of a barrier"),
    ("bytes_do_not_come", "warp 0: lanes 00000001 wait for a round of a barrier"),
    ("too_many_arrive", "more arrive at a barrier than it counts"),
    ("shared_behind", "fault_shared, block (0, 0, 0), thread 1 of 64: no memory at"),
    ("shared_slack", "wrote behind its dynamic shared memory"),
    ("copy_unaligned", "copies from an address that is not aligned to what is copied"),
    ("wide_unaligned", "fault_wide, block (0, 0, 0), thread 0 of 64:"),
    ("index", "index 16 out of bounds"),
    ("order", "fault_order, block (1, 0, 0), thread 5 of 64: ends without wait_for_kernel_before"),
    ("slack", "byte 16 of a buffer of 16 bytes was written"),
];

/// Where a child is told which it is to be.
const HOW: &str = "FOGGARA_TWIN_DIES";

#[test]
fn mistakes_of_kernels_end_the_process() {
    if let Ok(how) = std::env::var(HOW) {
        die(&how);
        return;
    }
    for (how, says) in FATAL {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "cuda::twin::tests::mistakes_of_kernels_end_the_process", "--nocapture"]);
        let output = child.env(HOW, how).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains(says), "{how}: {} {text}", output.status);
    }
}

/// Does one of them.
fn die(how: &str) {
    let device = host_twin();
    let out = device.alloc::<u32>(128).unwrap();
    let values = device.upload(&[7u32; 64]).unwrap();
    let out = pointer(&out);
    let v = pointer(&values);
    match how {
        "read_behind" => launch(&device, "fault_read", 0, &[out, v, Arg::U32(64)]),
        "read_before" => {
            // Whole pages, so that it begins right behind the page before it.
            let pages = device.zeros::<u32>(1 << 16).unwrap();
            let before = Arg::Ptr(pages.view().address() - 4);
            launch(&device, "fault_read", 0, &[out, before, Arg::U32(0)]);
        }
        "shuffle" => launch(&device, "fault_shuffle", 0, &[out]),
        "barrier" => launch(&device, "fault_barrier", 0, &[out]),
        "too_few_arrive" => launch(&device, "fault_round", 0, &[out, Arg::U32(1)]),
        "bytes_do_not_come" => launch(&device, "fault_round", 0, &[out, Arg::U32(2)]),
        "too_many_arrive" => launch(&device, "fault_round", 0, &[out, Arg::U32(3)]),
        "shared_behind" => launch(&device, "fault_shared", 128, &[out, Arg::U32(127)]),
        "shared_slack" => launch(&device, "fault_shared", 96, &[out, Arg::U32(40)]),
        "copy_unaligned" => launch(&device, "fault_copy", 1024, &[out, v, Arg::U32(4)]),
        "wide_unaligned" => launch(&device, "fault_wide", 0, &[out, v, Arg::U32(1)]),
        "order" => launch(&device, "fault_order", 0, &[out]),
        "index" => launch(&device, "fault_index", 0, &[out, Arg::U32(13)]),
        "slack" => {
            let small = device.alloc::<u32>(4).unwrap();
            launch(&device, "fault_write", 0, &[pointer(&small), Arg::U32(4)]);
        }
        _ => unreachable!("{how}"),
    }
}

#[test]
fn launches_that_cannot_be_are_refused() {
    let device = host_twin();
    let out = device.alloc::<u32>(128).unwrap();
    let args = [pointer(&out), Arg::U32(0)];
    let refused = |kernel, threads, shared, args: &[Arg], says: &str| {
        let error = try_launch(&device, kernel, threads, shared, args).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    };
    refused("no_such_kernel", 64, 0, &args, "no such kernel");
    refused("fault_write", 65, 0, &args, "more threads");
    refused("fault_write", 64, 233_000, &args, "more shared memory");
    refused("fault_write", 64, 0, &args[..1], "1 arguments in place of 2");
    launch(&device, "fault_write", 232_448, &args);
}

#[test]
fn memory_is_poisoned_bounded_and_counted() {
    let device = host_twin();
    let before = device.driver().memory().unwrap();
    let buffer = device.alloc::<u8>(1000).unwrap();
    assert!(buffer.view().address().is_multiple_of(256));
    assert!(buffer.download().unwrap().iter().all(|&byte| byte == 0xff));
    assert_eq!(device.driver().memory().unwrap().free, before.free - 1000);
    assert!(device.alloc::<u8>(1 << 40).unwrap_err().to_string().contains("out of memory"));
    let address = buffer.view().address();
    let mut bytes = vec![0; 1001];
    // SAFETY: refused, or inside of the buffer.
    unsafe {
        let driver = device.driver();
        assert!(driver.download(address, &mut bytes).is_err());
        assert!(driver.download(address - 1, &mut bytes[..1]).is_err());
        assert!(driver.upload(address + 1, &bytes[..1000]).is_err());
        assert!(driver.fill(address + 1000, 0, 1).is_err());
        assert!(driver.copy(address, address + 10, 11).is_err());
        driver.copy(address, address + 10, 10).unwrap();
        driver.fill(address + 999, 3, 1).unwrap();
        driver.download(address, &mut bytes[..1000]).unwrap();
    }
    assert_eq!(bytes[998..], [0xff, 3, 0]);
    drop(buffer);
    assert_eq!(device.driver().memory().unwrap(), before);
}

#[test]
fn shared_memory_is_fresh_in_every_block() {
    let device = host_twin();
    for _ in 0..2 {
        let out = device.alloc::<u32>(128).unwrap();
        launch(&device, "fault_fresh", 256, &[pointer(&out)]);
        assert_eq!(out.download().unwrap(), [u32::MAX; 128]);
    }
}

#[test]
fn what_was_recorded_happens_when_it_is_replayed() {
    let device = host_twin();
    let driver = device.driver();
    let mut x = device.zeros::<u32>(64).unwrap();
    let mut copy = device.zeros::<u32>(64).unwrap();
    driver.begin_capture().unwrap();
    let args = [pointer(&x), Arg::U32(3), Arg::U64(40), Arg::F32(500.0)];
    launch(&device, "fault_add", 0, &args);
    copy.view_mut().copy_from(x.view()).unwrap();
    x.view_mut().slice(0..1).fill(0).unwrap();
    let captured = driver.end_capture().unwrap();
    assert_eq!(x.download().unwrap(), [0; 64], "nothing is done while recording");
    for round in 1..4 {
        // SAFETY: both buffers are still there.
        unsafe { driver.replay(&captured) }.unwrap();
        // Two blocks, each adding.
        let all = round * 2 * 543;
        assert_eq!(x.download().unwrap()[..2], [0, all]);
        assert_eq!(copy.download().unwrap()[..2], [2 * 543, all]);
    }
    assert_eq!(driver.launches(), [("fault_add", 3)]);

    driver.begin_capture().unwrap();
    assert!(x.download().is_err(), "what gives an answer cannot be recorded");
    assert!(driver.end_capture().unwrap_err().to_string().contains("download"));
    assert!(x.download().is_ok(), "recording has ended");
    assert!(driver.end_capture().is_err());
}
