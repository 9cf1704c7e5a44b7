//! `foggara doctor` finds what is wrong with a host: each of ten faults is planted by itself, and is the only one that it names.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use foggara_tests::nodes::{Nodes, TOKEN};
use foggara_tests::process::text;
use foggara_tests::scratch::Scratch;
use foggara_tests::{machine, paths, ports};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A disk of its own, and its limits; then the program, with words before it, if there are any.
const HOST: &str = r#"
set -eu
mount -t tmpfs -o "size=$DISK" tmpfs "$DATA"
ulimit -n "$FILES"
eval "$BEFORE"
exec $WITH "$FOGGARA" doctor --json "$@"
"#;

/// Hides NVIDIA's driver where there is one.
const NO_DRIVER: &str = r#"unset LD_LIBRARY_PATH
for library in $(ldconfig -p | sed -n 's/.*=> \(.*libcuda\.so.*\)/\1/p'); do mount --bind /dev/null "$library"; done"#;

/// Each write takes a tenth of a second until it is on the disk.
const SLOW_DISK: &str = "strace -f -o /dev/null -e trace=fdatasync -e inject=fdatasync:delay_enter=100000";

/// What differs from a host that is fit.
#[derive(Default)]
struct Plant {
    /// Instead of enough.
    disk: Option<&'static str>,
    files: Option<&'static str>,
    /// Run before the program.
    before: &'static str,
    /// Words before the program.
    with: &'static str,
    /// Options and their values, instead of those of the same name.
    options: Vec<(&'static str, String)>,
}

/// A fault as it is planted, the section that tells it, and words that must be told.
struct Fault {
    name: &'static str,
    plant: Plant,
    section: &'static str,
    words: Vec<String>,
}

/// Looks at a host in a mount namespace of its own.
fn doctor(scratch: &Scratch, usual: &[(&'static str, String)], plant: &Plant) -> (Option<i32>, Value) {
    assert!(
        rustix::process::geteuid().is_root(),
        "mount namespaces need root: run this test as root (`sudo -E cargo xtask test`)"
    );
    let data = scratch.path().join("data");
    std::fs::create_dir_all(&data).unwrap();
    let mut options: Vec<(&str, String)> = usual.to_vec();
    options.push(("--data-dir", data.display().to_string()));
    options.retain(|(name, _)| plant.options.iter().all(|(planted, _)| planted != name));
    options.extend(plant.options.iter().cloned());
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", HOST, "sh", "--coordinator", "--worker"]);
    command.args(options.iter().flat_map(|(name, value)| [*name, value.as_str()]));
    command.env("DATA", &data).env("FOGGARA", paths::foggara());
    command.env("DISK", plant.disk.unwrap_or("4g")).env("FILES", plant.files.unwrap_or("4096"));
    command.env("BEFORE", plant.before).env("WITH", plant.with);
    let output = command.output().expect("`unshare` (of the package util-linux) can be run");
    let json = serde_json::from_slice(&output.stdout);
    (output.status.code(), json.unwrap_or_else(|e| panic!("{e}: {}", text(&output))))
}

/// Section and text of each fault.
fn faults(report: &Value) -> Vec<(String, String)> {
    let findings = report["findings"].as_array().unwrap().iter();
    let faults = findings.filter(|finding| finding["severity"] == "fault");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    faults
        .map(|fault| {
            assert!(!text(&fault["remedy"]).is_empty(), "every fault has a remedy: {fault}");
            (text(&fault["section"]), text(&fault["what"]))
        })
        .collect()
}

/// Stands before a coordinator at `behind`: tells the version and the time itself, and passes all else on. Where it listens.
async fn impostor(behind: String, version: &'static str, seconds_late: u64) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(between(stream, behind.clone(), version, seconds_late));
        }
    });
    address
}

async fn between(mut client: TcpStream, behind: String, version: &str, seconds_late: u64) {
    let mut first = [0; 4];
    if client.peek(&mut first).await.is_ok_and(|bytes| first[..bytes] == *b"GET ") {
        // To its end: what is left unread would break the connection before the answer is.
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(client.read_u8().await.unwrap());
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let at = format!("@{}", now - seconds_late);
        let date = Command::new("date")
            .env("LC_ALL", "C")
            .args(["-u", "-d", &at, "+%a, %d %b %Y %H:%M:%S GMT"])
            .output();
        let date = String::from_utf8(date.unwrap().stdout).unwrap();
        let answer =
            format!("HTTP/1.1 200 OK\r\ndate: {}\r\n\r\n{{\"version\": \"{version}\"}}", date.trim());
        client.write_all(answer.as_bytes()).await.unwrap();
        return;
    }
    let mut server = TcpStream::connect(behind).await.unwrap();
    tokio::io::copy_bidirectional(&mut client, &mut server).await.ok();
}

