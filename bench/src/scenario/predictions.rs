//! What `foggara models plan` predicts for shapes that run on this machine, beside how fast they are.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use foggara_kernels::cpu::measure;
use foggara_proto::wire::admin::admin_client::AdminClient;
use foggara_proto::wire::admin::{Capabilities, StatusRequest};
use futures::future::try_join_all;
use serde::Serialize;
use tokio::process::Command;

use super::{print, table};
use crate::args::{PredictionsArgs, TargetArgs, WORKSPACE};
use crate::client::Ask;
use crate::client::grpc::channel;
use crate::client::trace::common_decode_rate;
use crate::cluster::{Cluster, program};
use crate::prompts::Prompts;
use crate::stats::percentile;
use crate::target::Target;

/// Tokens in and out: on the mean so many are in the cache as the plan is asked to predict for.
const PROMPT: usize = 32;
const ANSWER: usize = 128;
const SEQUENCE_TOKENS: usize = PROMPT + ANSWER / 2;
/// What the planner takes for "as many as the cache holds".
const TOGETHER: usize = 64;
/// Tokens of each of so many answers.
const TOGETHER_ANSWER: usize = 64;
/// How long each speed is looked at before each run, and each way of multiplying bytes.
const MEASURE_MILLIS: u64 = 100;
const INT8_MILLIS: u64 = 25;

/// A model in a shape.
struct Case {
    model: &'static str,
    called: &'static str,
    /// Ranks.
    workers: usize,
    /// Options of `foggara up`, and of `foggara models plan`.
    options: &'static [(&'static str, &'static str)],
}

const Q4_1: &str = ".cache/models/smollm2-135m-instruct-q4_1.gguf";
const BF16: &str = ".cache/models/smollm2-135m";
const MIXTURE: &str = ".cache/models/smolmix-8x135m";

/// Dense and mixture, quantized and not, every kind of parallelism: models that `cargo xtask setup` makes.
const CASES: [Case; 8] = [
    Case { model: Q4_1, called: "SmolLM2-135M Q4_1", workers: 1, options: &[("tp", "1")] },
    Case { model: Q4_1, called: "SmolLM2-135M Q4_1", workers: 2, options: &[("tp", "2")] },
    Case { model: Q4_1, called: "SmolLM2-135M Q4_1", workers: 2, options: &[("tp", "1"), ("pp", "2")] },
    Case { model: BF16, called: "SmolLM2-135M bf16", workers: 2, options: &[("tp", "2")] },
    Case { model: MIXTURE, called: "Mixtral of SmolLM2, bf16", workers: 2, options: &[("tp", "2")] },
    Case {
        model: MIXTURE,
        called: "Mixtral of SmolLM2, bf16",
        workers: 2,
        options: &[("tp", "2"), ("ep", "2")],
    },
    Case {
        model: MIXTURE,
        called: "Mixtral of SmolLM2, bf16",
        workers: 2,
        options: &[("tp", "1"), ("dp", "2"), ("ep", "2")],
    },
    Case {
        model: MIXTURE,
        called: "Mixtral of SmolLM2, q8_0",
        workers: 2,
        options: &[("tp", "2"), ("quantize", "q8_0")],
    },
];

/// One row of the table.
#[derive(Serialize)]
struct Row {
    model: &'static str,
    shape: String,
    /// Of each worker, as it measured it when it started.
    at_start: Vec<Speeds>,
    /// Of one of as many threads as there are workers, measured between the runs: what is predicted for. A machine that is
    /// shared with others may be twice or half as fast a minute later.
    meanwhile: Speeds,
    /// Tokens per second of one stream.
    one_stream: Pair,
    /// Of 64.
    together: Option<Pair>,
}

/// Of one worker.
#[derive(Serialize)]
struct Speeds {
    read_bytes_per_second: f64,
    cache_bytes: f64,
    cache_bytes_per_second: f64,
    flops: f64,
    int8_ops_per_second: f64,
}

#[derive(Serialize)]
struct Pair {
    predicted: f64,
    measured: f64,
}

impl Pair {
    fn off(&self) -> f64 {
        self.predicted / self.measured - 1.0
    }

    fn show(&self) -> String {
        format!("{:.0} / {:.0} ({:+.0} %)", self.predicted, self.measured, self.off() * 100.0)
    }
}

