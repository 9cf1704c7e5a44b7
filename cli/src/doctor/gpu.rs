//! GPUs and NVIDIA's libraries. Without a GPU nothing is wrong, unless one is asked for: workers compute on the CPU then.

use foggara_kernels::cuda::Facts;
use foggara_kernels::cuda::doctor::Survey;
use foggara_worker::DeviceChoice;

use super::finding::{Finding, Severity};
use crate::output::bytes;

const SECTION: &str = "gpu";

/// What is to be said of what was found.
pub(super) fn judge(survey: &Survey, device: DeviceChoice) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Ok(version) = &survey.driver {
        let release = survey.driver_release.as_deref().unwrap_or("of unknown release");
        findings.push(Finding::ok(SECTION, format!("driver {release}, CUDA {version}")));
    }
    for gpu in &survey.gpus {
        findings.push(match gpu {
            Ok((gpu, free)) => Finding::ok(SECTION, described(gpu, *free)),
            Err(error) => Finding::new(
                SECTION,
                Severity::Fault,
                error.as_str(),
                "nvidia-smi; `dmesg | grep -i xid` says what the driver saw",
            ),
        });
    }
    for library in &survey.libraries {
        findings.push(match &library.found {
            Ok((path, version)) => Finding::ok(SECTION, format!("{} {version}, {path}", library.name)),
            // Whether it is missed is below.
            Err(_) => Finding::note(SECTION, format!("{} is not there ({})", library.name, library.purpose)),
        });
    }
    let embedded = &survey.embedded;
    if !survey.gpus.is_empty() {
        findings.push(Finding::ok(
            SECTION,
            match embedded.as_slice() {
                [] => "kernels are compiled by NVRTC at the first start".to_owned(),
                embedded => format!("kernels for {}; NVRTC for others", embedded.join(", ")),
            },
        ));
    }
    findings.extend(survey.missing.iter().map(|missing| lack(missing, survey, device)));
    if let DeviceChoice::Cuda(number) = device
        && (1..=number).contains(&survey.gpus.len())
    {
        let what = format!(
            "--device cuda:{number}: the driver shows {} GPUs, which count from 0",
            survey.gpus.len()
        );
        findings.push(Finding::new(
            SECTION,
            Severity::Fault,
            what,
            "nvidia-smi -L, and see CUDA_VISIBLE_DEVICES",
        ));
    }
    findings
}

/// Something to be done: what is missing comes first, and the command that gets it after it.
fn lack(missing: &str, survey: &Survey, device: DeviceChoice) -> Finding {
    let usable = !survey.gpus.is_empty();
    let severity = match device {
        // Better, not needed: for long prompts, or groups.
        _ if missing.starts_with("for ") => Severity::Note,
        DeviceChoice::Cuda(_) => Severity::Fault,
        DeviceChoice::Auto if usable => Severity::Warning,
        DeviceChoice::Auto | DeviceChoice::Cpu => Severity::Note,
    };
    // `NVRTC not found. Get it with …`, `… finds no libcuda.so.1. It comes with …`
    let (what, remedy) = missing.split_once(". ").unwrap_or((missing, "foggara worker --device cpu"));
    let instead =
        if severity == Severity::Note && !usable { "; without, workers compute on the CPU" } else { "" };
    Finding::new(SECTION, severity, format!("{what}{instead}"), remedy)
}

fn described(gpu: &Facts, free: u64) -> String {
    let (major, minor) = gpu.capability;
    let Facts { ordinal, name, memory, multiprocessors, pci, peers, .. } = gpu;
    let mut text = format!(
        "GPU {ordinal}: {name}, compute {major}.{minor}, {} of {} free, {multiprocessors} multiprocessors, {pci}",
        bytes(free),
        bytes(*memory)
    );
    if !peers.is_empty() {
        // The driver ranks the ways between GPUs; NVLink comes first.
        let peers = peers.iter().map(|(gpu, rank)| format!("{gpu} (rank {rank})")).collect::<Vec<_>>();
        text.push_str(&format!(", reaches GPU {}", peers.join(", ")));
    }
    text
}

