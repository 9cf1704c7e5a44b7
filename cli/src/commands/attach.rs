//! `foggara attach`

use clap::Args;
use foggara_proto::wire::inference as wire;

use crate::answer::{AnswerStream, Asked};
use crate::commands::printer::Printer;
use crate::endpoint::EndpointArguments;

/// Go on with an answer elsewhere: prints the text of a request that is running, or has ended within the last minute.
///
/// The request may have been sent by anyone, through any coordinator, over gRPC or HTTP; its id is the one that was sent with it
/// (`request_id`, `x-request-id`) or that its answer named. Leaving with Ctrl-C ends the request, unless somebody else
/// listens to it. If nobody has the request any more, send it again with the same id: it brings the same tokens.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  foggara attach 0b7e63c2-5a51-4e2c-9df3-6d2f0c9a7a11\n  \
    foggara attach my-request --tokens-received 120       the text after the first 120 tokens")]
pub(crate) struct Arguments {
    /// Id of the request
    request_id: String,
    /// Leave out the text of so many tokens; with several answers, a number for each
    #[arg(long, value_name = "N,…", value_delimiter = ',')]
    tokens_received: Vec<u32>,
    #[command(flatten)]
    endpoint: EndpointArguments,
}

/// Streams the rest of the answer.
pub(crate) fn run(arguments: Arguments) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let Arguments { request_id, tokens_received, endpoint } = arguments;
        let asked = Asked::Attach(wire::AttachRequest { request_id, tokens_received });
        let mut printer = Printer::new();
        printer.print(&mut AnswerStream::start(&endpoint, asked).await?).await?;
        printer.end()
    })
}
