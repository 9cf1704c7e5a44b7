//! `foggara doctor`

use std::io::Write;

use clap::Args;
use foggara_kernels::cpu::detect;
use foggara_kernels::cuda::Facts;
use foggara_kernels::cuda::doctor::{Found, Survey, survey};
use serde_json::{Value, json};

use crate::output::bytes;

/// Show what this machine has for a worker: processor, memory, GPUs and NVIDIA's libraries; what is missing, and the command
/// that gets it. Without a GPU nothing is wrong: workers compute on the CPU then.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The machine besides its GPUs.
struct Host {
    cpu: String,
    features: &'static str,
    cores: usize,
    memory: u64,
    available: u64,
}

/// Prints it.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let (host, survey) = (host(), survey());
    let mut out = std::io::stdout().lock();
    if arguments.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&as_json(&host, &survey))?)?;
    } else {
        print(&mut out, &host, &survey)?;
    }
    Ok(out.flush()?)
}

fn host() -> Host {
    let line = |file: &str, name: &str| {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.split_once(':'));
        line.map(|(_, value)| value.trim().to_owned())
    };
    // proc(5): in KiB.
    let memory = |name| {
        let told = line("/proc/meminfo", name)?;
        told.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
    };
    Host {
        cpu: line("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.into()),
        features: detect::features().name(),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        memory: memory("MemTotal").unwrap_or_default(),
        available: memory("MemAvailable").unwrap_or_default(),
    }
}

/// The documented shape.
fn as_json(host: &Host, survey: &Survey) -> Value {
    let gpu = |gpu: &Result<(Facts, u64), String>| match gpu {
        Ok((gpu, free)) => json!({"ordinal": gpu.ordinal, "name": gpu.name,
            "compute_capability": format!("{}.{}", gpu.capability.0, gpu.capability.1),
            "memory_bytes": gpu.memory, "memory_free_bytes": free, "multiprocessors": gpu.multiprocessors,
            "shared_memory_per_block_bytes": gpu.shared, "l2_cache_bytes": gpu.cache, "pci": gpu.pci,
            "peers": gpu.peers.iter().map(|(gpu, rank)| json!({"gpu": gpu, "rank": rank}))
                .collect::<Vec<_>>()}),
        Err(error) => json!({"error": error}),
    };
    let library = |library: &Found| match &library.found {
        Ok((path, version)) => json!({"name": library.name, "path": path, "version": version}),
        Err(error) => json!({"name": library.name, "error": error}),
    };
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "cpu": host.cpu,
        "cpu_features": host.features,
        "cores": host.cores,
        "memory_bytes": host.memory,
        "memory_available_bytes": host.available,
        "cuda_driver": survey.driver.as_ref().ok(),
        "cuda_driver_release": survey.driver_release,
        "gpus": survey.gpus.iter().map(gpu).collect::<Vec<_>>(),
        "libraries": survey.libraries.iter().map(library).collect::<Vec<_>>(),
        "embedded_kernels": survey.embedded,
        "missing": survey.missing,
    })
}

fn print(out: &mut impl Write, host: &Host, survey: &Survey) -> std::io::Result<()> {
    writeln!(out, "cpu       {} ({}), {} cores", host.cpu, host.features, host.cores)?;
    writeln!(out, "memory    {}, {} available", bytes(host.memory), bytes(host.available))?;
    match &survey.driver {
        Ok(version) => {
            let release = survey.driver_release.as_deref().unwrap_or("of unknown release");
            writeln!(out, "driver    {release}, CUDA {version}")?;
        }
        Err(_) => writeln!(out, "driver    none")?,
    }
    for gpu in &survey.gpus {
        match gpu {
            Ok((gpu, free)) => print_gpu(out, gpu, *free)?,
            Err(error) => writeln!(out, "gpu       {error}")?,
        }
    }
    if survey.gpus.is_empty() {
        writeln!(out, "gpu       none: workers compute on the CPU")?;
    }
    for library in &survey.libraries {
        match &library.found {
            Ok((path, version)) => writeln!(out, "{:<9} {version}, {path}", library.name)?,
            Err(_) => writeln!(out, "{:<9} not found ({})", library.name, library.purpose)?,
        }
    }
    match survey.embedded.as_slice() {
        [] => writeln!(out, "kernels   compiled by NVRTC at the first start")?,
        embedded => writeln!(out, "kernels   for {}; NVRTC for others", embedded.join(", "))?,
    }
    if !survey.missing.is_empty() {
        writeln!(out, "\nto use GPUs")?;
        survey.missing.iter().try_for_each(|missing| writeln!(out, "  {missing}"))?;
    }
    Ok(())
}

