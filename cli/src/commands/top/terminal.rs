//! The terminal while it is ours: a screen of its own (xterm's alternate one), keys without Enter and without echo.

use std::io::{Read, Write};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::sync::mpsc;

/// Rows and columns of a terminal that does not say how many it has.
const UNKNOWN: (u16, u16) = (24, 80);

/// Given back as it was when dropped.
pub(super) struct Terminal {
    before: Termios,
    keys: mpsc::UnboundedReceiver<u8>,
}

impl Terminal {
    pub(super) fn open() -> anyhow::Result<Self> {
        let before = tcgetattr(std::io::stdin())?;
        let mut ours = before.clone();
        // Ctrl-C still is a signal.
        ours.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
        tcsetattr(std::io::stdin(), OptionalActions::Flush, &ours)?;
        let (sender, keys) = mpsc::unbounded_channel();
        let terminal = Self { before, keys };
        // Ends with the process: nothing else can end a read from a terminal.
        std::thread::Builder::new().name("keys".into()).spawn(move || {
            let mut key = [0];
            while std::io::stdin().read_exact(&mut key).is_ok() && sender.send(key[0]).is_ok() {}
        })?;
        let mut out = std::io::stdout().lock();
        out.write_all(b"\x1b[?1049h\x1b[?25l")?;
        out.flush()?;
        Ok(terminal)
    }

    /// Returns when `q` is pressed, or the terminal has gone.
    pub(super) async fn quit(&mut self) {
        while let Some(key) = self.keys.recv().await {
            if matches!(key, b'q' | b'Q') {
                return;
            }
        }
    }

    /// Shows lines from the top, as many and as much of each as there is room for.
    pub(super) fn show(&self, lines: &[String]) -> std::io::Result<()> {
        let size = tcgetwinsize(std::io::stdout()).map_or((0, 0), |size| (size.ws_row, size.ws_col));
        // Some terminals do not say.
        let (rows, columns) = if size.0 == 0 || size.1 == 0 { UNKNOWN } else { size };
        let mut out = std::io::stdout().lock();
        out.write_all(fitted(lines, usize::from(rows), usize::from(columns)).as_bytes())?;
        out.flush()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let mut out = std::io::stdout().lock();
        // A terminal that has gone needs nothing.
        out.write_all(b"\x1b[?25h\x1b[?1049l").and_then(|()| out.flush()).ok();
        tcsetattr(std::io::stdin(), OptionalActions::Flush, &self.before).ok();
    }
}

/// One write: each line over the old one and cleared to its end, then the rest cleared (ECMA-48), so that nothing flickers.
fn fitted(lines: &[String], rows: usize, columns: usize) -> String {
    let mut text = String::from("\x1b[H");
    for (number, line) in lines.iter().take(rows).enumerate() {
        if number > 0 {
            text.push_str("\r\n");
        }
        text.extend(line.chars().map(|c| if c.is_control() { ' ' } else { c }).take(columns));
        text.push_str("\x1b[K");
    }
    text.push_str("\x1b[J");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_to_the_terminal() {
        let lines = ["abcdef", "é\x1b[2Jx", "third"].map(str::to_owned);
        assert_eq!(fitted(&lines, 2, 4), "\x1b[Habcd\x1b[K\r\né [2\x1b[K\x1b[J");
        assert_eq!(fitted(&[], 2, 4), "\x1b[H\x1b[J");
    }
}
