//! Where processes under test say how they are, as to systemd (sd_notify(3)).

use std::collections::VecDeque;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::wait::PATIENCE;

/// How often a process must say that it goes on, at least.
const WATCHDOG: Duration = Duration::from_secs(2);

/// A service manager's socket, for one process.
#[derive(Debug)]
pub struct Notified {
    socket: UnixDatagram,
    path: PathBuf,
    heard: VecDeque<String>,
}

impl Notified {
    /// Listens. The path of such a socket must be short, so it is in the folder for temporary files.
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("foggara-{}-{number}.notify", std::process::id()));
        std::fs::remove_file(&path).ok();
        let socket = UnixDatagram::bind(&path).expect("a socket in the folder for temporary files");
        Self { socket, path, heard: VecDeque::new() }
    }

    /// Makes `command` say it here.
    pub fn by(&self, command: &mut Command) {
        command.env("NOTIFY_SOCKET", &self.path).env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string());
    }

    /// Waits until `what` is said, and gives what was said before.
    ///
    /// # Panics
    /// If it is not.
    pub fn until(&mut self, what: &str) -> Vec<String> {
        let (started, mut before) = (Instant::now(), Vec::new());
        loop {
            match self.next(PATIENCE.saturating_sub(started.elapsed()).max(Duration::from_millis(1))) {
                Some(line) if line.starts_with(what) => return before,
                Some(line) => before.push(line),
                None => panic!("`{what}` was not said, but {before:?}"),
            }
        }
    }

    /// Waits until each of `all` is said, in whatever order.
    ///
    /// # Panics
    /// If one is not.
    pub fn until_all(&mut self, all: &[&str]) {
        let (mut awaited, mut said) = (all.to_vec(), Vec::new());
        while let Some(what) = awaited.first() {
            said.extend(self.until(what));
            awaited.remove(0);
            awaited.retain(|what| !said.iter().any(|line: &String| line.starts_with(what)));
        }
    }

    /// Forgets what has been said, and gives what is said within `time`.
    pub fn within(&mut self, time: Duration) -> Option<String> {
        while self.next(Duration::from_millis(1)).is_some() {}
        self.next(time)
    }

    /// The next line, if there is one within `patience`.
    fn next(&mut self, patience: Duration) -> Option<String> {
        if self.heard.is_empty() {
            self.socket.set_read_timeout(Some(patience)).expect("more than no time");
            let mut bytes = [0; 4096];
            let length = self.socket.recv(&mut bytes).ok()?;
            self.heard.extend(String::from_utf8_lossy(&bytes[..length]).lines().map(str::to_owned));
        }
        self.heard.pop_front()
    }
}

impl Default for Notified {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Notified {
    fn drop(&mut self) {
        std::fs::remove_file(&self.path).ok();
    }
}
