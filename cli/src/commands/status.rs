//! `foggara status`

mod settled;

use std::io::Write;
use std::time::Duration;

use clap::Args;
use foggara_proto::shape::Shape;
use foggara_proto::wire::admin as wire;
use serde_json::{Value, json};

use crate::commands::adapter;
use crate::endpoint::EndpointArguments;
use crate::output::{bytes, table};

const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Show coordinators, workers, groups, deployments and adapters, as the coordinator that answers knows them.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Print again every second, until interrupted
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    wait: settled::WaitArguments,
    #[command(flatten)]
    endpoint: EndpointArguments,
}

/// Prints the status.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        arguments.wait.run(&arguments.endpoint).await?;
        loop {
            let mut admin = arguments.endpoint.admin().await?;
            let status = admin.status(wire::StatusRequest {}).await?.into_inner();
            let mut out = std::io::stdout().lock();
            if arguments.json {
                writeln!(out, "{}", serde_json::to_string_pretty(&as_json(&status))?)?;
            } else {
                if arguments.watch {
                    // Clears the screen (ECMA-48: erase in page, cursor to the top).
                    write!(out, "\x1b[2J\x1b[H")?;
                }
                print(&mut out, &status)?;
            }
            out.flush()?;
            drop(out);
            if !arguments.watch {
                return Ok(());
            }
            tokio::select! {
                () = tokio::time::sleep(WATCH_INTERVAL) => {}
                interrupted = tokio::signal::ctrl_c() => return Ok(interrupted?),
            }
        }
    })
}

/// The documented shape.
fn as_json(status: &wire::StatusResponse) -> Value {
    let coordinator = |c: &wire::Coordinator| {
        json!({"id": c.id, "addr": c.addr, "http_addr": c.http_addr,
        "role": c.role, "pid": c.pid,
        // One that is not connected to the one that answers.
        "version": Some(&c.version).filter(|version| !version.is_empty())})
    };
    let device = |d: wire::Device| {
        json!({"kind": d.kind, "name": d.name, "uuid": d.uuid, "total_bytes": d.total_bytes,
            "kv_dtypes": d.kv_dtypes, "quantize": d.quantize, "data_parallel": d.data_parallel})
    };
    let worker = |w: &wire::Worker| {
        let c = w.capabilities.clone().unwrap_or_default();
        json!({"id": w.id, "addr": w.addr, "host": w.host, "pid": w.pid, "group": w.group, "rank": w.rank,
            "state": w.state, "loading": w.loading.map(|l| json!({"loaded_bytes": l.loaded_bytes,
                "total_bytes": l.total_bytes, "bytes_per_second": l.bytes_per_second})), "threads": c.threads, "memory_bytes": c.memory_bytes,
            "read_bytes_per_second": c.read_bytes_per_second, "flops": c.flops, "cpu": c.cpu, "version": c.version,
            "device": c.device.map(device), "cache_bytes": c.cache_bytes, "cache_bytes_per_second": c.cache_bytes_per_second,
            "int8_ops_per_second": c.int8_ops_per_second})
    };
    let group = |g: &wire::Group| {
        json!({"id": g.id, "deployment": g.deployment, "epoch": g.epoch,
        "state": g.state, "workers": g.workers, "collective": g.collective, "kv_blocks": g.kv_blocks,
        "block_size": g.block_size, "driver": g.driver, "driver_epoch": g.driver_epoch,
        "shape": g.shape.map(|s| json!({"tp": s.tp, "dp": s.dp, "pp": s.pp, "ep": s.ep}))})
    };
    let deployment = |d: &wire::Deployment| {
        json!({"name": d.name, "model_path": d.model_path, "tp": d.tp, "dp": d.dp, "pp": d.pp, "ep": d.ep,
        "quantize": d.quantize,
        "replicas": d.replicas, "kv_tokens": d.kv_tokens, "kv_dtype": d.kv_dtype, "collective": d.collective,
        "model_hash": d.model_hash, "model_bytes": d.model_bytes, "state": d.state, "reason": d.reason, "versions_differ": d.versions_differ, "ready_replicas": d.ready_replicas, "created": d.created})
    };
    let adapter = |a: &wire::Adapter| {
        json!({"name": a.name, "deployment": a.deployment, "path": a.path, "id": a.id, "state": a.state, "reason": a.reason,
            "ready_replicas": a.ready_replicas, "bytes": a.bytes, "hash": a.hash, "created": a.created})
    };
    json!({
        "cluster_id": status.cluster_id,
        "answered_by": status.answered_by,
        "term": status.term,
        "applied": status.applied,
        // 0 on the wire: nobody leads.
        "leader": Some(status.leader).filter(|leader| *leader > 0),
        "coordinators": status.coordinators.iter().map(coordinator).collect::<Vec<_>>(),
        "workers": status.workers.iter().map(worker).collect::<Vec<_>>(),
        "groups": status.groups.iter().map(group).collect::<Vec<_>>(),
        "deployments": status.deployments.iter().map(deployment).collect::<Vec<_>>(),
        "adapters": status.adapters.iter().map(adapter).collect::<Vec<_>>(),
    })
}