/// Measures all cases and prints them.
pub(crate) async fn run(args: &PredictionsArgs) -> Result<ExitCode> {
    let mut rows = Vec::new();
    for case in &CASES {
        let shape = case.shape();
        eprintln!("… {}, {shape}", case.called);
        rows.push(of_case(case, shape, args).await?);
    }
    let cells = |row: &Row| {
        let started: Vec<String> = row.at_start.iter().map(Speeds::show).collect();
        let together = row.together.as_ref().map_or(String::new(), Pair::show);
        let (started, meanwhile) = (started.join("; "), row.meanwhile.show());
        vec![row.model.into(), row.shape.clone(), started, meanwhile, row.one_stream.show(), together]
    };
    let speeds = "GB/s of memory, of caches, GFLOP/s, GOP/s of bytes";
    let (started, meanwhile) = (format!("{speeds} at start"), "the same meanwhile");
    let head = ["model", "shape", &started, meanwhile, "one stream", "64 streams"];
    let within = rows.iter().filter(|row| row.one_stream.off().abs() <= 0.25).count();
    let text = format!(
        "Predicted / measured tokens per second, workers of one thread\n\n{}\n{within} of {} predictions of one stream are within 25 %\n",
        table(&head, &rows.iter().map(cells).collect::<Vec<_>>()),
        rows.len()
    );
    print(args.json, &rows, &text)?;
    Ok(ExitCode::SUCCESS)
}

impl Speeds {
    /// As a worker tells them.
    fn told(told: &Capabilities) -> Self {
        Self {
            read_bytes_per_second: told.read_bytes_per_second as f64,
            cache_bytes: told.cache_bytes as f64,
            cache_bytes_per_second: told.cache_bytes_per_second as f64,
            flops: told.flops as f64,
            int8_ops_per_second: told.int8_ops_per_second as f64,
        }
    }

    /// Each thread's part of what `threads` of them reach now, as a worker measures it.
    fn measure(threads: usize) -> Self {
        let (caches, each) = (measure::caches(), |rate: u64| rate as f64 / threads.max(1) as f64);
        Self {
            read_bytes_per_second: each(measure::memory_bandwidth(threads, MEASURE_MILLIS)),
            cache_bytes: caches.last as f64,
            cache_bytes_per_second: each(measure::cache_bandwidth(&caches, threads, MEASURE_MILLIS)),
            flops: each(measure::widest_fma_rate(threads, MEASURE_MILLIS)),
            int8_ops_per_second: each(measure::int8_rate(threads, INT8_MILLIS)),
        }
    }

    /// The median of each; `None` of none.
    fn median(all: &[Self]) -> Option<Self> {
        let of = |of: &dyn Fn(&Self) -> f64| percentile(&all.iter().map(of).collect::<Vec<_>>(), 50.0);
        Some(Self {
            read_bytes_per_second: of(&|one| one.read_bytes_per_second)?,
            cache_bytes: of(&|one| one.cache_bytes)?,
            cache_bytes_per_second: of(&|one| one.cache_bytes_per_second)?,
            flops: of(&|one| one.flops)?,
            int8_ops_per_second: of(&|one| one.int8_ops_per_second)?,
        })
    }

    /// A host of so many such workers for `models plan --nodes`. Memory is not what this is about.
    fn node(&self, workers: usize) -> String {
        let mut text = format!(
            "[[nodes]]\nname = \"here\"\nworkers = {workers}\nmemory_gb = 8\nbandwidth_gb_s = {}\ntflops = {}\nint8_tops = {}\n",
            self.read_bytes_per_second / 1e9,
            self.flops / 1e12,
            self.int8_ops_per_second / 1e12
        );
        if self.cache_bytes_per_second > 0.0 {
            let (size, rate) = (self.cache_bytes / 1e6, self.cache_bytes_per_second / 1e9);
            text += &format!("cache_mb = {size}\ncache_gb_s = {rate}\n");
        }
        text
    }

    fn show(&self) -> String {
        let rates =
            [self.read_bytes_per_second, self.cache_bytes_per_second, self.flops, self.int8_ops_per_second];
        rates.map(|rate| format!("{:.1}", rate / 1e9)).join(", ")
    }
}

impl Case {
    /// "tp 1, pp 2".
    fn shape(&self) -> String {
        let of = |(name, value): &(&str, &str)| match *name {
            "quantize" => None,
            name => Some(format!("{name} {value}")),
        };
        self.options.iter().filter_map(of).collect::<Vec<_>>().join(", ")
    }
}

