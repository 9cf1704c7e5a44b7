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

fn status(foggara: &Path, ports: Ports) -> Option<Status> {
    let mut command = std::process::Command::new(foggara);
    let output = command.args(["status", "--json", "--endpoint", &ports.endpoint(0)]).output().ok()?;
    serde_json::from_slice(&output.stdout).ok()
}

/// The text; `stays` if the cluster will still be there.
pub fn text(foggara: &Path, model: &str, cluster: &Cluster, stays: bool) -> String {
    let ports = cluster.ports;
    let typed = place::typed(foggara);
    let python = place::typed(&place::python());
    let http = format!("http://127.0.0.1:{}", ports.http);
    let endpoint = |i: u16| match (ports == Ports::DEFAULT, i) {
        (true, 0) => String::new(),
        _ => format!(" --endpoint {}", ports.endpoint(i)),
    };
    let first = match stays {
        true => "What to try next, in another terminal in this folder:".to_owned(),
        false => format!(
            "What to try next. Start the cluster again (Ctrl-C stops it):\n  {}\nthen, in another terminal in this folder:",
            process::shown(&up_command(foggara, model, ports))
        ),
    };
    let kill = kill(stays.then(|| status(foggara, ports)).flatten(), &typed, &python, &endpoint);
    let last = match stays {
        true => "\nThis terminal is now a chat with the model. Ctrl-C ends the chat and stops the cluster.\n",
        false => "",
    };
    format!(
        r#"{first}
  curl, as with any OpenAI-style server:
    curl -N {http}/v1/chat/completions -H 'content-type: application/json' -d '{{"model": "{model}", "stream": true, "max_tokens": 60, "messages": [{{"role": "user", "content": "Name three colours."}}]}}'
  grpcurl (reflection is on):
    grpcurl -plaintext -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "Name three colours."}}], "sampling": {{"max_tokens": 60}}}}' 127.0.0.1:{grpc} foggara.inference.v1.Inference/Chat
  Python, with OpenAI's own package:
    {python} -m pip install -q {openai}
    {python} -c '
from openai import OpenAI
client = OpenAI(base_url="{http}/v1", api_key="none")
question = [{{"role": "user", "content": "Name three colours."}}]
for chunk in client.chat.completions.create(model="{model}", messages=question, max_tokens=60, stream=True):
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()'
  Who is there, who leads, who holds what:
    {typed} status{here}
{kill}{last}"#,
        grpc = ports.grpc,
        openai = pinned("openai"),
        here = endpoint(0),
    )
}

/// Killing a coordinator. With a `status` it is the Raft leader, by its process id; the chat goes to another.
fn kill(status: Option<Status>, typed: &str, python: &str, endpoint: &dyn Fn(u16) -> String) -> String {
    let leader = status.and_then(|status| status.coordinators.into_iter().find(|c| c.role == "leader"));
    let (title, kill, chat) = match leader {
        Some(Coordinator { id, pid, .. }) => (
            format!("Kill coordinator {id}, the Raft leader, and chat on"),
            format!("kill -9 {pid}"),
            endpoint(u16::from(id == 1)),
        ),
        None => {
            let pid = r#"import json, sys; print([c["pid"] for c in json.load(sys.stdin)["coordinators"] if c["id"] == 2][0])"#;
            let kill = format!("kill -9 $({typed} status --json{} | {python} -c '{pid}')", endpoint(0));
            ("Kill coordinator 2 and chat on".to_owned(), kill, endpoint(0))
        }
    };
    format!(
        "  {title} (it is started again, and catches up):\n    {kill}\n    {typed} chat{chat} 'Are you still there?'\n"
    )
}