fn print(out: &mut impl Write, status: &wire::StatusResponse) -> std::io::Result<()> {
    let leader = match status.leader {
        0 => "no leader".to_owned(),
        id => format!("leader {id}"),
    };
    let wire::StatusResponse { cluster_id, answered_by, term, applied, .. } = status;
    writeln!(
        out,
        "cluster {cluster_id}: {leader}, term {term}, applied {applied} (answered by {answered_by})"
    )?;
    writeln!(out, "\ncoordinators")?;
    let row = |c: &wire::Coordinator| {
        let version = if c.version.is_empty() { "-" } else { &c.version };
        let pid = c.pid.to_string();
        vec![c.id.to_string(), c.role.clone(), c.addr.clone(), c.http_addr.clone(), pid, version.into()]
    };
    let rows: Vec<_> = status.coordinators.iter().map(row).collect();
    table(out, &["id", "role", "grpc", "http", "pid", "version"], &rows)?;
    writeln!(out, "\nworkers")?;
    let rows: Vec<_> = status.workers.iter().map(worker_row).collect();
    const WORKER: [&str; 12] = [
        "id",
        "state",
        "group",
        "rank",
        "addr",
        "pid",
        "version",
        "threads",
        "memory",
        "bandwidth",
        "compute",
        "computes on",
    ];
    table(out, &WORKER, &rows)?;
    writeln!(out, "\ngroups")?;
    let rows: Vec<_> = status.groups.iter().map(group_row).collect();
    table(
        out,
        &["id", "deployment", "state", "shape", "workers", "collective", "kv tokens", "driver", "epoch"],
        &rows,
    )?;
    writeln!(out, "\ndeployments")?;
    let row = |d: &wire::Deployment| {
        let replicas = format!("{}/{}", d.ready_replicas, d.replicas);
        vec![d.name.clone(), state_of(d), replicas, shape_of(d, &status.groups), d.model_path.clone()]
    };
    let rows: Vec<_> = status.deployments.iter().map(row).collect();
    table(out, &["name", "state", "replicas", "shape", "model"], &rows)?;
    if status.adapters.is_empty() {
        return Ok(());
    }
    writeln!(out, "\nadapters")?;
    adapter::print(out, status)
}

/// The shape of a deployment's groups; until there is one, the shape it asks for.
pub(crate) fn shape_of(d: &wire::Deployment, groups: &[wire::Group]) -> String {
    let formed = groups.iter().find(|group| group.deployment == d.name).and_then(|group| group.shape);
    formed.map_or_else(|| d.shape(), Shape::from).to_string()
}

/// What a deployment's state is, and why if it is not as it should be.
pub(crate) fn state_of(d: &wire::Deployment) -> String {
    match (d.state.as_str(), d.reason.as_str()) {
        ("ready", _) | (_, "") => d.state.clone(),
        (state, reason) => format!("{state}: {reason}"),
    }
}

