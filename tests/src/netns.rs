//! Two hosts on this machine: network namespaces joined by a pair of virtual interfaces. Needs root.

use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Two namespaces that reach each other and nothing else. Removed when dropped.
#[derive(Debug)]
pub struct TwoHosts {
    names: [String; 2],
    ends: [String; 2],
}

/// Address of each host.
pub const ADDRESSES: [&str; 2] = ["10.213.0.1", "10.213.0.2"];

impl TwoHosts {
    /// Makes them.
    ///
    /// # Panics
    /// With what to do about it, if the system does not allow it.
    pub fn new() -> Self {
        must_be_root();
        let id = unused();
        let hosts = Self {
            names: [format!("foggara-a{id}"), format!("foggara-b{id}")],
            ends: [format!("fga{id}"), format!("fgb{id}")],
        };
        let ([a, b], [end_a, end_b]) = (&hosts.names, &hosts.ends);
        for name in [a, b] {
            ip(&["netns", "add", name]);
        }
        ip(&["link", "add", end_a, "netns", a, "type", "veth", "peer", "name", end_b, "netns", b]);
        for ((name, end), address) in hosts.names.iter().zip(&hosts.ends).zip(ADDRESSES) {
            ip(&["-n", name, "address", "add", &format!("{address}/24"), "dev", end]);
            ip(&["-n", name, "link", "set", end, "up"]);
            ip(&["-n", name, "link", "set", "lo", "up"]);
        }
        hosts
    }

    /// Cuts the connection between the hosts: packets vanish, nobody is told.
    pub fn cut(&self) {
        ip(&["-n", &self.names[0], "link", "set", &self.ends[0], "down"]);
    }

    /// Mends it.
    pub fn mend(&self) {
        ip(&["-n", &self.names[0], "link", "set", &self.ends[0], "up"]);
    }

    /// `command`, run on host `number`.
    pub fn on(&self, number: usize, command: &Command) -> Command {
        let mut inside = Command::new("ip");
        inside
            .args(["netns", "exec", &self.names[number]])
            .arg(command.get_program())
            .args(command.get_args());
        inside
    }

    /// Runs `body` on a thread that is on host `number`: its connections start there.
    pub fn inside<T: Send>(&self, number: usize, body: impl AsyncFnOnce() -> T + Send) -> T {
        inside(&self.names[number], body)
    }
}

/// Runs `body` on a thread that is in the network namespace `name`.
pub(crate) fn inside<T: Send>(name: &str, body: impl AsyncFnOnce() -> T + Send) -> T {
    let path = format!("/run/netns/{name}");
    let namespace = std::fs::File::open(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let run = || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).expect("root may");
        // One thread: others would be in the namespace of the process.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(body())
    };
    std::thread::scope(|scope| match scope.spawn(run).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// Part of the names of a test's namespaces and interfaces, which are short: tests of one run may have theirs at the same time.
pub(crate) fn unused() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Fails with what to do about it, unless this is root.
pub(crate) fn must_be_root() {
    assert!(
        rustix::process::geteuid().is_root(),
        "network namespaces need root: run this test as root (`sudo -E cargo xtask test`)"
    );
}

impl Default for TwoHosts {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for TwoHosts {
    fn drop(&mut self) {
        for name in &self.names {
            Command::new("ip").args(["netns", "delete", name]).output().ok();
        }
    }
}

pub(crate) fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output();
    let output = output.unwrap_or_else(|e| panic!("`ip` (of the package iproute2) cannot be run: {e}"));
    assert!(
        output.status.success(),
        "ip {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
}
