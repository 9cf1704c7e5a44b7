//! A real Prometheus beside a cluster, with the rules of deploy/prometheus.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::cluster::Cluster;
use crate::process::Process;
use crate::scratch::Scratch;
use crate::{http, paths, ports, wait};

/// A running one. Killed when dropped.
#[derive(Debug)]
pub struct Prometheus {
    port: u16,
    // Before the folder: it ends before its files go.
    _process: Process,
    _folder: Scratch,
}

/// The rules that are shipped, as a test wants them.
#[derive(Debug, Clone)]
pub struct Rules {
    times: u32,
    /// Alerts whose times are shortened by another number.
    of_their_own: Vec<(String, u32)>,
    /// Alerts, what is in their expressions, and what is put there.
    instead: Vec<(String, String, String)>,
}

impl Rules {
    /// Every time, of ranges and of `for`, is so many times shorter.
    pub fn shorter(times: u32) -> Self {
        Self { times, of_their_own: Vec::new(), instead: Vec::new() }
    }

    /// So many times in the rule of this alert alone.
    #[must_use]
    pub fn alert(mut self, name: &str, times: u32) -> Self {
        self.of_their_own.push((name.into(), times));
        self
    }

    /// With another threshold in the rule of this alert.
    #[must_use]
    pub fn threshold(mut self, name: &str, shipped: &str, instead: &str) -> Self {
        self.instead.push((name.into(), shipped.into(), instead.into()));
        self
    }

    /// # Panics
    /// If a threshold is not in its rule.
    fn applied(&self, shipped: &str) -> String {
        let (mut out, mut alert) = (String::new(), "");
        for line in shipped.lines() {
            alert = line.trim_start().strip_prefix("- alert: ").unwrap_or(alert);
            let own = self.of_their_own.iter().find(|(name, _)| name == alert);
            let mut line = shortened(line, own.map_or(self.times, |(_, times)| *times));
            for (_, shipped, instead) in self.instead.iter().filter(|(name, ..)| name == alert) {
                if line.trim_start().starts_with("expr: ") {
                    assert!(line.contains(shipped), "{alert}: no `{shipped}` in {line}");
                    line = line.replace(shipped, instead);
                }
            }
            out.push_str(&line);
            out.push('\n');
        }
        out
    }
}

impl Prometheus {
    /// Scrapes `cluster` every half second, with rules whose times are `times` times shorter.
    pub async fn start(cluster: &Cluster, times: u32) -> Self {
        let doors: Vec<String> = (0..cluster.coordinators()).map(|number| cluster.http(number)).collect();
        Self::of(&doors, &Rules::shorter(times)).await
    }

    /// Scrapes the cluster whose coordinators have these HTTP addresses every half second.
    pub async fn of(doors: &[String], rules: &Rules) -> Self {
        Self::trusting(doors, rules, None).await
    }

    /// The same over TLS, with those that `ca` signs for.
    pub async fn trusting(doors: &[String], rules: &Rules, ca: Option<&Path>) -> Self {
        let secure = |indent: &str| {
            let lines = |ca: &Path| format!("{indent}tls_config:\n{indent}  ca_file: {}\n", ca.display());
            ca.map(lines).unwrap_or_default()
        };
        let scheme = if ca.is_some() { "https" } else { "http" };
        let (folder, port) = (Scratch::new("prometheus"), ports::block());
        let deploy = paths::root().join("deploy/prometheus");
        for name in ["recording.yml", "alerts.yml"] {
            let shipped = std::fs::read_to_string(deploy.join("rules").join(name)).expect("the rules");
            std::fs::write(folder.path().join(name), rules.applied(&shipped)).expect("can be written");
        }
        let discovery: String = doors
            .iter()
            .map(|door| {
                let url = format!("      - url: {door}/sd/prometheus\n        refresh_interval: 1s\n");
                url + &secure("        ")
            })
            .collect();
        let config = format!(
            "global:\n  scrape_interval: 500ms\n  scrape_timeout: 500ms\n  evaluation_interval: 500ms\nrule_files: ['*.yml']\n\
             scrape_configs:\n  - job_name: foggara\n    scheme: {scheme}\n{}    http_sd_configs:\n{discovery}",
            secure("    ")
        );
        let file = folder.path().join("prometheus.conf");
        std::fs::write(&file, config).expect("can be written");
        let mut command = Command::new(paths::of_prometheus("prometheus"));
        command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"));
        let process = Process::start("prometheus", command, &folder.path().join("prometheus.log"));
        let started = Self { port, _process: process, _folder: folder };
        wait::until("Prometheus scrapes every coordinator", async || {
            let up = started.query("sum(up{job=\"foggara\"})").await?;
            (up.first()?.1 == doors.len() as f64).then_some(())
        })
        .await;
        started
    }

