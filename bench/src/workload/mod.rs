//! Ways of loading a server, one file each.

pub(crate) mod arrivals;
pub(crate) mod clients;
pub(crate) mod cold_start;
pub(crate) mod decode;
pub(crate) mod http_decode;
pub(crate) mod idle;
pub(crate) mod prefill;
pub(crate) mod streams;

use anyhow::Result;
use clap::ValueEnum;

use crate::args::ArrivalArgs;
use crate::bound::Bound;
use crate::client::Ask;
use crate::cost::ModelCost;
use crate::prompts::Prompts;
use crate::report::Measure;
use crate::target::Target;

/// Tokens of the prompt where only decoding is of interest.
const SHORT_PROMPT: usize = 32;
/// Tokens asked for where decoding is of interest.
const ANSWER: usize = 128;

/// The table of workloads, in the order in which they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Workload {
    /// Products, attention, quantizing and sums over ranks by themselves, without a cluster
    Kernels,
    /// From starting `foggara up` to its `ready` line
    ColdStart,
    /// One stream of 128 tokens
    Decode,
    /// The same through HTTP and server-sent events
    HttpDecode,
    /// Time to the first token of a prompt of 512
    Prefill,
    /// Several streams at once, beside one alone
    Streams,
    /// Closed loop: each client sends 128 tokens, reads 128, and again
    Clients,
    /// The same with 1,000 tokens in and 100 out; only if asked for
    LongPrompts,
    /// The same with 100 tokens in and 1,000 out; only if asked for
    LongAnswers,
    /// Open loop: requests of 128 in / 128 out come at random times; only if asked for
    Arrivals,
    /// Memory and processor time of each process while nothing is asked
    Idle,
}

impl Workload {
    /// As on the command line.
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Whether it needs a server.
    pub(crate) fn of_server(self) -> bool {
        self != Self::Kernels
    }

    /// Whether it runs where nothing is asked for.
    pub(crate) fn usual(self) -> bool {
        !matches!(self, Self::LongPrompts | Self::LongAnswers | Self::Arrivals)
    }
}

/// What a workload works with.
pub(crate) struct Bench<'a> {
    pub(crate) target: &'a Target,
    /// Present if the model's file is known.
    pub(crate) cost: Option<ModelCost>,
    pub(crate) prompts: Prompts,
    pub(crate) repetitions: usize,
    pub(crate) streams: usize,
    pub(crate) clients: usize,
    pub(crate) arrivals: ArrivalArgs,
    pub(crate) quick: bool,
}

impl Bench<'_> {
    /// Runs one workload. Kernels and the cold start are none of these: they come before there is a target.
    pub(crate) async fn run(&self, workload: Workload) -> Result<Vec<Measure>> {
        match workload {
            Workload::Kernels | Workload::ColdStart => Ok(Vec::new()),
            Workload::Decode => decode::run(self).await,
            Workload::HttpDecode => http_decode::run(self).await,
            Workload::Prefill => prefill::run(self).await,
            Workload::Streams => streams::run(self).await,
            Workload::Clients => clients::run(self, 128, 128).await,
            Workload::LongPrompts => clients::run(self, 1000, 100).await,
            Workload::LongAnswers => clients::run(self, 100, 1000).await,
            Workload::Arrivals => arrivals::run(self).await,
            Workload::Idle => idle::run(self).await,
        }
    }

    /// A request for [`ANSWER`] tokens after a short prompt.
    fn short(&self) -> Ask {
        Ask { prompt: self.prompts.next(SHORT_PROMPT), max_tokens: ANSWER }
    }

    /// What `of` says of the model, where it is known.
    fn bound(&self, of: impl Fn(&ModelCost) -> Bound) -> Option<Bound> {
        self.cost.as_ref().map(of)
    }
}
