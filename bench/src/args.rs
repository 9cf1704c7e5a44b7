//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::recording::Pace;
use crate::scenario::versus::Peer;
use crate::workload::Workload;

/// The folder of the workspace, known at compile time: this tool is run where it was built.
pub(crate) const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const DEMO_MODEL: &str = ".cache/models/smollm2-135m-instruct-q4_1.gguf";

/// Measures how fast a cluster serves, and how much of the machine's limit that is.
///
/// With no option: measures memory bandwidth and arithmetic rates of this machine and the kernels by themselves, starts a local
/// cluster (3 coordinators, 2 workers of one thread, the demo model), runs every workload against it, measures the machine again,
/// prints tables, and compares them with the run before. Needs a quiet machine.
#[derive(Parser)]
#[command(
    name = "foggara-bench",
    version,
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  \
        foggara-bench --quick\n  \
        foggara-bench --only decode --only prefill --workers 1 --threads 2\n  \
        foggara-bench --only kernels    # without a cluster\n  \
        foggara-bench --endpoint http://127.0.0.1:8081 --model model.gguf   # a running cluster\n  \
        foggara-bench --http http://127.0.0.1:8000 --model model.gguf       # any OpenAI-compatible server\n  \
        foggara-bench leak --requests 1000\n  \
        foggara-bench load MODEL --workers 2\n  \
        foggara-bench long-prompt --streams 8 --prompt 7900\n  \
        foggara-bench predictions --together\n  \
        foggara-bench versus --peer llama.cpp=http://127.0.0.1:8000"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) target: TargetArgs,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Sends many requests one after the other and shows what each process still holds afterwards.
    Leak(LeakArgs),
    /// Loads a model as workers would and shows how fast, beside how fast its files can be read from the page cache.
    Load(LoadArgs),
    /// What a long prompt does to the time between tokens of streams that are there already.
    LongPrompt(LongPromptArgs),
    /// What it costs when the coordinator is far from its workers: every packet between them is kept for a while.
    Distance(DistanceArgs),
    /// Beside other servers, which run already: the same client asks each of them in turn, round by round.
    Versus(VersusArgs),
    /// A GPU by itself: the forward pass of a model of a given shape, with random weights that are made on it.
    Gpu(GpuArgs),
    /// How much of prompts that begin alike is found in the caches of several replicas, and what that does to the first token.
    Prefixes(PrefixesArgs),
    /// What `foggara models plan` predicts for eight shapes, beside how fast they are here.
    Predictions(PredictionsArgs),
    /// What a scrape of a busy cluster's metrics takes, with vLLM's names and without, and what it costs the streams.
    Scrape(ScrapeArgs),
    /// What guessing tokens that may repeat gives, and what it costs where nothing does.
    Speculation(SpeculationArgs),
    /// What low-rank adapters cost the streams that are computed with them.
    Adapters(AdaptersArgs),
    /// What recording metrics and timelines costs each step and token, by itself. Starts nothing.
    Recording(RecordingArgs),
}

