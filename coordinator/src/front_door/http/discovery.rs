//! `GET /sd/prometheus`: where the coordinators are, for Prometheus's HTTP service discovery
//! (<https://prometheus.io/docs/prometheus/latest/http_sd/>). Each of them knows all.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use axum::Json;
use axum::extract::State;
use serde::Serialize;

use crate::cluster::state::Member;
use crate::front_door::FrontDoor;

/// One coordinator, to be scraped.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Target {
    targets: [String; 1],
    labels: BTreeMap<&'static str, String>,
}

pub(super) async fn handle(State(door): State<FrontDoor>) -> Json<Vec<Target>> {
    Json(targets(door.cluster.cluster_id(), &door.cluster.state().members))
}

fn targets(cluster: &str, members: &BTreeMap<u64, Member>) -> Vec<Target> {
    let target = |(id, member): (&u64, &Member)| Target {
        targets: [address(member)],
        labels: BTreeMap::from([("cluster", cluster.to_owned()), ("coordinator", id.to_string())]),
    };
    members.iter().map(target).collect()
}

/// Where others reach its HTTP port: who listens on every address is found under the host that its peers use.
fn address(member: &Member) -> String {
    let Ok(http) = member.http_addr.parse::<SocketAddr>() else { return member.http_addr.clone() };
    match member.addr.rsplit_once(':') {
        Some((host, _)) if http.ip().is_unspecified() => format!("{host}:{}", http.port()),
        _ => member.http_addr.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_coordinator_is_a_target_that_others_can_reach() {
        let member = |addr: &str, http: &str| Member {
            addr: addr.into(),
            http_addr: http.into(),
            pid: 1,
            draining: false,
        };
        let members = BTreeMap::from([
            (1, member("10.0.0.1:8081", "10.0.0.1:8080")),
            (2, member("two.example:8081", "0.0.0.0:8090")),
            (3, member("[fd00::3]:8081", "[::]:8100")),
        ]);
        let told = serde_json::to_value(targets("c", &members)).expect("JSON");
        let expected = serde_json::json!([
            {"targets": ["10.0.0.1:8080"], "labels": {"cluster": "c", "coordinator": "1"}},
            {"targets": ["two.example:8090"], "labels": {"cluster": "c", "coordinator": "2"}},
            {"targets": ["[fd00::3]:8100"], "labels": {"cluster": "c", "coordinator": "3"}},
        ]);
        assert_eq!(told, expected);
    }
}
