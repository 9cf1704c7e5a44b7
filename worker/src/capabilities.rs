//! What this worker can do, measured when it starts.

use foggara_kernels::cpu::{detect, measure};
use foggara_kernels::cuda::{Device, DeviceError};
use foggara_proto::wire::admin::Capabilities;

use crate::accelerator;

/// Long enough to be right within a tenth, short enough not to be noticed at start.
const MEASURE_MILLIS: u64 = 40;

/// Measures this machine with `threads` threads, or `device`. Takes about a tenth of a second of all of them.
///
/// # Errors
/// If the device fails.
pub(crate) fn measure(threads: usize, device: Option<&Device>) -> Result<Capabilities, DeviceError> {
    let own = of_cpu(threads);
    let Some(device) = device else { return Ok(own) };
    Ok(Capabilities {
        memory_bytes: device.driver().memory()?.free,
        read_bytes_per_second: accelerator::read_bandwidth(device)?,
        flops: accelerator::product_rate(device)?,
        cpu: format!("{}; {}", device.name(), own.cpu),
        ..own
    })
}

fn of_cpu(threads: usize) -> Capabilities {
    Capabilities {
        threads: u32::try_from(threads).unwrap_or(u32::MAX),
        memory_bytes: available_memory(),
        read_bytes_per_second: measure::read_bandwidth(threads, MEASURE_MILLIS),
        flops: measure::fma_rate(threads, MEASURE_MILLIS),
        cpu: format!("{} ({})", cpu_name(), detect::features().name()),
        version: env!("CARGO_PKG_VERSION").into(),
    }
}

/// Bytes the system could give without swapping (proc(5), MemAvailable); 0 if it does not say.
pub(crate) fn available_memory() -> u64 {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).map_or(0, |kib| kib * 1024)
}

fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    line.map_or_else(|| std::env::consts::ARCH.into(), |(_, name)| name.trim().into())
}

/// Names the machine for the choice of collective: workers with the same id see the same /dev/shm and the same processes.
pub(crate) fn host_id() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let namespace = std::fs::read_link("/proc/self/ns/pid").map(|link| link.to_string_lossy().into_owned());
    let memory = rustix::fs::stat("/dev/shm").map(|stat| stat.st_dev).unwrap_or_default();
    format!("{}/{}/{memory}", boot.trim(), namespace.unwrap_or_default())
}
