//! From started processes to a cluster that serves: deploys the models and waits, saying what it waits for.

use std::time::{Duration, Instant};

use foggara_proto::wire::admin as wire;
use foggara_proto::wire::admin::admin_client::AdminClient;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::plan::Plan;
use crate::commands::status::state_of;

const POLL: Duration = Duration::from_millis(30);

/// Waits until every coordinator serves every model. Takes as long as it takes: loading is bounded by disks.
///
/// # Errors
/// If the cluster refuses a model.
pub(super) async fn wait(plan: &Plan) -> anyhow::Result<()> {
    let mut progress = Progress { started: Instant::now(), shown: String::new() };
    for deployment in &plan.deployments {
        deploy(plan, deployment, &mut progress).await?;
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

/// Asks the coordinators in turn until one has written the deployment down.
async fn deploy(plan: &Plan, deployment: &wire::Deployment, progress: &mut Progress) -> anyhow::Result<()> {
    let request_id = uuid::Uuid::new_v4().to_string();
    for addr in plan.grpc.iter().cycle() {
        if let Ok(channel) = plan.caller.connect(&addr.to_string()).await {
            let mut admin = AdminClient::with_interceptor(channel, plan.token.shown());
            let request = wire::PutDeploymentRequest {
                deployment: Some(deployment.clone()),
                request_id: request_id.clone(),
            };
            match admin.put_deployment(request).await {
                Ok(_) => return Ok(()),
                Err(status) if matches!(status.code(), Code::InvalidArgument | Code::FailedPrecondition) => {
                    return Err(anyhow::Error::from(status).context(format!("model `{}`", deployment.name)));
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
