//! From bare machines to a cluster and back by Terraform: hosts with nothing of ours on them, reached over SSH.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use foggara_proto::version::Range;
use foggara_tests::ask::Ask;
use foggara_tests::certificates::Certificates;
use foggara_tests::client::Client;
use foggara_tests::hosts::{GOLDEN, Hosts, MODELS};
use foggara_tests::steady::load;
use foggara_tests::terraform::Terraform;
use foggara_tests::{machine, paths, process, release};
use serde_json::{Value, json};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// A host as the module's variable `hosts` has it.
fn host(hosts: &Hosts, number: usize, coordinator: bool, workers: usize, models: &str) -> (String, Value) {
    let workers: Vec<Value> = (0..workers).map(|_| json!({"device": "cpu", "threads": 1})).collect();
    let value = json!({
        "address": hosts.address(number),
        "ssh_host_key": hosts.host_key(number),
        "coordinator": coordinator,
        "workers": workers,
        "models": [models],
    });
    (hosts.name(number).to_owned(), value)
}

/// The variables of the example, on machines without systemd and as root.
fn variables(hosts: &Hosts, those: impl IntoIterator<Item = (String, Value)>) -> Value {
    json!({
        "hosts": those.into_iter().collect::<serde_json::Map<_, _>>(),
        "binary": paths::foggara(),
        "ssh_private_key_file": hosts.private_key(),
        "service_manager": "foggara",
    })
}

/// Where the operator has the cluster's authority.
fn authority(hosts: &Hosts) -> std::path::PathBuf {
    hosts.folder().join("authority")
}

/// New certificates for the first `count` hosts, as the module's variable `tls` has them.
fn tls(hosts: &Hosts, certificates: &Certificates, count: usize) -> Value {
    let read = |path| std::fs::read_to_string(path).unwrap();
    let of = |number: usize| {
        let files = certificates.issue(&[&hosts.address(number)]);
        (
            hosts.name(number).to_owned(),
            json!({"certificate": read(files.certificate), "key": read(files.key)}),
        )
    };
    let all: serde_json::Map<_, _> = (0..count).map(of).collect();
    json!({"ca": read(certificates.ca()), "certificates": all})
}

/// `foggara` with these arguments, typed by the operator.
fn operate(hosts: &Hosts, endpoint: &str, words: &[&str]) -> String {
    let mut command = Command::new(paths::foggara());
    command.args(words).env("FOGGARA_ENDPOINT", endpoint).env("FOGGARA_CLUSTER_TOKEN", TOKEN);
    if endpoint.starts_with("https://") {
        command.env("FOGGARA_TLS_CA", authority(hosts).join("ca.crt"));
    }
    let output = hosts.operator(&command).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "foggara {}: {}", words.join(" "), process::text(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Versions of coordinators and workers, of a status in JSON.
fn versions(status: &str) -> Vec<String> {
    let status: Value = serde_json::from_str(status).unwrap();
    let processes = ["coordinators", "workers"].map(|list| status[list].as_array().unwrap().clone());
    let mut versions: Vec<String> =
        processes.concat().iter().map(|process| process["version"].as_str().unwrap().to_owned()).collect();
    versions.sort();
    versions.dedup();
    versions
}

/// Processes of ours on each host.
fn processes(hosts: &Hosts, count: usize) -> Vec<Vec<u32>> {
    (0..count).map(|number| hosts.running(number, "foggara")).collect()
}

/// Two empty machines, one `terraform apply`, a token, certificates; the page docs/terraform.md, step by step.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_bare_machines_become_a_cluster_and_bare_again() {
    let _machine = machine::shared().await;
    let hosts = Hosts::new("two-machines", &["one", "two"]);
    hosts.wait_up().await;
    let terraform = Terraform::new(&hosts, "bare-metal", TOKEN);
    let both = |first: bool| [host(&hosts, 0, first, 1, MODELS), host(&hosts, 1, !first, 1, MODELS)];
    let certificates = Certificates::new(&authority(&hosts));
    let mut shown = tls(&hosts, &certificates, 2);
    let secured = |first: bool, shown: &Value| {
        let mut wanted = variables(&hosts, both(first));
        wanted["tls"] = shown.clone();
        wanted
    };
    terraform.set(&secured(true, &shown));
    terraform.succeeds(&["apply"]);
    let running = processes(&hosts, 2);
    assert_eq!(
        running.iter().map(Vec::len).collect::<Vec<_>>(),
        [3, 2],
        "supervisors, a coordinator, two workers"
    );

    let endpoint = terraform.output("endpoint");
    assert_eq!(endpoint, format!("https://{}:8081", hosts.address(0)));
    operate(&hosts, &endpoint, &["models", "add", "chat=smollm2-135m-instruct-q4_1.gguf", "--tp", "2"]);
    let greedy = ["--temperature", "0", "--min-tokens", "8", "--max-tokens", "8", "Once upon a time"];
    let said = operate(&hosts, &endpoint, &[&["generate", "--model", "chat"], &greedy[..]].concat());
    assert!(!said.trim().is_empty(), "it tells something");

    assert!(terraform.plan_is_empty(), "what has been applied needs nothing");
    let again = terraform.succeeds(&["apply"]);
    assert!(again.contains("0 added, 0 changed, 0 destroyed"), "{again}");
    assert_eq!(processes(&hosts, 2), running, "nothing was restarted");
    let state = std::fs::read_to_string(terraform.state()).unwrap();
    assert!(!state.contains(TOKEN), "the token is not in the state");
    assert!(!state.contains("PRIVATE KEY"), "nor is a key");

    shown = tls(&hosts, &certificates, 2);
    terraform.set(&secured(true, &shown));
    terraform.succeeds(&["apply"]);
    assert_eq!(processes(&hosts, 2), running, "other certificates restart nothing");
    let there = std::fs::read_to_string(hosts.path(1, "/etc/foggara/tls.crt")).unwrap();
    assert_eq!(json!(there), shown["certificates"]["two"]["certificate"], "and are there");
    let key = hosts.path(1, "/etc/foggara/tls.key").metadata().unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&key.permissions()) & 0o777, 0o600);

    terraform.set(&variables(&hosts, both(true)));
    let refused = process::text(&terraform.run(&["apply"]));
    assert!(refused.contains("a change between plain text and TLS"), "{refused}");
    assert_eq!(processes(&hosts, 2), running, "nothing was touched");

    terraform.set(&secured(false, &shown));
    let refused = terraform.run(&["apply"]);
    let refused = process::text(&refused);
    assert!(refused.contains("coordinators of a running cluster cannot change"), "{refused}");
    assert_eq!(processes(&hosts, 2), running, "nothing was touched");

    let stranger =
        release::another(hosts.folder(), |build| build.protocols = Range { oldest: 99, newest: 99 });
    let mut wanted = secured(true, &shown);
    wanted["binary"] = json!(stranger);
    terraform.set(&wanted);
    let refused = process::text(&terraform.run(&["apply"]));
    assert!(refused.contains("a release that cannot work with the one that runs"), "{refused}");
    assert_eq!(processes(&hosts, 2), running, "nor by this");

    terraform.set(&secured(true, &shown));
    terraform.succeeds(&["destroy"]);
    assert_eq!(processes(&hosts, 2), [Vec::<u32>::new(), Vec::new()], "no process is left");
    for (number, path, left) in [
        (0, "/usr/local/bin/foggara", false),
        (1, "/usr/local/lib/foggara", false),
        (0, "/etc/foggara", false),
        (0, "/root/.foggara-staging", false),
        (0, "/var/lib/foggara/coordinator/raft.redb", true),
    ] {
        assert_eq!(hosts.path(number, path).symlink_metadata().is_ok(), left, "{path}");
    }
}