/// The forward pass on a GPU.
#[derive(clap::Args)]
pub(crate) struct GpuArgs {
    /// Which GPU, by CUDA's number.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) gpu: usize,
    /// The model's shape: mixtral-8x7b, llama-3-8b or llama-3-70b.
    #[arg(long, value_name = "NAME", default_value = "mixtral-8x7b")]
    pub(crate) shape: String,
    /// The shape that a config.json describes.
    #[arg(long, value_name = "PATH", conflicts_with = "shape")]
    pub(crate) config: Option<PathBuf>,
    /// Only so many of its layers, where the GPU has not the memory for all.
    #[arg(long, value_name = "N")]
    pub(crate) layers: Option<usize>,
    /// What layers' weights are held in: bf16, f16, fp8, or blocks of GGUF files: q8_0, q4_0, q4_1, q5_1, q4_k, q5_k or
    /// q6_k.
    #[arg(long, value_name = "TYPE", default_value = "bf16")]
    pub(crate) weights: String,
    /// What keys and values are kept in: f16 or fp8.
    #[arg(long, value_name = "TYPE", default_value = "f16")]
    pub(crate) kv: String,
    /// Sequences that are decoded at once; may repeat.
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1, 8, 32, 64])]
    pub(crate) streams: Vec<usize>,
    /// Positions that each sequence has before.
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub(crate) context: usize,
    /// Tokens that each decodes.
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub(crate) tokens: usize,
    /// Tokens of a prompt that is read; 0 for none.
    #[arg(long, value_name = "N", default_value_t = 2048)]
    pub(crate) prefill: usize,
    /// Tokens of it in a step.
    #[arg(long, value_name = "N", default_value_t = 2048)]
    pub(crate) chunk: usize,
    /// How often the prompt is read; the best counts.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub(crate) runs: usize,
    /// Serves requests of so many tokens of prompt and of answer without end: prompts are read beside what is decoded.
    #[arg(long, value_name = "PROMPT/ANSWER", value_parser = lengths)]
    pub(crate) serve: Option<(usize, usize)>,
    /// Requests that are served at once; may repeat.
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [256])]
    pub(crate) serve_streams: Vec<usize>,
    /// Steps of serving that count, after a fifth as many that do not.
    #[arg(long, value_name = "N", default_value_t = 200)]
    pub(crate) serve_steps: usize,
    /// Waits for each step before the next is begun, as where tokens are sampled on the host.
    #[arg(long)]
    pub(crate) one_by_one: bool,
    /// Writes what was measured as JSON.
    #[arg(long, value_name = "PATH")]
    pub(crate) save: Option<PathBuf>,
}

/// `1000/1000`: two numbers that are at least 1.
fn lengths(text: &str) -> Result<(usize, usize), String> {
    let number = |part: &str| part.parse().ok().filter(|n| *n > 0);
    let both = text.split_once('/').and_then(|(a, b)| Some((number(a)?, number(b)?)));
    both.ok_or_else(|| "tokens of a prompt and of an answer, like 1000/1000".to_owned())
}

/// Other servers beside ours.
#[derive(clap::Args)]
pub(crate) struct VersusArgs {
    #[command(flatten)]
    pub(crate) target: TargetArgs,
    /// A server to compare with, and what to call it: any that streams OpenAI's `/v1/completions` and takes prompts of token
    /// ids. It serves the same model, is asked for the first that it lists, and has the machine to itself while it is
    /// measured. May repeat.
    #[arg(long = "peer", value_name = "NAME=URL", required = true)]
    pub(crate) peers: Vec<Peer>,
    /// Only this workload; may repeat [default: decode, prefill, streams and clients].
    #[arg(long, value_name = "NAME", value_enum)]
    pub(crate) only: Vec<Workload>,
    /// How often everything is measured, the servers in turn.
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub(crate) rounds: usize,
    /// Repetitions of a workload each time.
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub(crate) runs: usize,
    /// Streams of the `streams` workload.
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub(crate) streams: usize,
    /// Clients of the `clients`, `long-prompts` and `long-answers` workloads.
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub(crate) clients: usize,
    #[command(flatten)]
    pub(crate) arrivals: ArrivalArgs,
    /// Writes PATH.json, PATH.md and PATH.svg.
    #[arg(long, value_name = "PATH")]
    pub(crate) save: Option<PathBuf>,
    /// Prints JSON instead of the table.
    #[arg(long)]
    pub(crate) json: bool,
}

/// A long prompt among streams.
#[derive(clap::Args)]
pub(crate) struct LongPromptArgs {
    #[command(flatten)]
    pub(crate) target: TargetArgs,
    /// Clients, each of which asks again as soon as it has its answer.
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub(crate) streams: usize,
    /// Tokens of each of their answers.
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub(crate) answer: usize,
    /// Tokens of the prompt that comes.
    #[arg(long, value_name = "N", default_value_t = 7900)]
    pub(crate) prompt: usize,
    /// Messages of each client that are looked at before the prompt comes, and after it has been read.
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub(crate) around: usize,
    /// The prompt is read for so many seconds, called off for as long, and sent again (what has been read is found in the prefix
    /// cache) until it has been read: so both times see the machine alike. 0 to read it in one go.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub(crate) turn: u64,
    /// How often.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub(crate) runs: usize,
    /// Prints JSON instead of the table.
    #[arg(long)]
    pub(crate) json: bool,
}

