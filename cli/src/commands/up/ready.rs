//! From started processes to a cluster that serves: deploys the models and their adapters and waits, saying what it waits for.

use std::time::{Duration, Instant};

use foggara_proto::wire::admin as wire;
use foggara_proto::wire::admin::admin_client::AdminClient;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::plan::Plan;
use crate::commands::adapter::failed;
use crate::commands::status::state_of;

const POLL: Duration = Duration::from_millis(30);

/// Waits until every coordinator serves every model. Takes as long as it takes: loading is bounded by disks.
///
/// # Errors
/// If the cluster refuses a model.
pub(super) async fn wait(plan: &Plan) -> anyhow::Result<()> {
    let mut progress = Progress { started: Instant::now(), shown: String::new() };
    for deployment in &plan.deployments {
        let (what, id) = (format!("model `{}`", deployment.name), uuid::Uuid::new_v4().to_string());
        let request = wire::PutDeploymentRequest { deployment: Some(deployment.clone()), request_id: id };
        let put = async |channel: Channel| {
            let mut admin = AdminClient::with_interceptor(channel, plan.token.shown());
            admin.put_deployment(request.clone()).await.map(drop)
        };
        write(plan, &what, put, &mut progress).await?;
    }
    for adapter in &plan.adapters {
        let (what, id) = (format!("adapter `{}`", adapter.name), uuid::Uuid::new_v4().to_string());
        let request = wire::PutAdapterRequest { adapter: Some(adapter.clone()), request_id: id };
        let put = async |channel: Channel| {
            let mut admin = AdminClient::with_interceptor(channel, plan.token.shown());
            admin.put_adapter(request.clone()).await.map(drop)
        };
        write(plan, &what, put, &mut progress).await?;
    }
    while let Some(waiting) = still_waiting(plan).await? {
        progress.show(&waiting);
        tokio::time::sleep(POLL).await;
    }
    progress.show("every coordinator serves");
    Ok(())
}

/// Says what is being waited for, once.
struct Progress {
    started: Instant,
    shown: String,
}

impl Progress {
    fn show(&mut self, text: &str) {
        if self.shown != text {
            text.clone_into(&mut self.shown);
            eprintln!("{:6.1} s  {text}", self.started.elapsed().as_secs_f64());
        }
    }
}

/// Whether asking again would bring the same.
fn is_final(status: &Status) -> bool {
    matches!(status.code(), Code::InvalidArgument | Code::FailedPrecondition | Code::NotFound)
}

/// Asks the coordinators in turn until one has written down what is wanted.
async fn write(
    plan: &Plan,
    what: &str,
    put: impl AsyncFn(Channel) -> Result<(), Status>,
    progress: &mut Progress,
) -> anyhow::Result<()> {
    for addr in plan.grpc.iter().cycle() {
        if let Ok(channel) = plan.caller.connect(&addr.to_string()).await {
            match put(channel).await {
                Ok(()) => return Ok(()),
                Err(status) if is_final(&status) => {
                    return Err(anyhow::Error::from(status).context(what.to_owned()));
                }
                // No leader yet.
                Err(_) => {}
            }
        }
        progress.show("waiting for the coordinators to elect a leader");
        tokio::time::sleep(POLL).await;
    }
    unreachable!("there is at least one coordinator, so the cycle has no end")
}

/// What is not as it should be; `None` when everything is.
async fn still_waiting(plan: &Plan) -> anyhow::Result<Option<String>> {
    let status = match status(plan).await {
        Ok(status) => status,
        Err(_) => return Ok(Some("waiting for coordinator 1".into())),
    };
    for wanted in &plan.deployments {
        let Some(deployment) = status.deployments.iter().find(|deployment| deployment.name == wanted.name)
        else {
            return Ok(Some(format!("model {}: being written down", wanted.name)));
        };
        if let Some(reason) = deployment.state.strip_prefix("failed: ") {
            anyhow::bail!("model `{}` cannot be served: {reason}", wanted.name);
        }
        if deployment.state != "ready" {
            let (joined, all) = (status.workers.len().min(plan.workers.len()), plan.workers.len());
            // Before that, what it lacks is workers.
            let state = if joined == all { state_of(deployment) } else { deployment.state.clone() };
            let waiting = format!("model {}: {state}; {joined} of {all} workers have joined", wanted.name);
            return Ok(Some(waiting + &others(plan, &status)));
        }
    }
    for wanted in &plan.adapters {
        let adapter = status.adapters.iter().find(|adapter| adapter.name == wanted.name);
        if let Some(reason) = adapter.and_then(failed) {
            anyhow::bail!("adapter `{}` cannot be loaded: {reason}", wanted.name);
        }
        if adapter.is_none_or(|adapter| adapter.state != "ready") {
            return Ok(Some(format!("adapter {}: being loaded", wanted.name)));
        }
    }
    for (i, addr) in plan.grpc.iter().enumerate() {
        if !serves(plan, &addr.to_string()).await {
            return Ok(Some(format!("waiting for coordinator {}", i + 1)));
        }
    }
    Ok(None)
}

/// Deployments of an earlier run in the same data directory: they take workers too.
fn others(plan: &Plan, status: &wire::StatusResponse) -> String {
    let ours = |name: &str| plan.deployments.iter().any(|deployment| deployment.name == name);
    let others: Vec<&str> =
        status.deployments.iter().map(|d| d.name.as_str()).filter(|name| !ours(name)).collect();
    match others.is_empty() {
        true => String::new(),
        false => {
            format!("; the data directory also holds {} (`foggara models remove NAME`)", others.join(", "))
        }
    }
}

async fn status(plan: &Plan) -> anyhow::Result<wire::StatusResponse> {
    let channel = plan.caller.connect(&plan.grpc[0].to_string()).await?;
    let mut admin = AdminClient::with_interceptor(channel, plan.token.shown());
    Ok(admin.status(wire::StatusRequest {}).await?.into_inner())
}

/// Whether the coordinator itself says that it serves every model.
async fn serves(plan: &Plan, addr: &str) -> bool {
    let Ok(channel) = plan.caller.connect(addr).await else { return false };
    let answer = HealthClient::new(channel).check(HealthCheckRequest::default()).await;
    answer.is_ok_and(|answer| answer.into_inner().status() == ServingStatus::Serving)
}
