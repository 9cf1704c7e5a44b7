//! What docs/troubleshoot.md, docs/tune.md and the runbooks say to type, typed at a real cluster; and the symptoms of the first page, had.
//! A command or a symptom that the pages get and that is not here fails.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use foggara_tests::page::Page;
use foggara_tests::process::{Process, text};
use foggara_tests::{machine, paths, wait};

use crate::documented::{MODEL, Shell};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";
/// Beside Foggara's own. Those of systemd are typed where it runs; `iostat` is of a package that need not be there.
const OTHERS: [&str; 6] = ["openssl", "curl", "dmesg", "ip", "promtool", "iostat"];
const ELSEWHERE: [&str; 3] = ["systemctl", "journalctl", "iostat"];
/// An answer that has been given.
const REQUEST: &str = "an-answer";

/// A cluster at the usual addresses, Prometheus beside it, and settings where pages have them.
struct Place {
    // Processes end before their network and their files go.
    _prometheus: Process,
    _cluster: Process,
    shell: Shell,
}

impl Place {
    async fn new() -> Self {
        let shell = Shell::new("troubleshoot");
        let folder = shell.folder().to_owned();
        std::fs::write(
            folder.join("coordinator.toml"),
            format!(
                "id = 1\npeers = [\"1=127.0.0.1:8081\"]\ndata_dir = \"{}\"\n",
                folder.join("data/coordinator-1").display()
            ),
        )
        .unwrap();
        let model = paths::models().join(MODEL);
        let up = format!("exec foggara up --data-dir data --model chat={}", model.display());
        let mut command = Self::shown(&shell, &up);
        let mut cluster = Process::start("up", Self::exec(&mut command), &folder.join("up.log"));
        cluster.line(Duration::from_secs(90));
        let prometheus = format!(
            "exec {} --config.file={} --storage.tsdb.path=series --web.listen-address=127.0.0.1:9090",
            paths::of_prometheus("prometheus").display(),
            paths::root().join("deploy/prometheus/prometheus.yml").display()
        );
        let mut command = shell.command(&prometheus);
        let prometheus =
            Process::start("prometheus", Self::exec(&mut command), &folder.join("prometheus.log"));
        let place = Self { _prometheus: prometheus, _cluster: cluster, shell };
        wait::until("Prometheus answers", async || {
            place.output("curl -s -f http://127.0.0.1:9090/-/ready").0.then_some(())
        })
        .await;
        place.ask();
        place
    }

    /// Has an answer given, or given again: who asks for it later finds it for a while only.
    fn ask(&self) {
        let body = r#"{"model": "chat", "prompt": "Once", "max_tokens": 4}"#;
        let ask = format!(
            "curl -s -f http://127.0.0.1:8080/v1/completions -H 'content-type: application/json' -H 'x-request-id: {REQUEST}' -d '{body}'"
        );
        assert!(self.output(&ask).0);
    }

    /// A command of somebody who has the token.
    fn shown(shell: &Shell, line: &str) -> Command {
        let mut command = shell.command(line);
        command.env("FOGGARA_CLUSTER_TOKEN", TOKEN);
        command
    }

    fn exec(command: &mut Command) -> Command {
        std::mem::replace(command, Command::new("true"))
    }

    /// Whether a command succeeds, and what it says.
    fn output(&self, line: &str) -> (bool, String) {
        let output = Self::shown(&self.shell, line).output().unwrap();
        (output.status.success(), text(&output))
    }

    /// A page's command for this cluster.
    fn here(&self, told: &str) -> String {
        let model = paths::models().join(MODEL).display().to_string();
        let mut here = told.to_owned();
        for (open, value) in [
            ("promtool", paths::of_prometheus("promtool").display().to_string()),
            ("http://PROMETHEUS", "http://127.0.0.1".into()),
            ("http://OTHER", "http://127.0.0.1".into()),
            ("http://HOST:PORT", "http://127.0.0.1:8081".into()),
            ("http://HOST", "http://127.0.0.1".into()),
            ("HOST:PORT", "127.0.0.1:8081".into()),
            ("--http ADDR", "--http 127.0.0.1:8080".into()),
            ("ADDR", "127.0.0.1:8081".into()),
            ("NAME=PATH", format!("another={model}")),
            ("PATH", model.clone()),
            ("plan MODEL", format!("plan {model}")),
            ("--data-dir DIR", "--data-dir data/coordinator-1".into()),
            ("REQUEST_ID", REQUEST.into()),
            ("/etc/foggara/coordinator.toml", "coordinator.toml".into()),
        ] {
            here = here.replace(open, &value);
        }
        here
    }
}