async fn of_case(case: &Case, shape: String, args: &PredictionsArgs) -> Result<Row> {
    let of_cluster = TargetArgs {
        model: Some(PathBuf::from(WORKSPACE).join(case.model)),
        coordinators: 1,
        workers: case.workers,
        foggara: args.foggara.clone(),
        ..TargetArgs::default()
    };
    let mut options = vec![("--workers".to_owned(), case.workers.to_string())];
    options.extend(case.options.iter().map(|(name, value)| (format!("--{name}"), (*value).to_owned())));
    let options: Vec<(&str, String)> =
        options.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
    let cluster = Cluster::with(&of_cluster, &options).await?;
    let target = Target::open(&of_cluster, Some(cluster)).await?;
    let measured = watch(case, shape, &of_cluster, &target, args).await;
    target.close().await?;
    measured
}

async fn watch(
    case: &Case,
    shape: String,
    of_cluster: &TargetArgs,
    target: &Target,
    args: &PredictionsArgs,
) -> Result<Row> {
    let mut admin = AdminClient::new(channel(target.grpc()?).await?);
    let workers = admin.status(StatusRequest {}).await.context("Status")?.into_inner().workers;
    let at_start = workers.iter().filter_map(|worker| worker.capabilities.as_ref()).map(Speeds::told);
    let at_start: Vec<Speeds> = at_start.collect();
    ensure!(at_start.len() == case.workers, "not every worker says what it can do");
    let prompts = Prompts::new();
    let ask = |answer| Ask { prompt: prompts.next(PROMPT), max_tokens: answer };
    let mut clients = target.clients(if args.together { TOGETHER } else { 1 }).await?;
    let first = clients.first_mut().context("one client at least")?;
    first.generate(ask(ANSWER)).await?;
    let (mut rates, mut meanwhile) = (Vec::new(), Vec::new());
    for _ in 0..args.runs {
        meanwhile.push(Speeds::measure(case.workers));
        rates.push(first.generate(ask(ANSWER)).await?.decode_rate().context("the answer came at once")?);
    }
    let meanwhile = Speeds::median(&meanwhile).context("--runs is 0")?;
    let predicted = predict(case, of_cluster, &meanwhile).await?;
    let together = if args.together {
        let traces =
            try_join_all(clients.iter_mut().map(|client| client.generate(ask(TOGETHER_ANSWER)))).await?;
        let measured = common_decode_rate(&traces).context("the streams never decoded all together")?;
        Some(Pair { predicted: predicted.1, measured })
    } else {
        None
    };
    let measured = percentile(&rates, 50.0).context("--runs is 0")?;
    Ok(Row {
        model: case.called,
        shape,
        at_start,
        meanwhile,
        one_stream: Pair { predicted: predicted.0, measured },
        together,
    })
}

/// What `foggara models plan` says of machines like these: one stream, and many together.
async fn predict(case: &Case, args: &TargetArgs, speeds: &Speeds) -> Result<(f64, f64)> {
    let folder = tempfile::TempDir::with_prefix("foggara-bench-")?;
    let nodes = folder.path().join("nodes.toml");
    let text = speeds.node(case.workers);
    std::fs::write(&nodes, text)?;
    let mut command = Command::new(program(args)?);
    let model = args.model_path().context("a model")?;
    command.args(["models", "plan", &format!("m={}", model.display()), "--json", "--nodes"]).arg(&nodes);
    command.args(["--sequence-tokens", &SEQUENCE_TOKENS.to_string()]);
    for (name, value) in case.options {
        command.arg(format!("--{name}")).arg(value);
    }
    let output = command.output().await.context("foggara models plan")?;
    ensure!(output.status.success(), "models plan: {}", String::from_utf8_lossy(&output.stderr));
    let plan: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let rates = &plan["replicas"][0]["tokens_per_second"];
    let rate = |name: &str| rates[name].as_f64().with_context(|| format!("the plan has no {name}"));
    Ok((rate("one_stream")?, rate("together")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn predictions_are_off_by_what_they_are_above_what_was_measured() {
        let pair = Pair { predicted: 150.0, measured: 120.0 };
        assert_eq!((pair.off(), pair.show().as_str()), (0.25, "150 / 120 (+25 %)"));
    }

    #[test]
    fn shapes_leave_out_what_is_no_shape() {
        assert_eq!(CASES[7].shape(), "tp 2");
        assert_eq!(CASES[6].shape(), "tp 1, dp 2, ep 2");
    }
}