/// The configuration of a model of some terabytes.
fn giant(folder: &Path) -> String {
    std::fs::create_dir_all(folder).unwrap();
    let config = std::fs::read_to_string(paths::golden("llama").join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    for (key, value) in [
        ("num_hidden_layers", 500),
        ("hidden_size", 16_384),
        ("intermediate_size", 53_248),
        ("num_attention_heads", 128),
        ("num_key_value_heads", 8),
        ("head_dim", 128),
        ("vocab_size", 128_256),
    ] {
        config[key] = value.into();
    }
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    folder.display().to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_planted_faults_are_named_and_a_fit_host_has_none() {
    let _machine = machine::shared().await;
    let nodes = Nodes::start("preflight", 1, &[]);
    nodes.wait_status("it leads", |status| (status.leader == 1).then_some(())).await;
    let (scratch, free) = (Scratch::new("preflight-host"), ports::block());
    let own = |port: u16| format!("127.0.0.1:{port}");
    let usual = [
        ("--grpc", own(free)),
        ("--http", own(free + 1)),
        ("--listen", own(free + 2)),
        ("--join", nodes.grpc(0)),
        ("--cluster-token", TOKEN.to_owned()),
        ("--device", "cpu".to_owned()),
        ("--models", scratch.path().display().to_string()),
        ("--model", paths::golden("llama").display().to_string()),
    ];

    let examine = |plant: &Plant| tokio::task::block_in_place(|| doctor(&scratch, &usual, plant));
    let (code, report) = examine(&Plant::default());
    assert_eq!((code, faults(&report)), (Some(0), vec![]), "{report:#}");

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken_at = taken.local_addr().unwrap().to_string();
    let nobody_at = own(free + 3);
    let late = impostor(nodes.grpc(0), env!("CARGO_PKG_VERSION"), 3600).await;
    let older = impostor(nodes.grpc(0), "0.0.9", 0).await;
    let giant = giant(&scratch.path().join("giant"));
    let option = |name, value: &str| Plant { options: vec![(name, value.to_owned())], ..Plant::default() };
    let word = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
    let fault = |name, plant, section, words: &[&str]| Fault { name, plant, section, words: word(words) };
    let pid = format!("process {}", std::process::id());
    for Fault { name, plant, section, words } in [
        fault("port taken", option("--http", &taken_at), "ports", &[&taken_at, "is taken", &pid]),
        fault(
            "no space",
            Plant { disk: Some("8m"), ..Plant::default() },
            "disk",
            &["--data-dir", "no space"],
        ),
        fault("wrong clock", option("--join", &late), "clock", &[&late, "ahead of"]),
        fault(
            "missing library",
            Plant { before: NO_DRIVER, ..option("--device", "cuda") },
            "gpu",
            &["libcuda.so.1"],
        ),
        fault("low ulimit", Plant { files: Some("256"), ..Plant::default() }, "limits", &["256 open files"]),
        fault("unreachable peer", option("--join", &nobody_at), "peers", &[&nobody_at, "unreachable"]),
        fault("wrong token", option("--cluster-token", "another"), "token", &[&nodes.grpc(0), "refuses"]),
        fault(
            "slow disk",
            Plant { with: SLOW_DISK, ..Plant::default() },
            "disk",
            &["--data-dir", "slow disk"],
        ),
        fault("version mismatch", option("--join", &older), "version", &[&older, "0.0.9"]),
        fault("too little memory", option("--model", &giant), "models", &[&giant, "too little memory"]),
    ] {
        let (code, report) = examine(&plant);
        let found = faults(&report);
        let [(told, what)] = &found[..] else { panic!("{name}: {found:?} in {report:#}") };
        assert_eq!((code, told.as_str()), (Some(1), section), "{name}: {what}");
        for word in words {
            assert!(what.contains(&word), "{name}: no `{word}` in: {what}");
        }
    }
}
