//! `foggara up`

mod devices;
mod plan;
mod ready;

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use foggara_coordinator::router::policy::PolicyKind;
use tokio::sync::mpsc;

use crate::commands::adapter::AdapterArgument;
use crate::commands::models::ShapeArguments;
use crate::exit::Exit;
use crate::lifetime::{LifetimeArguments, StopSignals};
use crate::model_argument::ModelArgument;
use crate::secret::TokenArguments;
use crate::supervisor::{Child, ChildFailed};
use crate::tls::TlsArguments;

/// How long processes may take to end what they are doing.
const PATIENCE: Duration = Duration::from_secs(15);

/// Run a whole cluster on this machine: coordinators and workers as separate, supervised processes.
///
/// A process that dies is started again. Prints one line `ready …` when every model is served. Ctrl-C lets the answers
/// that are being given end, then stops all.
#[derive(Debug, Args)]
#[command(
    after_help = "Coordinator i listens on the given ports + 10·(i-1): 8080/8081, 8090/8091, 8100/8101.\n\
    Either port answers both protocols."
)]
pub(crate) struct Arguments {
    /// A GGUF file or a Hugging Face folder, and the name to serve it under [default: the file's, in lower case];
    /// may be repeated
    #[arg(long, required = true, value_name = "[NAME=]PATH")]
    model: Vec<ModelArgument>,
    /// A low-rank adapter to serve beside the model, and what clients call it: a folder as PEFT writes it; may be repeated
    #[arg(long, value_name = "NAME=DIR")]
    adapter: Vec<AdapterArgument>,
    /// Coordinators: 1, 3 or 5
    #[arg(long, default_value_t = 3, value_name = "N")]
    coordinators: u16,
    /// Workers [default: 2, or as many as the replicas' shape and the models need]
    #[arg(long, value_name = "N")]
    workers: Option<u32>,
    /// Tensor-parallel ranks of a replica [default: workers / (dp · pp · replicas · models)]
    #[arg(long, value_name = "N")]
    tp: Option<u32>,
    /// Data-parallel parts of a replica: each has a KV cache of its own
    #[arg(long, default_value_t = 1, value_name = "N")]
    dp: u32,
    /// Pipeline stages of a replica: each holds that share of the layers
    #[arg(long, default_value_t = 1, value_name = "N")]
    pp: u32,
    /// Parts over which the experts of a stage are spread; divides tp · dp
    #[arg(long, default_value_t = 1, value_name = "N")]
    ep: u32,
    #[command(flatten)]
    shape: ShapeArguments,
    /// Threads of each worker [default: cores / workers, at least 1]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Keep each worker's threads to cores of their own, in order: steadier where nothing else needs them
    #[arg(long)]
    pin: bool,
    /// What workers compute on: auto (GPUs, if there are any), cpu or cuda. Worker i takes GPU (i - 1) modulo their number
    #[arg(long, default_value = "auto", env = "FOGGARA_DEVICE", value_name = "DEVICE")]
    device: devices::Asked,
    /// Requests that may wait for one group
    #[arg(long, default_value_t = foggara_coordinator::driver::DEFAULT_QUEUE, value_name = "N")]
    queue: usize,
    /// Which group a request goes to: prefix-aware, least-loaded or round-robin
    #[arg(long, default_value = "prefix-aware", value_name = "POLICY")]
    router_policy: PolicyKind,
    /// How long workers go on decoding when the coordinator that drives them is late or has died, in milliseconds, 0 to 60000
    #[arg(long, default_value_t = foggara_coordinator::driver::DEFAULT_LEASE_MS, value_name = "MS",
          value_parser = clap::value_parser!(u32).range(0..=60_000))]
    lease_ms: u32,
    /// Tokens guessed of a sequence in a step, from what followed its last tokens before, 0 to 32; 0: none. No token of an answer
    /// depends on it
    #[arg(long, default_value_t = foggara_coordinator::driver::DEFAULT_SPECULATE, value_name = "N",
          value_parser = clap::value_parser!(u32).range(0..=i64::from(foggara_coordinator::driver::MOST_SPECULATE)))]
    speculate: u32,
    /// Where the first coordinator's HTTP listens
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDR")]
    http: SocketAddr,
    /// Where the first coordinator's gRPC listens
    #[arg(long, default_value = "127.0.0.1:8081", value_name = "ADDR")]
    grpc: SocketAddr,
    /// Where Raft's logs and the processes' logs lie, kept for the next time [default: a temporary folder, removed at
    /// the end]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    #[command(flatten)]
    token: TokenArguments,
    #[command(flatten)]
    tls: TlsArguments,
    /// What the processes log: a level, or directives as in `info,foggara_coordinator::driver=debug`
    #[arg(long, env = "FOGGARA_LOG", default_value = "info", value_name = "FILTER")]
    log: String,
    #[command(flatten)]
    lifetime: LifetimeArguments,
}

/// Runs the cluster until a signal stops it.
pub(crate) fn run(arguments: Arguments) -> anyhow::Result<()> {
    arguments.lifetime.watch()?;
    let plan = plan::plan(&arguments)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(supervise(&plan));
    if outcome.is_ok() {
        plan.clean_up();
    }
    if outcome? {
        std::process::exit(Exit::AtOnce as i32);
    }
    Ok(())
}

/// Says whether it was told to stop at once.
async fn supervise(plan: &plan::Plan) -> anyhow::Result<bool> {
    let mut signals = StopSignals::new()?;
    let (failures, mut failed) = mpsc::unbounded_channel::<ChildFailed>();
    let start = |specs: &[crate::supervisor::Spec]| -> Vec<Child> {
        specs.iter().map(|spec| Child::start(spec.clone(), failures.clone())).collect()
    };
    eprintln!(
        "starting {} coordinators and {} workers; logs in {}",
        plan.coordinators.len(),
        plan.workers.len(),
        plan.logs.display()
    );
    plan.notes.iter().for_each(|note| eprintln!("{note}"));
    let (coordinators, workers) = (start(&plan.coordinators), start(&plan.workers));
    let serve = async {
        ready::wait(plan).await?;
        let mut out = std::io::stdout();
        writeln!(out, "{}", plan.ready_line())?;
        out.flush()?;
        std::future::pending::<anyhow::Result<()>>().await
    };
    let outcome = tokio::select! {
        outcome = serve => outcome,
        Some(failure) = failed.recv() => Err(anyhow::anyhow!("{}", failure.reason)),
        name = signals.next() => {
            eprintln!("{name}: stopping; once more to stop at once");
            Ok(())
        }
    };
    let stop = async {
        // Those that answer requests first: workers are still needed for what is being answered.
        futures::future::join_all(coordinators.iter().map(|child| child.stop(PATIENCE))).await;
        futures::future::join_all(workers.iter().map(|child| child.stop(PATIENCE))).await;
    };
    let interrupted = tokio::select! {
        () = stop => false,
        _ = signals.next() => true,
    };
    if interrupted {
        coordinators.iter().chain(&workers).for_each(Child::kill);
        futures::future::join_all(coordinators.iter().chain(&workers).map(|child| child.stop(PATIENCE)))
            .await;
    }
    eprintln!("stopped");
    outcome.map(|()| interrupted)
}