/// A worker's state, and how far it is if it loads.
fn worker_state(w: &wire::Worker) -> String {
    match w.loading {
        Some(l) if l.total_bytes > 0 => {
            let percent = l.loaded_bytes.saturating_mul(100) / l.total_bytes;
            format!("{} {percent}% {:.0} MB/s", w.state, l.bytes_per_second as f64 / 1e6)
        }
        _ => w.state.clone(),
    }
}

fn worker_row(w: &wire::Worker) -> Vec<String> {
    let c = w.capabilities.clone().unwrap_or_default();
    let dash = |value: Option<String>| value.unwrap_or_else(|| "-".into());
    vec![
        w.id.to_string(),
        worker_state(w),
        dash(w.group.map(|group| group.to_string())),
        dash(w.rank.map(|rank| rank.to_string())),
        w.addr.clone(),
        w.pid.to_string(),
        dash(Some(c.version).filter(|version| !version.is_empty())),
        c.threads.to_string(),
        bytes(c.memory_bytes),
        format!("{:.1} GB/s", c.read_bytes_per_second as f64 / 1e9),
        format!("{:.0} GFLOP/s", c.flops as f64 / 1e9),
        // A GPU has a name; else it is the processor.
        c.device.map(|device| device.name).filter(|name| !name.is_empty()).unwrap_or(c.cpu),
    ]
}

fn group_row(g: &wire::Group) -> Vec<String> {
    let workers: Vec<String> = g.workers.iter().map(u64::to_string).collect();
    let driver = if g.driver == 0 { "-".to_owned() } else { g.driver.to_string() };
    let kv_tokens = g.kv_blocks * u64::from(g.block_size);
    vec![
        g.id.to_string(),
        g.deployment.clone(),
        g.state.clone(),
        g.shape.map_or_else(|| "-".into(), |shape| Shape::from(shape).to_string()),
        workers.join(","),
        g.collective.clone(),
        kv_tokens.to_string(),
        driver,
        g.epoch.to_string(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_leading_is_null() {
        let json = as_json(&wire::StatusResponse::default());
        assert_eq!(json["leader"], Value::Null);
        let json = as_json(&wire::StatusResponse { leader: 2, ..Default::default() });
        assert_eq!(json["leader"], 2);
    }

    #[test]
    fn a_worker_that_loads_says_how_far_it_is() {
        let loading = wire::Loading { loaded_bytes: 43, total_bytes: 99, bytes_per_second: 612_345_678 };
        let worker = wire::Worker { state: "loading".into(), loading: Some(loading), ..Default::default() };
        assert_eq!(worker_state(&worker), "loading 43% 612 MB/s");
        assert_eq!(worker_state(&wire::Worker { loading: None, ..worker }), "loading");
    }

    #[test]
    fn a_worker_says_what_it_computes_on() {
        let on = |device: Option<wire::Device>| {
            let capabilities = wire::Capabilities { cpu: "a processor".into(), device, ..Default::default() };
            let worker = wire::Worker { capabilities: Some(capabilities), ..Default::default() };
            let status = wire::StatusResponse { workers: vec![worker.clone()], ..Default::default() };
            (
                worker_row(&worker).pop().expect("the last column"),
                as_json(&status)["workers"][0]["device"].clone(),
            )
        };
        let gpu = wire::Device { kind: "cuda".into(), name: "NVIDIA H200".into(), ..Default::default() };
        let (shown, json) = on(Some(gpu));
        assert_eq!((shown.as_str(), &json["kind"]), ("NVIDIA H200", &Value::from("cuda")));
        let (shown, json) = on(Some(wire::Device { kind: "cpu".into(), ..Default::default() }));
        assert_eq!((shown.as_str(), &json["kind"]), ("a processor", &Value::from("cpu")));
        assert_eq!(on(None), ("a processor".into(), Value::Null), "an older coordinator does not say");
    }

    #[test]
    fn an_empty_cluster_prints() {
        let mut out = Vec::new();
        print(&mut out, &wire::StatusResponse { cluster_id: "c".into(), ..Default::default() })
            .expect("memory");
        assert!(String::from_utf8_lossy(&out).starts_with("cluster c: no leader, term 0"));
    }
}
