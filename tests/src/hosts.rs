//! Linux hosts on this machine, as empty as this one is: each has a network, processes and a file system of its own (what it writes
//! stays apart from what is there), and an SSH server; with systemd to keep it, where that is wanted. Needs root.

mod group;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use group::Group;

use crate::netns::{self, ip};
use crate::process::{self, Process};
use crate::scratch::Scratch;
use crate::{paths, wait};

/// The operator's address, on the network that joins the hosts.
const OPERATOR: &str = "10.214.0.1";
/// Where a host has the models of [`paths::models`], read-only.
pub const MODELS: &str = "/models";
/// Where it has the tiny ones of `tests/golden`, read-only.
pub const GOLDEN: &str = "/golden";

/// Makes a host, as process 1 of it.
const BOOT: &str = include_str!("hosts/boot.sh");

/// What runs as process 1 of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum First {
    /// The SSH server: there is nothing else.
    Sshd,
    /// systemd, which keeps the SSH server and whatever is asked of it.
    Systemd,
}

/// Hosts that reach each other and the operator, and nothing else. Gone, with all that runs on them, when dropped.
#[derive(Debug)]
pub struct Hosts {
    // Processes end before their network and their files go.
    hosts: Vec<Host>,
    switch: String,
    scratch: Scratch,
}

/// One of them.
#[derive(Debug)]
struct Host {
    name: String,
    namespace: String,
    host_key: String,
    first: Process,
    /// Where systemd is process 1.
    group: Option<Group>,
    folder: PathBuf,
}

impl Hosts {
    /// Makes those with these names.
    ///
    /// # Panics
    /// With what to do about it, if the system does not allow it.
    pub fn new(test: &str, names: &[&str]) -> Self {
        Self::with(First::Sshd, test, names)
    }

    /// The same, with systemd as process 1 of each.
    pub fn with_systemd(test: &str, names: &[&str]) -> Self {
        Self::with(First::Systemd, test, names)
    }

    fn with(first: First, test: &str, names: &[&str]) -> Self {
        netns::must_be_root();
        let id = netns::unused();
        let switch = format!("foggara-s{id}");
        ip(&["netns", "add", &switch]);
        let scratch = Scratch::new(test);
        let mut made = Self { hosts: Vec::new(), switch, scratch };
        let switch = &made.switch;
        ip(&["-n", switch, "link", "add", "bridge", "type", "bridge"]);
        ip(&["-n", switch, "address", "add", &format!("{OPERATOR}/24"), "dev", "bridge"]);
        ip(&["-n", switch, "link", "set", "bridge", "up"]);
        ip(&["-n", switch, "link", "set", "lo", "up"]);
        make_key(&made.private_key());
        names.iter().enumerate().for_each(|(number, name)| made.add(first, number, name, &id));
        made
    }