/// A coordinator far from its workers.
#[derive(clap::Args)]
pub(crate) struct DistanceArgs {
    #[command(flatten)]
    pub(crate) target: TargetArgs,
    /// Milliseconds that a packet takes in each direction; each is compared with none.
    #[arg(long, value_name = "MS", default_values_t = [10, 20])]
    pub(crate) one_way: Vec<u64>,
    /// Streams at once, of 128 tokens in and 128 out.
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub(crate) streams: usize,
    /// Single requests of the same size, for the time to the first token.
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub(crate) singles: usize,
    /// How often without and with each delay, in turn.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub(crate) runs: usize,
    /// Prints JSON instead of the table.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Prompts that begin alike.
#[derive(clap::Args)]
pub(crate) struct PrefixesArgs {
    #[command(flatten)]
    pub(crate) target: TargetArgs,
    /// Replicas of one rank each.
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub(crate) replicas: usize,
    /// Different beginnings.
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub(crate) beginnings: usize,
    /// Tokens of a beginning.
    #[arg(long, value_name = "N", default_value_t = 384)]
    pub(crate) shared: usize,
    /// Tokens that each prompt has for itself.
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub(crate) own: usize,
    /// Prompts of each beginning, mixed with the others'.
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub(crate) prompts: usize,
    /// Clients that ask one after the other.
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub(crate) clients: usize,
    /// Tokens of KV cache of each replica [default: chosen by the cluster].
    #[arg(long, value_name = "N")]
    pub(crate) kv_tokens: Option<u64>,
    /// How often each policy, in turn.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub(crate) runs: usize,
    /// Prints JSON instead of the table.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Predictions beside measurements.
#[derive(clap::Args)]
pub(crate) struct PredictionsArgs {
    /// How often one stream is measured in each shape; the median counts.
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub(crate) runs: usize,
    /// Also 64 streams together.
    #[arg(long)]
    pub(crate) together: bool,
    /// Prints JSON instead of the table.
    #[arg(long)]
    pub(crate) json: bool,
    /// The program to start [default: `foggara` beside this one].
    #[arg(long, value_name = "PATH")]
    pub(crate) foggara: Option<PathBuf>,
}

/// Scraping while there is work.
#[derive(clap::Args)]
pub(crate) struct ScrapeArgs {
    #[command(flatten)]
    pub(crate) target: TargetArgs,
    /// Streams at once, of 128 tokens in and 128 out.
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub(crate) streams: usize,
    /// Milliseconds between scrapes of every coordinator; with deploy/prometheus it is five seconds.
    #[arg(long, value_name = "MS", default_value_t = 1000)]
    pub(crate) every: u64,
    /// How often with scrapes and without, in turn.
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub(crate) runs: usize,
    /// Prints JSON instead of the table.
    #[arg(long)]
    pub(crate) json: bool,
}

/// With guessed tokens and without.
#[derive(clap::Args)]
pub(crate) struct SpeculationArgs {
    #[command(flatten)]
    pub(crate) target: TargetArgs,
    /// Tokens guessed of a sequence in a step.
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub(crate) speculate: u32,
    /// Tokens of each answer.
    #[arg(long, value_name = "N", default_value_t = 192)]
    pub(crate) tokens: u32,
    /// Streams at once, after one by itself.
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub(crate) streams: usize,
    /// How often each, with and without in turn.
    #[arg(long, value_name = "N", default_value_t = 7)]
    pub(crate) runs: usize,
    /// Prints JSON instead of the table.
    #[arg(long)]
    pub(crate) json: bool,
}

/// With adapters and without.
#[derive(clap::Args)]
pub(crate) struct AdaptersArgs {
    #[command(flatten)]
    pub(crate) target: TargetArgs,
    /// Rank of the adapters, which are made of random numbers for all matrices of the model's layers.
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub(crate) rank: usize,
    /// Streams at once, after one by itself; there are as many adapters.
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub(crate) streams: usize,
    /// Tokens of each answer.
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub(crate) tokens: u32,
    /// How often each, in turn.
    #[arg(long, value_name = "N", default_value_t = 7)]
    pub(crate) runs: usize,
    /// Prints JSON instead of the table.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Recording by itself.
#[derive(clap::Args)]
pub(crate) struct RecordingArgs {
    /// Sequences of a step and how many milliseconds it takes; may repeat. The defaults are the fastest of SmolLM2-135M (q4_1) on two
    /// cores with AVX-512, and one stream on a GPU.
    #[arg(
        long = "step",
        value_name = "SEQUENCES/MS",
        value_delimiter = ',',
        default_value = "32/33,1/2.7,1/4"
    )]
    pub(crate) steps: Vec<Pace>,
    /// Layers of the model.
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub(crate) layers: usize,
    /// Experts of a layer.
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub(crate) experts: usize,
    /// Of them, how many a token goes to.
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub(crate) top: usize,
    /// Collectives of a step.
    #[arg(long, value_name = "N", default_value_t = 66)]
    pub(crate) collectives: usize,
    /// Ranks of the group.
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub(crate) ranks: usize,
    /// Tokens of an answer: what a request costs once is spread over them.
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub(crate) answer: usize,
    /// Prints JSON instead of the table.
    #[arg(long)]
    pub(crate) json: bool,
}

/// What is loaded.
#[derive(clap::Args)]
pub(crate) struct LoadArgs {
    /// GGUF file or Hugging Face folder.
    pub(crate) model: PathBuf,
    /// Ranks, each with one thread, unless --dp or --pp ask for more.
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub(crate) workers: usize,
    /// Tensor-parallel ranks [default: --workers].
    #[arg(long, value_name = "N")]
    pub(crate) tp: Option<usize>,
    /// Data-parallel parts.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) dp: usize,
    /// Pipeline stages.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) pp: usize,
    /// Parts over which experts are spread.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) ep: usize,
    /// Quantize at load: none, bf16, q8_0, q4_0 or q4_k (fp8 is for GPUs, and loading is measured on the CPU).
    #[arg(long, value_name = "TYPE", default_value = "none")]
    pub(crate) quantize: String,
    /// Floats that need no conversion: mapped or copied, as for workers (auto begins as mapped).
    #[arg(long, value_name = "WHERE", default_value = "mapped")]
    pub(crate) weights: foggara_worker::weights::Residence,
    /// Machine-readable.
    #[arg(long)]
    pub(crate) json: bool,
    /// Be one rank of the measurement: started by the one that measures, as a process of its own.
    #[arg(long, hide = true)]
    pub(crate) rank: Option<usize>,
}

/// What is measured.
#[derive(clap::Args)]
#[command(next_help_heading = "What to measure")]
pub(crate) struct TargetArgs {
    /// A running cluster's gRPC address (`http://host:port`) instead of one started here. Who signs for `https://` addresses, here
    /// and in `--http`, is in the file that `FOGGARA_TLS_CA` names, else whom this system trusts.
    #[arg(long, value_name = "URL")]
    pub(crate) endpoint: Option<String>,
    /// An OpenAI-compatible server: everything goes through its streamed `/v1/completions`. Beside `--endpoint`: the
    /// address for the HTTP workload, which is otherwise asked from the cluster.
    #[arg(long, value_name = "URL")]
    pub(crate) http: Option<String>,
    /// GGUF file or Hugging Face folder: served by the cluster started here, and read for the limits. With `--endpoint` or
    /// `--http` only the latter, and without it no limits are shown [default: the demo model of `cargo xtask setup`].
    #[arg(long, value_name = "PATH")]
    pub(crate) model: Option<PathBuf>,
    /// Name of the model in requests [default: the first the server lists].
    #[arg(long, value_name = "NAME")]
    pub(crate) model_name: Option<String>,
    /// Coordinators of the cluster started here.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub(crate) coordinators: usize,
    /// Workers of the cluster started here: one tensor-parallel group.
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub(crate) workers: usize,
    /// Threads of each worker. Times `--workers`, the threads whose bandwidth and arithmetic make the limit.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) threads: usize,
    /// How ranks exchange data: auto, shm or tcp.
    #[arg(long, value_name = "KIND", default_value = "auto")]
    pub(crate) collective: String,
    /// Further options of `foggara up`, as in `--up quantize=q8_0 --up ep=2`; may repeat.
    #[arg(long, value_name = "NAME=VALUE", value_parser = up_option)]
    pub(crate) up: Vec<(String, String)>,
    /// The program to start [default: `foggara` beside this one].
    #[arg(long, value_name = "PATH")]
    pub(crate) foggara: Option<PathBuf>,
    /// All streams over one gRPC connection, as an application has them, rather than each over its own.
    #[arg(long)]
    pub(crate) one_connection: bool,
}

/// As on a command line without options.
impl Default for TargetArgs {
    fn default() -> Self {
        Self {
            endpoint: None,
            http: None,
            model: None,
            model_name: None,
            one_connection: false,
            coordinators: 3,
            workers: 2,
            threads: 1,
            collective: "auto".into(),
            up: Vec::new(),
            foggara: None,
        }
    }
}

fn up_option(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((format!("--{name}"), value.to_owned())),
        _ => Err("is not NAME=VALUE".to_owned()),
    }
}

