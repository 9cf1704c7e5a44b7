//! What docs/quick-start.md and docs/operate.md say to type, typed: on hosts with a network of their own, where every address of the
//! pages is free. A command that the pages get and that is not here fails.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use foggara_tests::hosts::Hosts;
use foggara_tests::netns::TwoHosts;
use foggara_tests::page::{Page, words};
use foggara_tests::process::{Process, text};
use foggara_tests::scratch::Scratch;
use foggara_tests::{machine, paths, wait};

/// What stands for the pages' models.
pub(crate) const MODEL: &str = "smollm2-135m-instruct-q4_1.gguf";

fn succeeded(command: &str, output: &Output) -> String {
    assert!(output.status.success(), "{command}: {}", text(output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A shell on a host where `foggara` is on the path, and in `target/release` as after a build.
pub(crate) struct Shell {
    host: TwoHosts,
    scratch: Scratch,
}

impl Shell {
    pub(crate) fn new(name: &str) -> Self {
        let (host, scratch) = (TwoHosts::new(), Scratch::new(name));
        let release = scratch.path().join("target/release");
        std::fs::create_dir_all(&release).unwrap();
        std::os::unix::fs::symlink(paths::foggara(), release.join("foggara")).unwrap();
        Self { host, scratch }
    }

    /// Where it is.
    pub(crate) fn folder(&self) -> &Path {
        self.scratch.path()
    }

    pub(crate) fn command(&self, line: &str) -> Command {
        let mut shell = Command::new("bash");
        shell.args(["-c", line]);
        let mut inside = self.host.on(0, &shell);
        let path =
            format!("{}/target/release:{}", self.scratch.path().display(), std::env::var("PATH").unwrap());
        inside.env("PATH", path).current_dir(self.scratch.path()).stdin(Stdio::null());
        inside
    }

    fn run(&self, line: &str) -> String {
        succeeded(line, &self.command(line).output().unwrap())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_quick_start_does_what_it_says() {
    let _machine = machine::shared().await;
    let (page, shell) = (Page::read("quick-start"), Shell::new("quick-start"));
    std::fs::write(shell.scratch.path().join("book.txt"), "It was a dark and stormy night.").unwrap();
    let mut cluster: Option<Process> = None;
    let id = "an-answer";
    for command in page.commands() {
        match command.as_str() {
            // How there comes to be a program; and a tool that is not to be had here.
            "cargo xtask demo" | "cargo build --release" => {}
            grpcurl if grpcurl.starts_with("grpcurl ") => {}
            "target/release/foggara up --model /models/your-model.gguf" => {
                let path = paths::models().join(MODEL);
                let up = format!("exec target/release/foggara up --model your-model={}", path.display());
                let log = shell.scratch.path().join("up.log");
                cluster = Some(Process::start("up", shell.command(&up), &log));
            }
            ready if ready.starts_with("ready ") => {
                let said = cluster.as_mut().expect("it was started before").line(Duration::from_secs(90));
                assert_eq!(said, ready);
            }
            "foggara attach REQUEST_ID" => {
                // At once: a request that has ended is only kept for a while.
                let body =
                    r#"{"model": "your-model", "prompt": "Once", "max_tokens": 64, "ignore_eos": true}"#;
                let answer = shell.run(&format!(
                    "curl -s -f -o /dev/null http://127.0.0.1:8080/v1/completions -H 'content-type: application/json' -H 'x-request-id: {id}' -d '{body}' && foggara attach {id}"
                ));
                assert!(!answer.trim().is_empty(), "it goes on with the answer");
            }
            curl if curl.contains("/v1/chat/completions") => {
                let said = shell.run(curl);
                assert!(
                    said.contains("chat.completion.chunk") && said.trim_end().ends_with("data: [DONE]"),
                    "{said}"
                );
            }
            "curl http://127.0.0.1:8080/metrics" => assert!(shell.run(&command).contains("# TYPE foggara_")),
            "foggara status --json" => {
                let status: serde_json::Value = serde_json::from_str(&shell.run(&command)).unwrap();
                assert_eq!(status["workers"].as_array().unwrap().len(), 2);
            }
            "foggara chat \"Why is the sky blue?\""
            | "foggara generate --max-tokens 32 --temperature 0 \"Once upon a time\""
            | "foggara score book.txt"
            | "foggara status"
            | "foggara top" => assert!(!shell.run(&command).trim().is_empty()),
            other => panic!("docs/quick-start.md has a command that is not tried: {other}"),
        }
    }
    for (number, script) in page.blocks("python").iter().enumerate() {
        let file = shell.scratch.path().join(format!("{number}.py"));
        std::fs::write(&file, script).unwrap();
        let said = shell.run(&format!("{} {}", paths::python().display(), file.display()));
        assert!(!said.trim().is_empty(), "{script}");
    }
}

/// A real cluster by hand: three coordinators and a machine with workers.
struct Machines(Hosts);

/// Hosts by what they are.
const COORDINATORS: [usize; 3] = [0, 1, 2];
const WORKERS: usize = 3;

impl Machines {
    /// The page's text for these machines.
    fn here(&self, told: &str) -> String {
        let mut here = told.replace("/models/llama-3.1-8b.gguf", &format!("/models/{MODEL}"));
        for (page, number) in [("10.0.0.1:", 0), ("10.0.0.2:", 1), ("10.0.0.3:", 2), ("10.0.0.7:", WORKERS)] {
            here = here.replace(page, &format!("{}:", self.0.address(number)));
        }
        here
    }

    fn run(&self, host: usize, line: &str) -> String {
        succeeded(line, &self.0.ssh(host, &self.here(line)))
    }

    /// Starts what runs until it is stopped; its exit code is kept in `/tmp/NAME.code`.
    fn start(&self, host: usize, name: &str, line: &str) {
        let line = format!(
            "mkdir -p /var/log/foggara; rm -f /tmp/{name}.code; (setsid sh -c '{line}; echo $? >/tmp/{name}.code' >/var/log/foggara/{name}.log 2>&1 &)"
        );
        self.run(host, &line);
    }

    fn start_coordinator(&self, host: usize) {
        self.start(host, "coordinator", "foggara coordinator --config /etc/foggara/coordinator.toml");
    }

    fn start_workers(&self) {
        for number in 0..4 {
            let line = format!(
                "foggara worker --config /etc/foggara/worker.toml --listen 10.0.0.7:{} --threads 1",
                8082 + number
            );
            self.start(WORKERS, &format!("worker-{number}"), &line);
        }
    }

    /// Every process ends at once, and all that coordinators kept is gone.
    async fn lose_everything(&self) {
        for host in 0..=WORKERS {
            self.run(host, "pkill -KILL -x foggara");
        }
        for host in COORDINATORS {
            assert_eq!(self.code(host, "coordinator").await, "137", "killed");
        }
        for number in 0..4 {
            assert_eq!(self.code(WORKERS, &format!("worker-{number}")).await, "137", "killed");
        }
        COORDINATORS.iter().for_each(|host| drop(self.run(*host, "rm -r /var/lib/foggara/*")));
    }

    /// The code that `name` ended with.
    async fn code(&self, host: usize, name: &str) -> String {
        let path = self.0.path(host, &format!("/tmp/{name}.code"));
        wait::until(&format!("{name} ends"), async || {
            let code = std::fs::read_to_string(&path).ok()?;
            code.ends_with('\n').then(|| code.trim().to_owned())
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_operated_as_the_page_says() {
    let _machine = machine::shared().await;
    let page = Page::read("operate");
    let machines = Machines(Hosts::new("operate", &["one", "two", "three", "workers"]));
    machines.0.wait_up().await;
    let configured = page.blocks("toml");
    let [coordinator, worker] = configured.as_slice() else { panic!("a file for each kind of process") };
    for host in 0..=WORKERS {
        std::fs::copy(paths::foggara(), machines.0.path(host, "/usr/local/bin/foggara")).unwrap();
        machines.run(host, "mkdir -p /etc/foggara /var/lib/foggara/models && (umask 077; echo 0123456789abcdef0123456789abcdef >/etc/foggara/token)");
    }
    for host in COORDINATORS {
        let number = host + 1;
        let own = machines
            .here(coordinator)
            .replace("id = 1", &format!("id = {number}"))
            .replace(
                &format!("grpc = \"{}", machines.0.address(0)),
                &format!("grpc = \"{}", machines.0.address(host)),
            )
            .replace(
                &format!("http = \"{}", machines.0.address(0)),
                &format!("http = \"{}", machines.0.address(host)),
            );
        std::fs::write(machines.0.path(host, "/etc/foggara/coordinator.toml"), own).unwrap();
    }
    std::fs::write(machines.0.path(WORKERS, "/etc/foggara/worker.toml"), machines.here(worker)).unwrap();

    let operator = "export FOGGARA_ENDPOINT=10.0.0.1:8081,10.0.0.2:8081,10.0.0.3:8081 FOGGARA_CLUSTER_TOKEN_FILE=/etc/foggara/token";
    let operate = |command: &str| machines.run(0, &format!("{operator}; {command}"));
    let (mut tried, mut backed_up) = (0, false);
    for command in page.commands() {
        tried += 1;
        match command.as_str() {
            preflight if preflight.starts_with("foggara doctor --coordinator ") => {
                assert!(machines.run(0, preflight).contains("ok"));
                machines.run(1, "foggara doctor --config /etc/foggara/coordinator.toml");
            }
            // Once there is something to join; see below.
            preflight if preflight.starts_with("foggara doctor --worker ") => {}
            "foggara config check /etc/foggara/coordinator.toml" => {
                assert!(machines.run(2, &command).contains("data_dir"));
            }
            "foggara coordinator --config /etc/foggara/coordinator.toml" => {
                COORDINATORS.iter().for_each(|host| machines.start_coordinator(*host));
                wait::until("they have a leader", async || {
                    let status = machines.0.ssh(0, &machines.here(&format!("{operator}; foggara status")));
                    status.status.success().then_some(())
                })
                .await;
                let preflight =
                    page.commands().into_iter().find(|line| line.starts_with("foggara doctor --worker "));
                machines.run(WORKERS, &preflight.expect("the page has it"));
                machines.run(WORKERS, "foggara doctor --config /etc/foggara/worker.toml");
                machines.start_workers();
                operate("foggara status --wait 90 --workers 4");
            }
            "foggara doctor" => assert!(machines.run(WORKERS, &command).contains("gpu")),
            // Needs a GPU.
            "foggara worker --device cuda:0 --join …" => {}
            "foggara models plan chat=/models/llama-3.1-8b.gguf" => assert!(operate(&command).contains("tp")),
            "foggara status --json > cluster.json" => {
                operate(&command);
                let kept = machines.run(0, "cat cluster.json");
                let kept: serde_json::Value = serde_json::from_str(&kept).unwrap();
                let deployment = &kept["deployments"][0];
                assert_eq!(
                    (&deployment["name"], &deployment["replicas"]),
                    (&"chat".into(), &2.into()),
                    "{kept}"
                );
                backed_up = true;
            }
            "foggara models add chat=/models/llama-3.1-8b.gguf --tp 2 --replicas 2" => {
                if backed_up {
                    machines.lose_everything().await;
                    COORDINATORS.iter().for_each(|host| machines.start_coordinator(*host));
                    machines.start_workers();
                    wait::until("there is a cluster again", async || {
                        let wait = format!("{operator}; foggara status --wait 90 --workers 4");
                        machines.0.ssh(0, &machines.here(&wait)).status.success().then_some(())
                    })
                    .await;
                    assert!(!operate("foggara models list").contains("chat"), "nothing is left");
                }
                operate(&command);
                operate("foggara generate --model chat --max-tokens 4 Once");
            }
            "foggara models list" => assert!(operate(&command).contains("chat")),
            // Last: the model is needed until then.
            "foggara models remove chat" => {}
            "foggara trace --slowest" => assert!(operate(&command).contains("chat")),
            "foggara trace REQUEST_ID" => {
                let ask = "curl -s -f http://10.0.0.1:8080/v1/completions -H 'content-type: application/json' -H 'x-request-id: slow-one' -d '{\"model\": \"chat\", \"prompt\": \"Once\", \"max_tokens\": 4}'";
                machines.run(0, ask);
                assert!(operate("foggara trace slow-one").contains("slow-one"));
            }
            other => panic!("docs/operate.md has a command that is not tried: {other}"),
        }
    }
    assert!(tried >= 12, "{tried} commands");

    // "Restart processes one at a time": what is said of that, and of how they end.
    operate("foggara status --json > before");
    machines.run(1, "pkill -TERM -x foggara");
    assert_eq!(machines.code(1, "coordinator").await, "0", "stopped as asked");
    machines.start_coordinator(1);
    operate("foggara status --wait 90 --like before --restarted 10.0.0.2:8081");
    operate("foggara models remove chat");
    assert!(!operate("foggara models list").contains("chat"));
}

/// What docs/terraform.md says to type, and where `terraform.rs` does it.
#[test]
fn terraforms_page_is_what_its_tests_do() {
    const TESTS: &str = include_str!("terraform.rs");
    for command in Page::read("terraform").commands() {
        let done = match command.as_str() {
            "cd deploy/terraform/examples/bare-metal" => {
                "Terraform::new(&hosts, \"bare-metal\", TOKEN)".into()
            }
            token if token.starts_with("export TF_VAR_cluster_token=") => "const TOKEN".into(),
            // As soon as there is a `Terraform`.
            "terraform init" => "Terraform::new(".into(),
            apply if apply.starts_with("terraform apply -var-file=") => "succeeds(&[\"apply\"])".into(),
            destroy if destroy.starts_with("terraform destroy ") => "succeeds(&[\"destroy\"])".into(),
            endpoint if endpoint.starts_with("export FOGGARA_ENDPOINT=") => {
                "terraform.output(\"endpoint\")".into()
            }
            "foggara generate --model chat \"Once upon a time\"" => {
                assert!(TESTS.contains("\"Once upon a time\""));
                "[\"generate\", \"--model\", \"chat\"]".to_owned()
            }
            "foggara certificates ca --out authority" => "Certificates::new(&authority(&hosts))".into(),
            issue if issue.starts_with("foggara certificates issue ") => {
                "certificates.issue(&[&hosts.address(number)])".into()
            }
            ours if ours.starts_with("foggara ") => format!("{:?}", &words(ours)[1..]),
            other => panic!("docs/terraform.md has a command that is not tried: {other}"),
        };
        assert!(TESTS.contains(&done), "{command}: `terraform.rs` has no `{done}`");
    }
}