    /// The labels and values of an instant query's series; `None` while it does not answer.
    pub async fn query(&self, expression: &str) -> Option<Vec<(Value, f64)>> {
        let url = reqwest::Url::parse_with_params(
            &format!("http://127.0.0.1:{}/api/v1/query", self.port),
            [("query", expression)],
        )
        .expect("a valid address");
        let response = http::client().get(url).send().await.ok()?;
        // While it starts.
        if response.status() == reqwest::StatusCode::SERVICE_UNAVAILABLE {
            return None;
        }
        let reply = http::Reply::read(response).await.json();
        assert!(reply["status"] == "success", "{expression}: {reply}");
        let series = reply["data"]["result"].as_array()?;
        let read = |one: &Value| {
            let value = one["value"][1].as_str()?.parse().ok()?;
            Some((one["metric"].clone(), value))
        };
        series.iter().map(read).collect()
    }

    /// The names of the alerts that fire.
    pub async fn firing(&self) -> Option<BTreeSet<String>> {
        let alerts = self.query("ALERTS{alertstate=\"firing\"}").await?;
        Some(alerts.iter().filter_map(|(labels, _)| Some(labels["alertname"].as_str()?.to_owned())).collect())
    }

    /// Waits until those named fire.
    pub async fn wait_firing(&self, names: &[&str]) {
        wait::until(&format!("{names:?} fire"), async || {
            let firing = self.firing().await?;
            names.iter().all(|name| firing.contains(*name)).then_some(())
        })
        .await;
    }

    /// Waits until none of those named fires.
    pub async fn wait_clear(&self, names: &[&str]) {
        wait::until(&format!("{names:?} are over"), async || {
            let firing = self.firing().await?;
            names.iter().all(|name| !firing.contains(*name)).then_some(())
        })
        .await;
    }
}

/// Runs `promtool` in deploy/prometheus; what it says must be success.
///
/// # Panics
/// If it is not, with what it says.
pub fn promtool(arguments: &[&str], input: Option<&Path>) {
    let mut command = Command::new(paths::of_prometheus("promtool"));
    command.args(arguments).current_dir(paths::root().join("deploy/prometheus"));
    if let Some(path) = input {
        command.stdin(std::fs::File::open(path).expect("can be read"));
    }
    let output = command.output().expect("promtool runs");
    assert!(output.status.success(), "promtool {arguments:?}: {}", crate::process::text(&output));
}

/// A line of rules with every time `times` times shorter.
fn shortened(line: &str, times: u32) -> String {
    match line.trim_start().strip_prefix("for: ") {
        Some(time) => {
            format!("{}for: {}", &line[..line.len() - line.trim_start().len()], shorter(time, times))
        }
        None => ranges(line, times),
    }
}

/// What is in square brackets and is a time.
fn ranges(line: &str, times: u32) -> String {
    let mut parts = line.split('[');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (inside, rest) = part.split_once(']').unwrap_or((part, ""));
        out.push_str(&format!("[{}]{rest}", shorter(inside, times)));
    }
    out
}

/// "5m" by 30 is "10s". Rates need two scrapes: never less than two seconds, but for 0.
fn shorter(time: &str, times: u32) -> String {
    let (number, unit) = time.split_at(time.len() - 1);
    let unit = match unit {
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => panic!("`{time}` is no time"),
    };
    let milliseconds: u32 =
        number.parse::<u32>().unwrap_or_else(|_| panic!("`{time}` is no time")) * unit / times;
    if milliseconds == 0 { "0s".into() } else { format!("{}ms", milliseconds.max(2000)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_become_shorter_and_nothing_else() {
        let rules = "      - alert: A\n        expr: rate(x_total{l=\"5m\"}[5m]) > 4 and y[10m]\n        for: 1h\n        for: 0s\n";
        let short = "      - alert: A\n        expr: rate(x_total{l=\"5m\"}[10000ms]) > 4 and y[20000ms]\n        for: 120000ms\n        for: 0s\n";
        assert_eq!(Rules::shorter(30).applied(rules), short);
        assert_eq!(shorter("1m", 60), "2000ms");
    }

    #[test]
    fn one_alert_may_differ() {
        let rules = "- alert: A\n  expr: a > 1\n  for: 1h\n- alert: B\n  expr: b > 1\n  for: 1h\n";
        let other = "- alert: A\n  expr: a > 1\n  for: 120000ms\n- alert: B\n  expr: b > 7\n  for: 36000ms\n";
        let changed = Rules::shorter(30).alert("B", 100).threshold("B", "> 1", "> 7");
        assert_eq!(changed.applied(rules), other);
    }
}
