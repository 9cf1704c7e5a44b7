//! `foggara generate`

use clap::Args;
use foggara_proto::wire::inference as wire;

use crate::answer::{AnswerStream, Asked};
use crate::commands::printer::Printer;
use crate::commands::sampling::SamplingArguments;
use crate::endpoint::EndpointArguments;

/// Continue a prompt. The text streams to standard output; standard error gets the speed.
///
/// When the coordinator that answers dies, another one goes on where it was: one that --endpoint names, or one that the first
/// knew.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The prompt; `-` reads it from standard input
    prompt: String,
    /// Model to ask [default: the only one served]
    #[arg(long, default_value = "", hide_default_value = true, value_name = "NAME")]
    model: String,
    /// Print the prompt first
    #[arg(long)]
    echo: bool,
    #[command(flatten)]
    sampling: SamplingArguments,
    #[command(flatten)]
    endpoint: EndpointArguments,
}

/// Streams the answer.
pub(crate) fn run(arguments: Arguments) -> anyhow::Result<()> {
    let prompt = match arguments.prompt.as_str() {
        "-" => std::io::read_to_string(std::io::stdin())?,
        _ => arguments.prompt,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let request = wire::GenerateRequest {
            model: arguments.model,
            prompt: Some(wire::generate_request::Prompt::Text(prompt)),
            sampling: Some(arguments.sampling.to_wire()),
            output: Some(arguments.sampling.output(arguments.echo)),
            request_id: Asked::new_id(),
            priority: arguments.sampling.priority(),
            cache_salt: arguments.sampling.cache_salt(),
            deadline_ms: arguments.sampling.deadline_ms(),
            prompt_cache_key: None,
        };
        let mut printer = Printer::new();
        printer.print(&mut AnswerStream::start(&arguments.endpoint, Asked::Generate(request)).await?).await?;
        printer.end()
    })
}
