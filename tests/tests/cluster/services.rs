//! Processes as services: settings from files, what they tell a service manager, and their exit codes.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use foggara_tests::client::Client;
use foggara_tests::notify::Notified;
use foggara_tests::process::{self, Process, long_running, text};
use foggara_tests::scratch::Scratch;
use foggara_tests::{machine, paths, ports, wait};
use rustix::process::Signal;

const TOKEN: &str = "of-the-services";

/// A coordinator's and a worker's settings, in files.
struct Files {
    scratch: Scratch,
    grpc: String,
}

impl Files {
    fn new(name: &str) -> Self {
        let files = Self { scratch: Scratch::new(name), grpc: format!("127.0.0.1:{}", ports::block()) };
        let folder = files.folder();
        files.secret("token", TOKEN, 0o600);
        let grpc = &files.grpc;
        files.write(
            "coordinator.toml",
            &format!(
                "id = 1\npeers = [\"1={grpc}\"]\ngrpc = \"{grpc}\"\nhttp = \"127.0.0.1:0\"\n\
                 data_dir = \"{folder}/data\"\ncluster_token_file = \"{folder}/token\"\nlease_ms = 1500\n"
            ),
        );
        files.write(
            "worker.toml",
            &format!(
                "join = [\"{grpc}\"]\nthreads = 1\ndevice = \"cpu\"\ncache_dir = \"{folder}/cache\"\n\
                 cluster_token_file = \"{folder}/token\"\n"
            ),
        );
        files
    }

    fn folder(&self) -> std::path::Display<'_> {
        self.scratch.path().display()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn write(&self, name: &str, content: &str) {
        std::fs::write(self.path(name), content).unwrap();
    }

    fn secret(&self, name: &str, content: &str, mode: u32) {
        self.write(name, content);
        std::fs::set_permissions(self.path(name), std::fs::Permissions::from_mode(mode)).unwrap();
    }

    /// `foggara KIND --config FILE`, that ends with this process.
    fn command(&self, kind: &str, file: &str) -> Command {
        let config = self.path(file).display().to_string();
        long_running(&[kind.to_owned(), "--config".to_owned(), config])
    }

    /// Starts it.
    fn start(&self, kind: &str, notified: &Notified) -> Process {
        let mut command = self.command(kind, &format!("{kind}.toml"));
        notified.by(&mut command);
        Process::start(kind, command, &self.path(&format!("{kind}.log")))
    }

