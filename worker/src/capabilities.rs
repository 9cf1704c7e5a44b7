//! What this worker can do, measured when it starts.

use foggara_kernels::cpu::{detect, measure};
use foggara_kernels::cuda::{Device, DeviceError, Gpu};
use foggara_kernels::{Cores, Threads};
use foggara_models::{KvFormat, Quantize};
use foggara_proto::version::Build;
use foggara_proto::wire::admin as wire;
use foggara_proto::wire::admin::Capabilities;

use crate::cgroup::MemoryLimit;
use crate::{accelerator, cgroup};

/// Long enough to be right within a tenth, even where several workers start at once; short enough not to be noticed at start.
const MEASURE_MILLIS: u64 = 100;
/// For each way of multiplying bytes.
const INT8_MILLIS: u64 = 25;

/// Measures this machine with `threads`, or `device`. Takes about half a second of all of them; a GPU a fifth more,
/// with its libraries' start. A device that only plays a GPU is not measured: it has the CPU's speed, if that.
///
/// # Errors
/// If the device fails.
pub(crate) fn measure(threads: &Threads, device: Option<&Device>) -> Result<Capabilities, DeviceError> {
    // Threads that one which keeps to some cores starts keep to them, too.
    let own = std::thread::scope(|scope| {
        let measuring = scope.spawn(|| {
            threads.cores.iter().for_each(Cores::keep_to_all);
            of_cpu(threads.count)
        });
        measuring.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    let Some(device) = device else { return Ok(own) };
    let memory = device.driver().memory()?;
    let known = known_as(device);
    let of_device = Capabilities {
        memory_bytes: memory.free,
        device: Some(wire::Device { total_bytes: memory.total, ..known }),
        cache_bytes: 0,
        cache_bytes_per_second: 0,
        int8_ops_per_second: 0,
        memory_limit_bytes: 0,
        ..own
    };
    if Gpu::of(device).is_none() {
        tracing::info!(device = device.name(), "not a GPU: its speed is taken for the CPU's");
        return Ok(of_device);
    }
    Ok(Capabilities {
        read_bytes_per_second: accelerator::read_bandwidth(device, memory.free)?,
        flops: accelerator::product_rate(device)?,
        ..of_device
    })
}

fn of_cpu(threads: usize) -> Capabilities {
    let caches = measure::caches();
    Capabilities {
        threads: u32::try_from(threads).unwrap_or(u32::MAX),
        memory_bytes: available_memory(),
        read_bytes_per_second: measure::memory_bandwidth(threads, MEASURE_MILLIS),
        flops: measure::widest_fma_rate(threads, MEASURE_MILLIS),
        cpu: format!("{} ({})", cpu_name(), detect::features().name()),
        version: Build::own().version,
        device: Some(cpu()),
        cache_bytes: caches.last,
        cache_bytes_per_second: measure::cache_bandwidth(&caches, threads, MEASURE_MILLIS),
        int8_ops_per_second: measure::int8_rate(threads, INT8_MILLIS),
        memory_limit_bytes: cgroup::least_limit().unwrap_or(0),
    }
}

/// The CPU as a device.
fn cpu() -> wire::Device {
    let quantize = Quantize::ALL.into_iter().filter(|quantize| !quantize.needs_gpu());
    let formats = KvFormat::ALL.into_iter().filter(|format| format.on_cpus());
    wire::Device {
        kind: "cpu".into(),
        kv_dtypes: formats.map(|format| format.name().into()).collect(),
        quantize: quantize.map(|quantize| quantize.name().into()).collect(),
        data_parallel: true,
        ..wire::Device::default()
    }
}

/// What a device is called, and what may be asked of it: what `DeviceDecoder` does not refuse. It takes every
/// quantization.
fn known_as(device: &Device) -> wire::Device {
    let gpu = Gpu::of(device);
    let formats = KvFormat::ALL.into_iter().filter(|format| format.on_gpus());
    wire::Device {
        kind: "cuda".into(),
        name: gpu.map_or_else(|| device.name(), |gpu| gpu.product().to_owned()),
        uuid: gpu.map_or_else(String::new, |gpu| gpu.uuid().to_owned()),
        total_bytes: 0,
        kv_dtypes: formats.map(|format| format.name().into()).collect(),
        quantize: Quantize::ALL.map(|quantize| quantize.name().into()).to_vec(),
        data_parallel: false,
    }
}

/// Bytes this process may take: what the system could give without swapping, and without taking pages of files away that processes
/// use, and no more than its control groups leave it. 0 if the system does not say.
pub(crate) fn available_memory() -> u64 {
    let (left, limit) = left_and_why();
    if let Some(limit) = limit {
        let (folder, bytes, left) = (limit.folder.display(), limit.bytes, limit.left);
        tracing::info!(%folder, limit_bytes = bytes, left_bytes = left, "a control group limits memory");
    }
    left
}

/// The same, and nothing is said of it.
pub(crate) fn memory_left() -> u64 {
    left_and_why().0
}

/// What is available, and the limit that leaves no more, if one does.
fn left_and_why() -> (u64, Option<MemoryLimit>) {
    let system = available(&std::fs::read_to_string("/proc/meminfo").unwrap_or_default());
    match cgroup::memory_limit().filter(|limit| limit.left < system) {
        None => (system, None),
        // Nothing at all would be taken for not known.
        Some(limit) => (limit.left.max(1), Some(limit)),
    }
}

/// Of the text of /proc/meminfo (proc(5)): what is available, less the files that are mapped. It counts these as available, but
/// weights that are mapped are read in every step. Memory that is shared but of no file is counted as mapped, and not as available.
fn available(info: &str) -> u64 {
    let field = |name: &str| {
        let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).map_or(0, |kib| kib * 1024)
    };
    field("MemAvailable").saturating_sub(field("Mapped").saturating_sub(field("Shmem")))
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

#[cfg(test)]
mod tests {
    use foggara_kernels::cuda::testing::devices;

    use super::*;

    #[test]
    fn what_is_mapped_is_not_available() {
        let info = |mapped, shared| {
            format!(
                "MemFree: 7 kB\nMemAvailable:  1000 kB\nMapped: {mapped} kB\nShmemHugePages: 9 kB\nShmem: {shared} kB\n"
            )
        };
        assert_eq!(available(&info(300, 0)), 700 << 10);
        assert_eq!(available(&info(300, 100)), 800 << 10, "of no file");
        assert_eq!(available(&info(300, 400)), 1000 << 10);
        assert_eq!(available(&info(2000, 0)), 0);
        assert_eq!(available(""), 0);
    }

    #[test]
    fn a_cpu_says_what_it_is() {
        let own = measure(&Threads::anywhere(1), None).expect("nothing of it can fail");
        let device = own.device.expect("said");
        assert_eq!((device.kind.as_str(), device.uuid.as_str(), device.total_bytes), ("cpu", "", 0));
        assert!(device.kv_dtypes.contains(&"q8_0".into()) && !device.quantize.contains(&"fp8".into()));
        assert!(device.data_parallel && own.read_bytes_per_second > 0 && own.flops > 0);
        assert!(own.int8_ops_per_second > 0);
        assert_eq!(own.cache_bytes > 0, own.cache_bytes_per_second > 0);
    }

    #[test]
    fn a_device_says_what_it_is_and_has() {
        for device in devices() {
            let taken = device.zeros::<u8>(1 << 20).expect("memory");
            let own = measure(&Threads::anywhere(1), Some(&device)).expect("it has memory");
            drop(taken);
            let told = own.device.expect("said");
            let gpu = Gpu::of(&device);
            let name = gpu.map_or_else(|| device.name(), |gpu| gpu.product().to_owned());
            assert_eq!((told.kind.as_str(), &told.name), ("cuda", &name));
            assert!(device.name().contains(&name), "its number and its product");
            assert_eq!(told.uuid.len(), if gpu.is_some() { 36 } else { 0 }, "{}", told.uuid);
            assert!(own.memory_bytes <= told.total_bytes - (1 << 20), "what is taken is not free");
            assert!(!told.kv_dtypes.contains(&"q8_0".into()) && told.quantize.contains(&"fp8".into()));
            assert!(!told.data_parallel && own.read_bytes_per_second > 0 && own.flops > 0);
            assert_eq!((own.cache_bytes, own.int8_ops_per_second), (0, 0), "those are the processor's");
            assert!(!own.cpu.contains(&name), "the processor beside it");
        }
    }
}
