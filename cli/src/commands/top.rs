//! `foggara top`

mod screen;
mod terminal;
mod view;

use std::io::{IsTerminal as _, Write};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use foggara_proto::wire::admin as wire;

use crate::endpoint::EndpointArguments;
use crate::lifetime::StopSignals;
use crate::output::one_line;
use terminal::Terminal;
use view::{Sample, View};

/// A coordinator that has not answered for this long is asked again, or another one is.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// Between two looks at least: rates over less say nothing.
const SHORTEST: f64 = 0.1;
/// And at most.
const LONGEST: f64 = 3600.0;

/// Watch groups, batches, KV cache, tokens per second and where each rank's time goes, live. `q` or Ctrl-C ends it.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Print once, with rates over one interval, and end
    #[arg(long)]
    once: bool,
    /// Print JSON, once
    #[arg(long)]
    json: bool,
    /// Seconds between two looks
    #[arg(long, default_value_t = 1.0, value_name = "SECONDS", value_parser = interval)]
    interval: f64,
    #[command(flatten)]
    endpoint: EndpointArguments,
}

fn interval(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("`{text}` is not a number"))?;
    let usable = (SHORTEST..=LONGEST).contains(&seconds);
    if usable { Ok(seconds) } else { Err(format!("{seconds}: must be within {SHORTEST} to {LONGEST}")) }
}

/// Looks once, or until it is ended.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let interval = Duration::from_secs_f64(arguments.interval);
    let live = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let outcome = runtime.block_on(async {
        if live && !arguments.once && !arguments.json {
            watch(&arguments.endpoint, interval).await
        } else {
            once(arguments, interval).await
        }
    });
    // A thread that reads the terminal may still wait for a key.
    runtime.shutdown_background();
    outcome
}

async fn once(arguments: &Arguments, interval: Duration) -> anyhow::Result<()> {
    let first = sample(&arguments.endpoint).await?;
    tokio::time::sleep(interval).await;
    let second = sample(&arguments.endpoint).await?;
    let view = View::new(Some(&first), &second);
    let mut out = std::io::stdout().lock();
    if arguments.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&view)?)?;
    } else {
        screen::lines(&view).iter().try_for_each(|line| writeln!(out, "{line}"))?;
    }
    Ok(out.flush()?)
}

/// Shows what there is until someone ends it. When nobody answers, what was last known stays, and says so.
async fn watch(endpoint: &EndpointArguments, interval: Duration) -> anyhow::Result<()> {
    let mut stop = StopSignals::new()?;
    let mut terminal = Terminal::open()?;
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut before, mut shown): (Option<Sample>, Option<View>) = (None, None);
    loop {
        let look = async {
            ticks.tick().await;
            sample(endpoint).await
        };
        tokio::select! {
            answer = look => {
                let failure = match answer {
                    Ok(now) => {
                        shown = Some(View::new(before.as_ref(), &now));
                        before = Some(now);
                        None
                    }
                    Err(error) => Some(one_line(&error)),
                };
                let mut lines = Vec::new();
                if let Some(failure) = failure {
                    lines.extend([format!("{failure}; trying again"), String::new()]);
                }
                lines.extend(shown.iter().flat_map(screen::lines));
                terminal.show(&lines)?;
            }
            () = terminal.quit() => return Ok(()),
            _ = stop.next() => return Ok(()),
        }
    }
}

/// What the cluster is and how busy it is, from the first coordinator that answers.
async fn sample(endpoint: &EndpointArguments) -> anyhow::Result<Sample> {
    let ask = async {
        let mut admin = endpoint.admin().await?;
        let status = admin.status(wire::StatusRequest {}).await?.into_inner();
        let stats = admin.stats(wire::StatsRequest {}).await?.into_inner();
        anyhow::Ok(Sample { at: Instant::now(), status, stats })
    };
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, ask).await;
    answer.with_context(|| format!("no answer within {ANSWER_TIMEOUT:?}"))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_checked() {
        assert_eq!(interval("0.5"), Ok(0.5));
        for wrong in ["0", "-1", "nan", "1e9", "x"] {
            assert!(interval(wrong).is_err(), "{wrong}");
        }
    }
}