    fn add(&mut self, first: First, number: usize, name: &str, id: &str) {
        let namespace = format!("foggara-h{number}-{id}");
        let (end, address) = (format!("h{number}"), self.address(number));
        ip(&["netns", "add", &namespace]);
        ip(&[
            "-n",
            &self.switch,
            "link",
            "add",
            &end,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            &namespace,
        ]);
        ip(&["-n", &self.switch, "link", "set", &end, "master", "bridge", "up"]);
        ip(&["-n", &namespace, "address", "add", &format!("{address}/24"), "dev", "eth0"]);
        ip(&["-n", &namespace, "link", "set", "eth0", "up"]);
        ip(&["-n", &namespace, "link", "set", "lo", "up"]);
        let folder = self.scratch.path().join(name);
        std::fs::create_dir_all(&folder).expect("target/tmp can be written");
        let key = folder.join("ssh_host_ed25519_key");
        make_key(&key);
        std::fs::copy(self.private_key().with_extension("pub"), folder.join("authorized_keys"))
            .expect("the key is there");
        let group = (first == First::Systemd).then(|| Group::new(&namespace));
        let mut command = Command::new("setpriv");
        // Ends with the thread that makes it: the test's own.
        command.args(["--pdeathsig", "KILL"]);
        if let Some(group) = &group {
            command.args(["sh", "-c", r#"echo $$ >"$0"; exec "$@""#]).arg(group.members());
        }
        command.args(["ip", "netns", "exec", &namespace, "unshare"]);
        if group.is_some() {
            command.arg("--cgroup");
        }
        command.args([
            "--mount",
            "--pid",
            "--uts",
            "--ipc",
            "--fork",
            "--kill-child",
            "--propagation",
            "private",
        ]);
        command.args(["sh", "-c", BOOT, "boot"]).arg(&folder).args([name, &address]);
        command.arg(paths::root()).arg(paths::openssh());
        command.arg(if first == First::Systemd { "systemd" } else { "sshd" });
        let first = Process::start(name, command, &folder.join("first.log"));
        let host_key = std::fs::read_to_string(key.with_extension("pub")).expect("it was made");
        self.hosts.push(Host {
            name: name.into(),
            namespace,
            host_key: host_key.trim().into(),
            first,
            group,
            folder,
        });
    }

    /// Waits until every SSH server answers.
    pub async fn wait_up(&self) {
        for number in 0..self.hosts.len() {
            wait::until("an SSH server that answers", async || self.logs_in(number).then_some(())).await;
        }
    }

    fn logs_in(&self, number: usize) -> bool {
        self.ssh(number, "true").status.success()
    }

    /// Runs a shell command on a host, as its administrator would.
    pub fn ssh(&self, number: usize, command: &str) -> std::process::Output {
        let mut ssh = Command::new("ssh");
        ssh.args([
            "-n",
            "-o",
            "BatchMode=yes",
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
        ]);
        ssh.args(["-o", "LogLevel=ERROR", "-i"]).arg(self.private_key());
        ssh.arg(format!("root@{}", self.address(number))).arg(command);
        self.operator(&ssh).stdin(Stdio::null()).output().expect("`ip` can be run")
    }

    /// Address of a host.
    pub fn address(&self, number: usize) -> String {
        format!("10.214.0.{}", 11 + number)
    }

    /// Name of a host.
    pub fn name(&self, number: usize) -> &str {
        &self.hosts[number].name
    }

    /// Public key of a host.
    pub fn host_key(&self, number: usize) -> &str {
        &self.hosts[number].host_key
    }

    /// The operator's key.
    pub fn private_key(&self) -> PathBuf {
        self.scratch.path().join("operator_key")
    }

    /// A folder for the operator's files.
    pub fn folder(&self) -> &Path {
        self.scratch.path()
    }

    /// `command`, run by the operator.
    pub fn operator(&self, command: &Command) -> Command {
        let mut inside = Command::new("ip");
        inside.args(["netns", "exec", &self.switch]).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            inside.env(name, value.unwrap_or_default());
        }
        if let Some(folder) = command.get_current_dir() {
            inside.current_dir(folder);
        }
        inside
    }

    /// Runs `body` where the operator is.
    pub fn inside<T: Send>(&self, body: impl AsyncFnOnce() -> T + Send) -> T {
        netns::inside(&self.switch, body)
    }

    /// Processes of a host that run `program`, as numbers of this machine.
    pub fn running(&self, number: usize, program: &str) -> Vec<u32> {
        let first = self.first(number);
        let namespace = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let host = namespace(first);
        let all = std::fs::read_dir("/proc").expect("proc is mounted").flatten();
        let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let name = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        pids.filter(|pid| namespace(*pid) == host && name(*pid).trim() == program && process::is_alive(*pid))
            .collect()
    }

    /// Process 1 of a host, as a number of this machine.
    fn first(&self, number: usize) -> u32 {
        let children = process::children(self.hosts[number].first.pid());
        *children.first().unwrap_or_else(|| panic!("host {} has ended", self.hosts[number].name))
    }

    /// A file of a host.
    pub fn path(&self, number: usize, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.first(number)))
    }

    /// The end of a host's journal, also where nobody can log in.
    fn journal(&self, number: usize) -> String {
        let mut command = Command::new("nsenter");
        command.args(["--all", "--target", &self.first(number).to_string()]);
        let output = command.args(["journalctl", "--no-pager", "--lines", "200"]).output();
        output.map_or_else(|e| format!("{e}"), |output| process::text(&output))
    }

    /// Shows what happened on them.
    fn show_logs(&self) {
        for (number, host) in self.hosts.iter().enumerate() {
            host.first.show_log();
            if process::children(host.first.pid()).is_empty() {
                continue;
            }
            if host.group.is_some() {
                eprintln!("--- {}: its journal\n{}", host.name, self.journal(number));
            }
            let logs =
                std::fs::read_dir(self.path(number, "/var/log/foggara")).into_iter().flatten().flatten();
            for log in logs {
                eprintln!("--- {}: {}\n{}", host.name, log.file_name().display(), process::tail(&log.path()));
            }
        }
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show_logs();
        }
        for host in &mut self.hosts {
            host.first.kill();
            // What a layer keeps for itself cannot be read, only removed.
            std::fs::remove_dir_all(host.folder.join("work")).ok();
            drop(host.group.take());
        }
        for namespace in self.hosts.iter().map(|host| &host.namespace).chain([&self.switch]) {
            Command::new("ip").args(["netns", "delete", namespace]).output().ok();
        }
    }
}

fn make_key(path: &Path) {
    let mut command = Command::new("ssh-keygen");
    let output =
        command.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(path).stdin(Stdio::null()).output();
    let output =
        output.unwrap_or_else(|e| panic!("`ssh-keygen` (of the package openssh-client) cannot be run: {e}"));
    assert!(output.status.success(), "{}", process::text(&output));
}