/// The same where systemd keeps the processes, for somebody who is not root but may become it; and the next release of the program.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_machines_with_systemd_are_changed_by_somebody_who_is_not_root() {
    let _machine = machine::shared().await;
    let hosts = Hosts::with_systemd("two-with-systemd", &["one", "two"]);
    hosts.wait_up().await;
    let run = |number: usize, line: &str| {
        let output = hosts.ssh(number, line);
        assert!(output.status.success(), "{line}: {}", process::text(&output));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    for number in 0..2 {
        run(number, "useradd --create-home --password '*' --shell /bin/sh ann");
        run(number, "echo 'ann ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/ann");
    }
    let terraform = Terraform::new(&hosts, "bare-metal", TOKEN);
    let mut wanted = variables(&hosts, [host(&hosts, 0, true, 1, GOLDEN), host(&hosts, 1, false, 1, GOLDEN)]);
    wanted["service_manager"] = json!("systemd");
    wanted["ssh_user"] = json!("ann");
    terraform.set(&wanted);
    terraform.succeeds(&["apply"]);
    let units = [(0, "foggara-coordinator"), (0, "foggara-worker@1"), (1, "foggara-worker@1")];
    let pids = || {
        units.map(|(number, unit)| {
            assert_eq!(
                run(number, &format!("systemctl is-active {unit}; systemctl is-enabled {unit}")),
                "active\nenabled"
            );
            let pid = run(number, &format!("systemctl show --value --property=MainPID {unit}"));
            assert_eq!(run(number, &format!("stat -c %U /proc/{pid}")), "foggara", "{unit}");
            pid
        })
    };
    let running = pids();
    let endpoint = terraform.output("endpoint");
    operate(&hosts, &endpoint, &["models", "add", "tiny=llama", "--tp", "2"]);
    let tokens = || {
        hosts.inside(async || {
            let ask = Ask::tokens("tiny", &[7, 8, 9]).exactly(20).logprobs(1);
            Client::new(&format!("{}:8081", hosts.address(0))).ask(ask).await.bits()
        })
    };
    let before = tokens();

    assert!(terraform.plan_is_empty(), "what has been applied needs nothing");
    let again = terraform.succeeds(&["apply"]);
    assert!(again.contains("0 added, 0 changed, 0 destroyed"), "{again}");
    assert_eq!(pids(), running, "nothing was restarted");

    wanted["binary"] = json!(release::next(hosts.folder()));
    terraform.set(&wanted);
    terraform.succeeds(&["apply"]);
    pids().iter().zip(&running).for_each(|(new, old)| assert_ne!(new, old, "all were started anew"));
    let status: Value = serde_json::from_str(&operate(&hosts, &endpoint, &["status", "--json"])).unwrap();
    assert_eq!(
        status["deployments"][0]["ready_replicas"], 1,
        "its group was formed again before the apply ended"
    );
    assert_eq!(tokens(), before);

    terraform.succeeds(&["destroy"]);
    assert_eq!(processes(&hosts, 2), [Vec::<u32>::new(), Vec::new()], "no process is left");
    for number in 0..2 {
        assert_eq!(run(number, "systemctl list-units --all --no-legend 'foggara*'"), "", "nor a unit");
        assert_eq!(run(number, "systemctl list-unit-files --no-legend 'foggara*' || true"), "");
        assert_eq!(run(number, "find /etc/systemd /usr/local /home/ann -name '*foggara*'"), "", "nor a file");
    }
}

