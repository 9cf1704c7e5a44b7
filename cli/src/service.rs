//! What a process tells systemd, or whoever speaks its protocol (sd_notify(3)): that it is ready, how it is, that it goes on,
//! that it stops. Without `NOTIFY_SOCKET` nobody is told.

use std::time::Duration;

use foggara_proto::condition::{Condition, Reporter};
use sd_notify::NotifyState;
use tokio::sync::watch;

/// How often a process says that it goes on, where nothing else is asked for.
const PACE: Duration = Duration::from_secs(5);
/// How much longer a start may take, said at each beat before the process is ready: as long as it looks for its cluster, say.
const START: Duration = Duration::from_secs(60);

/// Passes on what a process says of itself. Stops with the runtime: a runtime that hangs says nothing.
pub(crate) fn follow(reporter: &Reporter) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let pace = pace(sd_notify::watchdog_enabled());
    tokio::spawn(pass_on(reporter.watch(), pace));
}

/// Says that the process stops.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("stopping: open answers may end")]);
}

/// Says why the process ends.
pub(crate) fn failed(reason: &str) {
    tell(&[NotifyState::Status(reason)]);
}

/// Twice within the time after which the process would be thought dead.
fn pace(watchdog: Option<Duration>) -> Duration {
    watchdog.map_or(PACE, |limit| limit / 2).min(PACE)
}

async fn pass_on(mut condition: watch::Receiver<Condition>, pace: Duration) {
    let mut told = Condition::default();
    let mut beat = tokio::time::interval(pace);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let due = tokio::select! {
            _ = beat.tick() => true,
            // The process ends.
            changed = condition.changed() => if changed.is_err() { return } else { false },
        };
        let now = condition.borrow_and_update().clone();
        for message in messages(&told, &now, due) {
            message.send();
        }
        // Beats that were not passed on are kept for the next time.
        told = Condition { beats: if due { now.beats } else { told.beats }, ..now };
    }
}

/// Something to say.
#[derive(Debug, PartialEq, Eq)]
enum Message {
    Ready,
    Status(String),
    Alive,
    StillStarting,
}

impl Message {
    fn send(&self) {
        match self {
            Self::Ready => tell(&[NotifyState::Ready]),
            Self::Status(text) => tell(&[NotifyState::Status(text)]),
            Self::Alive => tell(&[NotifyState::Watchdog]),
            Self::StillStarting => tell(&[NotifyState::ExtendTimeoutUsec(START.as_micros() as u32)]),
        }
    }
}

/// What to say after `told`, `now` that it is so; a beat is only passed on when it is `due`.
fn messages(told: &Condition, now: &Condition, due: bool) -> Vec<Message> {
    let mut messages = Vec::new();
    if now.status != told.status {
        messages.push(Message::Status(now.status.clone()));
    }
    if now.ready && !told.ready {
        messages.push(Message::Ready);
    }
    if due && now.beats != told.beats {
        messages.push(if now.ready { Message::Alive } else { Message::StillStarting });
    }
    messages
}

fn tell(states: &[NotifyState<'_>]) {
    // A service manager that does not listen is no reason to stop.
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager was not told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_change_is_said_once_and_beats_when_due() {
        let condition = |ready, status: &str, beats| Condition { ready, status: status.into(), beats };
        let status = |text: &str| Message::Status(text.into());
        let start = condition(false, "", 0);
        for (told, now, due, said) in [
            (start.clone(), start.clone(), true, vec![]),
            (start.clone(), condition(false, "a", 1), false, vec![status("a")]),
            (start.clone(), condition(false, "", 1), true, vec![Message::StillStarting]),
            (start.clone(), condition(true, "a", 1), true, vec![status("a"), Message::Ready, Message::Alive]),
            (condition(true, "a", 1), condition(true, "a", 2), false, vec![]),
            (condition(true, "a", 1), condition(true, "a", 1), true, vec![]),
            (condition(true, "a", 1), condition(true, "b", 9), true, vec![status("b"), Message::Alive]),
        ] {
            assert_eq!(messages(&told, &now, due), said, "{told:?} {now:?}");
        }
    }

    #[test]
    fn twice_within_what_is_asked() {
        let seconds = Duration::from_secs;
        assert_eq!(pace(None), PACE);
        assert_eq!(pace(Some(seconds(2))), seconds(1));
        assert_eq!(pace(Some(seconds(600))), PACE);
    }
}
