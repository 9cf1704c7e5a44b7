//! Logs of the long-running processes: one line an event, on standard error.

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

/// How to write logs.
#[derive(Debug, Clone, Args)]
pub(crate) struct LogArguments {
    /// What to log: a level, or directives as in `info,foggara_coordinator::driver=debug`
    #[arg(long, env = "FOGGARA_LOG", default_value = "info", value_name = "FILTER")]
    log: String,
    /// How to write logs: text, for people, or json, one object a line
    #[arg(long, env = "FOGGARA_LOG_FORMAT", default_value = "text", value_enum)]
    log_format: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

impl LogArguments {
    /// Starts logging for the whole process.
    ///
    /// # Errors
    /// If the filter cannot be understood.
    pub(crate) fn start(&self) -> anyhow::Result<()> {
        let filter =
            EnvFilter::try_new(&self.log).map_err(|e| anyhow::anyhow!("log: `{}`: {e}", self.log))?;
        let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        match self.log_format {
            LogFormat::Text => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
            LogFormat::Json => builder.json().flatten_event(true).init(),
        }
        Ok(())
    }
}
