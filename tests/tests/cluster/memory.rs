//! A worker holds its slice of the model and its KV cache, and little else.

use std::path::Path;
use std::process::Command;

use foggara_models::{Checkpoint, Cut, Quantize, Shape};
use foggara_tests::ask::Ask;
use foggara_tests::cluster::Cluster;
use foggara_tests::control_group::ControlGroup;
use foggara_tests::nodes::{Nodes, TOKEN};
use foggara_tests::process::{foggara, text};
use foggara_tests::setup::Setup;
use foggara_tests::{machine, paths, process, wait};

use crate::probe::together;

/// The program, its threads, and the buffers of the largest step but for its logits.
const BESIDE: usize = 36 << 20;
/// Rows of the largest step. Each may have logits, where all prompt tokens' probabilities are asked for.
const ROWS: usize = 256;
/// Positions of the KV cache. All of them are counted: what is not yet written is not in memory, which is in our favour.
const KV_TOKENS: usize = 1024;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rank_is_its_slice_and_its_cache() {
    let _machine = machine::shared().await;
    let of = |tp, dp, ep| Shape { tp, dp, ep, ..Shape::tensor(1) };
    // What is mapped counts, too: rows in whole pages, and not what lies between them.
    for (model, shape) in [
        (paths::smol_bf16(), of(2, 1, 1)),
        (paths::smol_mixtral(), of(2, 1, 1)),
        (paths::smol_mixtral(), of(2, 1, 2)),
        (paths::smol_mixtral(), of(1, 2, 2)),
    ] {
        let mut setup = Setup::new("memory").model("smol", &model).coordinators(1).workers(shape.ranks());
        for (option, value) in
            [("tp", shape.tp), ("dp", shape.dp), ("ep", shape.ep), ("kv-tokens", KV_TOKENS)]
        {
            setup = setup.option(option, value);
        }
        let cluster = setup.start().await;
        // Steps as large as they get, with probabilities of every prompt token, and several sequences at once.
        let prompt = |i: u32| (0..300).map(|k| 100 + (k * 7 + i) % 3000).collect::<Vec<u32>>();
        let asks: Vec<Ask> =
            (0..3).map(|i| Ask::tokens("smol", &prompt(i)).echo().logprobs(5).exactly(4)).collect();
        together(&cluster.client(0), &asks).await;
        // Until panels have been made of what is mapped, a matrix may be there twice.
        for worker in cluster.status().await.workers {
            let repacked = async || log(worker.pid).contains("weights repacked").then_some(());
            wait::until("panels of all weights", repacked).await;
        }
        within_bounds(&cluster, &model, shape).await;
    }
}

async fn within_bounds(cluster: &Cluster, path: &Path, shape: Shape) {
    let model = Checkpoint::open(path).expect("a valid checkpoint");
    let plan = model.slices(&Cut::even(shape), Quantize::None).expect("can be cut");
    let spec = model.spec();
    let workers = cluster.status().await.workers;
    let mut slices = 0;
    for worker in &workers {
        let rank = worker.rank.expect("every worker has a rank") as usize;
        let slice = &plan.ranks[rank];
        let elements = slice.kv_heads.len() * (spec.key_dim() + spec.value_dim()) * slice.layers.len();
        let (weights, cache) = (loaded(worker.pid), elements * 2 * KV_TOKENS);
        let held = process::held(worker.pid).resident_bytes;
        let beside = held.saturating_sub(weights + cache);
        let logits = ROWS * spec.vocab.div_ceil(shape.tp) * size_of::<f32>();
        eprintln!(
            "{shape} rank {rank}: {held} bytes: {weights} of weights, {cache} of cache, {beside} beside"
        );
        assert!(
            beside < BESIDE + logits,
            "{shape} rank {rank}: {held} bytes for {weights} of weights, {cache} of cache, {logits} of logits"
        );
        slices += weights;
    }
    // What a worker calls its slice is no more than that: shared key heads are held twice, panels are filled up.
    let whole = model.total_bytes() as usize;
    assert_eq!(workers.len(), shape.ranks());
    assert!(slices < whole + whole / 8, "{shape}: slices of {slices} bytes of a model of {whole}");
}

fn log(pid: u32) -> String {
    std::fs::read_to_string(process::log_of(pid)).expect("workers write logs")
}

/// Bytes of weights, as a worker's log says when they are loaded.
fn loaded(pid: u32) -> usize {
    let log = log(pid);
    let line = log.lines().rfind(|line| line.contains("weights loaded")).expect("weights are loaded");
    let number = line.split_once("memory_bytes=").expect("says how many").1.split(' ').next();
    number.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no number: {line}"))
}

/// What the control group of a worker allows it: less than any machine that runs this has.
const ALLOWED: u64 = 512 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_takes_no_more_than_its_control_group_allows() {
    let _machine = machine::shared().await;
    let group = ControlGroup::new(ALLOWED);
    let mut nodes = Nodes::start("limited", 1, &[]);
    nodes.worker_within(&group, &[]);
    nodes.wait_joined().await;
    let told = nodes.client(0).try_status().await.unwrap().workers[0].capabilities.clone().unwrap();
    assert!((1..=ALLOWED).contains(&told.memory_bytes), "{told:?}");
    // A model that the machine has room for, and the group has not.
    let (endpoint, model) = (nodes.grpc(0), paths::smol_gguf().display().to_string());
    let plan = ["models", "plan", &model, "--kv-tokens", "50000", "--endpoint", &endpoint];
    let planned = text(&foggara(&[&plan[..], &["--cluster-token", TOKEN]].concat()));
    assert!(planned.contains("memory: needs"), "{planned}");
    let mut doctor = Command::new(paths::foggara());
    doctor.args(["doctor", "--worker"]);
    let said = text(&group.within(&doctor).output().unwrap());
    assert!(said.contains(&format!("{} allows 512.0 MiB", group.folder().display())), "{said}");
    drop(nodes);
}
