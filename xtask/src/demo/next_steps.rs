//! What to try when the demo has answered. Every line works as it is printed.

use std::path::Path;

use serde::Deserialize;

use super::cluster::{Cluster, up_command};
use super::ports::Ports;
use crate::setup::pinned;
use crate::{place, process};

/// What `foggara status --json` says of a coordinator.
#[derive(Deserialize)]
struct Coordinator {
    id: u16,
    role: String,
    pid: u32,
}

#[derive(Deserialize)]
struct Status {
    coordinators: Vec<Coordinator>,
}

/// The Raft leader, as the cluster sees it.
fn leader(foggara: &Path, ports: Ports) -> Option<Coordinator> {
    let mut command = std::process::Command::new(foggara);
    let output = command.args(["status", "--json"]).args(ports.endpoint_option()).output().ok()?;
    let status: Status = serde_json::from_slice(&output.stdout).ok()?;
    status.coordinators.into_iter().find(|coordinator| coordinator.role == "leader")
}

/// The text; `stays` if the cluster will still be there.
pub fn text(foggara: &Path, model: &str, cluster: &Cluster, stays: bool) -> String {
    let ports = cluster.ports;
    let typed = place::typed(foggara);
    let python = place::typed(&place::python());
    let http = format!("http://127.0.0.1:{}", ports.http);
    let endpoint = ports.endpoint_option().iter().map(|word| format!(" {word}")).collect::<String>();
    let first = match stays {
        true => "What to try next, in another terminal in this folder:".to_owned(),
        false => format!(
            "What to try next. Start the cluster again (Ctrl-C stops it):\n    {}\nThen, in another terminal in this folder:",
            process::shown(&up_command(foggara, model, ports))
        ),
    };
    // Of a cluster that will be another by then, nobody knows the process ids yet.
    let (who, pid) = match stays.then(|| leader(foggara, ports)).flatten() {
        Some(leader) => (format!("coordinator {}, the Raft leader", leader.id), leader.pid.to_string()),
        None => {
            let pick =
                r#"[c["pid"] for c in json.load(sys.stdin)["coordinators"] if c["role"] == "leader"][0]"#;
            let pid =
                format!("$({typed} status --json{endpoint} | {python} -c 'import json, sys; print({pick})')");
            ("the Raft leader".to_owned(), pid)
        }
    };
    let last = match stays {
        true => "\n\nThis terminal is now a chat with the model. Ctrl-C ends the chat and stops the cluster.",
        false => "",
    };
    format!(
        r#"{first}
  curl, as with any OpenAI-style server:
    curl -N {http}/v1/chat/completions -H 'content-type: application/json' -d '{{"model": "{model}", "stream": true, "temperature": 0, "max_tokens": 60, "messages": [{{"role": "user", "content": "Name three colours."}}]}}'
  grpcurl (reflection is on):
    grpcurl -plaintext -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "Name three colours."}}], "sampling": {{"temperature": 0, "max_tokens": 60}}}}' 127.0.0.1:{grpc} foggara.inference.v1.Inference/Chat
  Python, with OpenAI's own package:
    {python} -m pip install -q {openai}
    {python} -c '
from openai import OpenAI
client = OpenAI(base_url="{http}/v1", api_key="none")
question = [{{"role": "user", "content": "Name three colours."}}]
for chunk in client.chat.completions.create(model="{model}", messages=question, temperature=0, max_tokens=60, stream=True):
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()'
  Who is there, who leads, who holds what:
    {typed} status{endpoint}
  Kill {who}, and chat on (it is started again, and catches up):
    kill -9 {pid}
    {typed} chat{endpoint} --temperature 0 --max-tokens 60 'Are you still there?'{last}"#,
        grpc = ports.grpc,
        openai = pinned("openai"),
    )
}