    fn client(&self) -> Client {
        Client::with_token(&self.grpc, Some(TOKEN))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_manager_hears_how_they_are() {
    let _machine = machine::shared().await;
    let files = Files::new("services");
    let (mut of_worker, mut of_coordinator) = (Notified::new(), Notified::new());
    let mut worker = files.start("worker", &of_worker);
    let before = of_worker.until("EXTEND_TIMEOUT_USEC=");
    assert!(!before.iter().any(|line| line == "READY=1"), "there is no cluster to be in: {before:?}");
    let mut coordinator = files.start("coordinator", &of_coordinator);
    // It may lead before it is ready, or after.
    of_coordinator.until_all(&["READY=1", "STATUS=leader in term "]);
    let before = of_worker.until("READY=1");
    assert!(before.iter().any(|line| line.starts_with("STATUS=joined as worker ")), "{before:?}");
    let client = files.client();
    let joined = async || Some(client.try_status().await.ok()?.workers.len() == 1).filter(|joined| *joined);
    wait::until("the worker is in the cluster when it says so", joined).await;
    for (process, notified) in [(&coordinator, &mut of_coordinator), (&worker, &mut of_worker)] {
        notified.until("WATCHDOG=1");
        notified.until("WATCHDOG=1");
        // One that hangs says nothing; nor can it be woken by the question.
        process::signal(process.pid(), Signal::STOP);
        wait::until("it is stopped", async || process::is_stopped(process.pid()).then_some(())).await;
        assert_eq!(notified.within(Duration::from_secs(2)), None, "a stopped process goes on");
        process::signal(process.pid(), Signal::CONT);
        notified.until("WATCHDOG=1");
    }
    for (process, notified) in [(&mut worker, &mut of_worker), (&mut coordinator, &mut of_coordinator)] {
        process::signal(process.pid(), Signal::TERM);
        notified.until("STOPPING=1");
        assert_eq!(process.wait(wait::PATIENCE).code(), Some(0));
    }
}

/// Runs it to its end, which must come by itself: its exit code, and what it said.
fn ends(mut command: Command) -> (Option<i32>, String) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    (output.status.code(), text(&output))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exit_codes_say_whether_to_start_again() {
    let _machine = machine::shared().await;
    let files = Files::new("exit-codes");
    let mut notified = Notified::new();
    let coordinator = files.start("coordinator", &notified);
    notified.until("STATUS=leader in term ");
    let of = |file: &str, change: &dyn Fn(String) -> String| {
        let name = format!("other-{file}");
        files.write(&name, &change(std::fs::read_to_string(files.path(file)).unwrap()));
        files.command(file.trim_end_matches(".toml"), &name)
    };
    // Another's token: refused.
    files.secret("wrong", "another-token", 0o600);
    let wrong = of("worker.toml", &|text| text.replace("/token", "/wrong"));
    let (code, said) = tokio::task::block_in_place(|| ends(wrong));
    assert_eq!(code, Some(3), "{said}");
    // A port that is taken: may be free later.
    let taken = of("coordinator.toml", &|text| text.replace("/data", "/other-data"));
    let (code, said) = tokio::task::block_in_place(|| ends(taken));
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&files.grpc), "{said}");
    drop(coordinator);
    // Settings that are wrong.
    files.secret("open", TOKEN, 0o644);
    for (file, change, says) in [
        (
            "coordinator.toml",
            &(|text| text + "lease_sm = 5\n") as &dyn Fn(String) -> String,
            "did you mean `lease_ms`",
        ),
        (
            "coordinator.toml",
            &|text| text.replace("1500", "70000"),
            ":7: lease_ms: `70000`: 70000 is not in 0..=60000",
        ),
        ("coordinator.toml", &|text| text.replace("id = 1", "id = 2"), "coordinator 2 is not among"),
        ("coordinator.toml", &|text| text.replace("peers = [\"1=", "peers = [\"x="), "is not N=HOST:PORT"),
        (
            "coordinator.toml",
            &|text| text + "cluster_id = \"another\"\n",
            "belongs to coordinator 1 of cluster `foggara`",
        ),
        ("worker.toml", &|text| text.replace("threads = 1", "threads = 0"), "threads: must be at least 1"),
        ("worker.toml", &|text| text.replace("/token", "/open"), "chmod"),
        ("worker.toml", &|text| text.replace("/token", "/missing"), "cluster_token_file"),
        ("worker.toml", &|_| String::new(), "--join"),
    ] {
        let (code, said) = tokio::task::block_in_place(|| ends(of(file, change)));
        assert_eq!(code, Some(2), "{says}: {said}");
        assert!(said.contains(says), "{says}: {said}");
    }
    let (code, said) = ends(files.command("worker", "no-such-file.toml"));
    assert_eq!(code, Some(2), "{said}");
    let mut wrong = files.command("worker", "worker.toml");
    wrong.env("FOGGARA_THREADS", "many");
    let (code, said) = ends(wrong);
    assert_eq!(code, Some(2), "{said}");
}

