//! `foggara supervise`

mod control;
mod plan;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use tokio::sync::mpsc;

use crate::exit::Exit;
use crate::lifetime::StopSignals;
use crate::supervisor::{Child, ChildFailed, Spec};
use control::Request;

/// How long a process may take to end what it is doing.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long the supervisor may take to start.
const START: Duration = Duration::from_secs(20);

/// Keep the processes of this machine running: one for DIR/coordinator.toml, DIR/worker.toml and each DIR/worker-NAME.toml.
///
/// Does what systemd does where there is systemd, and no more: a process that ends is started again, after a pause that grows
/// to 5 s. SIGTERM lets answers end, then stops all. A process is called as its file without `.toml`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  foggara supervise --dir /etc/foggara --detach\n  foggara supervise list\n  \
    foggara supervise restart coordinator\n  foggara supervise stop"
)]
pub(crate) struct Arguments {
    /// Where the files of the processes are
    #[arg(long, default_value = "/etc/foggara", value_name = "DIR")]
    dir: PathBuf,
    /// Where its process id and its socket are: one supervisor for each
    #[arg(long, default_value = "/run/foggara", value_name = "DIR", global = true)]
    run_dir: PathBuf,
    /// Where the processes' logs go, a file for each that grows: rotate it with `copytruncate`
    #[arg(long, default_value = "/var/log/foggara", value_name = "DIR")]
    log_dir: PathBuf,
    /// What is started; looked up at each start, so that a process that is restarted is of the program that is there by then
    /// [default: this program]
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// Return as soon as it runs, and go on in the background, in a session of its own
    #[arg(long)]
    detach: bool,
    /// This is the background.
    #[arg(long, hide = true)]
    detached: bool,
    #[command(subcommand)]
    action: Option<Action>,
}

/// What to tell the supervisor that runs.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
enum Action {
    /// Show its processes: name, process id
    List,
    /// Start what is new in its folder, stop what is gone from it
    Reload,
    /// Stop one process, letting answers end, and start it again
    Restart {
        /// As `list` shows it
        name: String,
    },
    /// Stop everything, the supervisor included
    Stop,
}

