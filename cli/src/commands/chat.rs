//! `foggara chat`

use std::io::{BufRead, IsTerminal, Write};
use std::time::Instant;

use clap::Args;
use foggara_proto::wire::inference as wire;
use tonic::Streaming;

use crate::endpoint::EndpointArguments;

/// Chat with a model. With MESSAGE: one answer, streamed. Without: a conversation, until Ctrl-D.
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

/// How to sample.
#[derive(Debug, Clone, Args)]
pub(crate) struct SamplingArguments {
    /// Tokens to generate at most [default: what the context leaves]
    #[arg(long, value_name = "N")]
    max_tokens: Option<u32>,
    /// 0 is greedy [default: 1]
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Sample from the likeliest tokens whose probabilities sum to P [default: 1]
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Sample from the K likeliest tokens [default: all]
    #[arg(long, value_name = "K")]
    top_k: Option<u32>,
    /// Same seed, same answer
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// End where this text would appear (may be repeated)
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Go on past the model's end tokens
    #[arg(long)]
    ignore_eos: bool,
}

impl SamplingArguments {
    /// As the service takes them.
    pub(crate) fn to_wire(&self) -> wire::SamplingParams {
        wire::SamplingParams {
            max_tokens: self.max_tokens,
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            seed: self.seed,
            stop: self.stop.clone(),
            stop_token_ids: Vec::new(),
            ignore_eos: self.ignore_eos,
        }
    }
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
    let mut messages: Vec<wire::ChatMessage> = Vec::new();
    messages.extend(arguments.system.clone().map(|text| say("system", text)));
    if let Some(message) = arguments.message.clone() {
        messages.push(say("user", message));
        return ask(&arguments, &messages).await.map(drop);
    }
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
        match ask(&arguments, &messages).await {
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
async fn ask(arguments: &Arguments, messages: &[wire::ChatMessage]) -> anyhow::Result<String> {
    let mut client = arguments.endpoint.inference().await?;
    let request = wire::ChatRequest {
        model: arguments.model.clone(),
        messages: messages.to_vec(),
        sampling: Some(arguments.sampling.to_wire()),
        output: None,
        request_id: String::new(),
    };
    let mut printer = Printer::new();
    let stream = client.chat(request).await?.into_inner();
    tokio::select! {
        printed = printer.print(stream) => printed?,
        // Dropping the stream cancels the request.
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    printer.end()?;
    Ok(printer.text)
}

/// Prints an answer as it comes, and how fast it came.
pub(crate) struct Printer {
    text: String,
    started: Instant,
    first: Option<Instant>,
    tokens: usize,
    finish: Option<wire::Finished>,
}

impl Printer {
    pub(crate) fn new() -> Self {
        Self { text: String::new(), started: Instant::now(), first: None, tokens: 0, finish: None }
    }

    /// Prints until the stream ends.
    pub(crate) async fn print(
        &mut self,
        mut stream: Streaming<wire::GenerateResponse>,
    ) -> anyhow::Result<()> {
        use wire::generate_response::Event;
        while let Some(message) = stream.message().await? {
            match message.event {
                Some(Event::Delta(delta)) => {
                    if !delta.token_ids.is_empty() {
                        self.first.get_or_insert_with(Instant::now);
                        self.tokens += delta.token_ids.len();
                    }
                    let mut out = std::io::stdout().lock();
                    out.write_all(delta.text.as_bytes())?;
                    out.flush()?;
                    self.text.push_str(&delta.text);
                }
                Some(Event::Finished(finished)) => self.finish = Some(finished),
                Some(Event::Started(_)) | None => {}
            }
        }
        Ok(())
    }

    /// Ends the line; on a terminal, tells the speed.
    pub(crate) fn end(&self) -> anyhow::Result<()> {
        if !self.text.ends_with('\n') {
            writeln!(std::io::stdout())?;
        }
        if std::io::stderr().is_terminal() {
            eprintln!("\x1b[2m{}\x1b[0m", self.summary());
        }
        Ok(())
    }

    fn summary(&self) -> String {
        let prompt =
            self.finish.as_ref().and_then(|finish| finish.usage).map_or(0, |usage| usage.prompt_tokens);
        let Some(first) = self.first else { return format!("[{prompt} prompt tokens, no answer]") };
        let to_first = first.duration_since(self.started).as_millis();
        let seconds = first.elapsed().as_secs_f64();
        let rate = match self.tokens {
            0 | 1 => String::new(),
            tokens => format!(", then {:.0} tok/s", (tokens - 1) as f64 / seconds.max(1e-9)),
        };
        let end = match self.finish.as_ref().map(wire::Finished::reason) {
            Some(wire::FinishReason::Length) => ", cut at the limit",
            Some(_) => "",
            None => ", interrupted",
        };
        format!("[{prompt} prompt + {} answer tokens; first after {to_first} ms{rate}{end}]", self.tokens)
    }
}
