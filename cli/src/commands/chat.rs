//! `foggara chat`

use std::io::{BufRead, IsTerminal, Write};

use anyhow::ensure;
use clap::Args;
use foggara_proto::wire::inference as wire;

use crate::answer::{AnswerStream, Asked};
use crate::commands::printer::Printer;
use crate::commands::sampling::SamplingArguments;
use crate::endpoint::EndpointArguments;

/// Chat with a model. With MESSAGE: one answer, streamed. Without: a conversation, until Ctrl-D.
///
/// When the coordinator that answers dies, another one goes on where it was: one that --endpoint names, or one that the first
/// knew.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// What to ask; without it, lines are read from standard input
    message: Option<String>,
    /// Model to ask [default: the only one served]
    #[arg(long, default_value = "", hide_default_value = true, value_name = "NAME")]
    model: String,
    /// System message, said before the conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    sampling: SamplingArguments,
    #[command(flatten)]
    endpoint: EndpointArguments,
}

/// Asks once, or for as long as there are lines.
pub(crate) fn run(arguments: Arguments) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(converse(arguments))
}

fn say(role: &str, content: String) -> wire::ChatMessage {
    wire::ChatMessage { role: role.into(), content }
}

async fn converse(arguments: Arguments) -> anyhow::Result<()> {
    let conversation = Asked::new_id();
    let mut messages: Vec<wire::ChatMessage> = Vec::new();
    messages.extend(arguments.system.clone().map(|text| say("system", text)));
    if let Some(message) = arguments.message.clone() {
        messages.push(say("user", message));
        return ask(&arguments, &conversation, &messages).await.map(drop);
    }
    ensure!(arguments.sampling.n() == 1, "a conversation goes on from one answer: --n needs a MESSAGE");
    // A cluster that is not there is better known before something is typed.
    arguments.endpoint.connect().await?;
    let interactive = std::io::stdin().is_terminal();
    loop {
        let line = tokio::select! {
            line = next_line(interactive) => line?,
            interrupted = tokio::signal::ctrl_c() => {
                interrupted?;
                None
            }
        };
        let Some(line) = line else {
            if interactive {
                writeln!(std::io::stdout())?;
            }
            // The thread that reads a line cannot be stopped; the process can.
            std::process::exit(0);
        };
        if line.trim().is_empty() {
            continue;
        }
        messages.push(say("user", line));
        match ask(&arguments, &conversation, &messages).await {
            Ok(answer) => messages.push(say("assistant", answer)),
            Err(error) if crate::output::is_broken_pipe(&error) || !interactive => return Err(error),
            // The conversation is still there: the next question may do.
            Err(error) => {
                messages.pop();
                eprintln!("error: {}", crate::output::one_line(&error));
            }
        }
    }
}

/// The next line of standard input, prompted for on a terminal; `None` at its end.
async fn next_line(interactive: bool) -> anyhow::Result<Option<String>> {
    if interactive {
        let mut out = std::io::stdout();
        write!(out, "> ")?;
        out.flush()?;
    }
    let read = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        std::io::stdin().lock().read_line(&mut line).map(|count| (count > 0).then_some(line))
    });
    Ok(read.await??.map(|line| line.trim_end_matches(['\r', '\n']).to_owned()))
}

/// Streams one answer; Ctrl-C ends it early. Returns its text.
async fn ask(
    arguments: &Arguments,
    conversation: &str,
    messages: &[wire::ChatMessage],
) -> anyhow::Result<String> {
    let request = wire::ChatRequest {
        model: arguments.model.clone(),
        messages: messages.to_vec(),
        sampling: Some(arguments.sampling.to_wire()),
        output: Some(arguments.sampling.output(false)),
        request_id: Asked::new_id(),
        priority: arguments.sampling.priority(),
        cache_salt: arguments.sampling.cache_salt(),
        deadline_ms: arguments.sampling.deadline_ms(),
        // The questions of a conversation begin alike.
        prompt_cache_key: Some(conversation.to_owned()),
    };
    let mut printer = Printer::new();
    let mut stream = AnswerStream::start(&arguments.endpoint, Asked::Chat(request)).await?;
    tokio::select! {
        printed = printer.print(&mut stream) => printed?,
        // Dropping the stream cancels the request.
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    printer.end()?;
    Ok(printer.into_text())
}