/// Supervises until a signal or `stop` ends it, or tells a supervisor what to do.
pub(crate) fn run(arguments: Arguments) -> anyhow::Result<()> {
    if let Some(action) = &arguments.action {
        let request = match action {
            Action::List => Request::List,
            Action::Reload => Request::Reload,
            Action::Restart { name } => Request::Restart(name.clone()),
            Action::Stop => Request::Stop,
        };
        let answer = control::tell(&arguments.run_dir, &request)?;
        write!(std::io::stdout(), "{answer}")?;
        if request == Request::Stop {
            // Locked for as long as it lives.
            lock_file(&arguments.run_dir)?.lock().context("waiting for its end")?;
        }
        return Ok(());
    }
    for folder in [&arguments.run_dir, &arguments.log_dir] {
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    if arguments.detach {
        return detach(&arguments);
    }
    if arguments.detached {
        rustix::process::setsid().context("leaving the terminal")?;
    }
    let mut lock = lock_file(&arguments.run_dir)?;
    if lock.try_lock().is_err() {
        bail!("run-dir: {} has a supervisor already", arguments.run_dir.display());
    }
    lock.set_len(0)?;
    write!(lock, "{}", std::process::id())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if runtime.block_on(supervise(&arguments))? {
        std::process::exit(Exit::AtOnce as i32);
    }
    Ok(())
}

fn lock_file(run_dir: &Path) -> anyhow::Result<File> {
    let path = run_dir.join("supervise.pid");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    file.with_context(|| format!("opening {}", path.display()))
}

/// Starts this program again, in the background, and waits until it answers.
fn detach(arguments: &Arguments) -> anyhow::Result<()> {
    let log = arguments.log_dir.join("supervise.log");
    let file = File::options().create(true).append(true).open(&log);
    let file = file.with_context(|| format!("opening {}", log.display()))?;
    let mut command = std::process::Command::new(std::env::current_exe()?);
    command.args(["supervise", "--detached"]);
    for (option, folder) in
        [("--dir", &arguments.dir), ("--run-dir", &arguments.run_dir), ("--log-dir", &arguments.log_dir)]
    {
        command.arg(option).arg(std::path::absolute(folder)?);
    }
    if let Some(program) = &arguments.program {
        command.arg("--program").arg(std::path::absolute(program)?);
    }
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).current_dir("/");
    let mut child = command.spawn()?;
    let started = std::time::Instant::now();
    // Its own answer: another supervisor's would be that of one that is there already.
    while !control::tell(&arguments.run_dir, &Request::Pid)
        .is_ok_and(|pid| pid.trim() == child.id().to_string())
    {
        if let Some(status) = child.try_wait()? {
            bail!("the supervisor did not start ({status}); {} says why", log.display());
        }
        anyhow::ensure!(started.elapsed() < START, "the supervisor does not answer; see {}", log.display());
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Says whether it was told to stop at once.
async fn supervise(arguments: &Arguments) -> anyhow::Result<bool> {
    let mut signals = StopSignals::new()?;
    let mut requests = control::listen(&arguments.run_dir)?;
    let (failures, mut failed) = mpsc::unbounded_channel();
    let mut processes = Processes { arguments, running: BTreeMap::new(), failures };
    processes.reload().await?;
    eprintln!("supervising {} processes; logs in {}", processes.running.len(), arguments.log_dir.display());
    let stopped_by = loop {
        tokio::select! {
            name = signals.next() => {
                eprintln!("{name}: stopping");
                break None;
            }
            Some(ChildFailed { reason }) = failed.recv() => eprintln!("{reason}"),
            Some((request, answer)) = requests.recv() => {
                if request == Request::Stop {
                    break Some(answer);
                }
                // Whoever asked may have gone.
                answer.send(processes.answer(&request).await).ok();
            }
        }
    };
    let at_once = tokio::select! {
        () = processes.stop_all() => false,
        _ = signals.next() => {
            processes.running.values().for_each(Child::kill);
            true
        }
    };
    if let Some(answer) = stopped_by {
        answer.send_and_wait(Ok("stopped\n".into())).await;
    }
    eprintln!("stopped");
    Ok(at_once)
}

/// What runs, by name.
struct Processes<'a> {
    arguments: &'a Arguments,
    running: BTreeMap<String, Child>,
    failures: mpsc::UnboundedSender<ChildFailed>,
}

impl Processes<'_> {
    async fn answer(&mut self, request: &Request) -> Result<String, String> {
        match request {
            Request::List => Ok(self.list()),
            Request::Pid => Ok(format!("{}\n", std::process::id())),
            Request::Reload => match self.reload().await {
                Ok(()) => Ok(self.list()),
                Err(error) => Err(crate::output::one_line(&error)),
            },
            Request::Restart(name) => {
                let child = self.running.remove(name);
                let child =
                    child.ok_or_else(|| format!("there is no process `{name}`; `list` shows them"))?;
                eprintln!("restarting {name}");
                child.stop(PATIENCE).await;
                self.start(name);
                Ok(self.list())
            }
            Request::Stop => unreachable!("handled where the processes are owned"),
        }
    }

    fn list(&self) -> String {
        let line = |(name, child): (&String, &Child)| match child.pid() {
            Some(pid) => format!("{name} {pid}\n"),
            None => format!("{name} -\n"),
        };
        self.running.iter().map(line).collect()
    }

    /// Makes what runs what the folder has files for.
    async fn reload(&mut self) -> anyhow::Result<()> {
        let wanted = plan::processes(&self.arguments.dir)?;
        let gone: Vec<String> = self.running.keys().filter(|name| !wanted.contains(*name)).cloned().collect();
        for name in gone {
            if let Some(child) = self.running.remove(&name) {
                eprintln!("stopping {name}: its file is gone");
                child.stop(PATIENCE).await;
            }
        }
        for name in wanted {
            if !self.running.contains_key(&name) {
                self.start(&name);
            }
        }
        Ok(())
    }

    fn start(&mut self, name: &str) {
        let spec = Spec {
            name: name.to_owned(),
            program: self.arguments.program.clone(),
            forever: true,
            arguments: plan::command(&self.arguments.dir, name),
            environment: Vec::new(),
            log: self.arguments.log_dir.join(format!("{name}.log")),
        };
        self.running.insert(name.to_owned(), Child::start(spec, self.failures.clone()));
    }

    /// Those that answer requests first: workers are still needed for what is being answered.
    async fn stop_all(&self) {
        let stop = |coordinators: bool| {
            let those =
                self.running.iter().filter(move |(name, _)| plan::is_coordinator(name) == coordinators);
            futures::future::join_all(those.map(|(_, child)| child.stop(PATIENCE)))
        };
        stop(true).await;
        stop(false).await;
    }
}
