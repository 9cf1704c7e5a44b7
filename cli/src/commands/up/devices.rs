//! Which worker computes on which GPU.

use anyhow::bail;
use clap::ValueEnum;
use foggara_kernels::cuda::doctor::Usable;

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Asked {
    /// GPUs, if there are any.
    Auto,
    Cpu,
    Cuda,
}

/// What workers compute on.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Devices {
    asked: Asked,
    /// GPUs that are used.
    pub(super) gpus: usize,
    /// What people should know of it.
    pub(super) note: Option<String>,
}

impl Devices {
    /// The `--device` of worker `i`, from 1 on; `None` where there is nothing to say.
    pub(super) fn of(&self, i: u32) -> Option<String> {
        match (self.asked, self.gpus) {
            (Asked::Cpu, _) => Some("cpu".to_owned()),
            (_, 0) => None,
            (_, gpus) => Some(format!("cuda:{}", (i as usize).saturating_sub(1) % gpus)),
        }
    }
}

/// What `workers` workers compute on; `look` counts the GPUs.
///
/// # Errors
/// If GPUs were asked for and cannot be used.
pub(super) fn choose(asked: Asked, workers: u32, look: impl FnOnce() -> Usable) -> anyhow::Result<Devices> {
    if asked == Asked::Cpu {
        return Ok(Devices { asked, gpus: 0, note: None });
    }
    let Usable { gpus, missing } = look();
    match missing {
        Some(reason) if asked == Asked::Cuda => bail!("device: {reason}"),
        // No GPU is nothing to be said.
        Some(_) if gpus == 0 => Ok(Devices { asked, gpus, note: None }),
        Some(reason) => Ok(Devices {
            asked,
            gpus: 0,
            note: Some(format!("computing on the CPU, not on {}: {reason}", of(gpus))),
        }),
        None => {
            let shared = workers as usize > gpus;
            let note = shared.then(|| format!("{workers} workers on {}: some share one", of(gpus)));
            Ok(Devices { asked, gpus, note })
        }
    }
}

fn of(gpus: usize) -> String {
    if gpus == 1 { "1 GPU".to_owned() } else { format!("{gpus} GPUs") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usable(gpus: usize) -> Usable {
        Usable { gpus, missing: (gpus == 0).then(|| "no driver".to_owned()) }
    }

    fn each(devices: &Devices, workers: u32) -> Vec<String> {
        (1..=workers).map(|i| devices.of(i).unwrap_or_default()).collect()
    }

    #[test]
    fn workers_are_spread_over_gpus() {
        for asked in [Asked::Auto, Asked::Cuda] {
            let two = choose(asked, 2, || usable(2)).expect("there are GPUs");
            assert_eq!((each(&two, 2), two.note.as_deref()), (vec!["cuda:0".into(), "cuda:1".into()], None));
            let shared = choose(asked, 3, || usable(2)).expect("there are GPUs");
            assert_eq!(each(&shared, 3), ["cuda:0", "cuda:1", "cuda:0"]);
            assert_eq!(shared.note.as_deref(), Some("3 workers on 2 GPUs: some share one"));
        }
    }

    #[test]
    fn without_a_gpu_nothing_changes() {
        let none = choose(Asked::Auto, 2, || usable(0)).expect("the CPU will do");
        assert_eq!((each(&none, 2), none.note), (vec![String::new(); 2], None));
        let refused = choose(Asked::Cuda, 2, || usable(0)).expect_err("asked for");
        assert_eq!(refused.to_string(), "device: no driver");
        let cpu = choose(Asked::Cpu, 2, || panic!("nobody looks")).expect("the CPU is there");
        assert_eq!(each(&cpu, 2), ["cpu", "cpu"]);
    }

    #[test]
    fn gpus_that_cannot_be_used_are_named() {
        let lacking = || Usable { gpus: 1, missing: Some("NVRTC not found".into()) };
        let auto = choose(Asked::Auto, 1, lacking).expect("the CPU will do");
        assert_eq!((auto.of(1), auto.gpus), (None, 0));
        assert_eq!(auto.note.as_deref(), Some("computing on the CPU, not on 1 GPU: NVRTC not found"));
        assert!(choose(Asked::Cuda, 1, lacking).is_err());
    }
}
