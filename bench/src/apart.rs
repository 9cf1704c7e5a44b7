//! A cluster whose processes are started one by one, with something between the coordinator and its workers.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use foggara_proto::wire::admin::admin_client::AdminClient;
use foggara_proto::wire::admin::{Deployment, PutDeploymentRequest, StatusRequest};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::args::TargetArgs;
use crate::client::grpc::channel;
use crate::client::http;
use crate::cluster::{free_ports, program, tail};
use crate::delay::Delay;
use crate::metrics;

const PATIENCE: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(30);
const MODEL: &str = "apart";
/// Where workers say that they are: on the same machine, but only through the delay.
const FAR: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// One coordinator, workers of one group, and a delay before each worker. Killed when dropped.
pub(crate) struct Apart {
    // Processes end before their files go.
    processes: Vec<Child>,
    delays: Vec<Delay>,
    folder: TempDir,
    /// gRPC address of the coordinator.
    pub(crate) grpc: String,
    http: String,
}

impl Apart {
    /// Starts everything and waits until the model is served.
    pub(crate) async fn start(args: &TargetArgs) -> Result<Self> {
        let folder = TempDir::with_prefix("foggara-bench-")?;
        let (http, grpc) = free_ports(1)?;
        let (grpc, http) = (format!("127.0.0.1:{grpc}"), format!("127.0.0.1:{http}"));
        let urls = (format!("http://{grpc}"), format!("http://{http}"));
        let (processes, delays) = (Vec::new(), Vec::new());
        let mut apart = Self { processes, delays, folder, grpc: urls.0, http: urls.1 };
        let data = apart.folder.path().join("data").display().to_string();
        let peers = format!("1={grpc}");
        let flags = ["--id", "1", "--peers", &peers, "--grpc", &grpc, "--http", &http, "--data-dir", &data];
        apart.run(args, "coordinator", &flags)?;
        for number in 0..args.workers {
            let (port, _) = free_ports(1)?;
            let near = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            apart.delays.push(Delay::between(SocketAddr::from((FAR, port)), near).await?);
            let (listen, threads) = (near.to_string(), args.threads.to_string());
            let cache = apart.folder.path().join(format!("cache-{number}")).display().to_string();
            let far = FAR.to_string();
            let flags = ["--join", &grpc, "--listen", &listen, "--advertise", &far, "--threads", &threads];
            apart.run(args, "worker", &[&flags[..], &["--cache-dir", &cache]].concat())?;
        }
        apart.deploy(args).await?;
        Ok(apart)
    }

    /// From now on everything between coordinator and workers takes so long in each direction.
    pub(crate) fn set_delay(&self, one_way_millis: u64) {
        self.delays.iter().for_each(|delay| delay.set(one_way_millis));
    }

    /// Seconds that the leader has waited for plans so far.
    pub(crate) async fn waited(&self) -> Result<f64> {
        let page = http::get(&format!("{}/metrics", self.http)).await?;
        Ok(metrics::sum(&page, "foggara_step_wait_seconds_sum", ""))
    }

    /// The model's name in requests.
    pub(crate) fn model(&self) -> &'static str {
        MODEL
    }

    fn run(&mut self, args: &TargetArgs, what: &str, flags: &[&str]) -> Result<()> {
        let program = program(args)?;
        let log = self.folder.path().join(format!("{what}-{}.log", self.processes.len()));
        let mut command = Command::new(&program);
        command.arg(what).args(flags).args(["--exit-with-parent", &std::process::id().to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(std::fs::File::create(&log)?);
        let child = command.kill_on_drop(true).spawn();
        self.processes.push(child.with_context(|| format!("starting {}", program.display()))?);
        Ok(())
    }

    async fn deploy(&self, args: &TargetArgs) -> Result<()> {
        let model = args.model_path().context("a cluster needs a --model")?.canonicalize()?;
        let deployment = Deployment {
            name: MODEL.into(),
            model_path: model.display().to_string(),
            tp: u32::try_from(args.workers)?,
            dp: 1,
            pp: 1,
            ep: 1,
            replicas: 1,
            kv_dtype: "auto".into(),
            quantize: "none".into(),
            collective: args.collective.clone(),
            ..Deployment::default()
        };
        let started = Instant::now();
        let mut put = false;
        while started.elapsed() < PATIENCE {
            tokio::time::sleep(LOOK).await;
            let Ok(channel) = channel(&self.grpc).await else { continue };
            let mut admin = AdminClient::new(channel);
            if !put {
                let request =
                    PutDeploymentRequest { deployment: Some(deployment.clone()), request_id: "apart".into() };
                put = admin.put_deployment(request).await.is_ok();
                continue;
            }
            let status = admin.status(StatusRequest {}).await?.into_inner();
            if status.deployments.iter().any(|one| one.name == MODEL && one.state == "ready") {
                return Ok(());
            }
        }
        let logs = std::fs::read_dir(self.folder.path())?.flatten().map(|entry| entry.path());
        let logs = logs.filter(|path| path.extension().is_some_and(|end| end == "log"));
        bail!("the model is not served:\n{}", logs.map(|log| tail(&log)).collect::<Vec<_>>().join("\n"))
    }
}