fn pages() -> Vec<Page> {
    let runbooks = std::fs::read_dir(paths::root().join("docs/runbooks")).unwrap();
    let names =
        runbooks.map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned());
    let runbooks = names.map(|name| Page::read(&format!("runbooks/{name}")));
    ["troubleshoot", "tune"].into_iter().map(Page::read).chain(runbooks).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_looked_at_when_something_is_wrong_can_be() {
    let _machine = machine::shared().await;
    let place = Place::new().await;
    let programs = [&["foggara"], &OTHERS[..], &ELSEWHERE[..2]].concat();
    let mut tried = std::collections::BTreeSet::new();
    for page in pages() {
        // Whatever is in a block is to be typed.
        let commands = page.commands().into_iter().chain(page.typed(&programs));
        for command in commands.filter(|command| tried.insert(command.clone())) {
            let program = command.split(' ').next().unwrap_or_default();
            assert!(programs.contains(&program), "{}: `{command}` is not tried", page.name());
            if ELSEWHERE.contains(&program) {
                continue;
            }
            if command.contains("REQUEST_ID") {
                place.ask();
            }
            let (succeeded, said) = place.output(&place.here(&command));
            let expected = match command.as_str() {
                // What it finds here is not what this is about.
                doctor if doctor.starts_with("foggara doctor") => said.contains("memory"),
                // All workers have a model: that is its answer. Without a path it says that it wants one.
                plan if plan.starts_with("foggara models plan") => {
                    said.contains("idle worker is needed") || said.contains("[NAME=]PATH")
                }
                _ => succeeded,
            };
            assert!(expected && !said.trim().is_empty(), "{}: {command}: {said}", page.name());
        }
    }
    assert!(tried.len() > 25, "{tried:?}");
}

/// What the first cells of the tables' rows quote, where they begin with it.
fn symptoms(page: &Page) -> Vec<String> {
    let rows = page.text().lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    rows.map(|(symptom, _)| symptom.to_owned()).collect()
}

/// Whether the parts of a symptom are in a text, in order.
fn has(said: &str, symptom: &str) -> bool {
    let mut rest = said;
    symptom.split('…').map(str::trim).all(|part| match rest.split_once(part) {
        Some((_, after)) => {
            rest = after;
            true
        }
        None => false,
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn symptoms_are_what_is_said() {
    let _machine = machine::shared().await;
    let place = Place::new().await;
    let alone = |more: &str| {
        format!("timeout 60 foggara coordinator --id 1 --peers 1=127.0.0.1:9081 --data-dir other {more}")
    };
    let mut had = 0;
    for symptom in symptoms(&Page::read("troubleshoot")) {
        let provoked = match symptom.as_str() {
            "listening on …: Address already in use" => {
                alone("--grpc 127.0.0.1:8081 --http 127.0.0.1:9080")
            }
            "… is not loopback: that needs a cluster token" => {
                format!("env -u FOGGARA_CLUSTER_TOKEN {}", alone("--grpc 0.0.0.0:9081"))
            }
            "belongs to coordinator … of cluster …" => {
                std::fs::write(
                    place.shell.folder().join("begin"),
                    begin(&alone("--grpc 127.0.0.1:9081 --http 127.0.0.1:9080")),
                )
                .unwrap();
                assert!(place.output("bash begin").0, "a coordinator that has begun");
                format!("{} --cluster-id another", alone("--grpc 127.0.0.1:9081 --http 127.0.0.1:9080"))
            }
            "--device: …" => {
                "CUDA_VISIBLE_DEVICES= timeout 60 foggara worker --join 127.0.0.1:8081 --device cuda".into()
            }
            "no coordinator answers" => "foggara status --endpoint http://127.0.0.1:9".into(),
            "this call needs the cluster token" => "env -u FOGGARA_CLUSTER_TOKEN foggara status".into(),
            "pending: …" => {
                let model = paths::models().join(MODEL);
                format!(
                    "foggara models add big={} --tp 9 --no-wait; for i in $(seq 600); do foggara models list | grep pending: && break; sleep 0.1; done; false",
                    model.display()
                )
            }
            // Had where disks lose writes (`raft.rs`, the store's own tests), and where versions differ (`rolling.rs`).
            "has lost writes"
            | "coordinator … refused this worker: foggara … speaks protocol …"
            | "it is in format … of the replicated state, …"
            | "loading" => {
                assert!(is_in_sources(&symptom), "nothing says `{symptom}`");
                continue;
            }
            other => panic!("docs/troubleshoot.md has a symptom that is not had: {other}"),
        };
        let (succeeded, said) = place.output(&provoked);
        assert!(!succeeded && has(&said, &symptom), "{symptom}: {provoked}: {said}");
        had += 1;
    }
    assert!(had >= 7, "{had} symptoms");
}

/// Runs a coordinator until its folder says whose it is.
fn begin(coordinator: &str) -> String {
    format!(
        "{coordinator} & for i in $(seq 600); do [ -s other/raft.redb ] && foggara status --endpoint http://127.0.0.1:9081 && break; sleep 0.1; done; kill $!; wait; [ -s other/raft.redb ]\n"
    )
}

/// Whether every part of a symptom is in a source of ours; what comes after a colon may be from another process.
fn is_in_sources(symptom: &str) -> bool {
    fn texts(folder: &Path) -> String {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        entries
            .map(|path| match path.is_dir() {
                true => texts(&path),
                false => std::fs::read_to_string(&path).unwrap_or_default(),
            })
            .collect()
    }
    let sources: String =
        ["cli", "coordinator", "worker", "proto"].map(|c| texts(&paths::root().join(c).join("src"))).concat();
    symptom.split(['…', ':']).map(str::trim).all(|part| sources.contains(part))
}
