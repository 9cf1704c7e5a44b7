//! `PlanDeployment`: what the placement would do, on the wire.

use std::collections::BTreeMap;
use std::path::Path;

use foggara_proto::wire::admin as wire;

use crate::cluster::ClusterState;
use crate::cluster::state::Deployment;
use crate::library::Library;
use crate::model_facts;
use crate::placement::facts::{ModelFacts, Wish};
use crate::placement::{Plan, PlannedRank, Proposal, Surroundings, propose, wish};

/// What `deployment` would get, where workers may have no more memory than `limits` say, and how fast it would be for sequences with
/// so many tokens in the cache. Opens checkpoints.
///
/// # Errors
/// If its checkpoint cannot be opened.
pub(super) fn propose_now(
    state: &ClusterState,
    library: &Library,
    deployment: &Deployment,
    sequence_tokens: u64,
    limits: BTreeMap<u64, u64>,
) -> Result<Proposal, String> {
    let path = Path::new(&deployment.model_path);
    let model = facts(path, deployment).map_err(|reason| format!("model_path: {reason}"))?;
    // What is held on the hosts is known for the models whose tables are here.
    let models = state.deployments.iter().filter_map(|(name, d)| {
        let path = library.place(name, d)?.ok()?;
        Some((name.clone(), facts(&path, d).ok()?))
    });
    let around = Surroundings {
        workers: state.workers.keys().copied().collect(),
        models: models.collect(),
        limits,
        ..Surroundings::default()
    };
    let wish = Wish { sequence_tokens, ..wish(deployment) };
    Ok(propose(state, &around, &model, &wish, deployment.replicas))
}

fn facts(path: &Path, deployment: &Deployment) -> Result<ModelFacts, String> {
    model_facts::facts_at(path, &deployment.kv_dtype, &deployment.quantize)
}

impl From<Proposal> for wire::PlanDeploymentResponse {
    fn from(p: Proposal) -> Self {
        Self {
            replicas: p.replicas.into_iter().map(Into::into).collect(),
            missing: p.missing.unwrap_or_default(),
        }
    }
}

impl From<Plan> for wire::PlannedReplica {
    fn from(p: Plan) -> Self {
        let rank = |rank: PlannedRank| wire::PlannedRank {
            worker: rank.worker,
            host: rank.host,
            first_layer: rank.layers.0,
            end_layer: rank.layers.1,
            weight_bytes: rank.needs.weights,
            kv_bytes: rank.bytes - rank.needs.with_kv(0),
            other_bytes: rank.needs.fixed,
            memory_bytes: rank.memory,
        };
        Self {
            shape: Some(p.shape.into()),
            ranks: p.ranks.into_iter().map(rank).collect(),
            rank_weights: p.rank_weights,
            collective: p.collective.name().into(),
            kv_tokens: p.kv_tokens,
            one_stream: p.prediction.one_stream,
            together: p.prediction.saturated,
            sequences: p.prediction.sequences,
            reasons: p.reasons,
        }
    }
}
