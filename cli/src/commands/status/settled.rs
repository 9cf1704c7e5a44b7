//! `foggara status --wait`: until the cluster is whole, or as it was before something was restarted.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use foggara_proto::wire::admin as wire;
use serde_json::Value;

use crate::endpoint::EndpointArguments;

const POLL: Duration = Duration::from_millis(100);
/// A coordinator that takes longer to say how it is counts as one that does not answer.
const ANSWER: Duration = Duration::from_secs(2);

/// What to wait for before anything is printed.
#[derive(Debug, Clone, Args)]
pub(crate) struct WaitArguments {
    /// Wait until the cluster is settled: there is a leader, every coordinator that is known answers, no group is being
    /// formed, and what the other options ask for. Fails after so many seconds, and says what was missing
    #[arg(long, value_name = "SECONDS")]
    wait: Option<u64>,
    /// With --wait: as many workers at least
    #[arg(long, value_name = "N", requires = "wait", default_value_t = 0)]
    workers: usize,
    /// With --wait: the coordinators and workers of this file, which an earlier `--json` wrote, and as many replicas of each of
    /// its models as were ready then
    #[arg(long, value_name = "FILE", requires = "wait")]
    like: Option<PathBuf>,
    /// With --like: what listens at this address has been started again since; may be repeated
    #[arg(long, value_name = "HOST:PORT", requires = "like")]
    restarted: Vec<String>,
}

impl WaitArguments {
    /// Waits, if that is asked for.
    ///
    /// # Errors
    /// If the file cannot be understood, or the time is over.
    pub(super) async fn run(&self, endpoint: &EndpointArguments) -> anyhow::Result<()> {
        let Some(seconds) = self.wait else { return Ok(()) };
        let before = self.like.as_ref().map(|path| {
            let text = std::fs::read_to_string(path).with_context(|| format!("like: {}", path.display()))?;
            Before::parse(&text).with_context(|| format!("like: {} is no status in JSON", path.display()))
        });
        let wanted = Wanted {
            workers: self.workers,
            before: before.transpose()?.unwrap_or_default(),
            restarted: self.restarted.clone(),
        };
        let started = Instant::now();
        loop {
            let missing = match Observed::ask(endpoint).await {
                Ok(observed) => wanted.missing(&observed),
                Err(error) => Some(crate::output::one_line(&error)),
            };
            let Some(missing) = missing else { return Ok(()) };
            anyhow::ensure!(
                started.elapsed() < Duration::from_secs(seconds),
                "not settled within {seconds} s: {missing}"
            );
            tokio::time::sleep(POLL).await;
        }
    }
}

/// What the cluster is now.
struct Observed {
    status: wire::StatusResponse,
    /// Addresses of known coordinators that do not answer.
    silent: Vec<String>,
}

impl Observed {
    async fn ask(endpoint: &EndpointArguments) -> anyhow::Result<Self> {
        let ask = async |endpoint: &EndpointArguments| -> anyhow::Result<wire::StatusResponse> {
            let answer =
                async { Ok(endpoint.admin().await?.status(wire::StatusRequest {}).await?.into_inner()) };
            tokio::time::timeout(ANSWER, answer).await.context("no answer in time")?
        };
        let status = ask(endpoint).await?;
        let mut silent = Vec::new();
        for coordinator in &status.coordinators {
            if ask(&endpoint.only(&coordinator.addr)).await.is_err() {
                silent.push(coordinator.addr.clone());
            }
        }
        Ok(Self { status, silent })
    }
}

/// What the cluster should be.
struct Wanted {
    workers: usize,
    before: Before,
    restarted: Vec<String>,
}

/// Of an earlier status: what should be there again. Processes as (address, which life of it).
#[derive(Debug, Default, PartialEq, Eq)]
struct Before {
    coordinators: Vec<(String, u64)>,
    workers: Vec<(String, u64)>,
    /// Ready replicas of each model.
    ready: Vec<(String, u64)>,
}