#[cfg(test)]
pub(super) mod tests {
    use foggara_kernels::cuda::doctor::{Found, Wanted};

    use super::super::finding::worst;
    use super::*;

    /// A machine with these GPUs and without NCCL.
    pub(crate) fn machine(gpus: Vec<Result<(Facts, u64), String>>, missing: &[&str]) -> Survey {
        let driver = if gpus.is_empty() { Err("no driver".into()) } else { Ok("13.0".into()) };
        let found = Err("NCCL not found".into());
        let libraries = vec![Found { wanted: Wanted::Nccl, name: "NCCL", purpose: "collectives", found }];
        let missing = missing.iter().map(ToString::to_string).collect();
        Survey {
            driver,
            driver_release: Some("580.1".into()),
            gpus,
            libraries,
            embedded: Vec::new(),
            missing,
        }
    }

    pub(crate) fn h100() -> Facts {
        Facts {
            ordinal: 0,
            name: "NVIDIA H100".into(),
            capability: (9, 0),
            memory: 80 << 30,
            multiprocessors: 132,
            shared: 232_448,
            cache: 50 << 20,
            pci: "0000:01:00.0".into(),
            peers: vec![(1, 0)],
        }
    }

    const NO_DRIVER: &str =
        "NVIDIA's driver is not here: the loader finds no libcuda.so.1. It comes with the driver";
    const NO_NVRTC: &str = "NVRTC not found. Get it with `pip install`";

    #[test]
    fn what_is_missing_matters_as_much_as_a_gpu_is_wanted() {
        let gpu = || Ok((h100(), 79 << 30));
        for (gpus, missing, device, severity) in [
            (vec![], NO_DRIVER, DeviceChoice::Auto, Severity::Note),
            (vec![], NO_DRIVER, DeviceChoice::Cpu, Severity::Note),
            (vec![], NO_DRIVER, DeviceChoice::Cuda(0), Severity::Fault),
            (vec![gpu()], NO_NVRTC, DeviceChoice::Auto, Severity::Warning),
            (vec![gpu()], NO_NVRTC, DeviceChoice::Cuda(0), Severity::Fault),
            (
                vec![gpu()],
                "for long prompts at full speed: cublasLt not found. Get it",
                DeviceChoice::Cuda(0),
                Severity::Note,
            ),
        ] {
            let found = judge(&machine(gpus, &[missing]), device);
            assert_eq!(worst(&found), severity, "{missing} {device:?}");
            let told = found.iter().find(|finding| finding.remedy.is_some()).expect("one has a remedy");
            assert!(missing.ends_with(told.remedy.as_deref().unwrap_or_default()), "{told:?}");
        }
    }

    #[test]
    fn gpus_are_told_with_what_they_reach() {
        let survey = machine(vec![Ok((h100(), 79 << 30)), Err("GPU 1: lost".into())], &[]);
        let found = judge(&survey, DeviceChoice::Auto);
        let line = "GPU 0: NVIDIA H100, compute 9.0, 79.0 GiB of 80.0 GiB free, 132 multiprocessors, 0000:01:00.0, \
            reaches GPU 1 (rank 0)";
        assert!(found.iter().any(|finding| finding.what == line), "{found:?}");
        assert!(found.iter().any(|f| f.what == "GPU 1: lost" && f.severity == Severity::Fault), "{found:?}");
        let healthy = machine(vec![Ok((h100(), 1))], &[]);
        assert_eq!(worst(&judge(&healthy, DeviceChoice::Cuda(0))), Severity::Note);
        assert_eq!(worst(&judge(&healthy, DeviceChoice::Cuda(1))), Severity::Fault, "there is one, number 0");
    }
}
