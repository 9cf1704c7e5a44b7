//! Whether models fit on this host, by the placement's own numbers.

use std::path::Path;

use foggara_coordinator::model_facts::facts_at;
use foggara_coordinator::placement;
use foggara_coordinator::placement::facts::{Kind, Links, ModelFacts, Speeds, Takes, Wish, WorkerFacts};
use foggara_worker::DeviceChoice;

use super::finding::{Finding, Severity};

const SECTION: &str = "models";
/// Which shape is best hangs on speeds, which is not asked here: any will do.
const ANY_SPEED: u64 = 1 << 35;

/// A worker that computes on the processor with `memory` bytes, or on each of `gpus` with as many as it has.
pub(super) fn workers(device: DeviceChoice, memory: u64, gpus: &[u64]) -> Vec<WorkerFacts> {
    let worker = |id, kind, memory_bytes| WorkerFacts {
        id,
        host: "this".into(),
        kind,
        version: String::new(),
        takes: Takes::usual(kind),
        memory_bytes,
        speeds: Speeds::of_memory(ANY_SPEED, ANY_SPEED),
    };
    let mut workers = Vec::new();
    if device != DeviceChoice::Cpu {
        workers.extend((1..).zip(gpus).map(|(id, memory)| worker(id, Kind::Gpu, *memory)));
    }
    if !matches!(device, DeviceChoice::Cuda(_)) {
        workers.push(worker(0, Kind::Cpu, memory));
    }
    workers
}

/// The model at `path` on `workers` of this host.
pub(super) fn check(path: &Path, workers: &[WorkerFacts]) -> Finding {
    match facts_at(path, "auto", "none") {
        Ok(model) => judge(path, &model, workers),
        Err(error) => Finding::new(
            SECTION,
            Severity::Fault,
            format!("--model {}: {error}", path.display()),
            "give a GGUF file or a Hugging Face folder that Foggara reads (docs/models.md), and fetch it again if it is damaged",
        ),
    }
}

fn judge(path: &Path, model: &ModelFacts, workers: &[WorkerFacts]) -> Finding {
    let what = format!("--model {}", path.display());
    match placement::choose(model, &Wish::OPEN, workers, &Links::ASSUMED, 1) {
        Ok(plan) => {
            let needed = plan.ranks.iter().map(|rank| rank.bytes).sum();
            Finding::ok(
                SECTION,
                format!(
                    "{what} fits here, {} with {} tokens of KV cache",
                    placement::bytes(needed),
                    plan.kv_tokens
                ),
            )
        }
        Err(reason) => Finding::new(
            SECTION,
            Severity::Fault,
            format!("{what}: too little memory on this host alone: {reason}"),
            "share it among hosts (`foggara models plan PATH --nodes FILE.toml` says among how many), or quantize it (--quantize q8_0)",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/llama")
    }

    #[test]
    fn a_model_fits_or_not() {
        let on = |bytes| check(&golden(), &workers(DeviceChoice::Auto, bytes, &[]));
        assert_eq!(on(8 << 30).severity, Severity::Ok);
        let found = on(1 << 20);
        assert!(found.severity == Severity::Fault && found.what.contains("too little memory"), "{found:?}");
        let nothing = check(Path::new("/nowhere"), &workers(DeviceChoice::Auto, 8 << 30, &[]));
        assert!(nothing.severity == Severity::Fault && nothing.what.contains("/nowhere"), "{nothing:?}");
    }

    #[test]
    fn workers_are_on_what_was_asked_for() {
        for (device, kinds) in [
            (DeviceChoice::Auto, vec![Kind::Gpu, Kind::Gpu, Kind::Cpu]),
            (DeviceChoice::Cpu, vec![Kind::Cpu]),
            (DeviceChoice::Cuda(0), vec![Kind::Gpu, Kind::Gpu]),
        ] {
            let workers = workers(device, 1, &[1, 1]);
            assert_eq!(workers.iter().map(|worker| worker.kind).collect::<Vec<_>>(), kinds, "{device:?}");
        }
    }
}
