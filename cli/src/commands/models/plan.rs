//! `foggara models plan`: says where a model would go and how fast it would be, and does nothing.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use foggara_coordinator::model_facts;
use foggara_coordinator::placement::facts::{Reach, Wish};
use foggara_coordinator::placement::{self, rate};
use foggara_models::KvFormat;
use foggara_proto::shape::Shape;
use foggara_proto::wire::admin as wire;
use serde_json::{Value, json};

use super::{ParallelArguments, ShapeArguments, nodes};
use crate::endpoint::EndpointArguments;
use crate::model_argument::ModelArgument;
use crate::output::table;

/// Say how a model would be placed, how fast it would be, and why, or what is missing. Nothing is done.
#[derive(Debug, Args)]
pub(crate) struct Plan {
    /// The model: a GGUF file or a Hugging Face folder
    #[arg(value_name = "[NAME=]PATH")]
    model: ModelArgument,
    #[command(flatten)]
    parallel: ParallelArguments,
    #[command(flatten)]
    shape: ShapeArguments,
    /// Plan for the machines that this file describes instead of the cluster's idle workers
    #[arg(long, value_name = "FILE.toml")]
    nodes: Option<PathBuf>,
    /// Predict for sequences with this many tokens in the cache
    #[arg(long, value_name = "N", default_value_t = Wish::SEQUENCE_TOKENS, value_parser = clap::value_parser!(u64).range(1..))]
    sequence_tokens: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    endpoint: EndpointArguments,
}

impl Plan {
    /// Prints the plan.
    ///
    /// # Errors
    /// If the model does not fit, or cannot be read.
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let deployment = self.shape.deployment(&self.model, self.parallel.shape())?;
        let answer = match &self.nodes {
            Some(file) => offline(&deployment, file, self.sequence_tokens)?,
            None => {
                let request = wire::PlanDeploymentRequest {
                    deployment: Some(deployment),
                    sequence_tokens: self.sequence_tokens,
                };
                self.endpoint.admin().await?.plan_deployment(request).await?.into_inner()
            }
        };
        let mut out = std::io::stdout().lock();
        match self.json {
            true => writeln!(out, "{}", serde_json::to_string_pretty(&as_json(&answer))?)?,
            false => print(&mut out, &self.model.name, &answer)?,
        }
        match answer.missing.as_str() {
            "" => Ok(()),
            missing => anyhow::bail!("`{}` cannot be placed: {missing}", self.model.name),
        }
    }
}

/// Plans for machines that are described in a file.
fn offline(
    deployment: &wire::Deployment,
    file: &std::path::Path,
    sequence_tokens: u64,
) -> anyhow::Result<wire::PlanDeploymentResponse> {
    let (workers, links) = nodes::read(file)?;
    deployment.shape().check()?;
    let path = std::path::Path::new(&deployment.model_path);
    let model = model_facts::facts_at(path, &deployment.kv_dtype, &deployment.quantize);
    let model = model.map_err(|reason| anyhow::anyhow!("model: {reason}"))?;
    let wish = Wish {
        shape: deployment.shape(),
        kv_tokens: deployment.kv_tokens,
        reach: Reach::named(&deployment.collective),
        kv: KvFormat::named(&deployment.kv_dtype),
        quantize: deployment.quantize.parse().map_err(|reason: String| anyhow::anyhow!(reason))?,
        sequence_tokens,
    };
    let proposal = placement::propose_on(&model, &wish, deployment.replicas, workers, &links);
    Ok(proposal.into())
}

fn as_json(answer: &wire::PlanDeploymentResponse) -> Value {
    let rank = |r: &wire::PlannedRank| {
        json!({"worker": r.worker, "host": r.host, "layers": [r.first_layer, r.end_layer],
            "weight_bytes": r.weight_bytes, "kv_bytes": r.kv_bytes, "other_bytes": r.other_bytes,
            "memory_bytes": r.memory_bytes})
    };
    let replica = |r: &wire::PlannedReplica| {
        let shape = r.shape.map(Shape::from).unwrap_or(Shape::SOLO);
        json!({"shape": {"tp": shape.tp, "dp": shape.dp, "pp": shape.pp, "ep": shape.ep},
            "ranks": r.ranks.iter().map(rank).collect::<Vec<_>>(), "rank_weights": r.rank_weights,
            "collective": r.collective, "kv_tokens": r.kv_tokens,
            "tokens_per_second": {"one_stream": r.one_stream, "together": r.together, "sequences": r.sequences},
            "reasons": r.reasons})
    };
    json!({
        "replicas": answer.replicas.iter().map(replica).collect::<Vec<_>>(),
        // Empty on the wire: nothing.
        "missing": Some(&answer.missing).filter(|missing| !missing.is_empty()),
    })
}

fn print(out: &mut impl Write, name: &str, answer: &wire::PlanDeploymentResponse) -> std::io::Result<()> {
    for (i, replica) in answer.replicas.iter().enumerate() {
        let shape = replica.shape.map(Shape::from).unwrap_or(Shape::SOLO);
        writeln!(out, "{name}, replica {}: {shape}, {}", i + 1, replica.collective)?;
        writeln!(
            out,
            "  predicted: {} tokens/s for one stream, {} tokens/s for {} together; {} tokens of KV cache{}",
            rate(replica.one_stream),
            rate(replica.together),
            replica.sequences,
            replica.kv_tokens,
            if shape.dp > 1 { " in each data-parallel part" } else { "" }
        )?;
        let row = |(rank, r): (usize, &wire::PlannedRank)| {
            let gigabytes = |bytes: u64| placement::bytes(bytes);
            let taken = r.weight_bytes + r.kv_bytes + r.other_bytes;
            vec![
                rank.to_string(),
                r.worker.to_string(),
                r.host.clone(),
                format!("{}-{}", r.first_layer, r.end_layer.saturating_sub(1)),
                gigabytes(r.weight_bytes),
                gigabytes(r.kv_bytes),
                format!("{} of {}", gigabytes(taken), gigabytes(r.memory_bytes)),
            ]
        };
        let rows: Vec<_> = replica.ranks.iter().enumerate().map(row).collect();
        table(out, &["rank", "worker", "host", "layers", "weights", "kv", "memory"], &rows)?;
        for reason in &replica.reasons {
            writeln!(out, "  - {reason}")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_null_when_nothing_is() {
        assert_eq!(as_json(&wire::PlanDeploymentResponse::default())["missing"], Value::Null);
        let lacking = wire::PlanDeploymentResponse { missing: "memory".into(), ..Default::default() };
        assert_eq!(as_json(&lacking)["missing"], "memory");
    }

    #[test]
    fn a_plan_prints_its_ranks_and_reasons() {
        let rank = wire::PlannedRank { worker: 7, host: "a".into(), end_layer: 4, ..Default::default() };
        let replica = wire::PlannedReplica {
            shape: Some(Shape { tp: 1, dp: 2, pp: 1, ep: 1 }.into()),
            ranks: vec![rank.clone(), rank],
            reasons: vec!["because".into()],
            ..Default::default()
        };
        let mut out = Vec::new();
        let answer = wire::PlanDeploymentResponse { replicas: vec![replica], ..Default::default() };
        print(&mut out, "m", &answer).expect("memory");
        let text = String::from_utf8_lossy(&out);
        assert!(text.starts_with("m, replica 1: tp1·dp2·pp1·ep1"), "{text}");
        assert!(text.contains("0-3") && text.contains("- because") && text.contains("in each"), "{text}");
    }
}
