//! `foggara models`

mod nodes;
mod plan;

use std::io::Write;
use std::time::Duration;

use clap::{Args, Subcommand};
use foggara_proto::shape::Shape;
use foggara_proto::wire::admin as wire;

use crate::commands::status::{shape_of, state_of};
use crate::endpoint::EndpointArguments;
use crate::model_argument::ModelArgument;
use crate::output::{status_text, table};

const POLL: Duration = Duration::from_millis(200);

/// Add, list and remove the models a cluster serves. Each is a deployment: a model, its parallelism, its replicas.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Serve a model: a GGUF file or a Hugging Face folder. Nodes find it at this path, or under its last part in their
    /// own folders (--models)
    Add(Add),
    /// Say where a model would go, how fast it would be and why, or what is missing; nothing is done
    Plan(plan::Plan),
    /// List the deployments
    List {
        #[command(flatten)]
        endpoint: EndpointArguments,
    },
    /// Stop serving a model; requests that are being answered end with an error
    Remove {
        /// Its name
        name: String,
        #[command(flatten)]
        endpoint: EndpointArguments,
    },
}

/// How a model is served.
#[derive(Debug, Clone, Args)]
pub(crate) struct ShapeArguments {
    /// Copies of the model, each on workers of its own
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(crate) replicas: u32,
    /// Tokens of KV cache of each replica [default: 65536 (on GPUs 1048576) or the context, as memory allows]
    #[arg(long, value_name = "N")]
    pub(crate) kv_tokens: Option<u64>,
    /// Precision of the KV cache: q8_0 (on CPUs) and fp8 (on GPUs) take half the memory of f16
    #[arg(long, default_value = "auto", value_parser = ["auto", "f32", "f16", "q8_0", "fp8"], value_name = "TYPE")]
    pub(crate) kv_dtype: String,
    /// Quantize weights when they are loaded: for models that are stored unquantized; bf16 also rounds what they are multiplied
    /// with (twice as fast on CPUs with AVX512_BF16, less exact; GPUs always do), fp8 is computed on GPUs only
    #[arg(long, default_value = "none", value_parser = ["none", "bf16", "q8_0", "q4_0", "q4_k", "fp8"], value_name = "TYPE")]
    pub(crate) quantize: String,
    /// How ranks exchange activations: shared memory on one host, TCP across hosts
    #[arg(long, default_value = "auto", value_parser = ["auto", "shm", "tcp"], value_name = "KIND")]
    pub(crate) collective: String,
}

impl ShapeArguments {
    /// The deployment of `model` in this shape.
    pub(crate) fn deployment(&self, model: &ModelArgument, shape: Shape) -> anyhow::Result<wire::Deployment> {
        let deployment = wire::Deployment {
            name: model.name.clone(),
            model_path: model.for_cluster()?,
            replicas: self.replicas,
            kv_tokens: self.kv_tokens.unwrap_or(0),
            kv_dtype: self.kv_dtype.clone(),
            collective: self.collective.clone(),
            quantize: self.quantize.clone(),
            ..wire::Deployment::default()
        };
        Ok(deployment.shaped(shape))
    }
}

/// How a replica is divided. What is not given is chosen.
#[derive(Debug, Clone, Args)]
pub(crate) struct ParallelArguments {
    /// Tensor-parallel ranks of a replica: each holds that share of every layer [default: chosen by the placement]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    tp: Option<u32>,
    /// Data-parallel parts of a replica: each has a KV cache of its own [default: chosen by the placement]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    dp: Option<u32>,
    /// Pipeline stages of a replica: each holds that share of the layers [default: chosen by the placement]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pp: Option<u32>,
    /// Parts over which the experts of a stage are spread; divides tp · dp [default: chosen by the placement]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    ep: Option<u32>,
}

impl ParallelArguments {
    /// 0 for what is left to the placement.
    pub(crate) fn shape(&self) -> Shape {
        let open = |value: Option<u32>| value.unwrap_or(0);
        Shape { tp: open(self.tp), dp: open(self.dp), pp: open(self.pp), ep: open(self.ep) }
    }
}

#[derive(Debug, Args)]
struct Add {
    /// The model, and the name to serve it under [default: the file's or folder's, in lower case]
    #[arg(value_name = "[NAME=]PATH")]
    model: ModelArgument,
    #[command(flatten)]
    parallel: ParallelArguments,
    #[command(flatten)]
    shape: ShapeArguments,
    /// Return at once instead of when the model is ready
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    endpoint: EndpointArguments,
}

/// Does it.
pub(crate) fn run(arguments: Arguments) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match arguments.action {
            Action::Add(add) => add.run().await,
            Action::Plan(plan) => plan.run().await,
            Action::List { endpoint } => list(&endpoint).await,
            Action::Remove { name, endpoint } => {
                let request_id = uuid::Uuid::new_v4().to_string();
                let request = wire::RemoveDeploymentRequest { name: name.clone(), request_id };
                endpoint.admin().await?.remove_deployment(request).await?;
                Ok(writeln!(std::io::stdout(), "removed {name}")?)
            }
        }
    })
}

impl Add {
    async fn run(self) -> anyhow::Result<()> {
        let deployment = self.shape.deployment(&self.model, self.parallel.shape())?;
        let name = deployment.name.clone();
        let mut admin = self.endpoint.admin().await?;
        let request_id = uuid::Uuid::new_v4().to_string();
        let request = wire::PutDeploymentRequest { deployment: Some(deployment), request_id };
        let put = admin.put_deployment(request).await;
        put.map_err(|status| anyhow::anyhow!("{}{}", status_text(&status), self.model.hint()))?;
        writeln!(std::io::stdout(), "added {name}")?;
        if self.no_wait {
            return Ok(());
        }
        let mut shown = String::new();
        loop {
            let status = admin.status(wire::StatusRequest {}).await?.into_inner();
            let deployment = status.deployments.into_iter().find(|deployment| deployment.name == name);
            let Some(deployment) = deployment else { anyhow::bail!("`{name}` was removed meanwhile") };
            let state = state_of(&deployment);
            if state != shown {
                writeln!(std::io::stdout(), "{name}: {state}")?;
                shown = state;
            }
            if deployment.state == "ready" {
                return Ok(());
            }
            if let Some(reason) = deployment.state.strip_prefix("failed: ") {
                anyhow::bail!("`{name}` cannot be served: {reason}");
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

async fn list(endpoint: &EndpointArguments) -> anyhow::Result<()> {
    let status = endpoint.admin().await?.status(wire::StatusRequest {}).await?.into_inner();
    let row = |d: &wire::Deployment| {
        let replicas = format!("{}/{}", d.ready_replicas, d.replicas);
        let shape = shape_of(d, &status.groups);
        vec![
            d.name.clone(),
            state_of(d),
            replicas,
            shape,
            d.kv_dtype.clone(),
            d.quantize.clone(),
            d.model_path.clone(),
        ]
    };
    let rows: Vec<_> = status.deployments.iter().map(row).collect();
    let header = ["name", "state", "replicas", "shape", "kv", "quantize", "model"];
    Ok(table(&mut std::io::stdout().lock(), &header, &rows)?)
}
