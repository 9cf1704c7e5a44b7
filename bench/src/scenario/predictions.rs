//! What `foggara models plan` predicts for shapes that run on this machine, beside how fast they are.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use foggara_kernels::cpu::measure;
use foggara_proto::wire::admin::StatusRequest;
use foggara_proto::wire::admin::admin_client::AdminClient;
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
/// How long bandwidth is looked at before each run.
const MEASURE_MILLIS: u64 = 100;

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
    /// Of each worker, as it measured them when it started.
    read_bytes_per_second: Vec<u64>,
    flops: Vec<u64>,
    /// Of one of as many threads as there are workers, measured between the runs: what is predicted for. A machine that is
    /// shared with others may read at twice or half the speed a minute later.
    meanwhile_bytes_per_second: u64,
    /// Tokens per second of one stream.
    one_stream: Pair,
    /// Of 64.
    together: Option<Pair>,
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
        let rate = |values: &[u64]| {
            let values: Vec<String> = values.iter().map(|v| format!("{:.1}", *v as f64 / 1e9)).collect();
            values.join(", ")
        };
        let together = row.together.as_ref().map_or(String::new(), Pair::show);
        let (bandwidth, flops) = (rate(&row.read_bytes_per_second), rate(&row.flops));
        let meanwhile = rate(&[row.meanwhile_bytes_per_second]);
        vec![
            row.model.into(),
            row.shape.clone(),
            bandwidth,
            meanwhile,
            flops,
            row.one_stream.show(),
            together,
        ]
    };
    let head = ["model", "shape", "GB/s at start", "GB/s meanwhile", "GFLOP/s", "one stream", "64 streams"];
    let within = rows.iter().filter(|row| row.one_stream.off().abs() <= 0.25).count();
    let text = format!(
        "Predicted / measured tokens per second, workers of one thread\n\n{}\n{within} of {} predictions of one stream are within 25 %\n",
        table(&head, &rows.iter().map(cells).collect::<Vec<_>>()),
        rows.len()
    );
    print(args.json, &rows, &text)?;
    Ok(ExitCode::SUCCESS)
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
    let of_all = |of: &dyn Fn(&foggara_proto::wire::admin::Capabilities) -> u64| -> Vec<u64> {
        workers.iter().filter_map(|worker| worker.capabilities.as_ref()).map(of).collect()
    };
    let bandwidth = of_all(&|of| of.read_bytes_per_second);
    let flops = of_all(&|of| of.flops);
    ensure!(bandwidth.len() == case.workers, "not every worker says what it can do");
    let prompts = Prompts::new();
    let ask = |answer| Ask { prompt: prompts.next(PROMPT), max_tokens: answer };
    let mut clients = target.clients(if args.together { TOGETHER } else { 1 }).await?;
    let first = clients.first_mut().context("one client at least")?;
    first.generate(ask(ANSWER)).await?;
    let (mut rates, mut meanwhile) = (Vec::new(), Vec::new());
    for _ in 0..args.runs {
        meanwhile.push(measure::read_bandwidth(case.workers, MEASURE_MILLIS) as f64 / case.workers as f64);
        rates.push(first.generate(ask(ANSWER)).await?.decode_rate().context("the answer came at once")?);
    }
    let meanwhile = percentile(&meanwhile, 50.0).context("--runs is 0")?;
    let predicted = predict(case, of_cluster, meanwhile, &flops).await?;
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
        read_bytes_per_second: bandwidth,
        flops,
        meanwhile_bytes_per_second: meanwhile as u64,
        one_stream: Pair { predicted: predicted.0, measured },
        together,
    })
}

/// What `foggara models plan` says of machines like these: one stream, and many together.
async fn predict(case: &Case, args: &TargetArgs, bandwidth: f64, flops: &[u64]) -> Result<(f64, f64)> {
    let mean = |values: &[u64]| values.iter().sum::<u64>() as f64 / values.len().max(1) as f64;
    let folder = tempfile::TempDir::with_prefix("foggara-bench-")?;
    let nodes = folder.path().join("nodes.toml");
    // Memory is not what this is about.
    let text = format!(
        "[[nodes]]\nname = \"here\"\nworkers = {}\nmemory_gb = 8\nbandwidth_gb_s = {}\ntflops = {}\n",
        case.workers,
        bandwidth / 1e9,
        mean(flops) / 1e12
    );
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