impl TargetArgs {
    /// The checkpoint given, or the demo model where a cluster is started here.
    pub(crate) fn model_path(&self) -> Option<PathBuf> {
        let demo = || self.own_cluster().then(|| PathBuf::from(WORKSPACE).join(DEMO_MODEL));
        self.model.clone().or_else(demo)
    }

    /// Whether a cluster is to be started here.
    pub(crate) fn own_cluster(&self) -> bool {
        self.endpoint.is_none() && self.http.is_none()
    }
}

/// Requests that come by themselves.
#[derive(Debug, Clone, Copy, clap::Args)]
#[command(next_help_heading = "The arrivals workload")]
pub(crate) struct ArrivalArgs {
    /// Requests that come each second, on average.
    #[arg(long, value_name = "N", default_value_t = 1.0)]
    pub(crate) rate: f64,
    /// How long they come.
    #[arg(long, value_name = "N", default_value_t = 60)]
    pub(crate) seconds: u64,
    /// A good answer's first token comes within so many milliseconds of when the request was due …
    #[arg(long, value_name = "MS", default_value_t = 2000.0)]
    pub(crate) slo_first_ms: f64,
    /// … and its other tokens take no more than so many each, on average.
    #[arg(long, value_name = "MS", default_value_t = 100.0)]
    pub(crate) slo_gap_ms: f64,
}