impl Before {
    fn parse(text: &str) -> anyhow::Result<Self> {
        let status: Value = serde_json::from_str(text)?;
        let pairs = |list: &str, name: &str, number: &str| {
            let entries = status[list].as_array().with_context(|| format!("it has no `{list}`"))?;
            let pair = |entry: &Value| Some((entry[name].as_str()?.to_owned(), entry[number].as_u64()?));
            let pairs: Option<Vec<_>> = entries.iter().map(pair).collect();
            pairs.with_context(|| format!("an entry of `{list}` has no `{name}` or no `{number}`"))
        };
        let mut ready = pairs("deployments", "name", "ready_replicas")?;
        // What only waits for other workers to be upgraded should be whole by the end of that.
        for (name, ready) in &mut ready {
            let deployments = status["deployments"].as_array().into_iter().flatten();
            let waits =
                deployments.filter(|entry| entry["name"] == **name && entry["versions_differ"] == true);
            *ready = waits.filter_map(|entry| entry["replicas"].as_u64()).max().unwrap_or(*ready);
        }
        Ok(Self {
            // A coordinator keeps its number when it starts again, a worker does not.
            coordinators: pairs("coordinators", "addr", "pid")?,
            workers: pairs("workers", "addr", "id")?,
            ready,
        })
    }
}

impl Wanted {
    /// The first thing that is not as it should be.
    fn missing(&self, observed: &Observed) -> Option<String> {
        let status = &observed.status;
        if status.leader == 0 {
            return Some("the coordinators have no leader".into());
        }
        if let Some(addr) = observed.silent.first() {
            return Some(format!("coordinator {addr} does not answer"));
        }
        if status.workers.len() < self.workers {
            return Some(format!("{} of {} workers have joined", status.workers.len(), self.workers));
        }
        let coordinators: Vec<_> =
            status.coordinators.iter().map(|c| (c.addr.as_str(), u64::from(c.pid))).collect();
        let workers: Vec<_> = status.workers.iter().map(|w| (w.addr.as_str(), w.id)).collect();
        let absent = |kind: &str, before: &[(String, u64)], now: &[(&str, u64)]| {
            before.iter().find_map(|(addr, life)| match now.iter().find(|(known, _)| known == addr) {
                None => Some(format!("{kind} {addr} is not there")),
                Some((_, now)) if now == life && self.restarted.contains(addr) => {
                    Some(format!("{kind} {addr} has not started again"))
                }
                Some(_) => None,
            })
        };
        let forming = || {
            let group = status.groups.iter().find(|group| group.state != "ready")?;
            Some(format!("model {}: group {} is {}", group.deployment, group.id, group.state))
        };
        absent("coordinator", &self.before.coordinators, &coordinators)
            .or_else(|| absent("worker", &self.before.workers, &workers))
            .or_else(|| self.unready(status))
            .or_else(forming)
    }