/// Runs `change` while there is load; none of it is lost.
fn under_load(hosts: &Hosts, change: impl FnOnce()) -> (usize, usize) {
    let (stop, begun) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let answered = scope.spawn(|| {
            hosts.inside(async || {
                let client = |number| Client::new(&format!("{}:8081", hosts.address(number)));
                load(&(0..3).map(client).collect::<Vec<_>>(), &stop, &begun).await
            })
        });
        // Not before it has begun.
        while begun.load(Ordering::Relaxed) < 4 && !answered.is_finished() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let changed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(change));
        stop.store(true, Ordering::Relaxed);
        let answered = answered.join();
        match (changed, answered) {
            (Err(panic), _) | (_, Err(panic)) => std::panic::resume_unwind(panic),
            (Ok(()), Ok(answered)) => answered,
        }
    })
}

/// The next release of the program, and machines that come and go, under load.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_upgraded_and_scaled_under_load() {
    let _machine = machine::shared().await;
    let hosts = Hosts::new("upgrade", &["a", "b", "c", "d"]);
    hosts.wait_up().await;
    let terraform = Terraform::new(&hosts, "bare-metal", TOKEN);
    let three = || {
        (0..3).map(|number| host(&hosts, number, true, usize::from(number < 2), GOLDEN)).collect::<Vec<_>>()
    };
    let mut wanted = variables(&hosts, three());
    terraform.set(&wanted);
    terraform.succeeds(&["apply"]);
    let endpoint = terraform.output("endpoint");
    operate(&hosts, &endpoint, &["models", "add", "tiny=llama", "--tp", "1", "--replicas", "2"]);
    let before = processes(&hosts, 3);

    wanted["binary"] = json!(release::next(hosts.folder()));
    terraform.set(&wanted);
    let (answered, elsewhere) = under_load(&hosts, || drop(terraform.succeeds(&["apply"])));
    eprintln!("{answered} requests answered during the upgrade, {elsewhere} of them after asking elsewhere");
    for (number, (old, new)) in before.iter().zip(processes(&hosts, 3)).enumerate() {
        assert_eq!(old.len(), new.len(), "host {number}");
        let kept = old.iter().filter(|pid| new.contains(pid)).count();
        assert_eq!(kept, 1, "host {number}: all but the supervisor were started anew");
    }
    assert_eq!(versions(&operate(&hosts, &endpoint, &["status", "--json"])), [release::next_version()]);
    assert!(terraform.plan_is_empty());

    // A machine more, and away again.
    let all = three().into_iter().chain([host(&hosts, 3, false, 1, GOLDEN)]);
    wanted["hosts"] = variables(&hosts, all)["hosts"].clone();
    terraform.set(&wanted);
    let upgraded = processes(&hosts, 3);
    under_load(&hosts, || drop(terraform.succeeds(&["apply"])));
    assert!(operate(&hosts, &endpoint, &["status"]).contains(&hosts.address(3)), "it has joined");
    assert_eq!(processes(&hosts, 3), upgraded, "the others were not touched");
    wanted["hosts"] = variables(&hosts, three())["hosts"].clone();
    terraform.set(&wanted);
    under_load(&hosts, || drop(terraform.succeeds(&["apply"])));
    assert_eq!(hosts.running(3, "foggara"), Vec::<u32>::new());
    assert_eq!(processes(&hosts, 3), upgraded, "the others were not touched");

    wanted["purge"] = json!(true);
    terraform.set(&wanted);
    terraform.succeeds(&["apply"]);
    terraform.succeeds(&["destroy"]);
    assert_eq!(processes(&hosts, 4).concat(), Vec::<u32>::new(), "no process is left");
    assert!(!hosts.path(0, "/var/lib/foggara/coordinator").exists(), "nor data, when that is asked for");
}
