//! What docs/install.md says to type, typed on hosts that run systemd; then what the units promise: processes that are started again
//! when they die or hang, and not when that would do no good, that stop as they should, and that can do their work in their sandbox.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use foggara_tests::answer::{Answer, TokenBits};
use foggara_tests::ask::Ask;
use foggara_tests::client::Client;
use foggara_tests::hosts::{GOLDEN, Hosts};
use foggara_tests::page::Page;
use foggara_tests::process::text;
use foggara_tests::{machine, wait};

use crate::packaged::packages;

const COORDINATOR: &str = "foggara-coordinator";
const WORKER: &str = "foggara-worker";

/// A machine that is a cluster by itself.
struct Machine(Hosts);

impl Machine {
    async fn boot(name: &str) -> Self {
        let hosts = Hosts::with_systemd(name, &[name]);
        hosts.wait_up().await;
        Self(hosts)
    }

    /// Types lines, each of which must succeed.
    fn run(&self, lines: &str) -> String {
        let output = self.0.ssh(0, &format!("set -e\n{lines}"));
        assert!(output.status.success(), "{lines}: {}", text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn succeeds(&self, line: &str) -> bool {
        self.0.ssh(0, line).status.success()
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path(0, path)
    }

    /// Puts a file into the administrator's folder.
    fn copy(&self, file: &Path) {
        let name = file.file_name().unwrap().to_str().unwrap();
        std::fs::copy(file, self.path(&format!("/root/{name}"))).unwrap();
    }

    /// Edits a file of settings: the page's addresses become this machine's, and more.
    fn edit(&self, from: &str, to: &str, more: &[(&str, &str)]) {
        let mut settings = std::fs::read_to_string(self.path(from)).unwrap();
        let address = self.0.address(0);
        let coordinators = r#"["1=10.0.0.1:8081", "2=10.0.0.2:8081", "3=10.0.0.3:8081"]"#;
        let join = r#"["10.0.0.1:8081", "10.0.0.2:8081", "10.0.0.3:8081"]"#;
        for (old, new) in [
            (coordinators, format!(r#"["1={address}:8081"]"#).as_str()),
            (join, &format!(r#"["{address}:8081"]"#)),
            ("\"10.0.0.1:", &format!("\"{address}:")),
            ("\"10.0.0.7:", &format!("\"{address}:")),
        ]
        .into_iter()
        .chain(more.iter().copied())
        {
            settings = settings.replace(old, new);
        }
        std::fs::write(self.path(to), settings).unwrap();
    }

    /// What systemd knows of a unit.
    fn property(&self, unit: &str, name: &str) -> String {
        self.properties(unit, &[name]).remove(0)
    }

    fn properties(&self, unit: &str, names: &[&str]) -> Vec<String> {
        let told = self.run(&format!("systemctl show --property={} {unit}", names.join(",")));
        // It tells them in an order of its own.
        let one = |name: &&str| told.lines().find_map(|line| line.strip_prefix(*name)?.strip_prefix('='));
        names.iter().map(|name| one(name).unwrap_or_else(|| panic!("{told}")).to_owned()).collect()
    }

    /// Process id of a unit that is active.
    fn pid(&self, unit: &str) -> String {
        assert_eq!(self.property(unit, "ActiveState"), "active", "{unit}");
        self.property(unit, "MainPID")
    }

    /// Waits until `unit` runs as another process than `old`.
    async fn runs_anew(&self, unit: &str, old: &str) {
        wait::until(&format!("{unit} is started again"), async || {
            let now = self.properties(unit, &["ActiveState", "MainPID"]);
            (now[0] == "active" && now[1] != old).then_some(())
        })
        .await;
    }

    fn journal(&self, unit: &str) -> String {
        self.run(&format!("journalctl --no-pager --output=cat --unit={unit}"))
    }

    /// `foggara` as its operator types it.
    fn operate(&self, words: &str) -> String {
        let address = self.0.address(0);
        let environment =
            format!("FOGGARA_ENDPOINT={address}:8081 FOGGARA_CLUSTER_TOKEN_FILE=/etc/foggara/token");
        self.run(&format!("{environment} foggara {words}"))
    }

    /// Waits until there are so many workers, and asks for tokens of `tiny`.
    fn tokens(&self, workers: usize) -> (Vec<u32>, Vec<TokenBits>) {
        self.operate(&format!("status --wait 90 --workers {workers}"));
        let ask = async || self.client().ask(Ask::tokens("tiny", &[7, 8, 9]).exactly(20).logprobs(1)).await;
        self.0.inside(ask).bits()
    }

    fn client(&self) -> Client {
        Client::new(&format!("{}:8081", self.0.address(0)))
    }

    /// Stops the coordinator while an answer is under way (or has just ended, where typing takes longer); gives how many tokens came of it.
    fn tokens_of_one_that_is_open(&self, tokens: usize) -> usize {
        self.0.inside(async || {
            let ask = Ask::tokens("tiny", &[7, 8, 9]).exactly(tokens as u32).build();
            let mut stream = self.client().stream(ask).await.unwrap();
            let mut answer = Answer::default();
            while answer.token_ids.is_empty() {
                assert!(answer.next(&mut stream).await.unwrap());
            }
            self.run(&format!("systemctl stop --no-block {COORDINATOR}"));
            while answer.next(&mut stream).await.unwrap() {}
            answer.token_ids.len()
        })
    }

    /// A limit of a process, soft and hard.
    fn limit(&self, pid: &str, name: &str) -> [u64; 2] {
        let limits = self.run(&format!("cat /proc/{pid}/limits"));
        let line =
            limits.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{limits}"));
        let mut values = line.split_whitespace().map(|value| value.parse().unwrap_or(u64::MAX));
        [values.next().unwrap(), values.next().unwrap()]
    }

    /// What becomes of a limit that a unit asks for: where this machine's root may not raise limits, no host's may.
    fn allowed(&self, name: &str, asked: u64) -> [u64; 2] {
        const CAP_SYS_RESOURCE: u32 = 24;
        let status = self.run("cat /proc/1/status");
        let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
        let may_raise = u64::from_str_radix(capabilities.trim(), 16).unwrap() >> CAP_SYS_RESOURCE & 1 == 1;
        let [_, hard] = self.limit("1", name);
        [if may_raise { asked } else { asked.min(hard) }; 2]
    }

    /// What a unit's process may do: what its work needs, and no more.
    fn is_in_its_sandbox(&self, unit: &str) {
        let pid = self.pid(unit);
        assert_eq!(self.limit(&pid, "Max open files"), self.allowed("Max open files", 65536), "{unit}");
        if unit.starts_with(WORKER) {
            let locked = "Max locked memory";
            assert_eq!(self.limit(&pid, locked), self.allowed(locked, u64::MAX), "{unit}");
        }
        let status = self.run(&format!("cat /proc/{pid}/status"));
        let user = self.run("id -u foggara");
        for (key, value) in [
            ("Uid", user.trim()),
            ("NoNewPrivs", "1"),
            ("Seccomp", "2"),
            ("CapEff", "0000000000000000"),
            ("CapBnd", "0000000000000000"),
        ] {
            let line = status.lines().find(|line| line.starts_with(&format!("{key}:"))).unwrap();
            assert_eq!(line.split_whitespace().nth(1), Some(value), "{unit}: {line}");
        }
        for folder in ["/etc/foggara", "/usr/local", "/home", "/sys/fs/cgroup"] {
            let there = format!("nsenter --mount --target {pid} touch {folder}/written-by-{unit}");
            let output = self.0.ssh(0, &there);
            assert!(text(&output).contains("Read-only file system"), "{unit}: {there}: {}", text(&output));
        }
    }

    /// A process that hangs says nothing: systemd ends it, and starts another.
    async fn is_watched(&self, unit: &str) {
        let pid = self.pid(unit);
        self.run(&format!("kill -STOP {pid}"));
        self.runs_anew(unit, &pid).await;
        let journal = self.journal(unit);
        assert!(journal.contains("Watchdog timeout"), "{journal}");
    }

    /// A process that dies is started again.
    async fn is_started_again(&self, unit: &str) {
        let pid = self.pid(unit);
        self.run(&format!("kill -9 {pid}"));
        self.runs_anew(unit, &pid).await;
    }

    /// Wrong settings: it is not started again, until they are put right.
    async fn is_not_started_again(&self, unit: &str, file: &str) {
        self.run(&format!("cp -p {file} {file}.right; echo 'no_such_setting = 1' >>{file}"));
        assert!(!self.succeeds(&format!("systemctl restart {unit}")), "{unit} starts with wrong settings");
        let ended = self.properties(unit, &["ActiveState", "ExecMainStatus", "NRestarts"]);
        assert_eq!(ended, ["failed", "2", "0"], "{unit}");
        self.run(&format!("mv {file}.right {file}; systemctl restart {unit}"));
    }

    /// How a unit that was stopped has ended.
    async fn has_ended_well(&self, unit: &str) {
        wait::until(&format!("{unit} has stopped"), async || {
            (self.property(unit, "ActiveState") == "inactive").then_some(())
        })
        .await;
        let ended = self.properties(unit, &["Result", "ExecMainCode", "ExecMainStatus"]);
        assert_eq!(ended, ["success", "1", "0"], "{unit}: it ended by itself, with 0");
    }

    /// Less patience with processes that hang than the units have.
    fn hurry(&self) {
        let lines = [COORDINATOR, WORKER, "foggara-worker@"].map(|unit| {
            format!("mkdir -p /etc/systemd/system/{unit}.service.d\nprintf '[Service]\\nWatchdogSec=8\\n' >/etc/systemd/system/{unit}.service.d/test.conf\n")
        });
        self.run(&(lines.concat() + "systemctl daemon-reload"));
    }
}

/// The page's blocks, each as it stands.
struct Blocks {
    debian: String,
    tarball: String,
    token: String,
    start: String,
}

fn page() -> Blocks {
    let blocks = Page::read("install").blocks("");
    let [debian, tarball, token, start] =
        <[String; 4]>::try_from(blocks).expect("a block of docs/install.md is not tried");
    Blocks { debian, tarball, token, start }
}

fn package(end: &str) -> PathBuf {
    let all = std::fs::read_dir(packages()).unwrap().map(|entry| entry.unwrap().path());
    all.into_iter().find(|path| path.to_str().unwrap().ends_with(end)).expect("it was made")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_debian_package_is_installed_run_upgraded_and_removed() {
    let _machine = machine::shared().await;
    let page = page();
    let machine = Machine::boot("debian").await;
    // Nobody sits there to say yes.
    std::fs::write(machine.path("/etc/apt/apt.conf.d/yes"), "APT::Get::Assume-Yes \"true\";\n").unwrap();
    machine.copy(&package(".deb"));
    machine.run(&page.debian);
    for unit in [COORDINATOR, WORKER] {
        let installed = machine.properties(unit, &["ActiveState", "UnitFileState"]);
        assert_eq!(installed, ["inactive", "disabled"], "nothing is started");
    }
    machine.run(&page.token);
    machine.edit("/etc/foggara/coordinator.toml", "/etc/foggara/coordinator.toml", &[]);
    machine.edit("/etc/foggara/worker.toml", "/etc/foggara/worker.toml", &[]);
    machine.hurry();
    for kind in ["coordinator", "worker"] {
        machine.run(&page.start.replace("coordinator", kind));
        let unit = format!("foggara-{kind}");
        let status = machine.run(&format!("systemctl status --no-pager {unit}"));
        let said = if kind == "worker" { "Status: \"joined as worker " } else { "Status: \"" };
        assert!(status.contains("active (running)") && status.contains(said), "{status}");
        assert_eq!(machine.property(&unit, "UnitFileState"), "enabled");
        machine.is_in_its_sandbox(&unit);
    }
    machine.run(&format!("cp -r {GOLDEN}/llama /var/lib/foggara/models"));
    machine.operate("models add tiny=llama");
    let tokens = machine.tokens(1);

    machine.is_started_again(WORKER).await;
    assert_eq!(machine.tokens(1), tokens);
    machine.is_watched(WORKER).await;
    assert_eq!(machine.tokens(1), tokens);
    machine.is_not_started_again(WORKER, "/etc/foggara/worker.toml").await;
    machine.is_not_started_again(COORDINATOR, "/etc/foggara/coordinator.toml").await;
    assert_eq!(machine.tokens(1), tokens);

    assert_eq!(machine.tokens_of_one_that_is_open(200), 200, "nothing is cut off");
    machine.has_ended_well(COORDINATOR).await;
    // The worker looks for its cluster meanwhile.
    machine.run(&format!("systemctl stop {WORKER}"));
    machine.has_ended_well(WORKER).await;
    // As when the machine boots: all that is enabled, in whatever order. One more worker, to see what becomes of it.
    machine.edit("/etc/foggara/worker.toml", "/etc/foggara/worker-1.toml", &[(":8082\"", ":8083\"")]);
    machine.run("systemctl enable foggara-worker@1; systemctl start multi-user.target");
    assert_eq!(machine.tokens(2), tokens);

    let units = [COORDINATOR, WORKER, "foggara-worker@1"];
    let running = units.map(|unit| machine.pid(unit));
    machine.run("rm foggara_*_amd64.deb");
    machine.copy(&newer(machine.0.folder()));
    machine.run(&page.debian);
    assert_eq!(units.map(|unit| machine.pid(unit)), running, "an upgrade restarts nothing");
    assert_eq!(machine.tokens(2), tokens);
    machine.run(&format!("systemctl restart {}", units.join(" ")));
    units.iter().zip(&running).for_each(|(unit, old)| assert_ne!(machine.pid(unit), *old, "{unit}"));
    assert_eq!(machine.tokens(2), tokens);

    machine.run("apt remove foggara");
    assert_eq!(machine.0.running(0, "foggara"), Vec::<u32>::new(), "no process is left");
    assert_eq!(
        machine.run("find /etc/systemd -name 'foggara*.service'"),
        "",
        "nor anything that would start one"
    );
    assert!(machine.path("/etc/foggara/token").exists());
    machine.run("apt purge foggara");
    assert!(!machine.path("/etc/foggara").exists() && machine.path("/var/lib/foggara/models/llama").exists());
}

/// The package with another version.
fn newer(folder: &Path) -> PathBuf {
    let (tree, newer) = (folder.join("tree"), folder.join("foggara_newer_amd64.deb"));
    let dpkg = |words: &[&OsStr]| {
        let output = Command::new("dpkg-deb").args(words).output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", text(&output));
    };
    dpkg(&["--raw-extract".as_ref(), package(".deb").as_ref(), tree.as_ref()]);
    let control = tree.join("DEBIAN/control");
    let said = std::fs::read_to_string(&control).unwrap();
    let version = said.lines().find(|line| line.starts_with("Version: ")).unwrap();
    std::fs::write(&control, said.replace(version, &format!("{version}+newer"))).unwrap();
    // As it is: packing takes time.
    dpkg(&[
        "--root-owner-group".as_ref(),
        "-Znone".as_ref(),
        "--build".as_ref(),
        tree.as_ref(),
        newer.as_ref(),
    ]);
    newer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tarball_is_unpacked_and_two_workers_share_memory() {
    let _machine = machine::shared().await;
    let page = page();
    let machine = Machine::boot("other").await;
    machine.copy(&package(".tar.gz"));
    machine.run(&page.tarball);
    machine.run(&page.token);
    machine.edit("/etc/foggara/coordinator.toml", "/etc/foggara/coordinator.toml", &[]);
    for number in ["1", "2"] {
        let port = format!(":808{}\"", number.parse::<u32>().unwrap() + 1);
        let file = format!("/etc/foggara/worker-{number}.toml");
        let more = [(":8082\"", port.as_str()), ("/var/lib/foggara/models", "/home/ann/models")];
        machine.edit("/etc/foggara/worker.toml", &file, &more);
    }
    machine.run(&format!("install -d -m 755 /home/ann/models; cp -r {GOLDEN}/llama /home/ann/models"));
    machine.hurry();
    machine.run(&page.start);
    let workers = ["foggara-worker@1", "foggara-worker@2"];
    for worker in workers {
        let named = page.start.replace("foggara-coordinator", worker);
        machine.run(&named.replace("coordinator", &worker.replace("foggara-", "").replace('@', "-")));
    }
    for unit in [COORDINATOR].into_iter().chain(workers) {
        machine.is_in_its_sandbox(unit);
    }
    machine.operate("models add tiny=llama --tp 2");
    let tokens = machine.tokens(2);
    let share_memory = || {
        for worker in workers {
            let maps = machine.run(&format!("cat /proc/{}/maps", machine.pid(worker)));
            assert!(maps.contains("/dev/shm/foggara"), "{worker}: {maps}");
        }
    };
    share_memory();

    machine.is_started_again(workers[1]).await;
    assert_eq!(machine.tokens(2), tokens);
    machine.is_watched(COORDINATOR).await;
    assert_eq!(machine.tokens(2), tokens);
    share_memory();

    machine.run(&format!("systemctl stop {}", workers.join(" ")));
    for worker in workers {
        machine.has_ended_well(worker).await;
    }
    machine.run(&format!("systemctl stop {COORDINATOR}"));
    machine.has_ended_well(COORDINATOR).await;
    assert_eq!(machine.run("ls /dev/shm"), "", "nothing is left in shared memory");
    assert_eq!(machine.0.running(0, "foggara"), Vec::<u32>::new());
}