fn print_gpu(out: &mut impl Write, gpu: &Facts, free: u64) -> std::io::Result<()> {
    let (major, minor) = gpu.capability;
    let Facts { ordinal, name, memory, multiprocessors, pci, peers, .. } = gpu;
    write!(
        out,
        "gpu {ordinal:<5} {name}, compute {major}.{minor}, {} of {} free, ",
        bytes(free),
        bytes(*memory)
    )?;
    write!(out, "{multiprocessors} multiprocessors, {pci}")?;
    if !peers.is_empty() {
        // The driver ranks the ways between GPUs; NVLink comes first.
        let peers = peers.iter().map(|(gpu, rank)| format!("{gpu} (rank {rank})")).collect::<Vec<_>>();
        write!(out, ", reaches GPU {}", peers.join(", "))?;
    }
    writeln!(out)
}

#[cfg(test)]
mod tests {
    use foggara_kernels::cuda::doctor::Wanted;

    use super::*;

    fn machine(gpus: Vec<Result<(Facts, u64), String>>, missing: Vec<String>) -> (Host, Survey) {
        let (cpu, features) = ("A processor".into(), "portable");
        let host = Host { cpu, features, cores: 4, memory: 8 << 30, available: 6 << 30 };
        let driver = if gpus.is_empty() { Err("no driver".into()) } else { Ok("13.0".into()) };
        let found = Err("NCCL not found".into());
        let libraries = vec![Found { wanted: Wanted::Nccl, name: "NCCL", purpose: "collectives", found }];
        let embedded = Vec::new();
        (host, Survey { driver, driver_release: Some("580.1".into()), gpus, libraries, embedded, missing })
    }

    #[test]
    fn a_machine_without_a_gpu_is_told_what_would_be_needed() {
        let (host, survey) = machine(Vec::new(), vec!["get a driver".into()]);
        let mut out = Vec::new();
        print(&mut out, &host, &survey).expect("memory");
        let text = String::from_utf8_lossy(&out);
        assert!(text.contains("gpu       none: workers compute on the CPU"), "{text}");
        assert!(text.ends_with("to use GPUs\n  get a driver\n"), "{text}");
        let json = as_json(&host, &survey);
        assert_eq!((&json["cuda_driver"], &json["gpus"]), (&Value::Null, &json!([])));
    }

    #[test]
    fn gpus_are_told_with_what_they_reach() {
        let facts = Facts {
            ordinal: 0,
            name: "NVIDIA H100".into(),
            capability: (9, 0),
            memory: 80 << 30,
            multiprocessors: 132,
            shared: 232_448,
            cache: 50 << 20,
            pci: "0000:01:00.0".into(),
            peers: vec![(1, 0)],
        };
        let (host, survey) = machine(vec![Ok((facts, 79 << 30)), Err("GPU 1: lost".into())], Vec::new());
        let mut out = Vec::new();
        print(&mut out, &host, &survey).expect("memory");
        let text = String::from_utf8_lossy(&out);
        let line = "gpu 0     NVIDIA H100, compute 9.0, 79.0 GiB of 80.0 GiB free, 132 multiprocessors, \
            0000:01:00.0, reaches GPU 1 (rank 0)";
        assert!(text.contains(line) && text.contains("gpu       GPU 1: lost"), "{text}");
        assert_eq!(as_json(&host, &survey)["gpus"][0]["compute_capability"], "9.0");
    }
}