/// What plays NVIDIA's driver for a worker until `lost` is there.
fn played_gpu(worker: &mut Command, folder: &Path, lost: &Path) {
    std::fs::create_dir(folder).unwrap();
    let library = folder.join("libcuda.so.1");
    let mut compiler = Command::new("g++");
    compiler.args(["-x", "c", "-shared", "-fPIC", "-o"]).arg(&library);
    let (code, said) = ends({
        compiler.arg(paths::root().join("tests/tools/lost_gpu.c"));
        compiler
    });
    assert_eq!(code, Some(0), "{said}");
    for name in ["libcuda.so", "libnvrtc.so.13"] {
        std::fs::hard_link(&library, folder.join(name)).unwrap();
    }
    worker.args(["--device", "cuda"]).env("LOST_GPU", lost).env("FOGGARA_CACHE", folder.join("cache"));
    worker.env("LD_LIBRARY_PATH", folder).env("FOGGARA_CUDA_PATH", folder);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_whose_gpu_is_lost_says_so_by_its_code() {
    let _machine = machine::shared().await;
    let files = Files::new("lost-gpu");
    let mut notified = Notified::new();
    let _coordinator = files.start("coordinator", &notified);
    notified.until("STATUS=leader in term ");
    let (mut worker, lost) = (files.command("worker", "worker.toml"), files.path("lost"));
    played_gpu(&mut worker, &files.path("driver"), &lost);
    let mut worker = Process::start("worker", worker, &files.path("worker.log"));
    let client = files.client();
    wait::until("it is in the cluster, with its GPU", async || {
        let status = client.try_status().await.ok()?;
        let device = status.workers.first()?.capabilities.as_ref()?.device.as_ref()?;
        (device.name == "played").then_some(())
    })
    .await;
    std::fs::write(&lost, "").unwrap();
    let model = format!("tiny={}", paths::golden("llama").display());
    let add = ["models", "add", "--no-wait", "--endpoint", &files.grpc, "--cluster-token", TOKEN, &model];
    let added = process::foggara(&add);
    assert!(added.status.success(), "{}", text(&added));
    let status = tokio::task::block_in_place(|| worker.wait(wait::PATIENCE));
    assert_eq!(status.code(), Some(4), "{}", worker.log());
    assert!(worker.log().contains("the GPU is lost"), "{}", worker.log());
}

#[test]
fn a_check_says_what_is_effective_and_what_is_wrong() {
    let files = Files::new("config-check");
    let check = |names: &[&str], variables: &[(&str, &str)]| {
        let mut command = Command::new(paths::foggara());
        command.args(["config", "check"]).args(names.iter().map(|name| files.path(name)));
        command.envs(variables.iter().copied());
        ends(command)
    };
    let (code, said) = check(&["coordinator.toml", "worker.toml"], &[("FOGGARA_LEASE_MS", "7")]);
    assert_eq!(code, Some(0), "{said}");
    for line in
        ["id = 1", "lease_ms = 7", "# FOGGARA_LEASE_MS", "# file, line 3", "# default", "worker.toml: ok"]
    {
        assert!(said.contains(line), "{line}: {said}");
    }
    assert!(!said.contains(TOKEN));
    files.write("file", "");
    let folder = files.folder().to_string();
    let with = |name: &str, text: &str| files.write(name, text);
    with("coordinator-1.toml", "id = 1\n");
    with(
        "coordinator-2.toml",
        &format!("id = 1\npeers = [\"1=a:1\"]\nhttp = \"0.0.0.0:1\"\ndata_dir = \"{folder}/file\"\n"),
    );
    with("worker-1.toml", &format!("join = [\"a:1\", \"b\"]\nmodels = [\"{folder}/none\"]\n"));
    with("worker-2.toml", &format!("join = [\"a:1\"]\nmodels = [\"{folder}/none\"]\n"));
    with("worker-3.toml", "join = [\n");
    for (name, wrong) in [
        ("coordinator-1.toml", &["peers: is not set, and must be", "data_dir: is not set, and must be"][..]),
        ("coordinator-2.toml", &["http: 0.0.0.0:1 is not loopback", "data_dir: ", "is not a folder"]),
        ("worker-1.toml", &["join: `b` is not HOST:PORT"]),
        ("worker-2.toml", &["models: ", "No such file"]),
        ("worker-3.toml", &["worker-3.toml:"]),
        ("none.toml", &["--kind"]),
    ] {
        let (code, said) = check(&[name], &[]);
        assert_eq!(code, Some(1), "{name}: {said}");
        wrong.iter().for_each(|wrong| assert!(said.contains(wrong), "{name}: `{wrong}`: {said}"));
    }
    let (code, said) = check(&["worker.toml"], &[("FOGGARA_THREADS", "many")]);
    assert!(code == Some(1) && said.contains("FOGGARA_THREADS"), "{said}");
}

#[test]
fn the_examples_in_deploy_are_right_but_for_the_machine() {
    for name in ["coordinator.toml", "worker.toml"] {
        let mut command = Command::new(paths::foggara());
        command.args(["config", "check"]).arg(paths::root().join("deploy/config").join(name));
        // In place of the file, which is not on every machine.
        command.env("FOGGARA_CLUSTER_TOKEN", TOKEN);
        let (_, said) = ends(command);
        let wrong = said.lines().filter_map(|line| line.strip_prefix("wrong: "));
        let of_settings = wrong.filter(|line| !line.contains("/var/lib/foggara")).collect::<Vec<_>>();
        assert!(of_settings.is_empty() && said.contains("10.0.0.1:8081"), "{said}");
    }
}