/// How it is measured.
#[derive(clap::Args)]
#[command(next_help_heading = "How to measure")]
pub(crate) struct RunArgs {
    /// Fewer repetitions: a figure within half a minute, with more noise.
    #[arg(long)]
    pub(crate) quick: bool,
    /// Only this workload; may repeat.
    #[arg(long, value_name = "NAME", value_enum)]
    pub(crate) only: Vec<Workload>,
    /// Repetitions of each workload [default: 5, with --quick 2].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) runs: Option<u32>,
    /// Streams of the `streams` workload.
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub(crate) streams: usize,
    /// Clients of the `clients`, `long-prompts` and `long-answers` workloads.
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub(crate) clients: usize,
    #[command(flatten)]
    pub(crate) arrivals: ArrivalArgs,
    /// Prints JSON instead of the table.
    #[arg(long)]
    pub(crate) json: bool,
    /// Folder for `latest.json`, `latest.md` and `latest.svg` [default: bench/results of the source tree].
    #[arg(long, value_name = "DIR", hide_default_value = true,
        default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/results"))]
    pub(crate) results: PathBuf,
}

impl RunArgs {
    /// How often each workload is repeated.
    pub(crate) fn repetitions(&self) -> usize {
        self.runs.unwrap_or(if self.quick { 2 } else { 5 }) as usize
    }

    /// Whether `workload` is asked for.
    pub(crate) fn wants(&self, workload: Workload) -> bool {
        if self.only.is_empty() { workload.usual() } else { self.only.contains(&workload) }
    }
}

/// The soak.
#[derive(clap::Args)]
pub(crate) struct LeakArgs {
    #[command(flatten)]
    pub(crate) target: TargetArgs,
    /// Requests to count, after the warm-up.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub(crate) requests: usize,
    /// Requests before the first count: pools and caches fill up here.
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub(crate) warm_up: usize,
    /// Growth of resident memory, over all counted requests, that a process may show.
    #[arg(long, value_name = "MB", default_value_t = 4.0)]
    pub(crate) allow_mb: f64,
    /// Prints JSON instead of the table.
    #[arg(long)]
    pub(crate) json: bool,
}