    /// A model with fewer replicas than before. One that has been removed since is not missed, nor are replicas that the next
    /// upgraded worker will make possible.
    fn unready(&self, status: &wire::StatusResponse) -> Option<String> {
        self.before.ready.iter().find_map(|(name, ready)| {
            let now = status.deployments.iter().find(|deployment| deployment.name == *name)?;
            // Fewer may be wanted by now.
            let wanted = (*ready).min(u64::from(now.replicas));
            (u64::from(now.ready_replicas) < wanted && !now.versions_differ).then(|| {
                format!("model {name}: {} of {wanted} replicas are ready ({})", now.ready_replicas, now.state)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observed() -> Observed {
        let coordinator = wire::Coordinator { id: 1, addr: "c:1".into(), pid: 10, ..Default::default() };
        let worker = wire::Worker { id: 7, addr: "w:1".into(), ..Default::default() };
        let deployment = wire::Deployment {
            name: "m".into(),
            replicas: 2,
            ready_replicas: 2,
            state: "ready".into(),
            ..Default::default()
        };
        let status = wire::StatusResponse {
            leader: 1,
            coordinators: vec![coordinator],
            workers: vec![worker],
            deployments: vec![deployment],
            ..Default::default()
        };
        Observed { status, silent: Vec::new() }
    }

    fn wanted() -> Wanted {
        let before = r#"{"coordinators":[{"addr":"c:1","pid":10}],"workers":[{"addr":"w:1","id":7}],
            "deployments":[{"name":"m","ready_replicas":2}]}"#;
        Wanted { workers: 1, before: Before::parse(before).expect("a status"), restarted: Vec::new() }
    }

    #[test]
    fn a_cluster_as_it_was_is_settled() {
        assert_eq!(wanted().missing(&observed()), None);
        let nothing = Wanted { workers: 0, before: Before::default(), restarted: Vec::new() };
        assert_eq!(nothing.missing(&observed()), None);
    }

    #[test]
    fn what_is_missing_is_named() {
        type Change = fn(&mut Observed, &mut Wanted);
        let cases: &[(Change, &str)] = &[
            (|now, _| now.status.leader = 0, "no leader"),
            (|now, _| now.silent.push("c:1".into()), "coordinator c:1 does not answer"),
            (|_, wanted| wanted.workers = 2, "1 of 2 workers"),
            (|now, _| now.status.workers.clear(), "0 of 1 workers"),
            (|now, _| now.status.workers[0].addr = "w:2".into(), "worker w:1 is not there"),
            (|_, wanted| wanted.restarted.push("w:1".into()), "worker w:1 has not started again"),
            (|_, wanted| wanted.restarted.push("c:1".into()), "coordinator c:1 has not started again"),
            (|now, _| now.status.deployments[0].ready_replicas = 1, "1 of 2 replicas"),
            (
                |now, _| {
                    let group = wire::Group { id: 3, state: "forming".into(), ..Default::default() };
                    now.status.groups.push(group);
                },
                "group 3 is forming",
            ),
        ];
        for (change, expected) in cases {
            let (mut now, mut wanted) = (observed(), wanted());
            change(&mut now, &mut wanted);
            let missing = wanted.missing(&now).unwrap_or_default();
            assert!(missing.contains(expected), "{expected}: {missing}");
        }
    }

    #[test]
    fn what_has_been_changed_since_is_not_missed() {
        let mut now = observed();
        now.status.workers[0].id = 8;
        now.status.deployments[0].ready_replicas = 1;
        now.status.deployments[0].replicas = 1;
        let restarted = Wanted { restarted: vec!["w:1".into()], ..wanted() };
        assert_eq!(restarted.missing(&now), None);
        now.status.deployments.clear();
        assert_eq!(restarted.missing(&now), None);
    }

    #[test]
    fn replicas_that_wait_for_the_next_upgrade_are_not_waited_for_until_it_is_done() {
        let mut now = observed();
        now.status.deployments[0].ready_replicas = 0;
        assert!(wanted().missing(&now).is_some());
        now.status.deployments[0].versions_differ = true;
        assert_eq!(wanted().missing(&now), None);
        // The next one has been upgraded since: nothing is in the way now.
        let before = r#"{"coordinators":[],"workers":[],
            "deployments":[{"name":"m","ready_replicas":0,"replicas":2,"versions_differ":true}]}"#;
        let wanted = Wanted { before: Before::parse(before).expect("a status"), ..wanted() };
        assert_eq!(wanted.before.ready, [("m".to_owned(), 2)]);
        now.status.deployments[0].versions_differ = false;
        assert!(wanted.missing(&now).is_some_and(|missing| missing.contains("0 of 2 replicas")));
        now.status.deployments[0].ready_replicas = 2;
        assert_eq!(wanted.missing(&now), None);
    }

    #[test]
    fn a_file_that_is_no_status_is_refused() {
        for text in ["", "{}", r#"{"coordinators":[{}],"workers":[],"deployments":[]}"#] {
            assert!(Before::parse(text).is_err(), "{text}");
        }
    }
}
