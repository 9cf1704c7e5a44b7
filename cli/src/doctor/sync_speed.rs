//! How long a durable write takes: what the Raft log does, in a file of its own that is removed at once.

use std::fs::OpenOptions;
use std::io::{Result, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// A commit of the log writes a few pages.
const WRITE: [u8; 8192] = [0x5a; 8192];
const MOST: usize = 64;
const LEAST: usize = 8;
/// A slow disk is found out before that many.
const ENOUGH: Duration = Duration::from_secs(1);

/// Times of appends to a new file in `folder`, each until the disk has it, the shortest first.
///
/// # Errors
/// Why it cannot be written, in words.
pub(super) fn measure(folder: &Path) -> std::result::Result<Vec<Duration>, String> {
    let path = folder.join(format!(".foggara-doctor-{}", std::process::id()));
    let times = append(&path);
    std::fs::remove_file(&path).ok();
    let mut times = times.map_err(|error| error.to_string())?;
    times.sort_unstable();
    Ok(times)
}

fn append(path: &Path) -> Result<Vec<Duration>> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    let started = Instant::now();
    let mut times = Vec::new();
    while times.len() < LEAST || (times.len() < MOST && started.elapsed() < ENOUGH) {
        let before = Instant::now();
        file.write_all(&WRITE)?;
        file.sync_data()?;
        times.push(before.elapsed());
    }
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_in_order_and_nothing_is_left() {
        let folder = std::env::temp_dir().join(format!("foggara-sync-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("writable");
        let times = measure(&folder).expect("writable");
        assert!((LEAST..=MOST).contains(&times.len()) && times.is_sorted(), "{times:?}");
        assert_eq!(std::fs::read_dir(&folder).expect("it is there").count(), 0);
        std::fs::remove_dir(&folder).expect("it is empty");
        assert!(measure(&folder).is_err());
    }
}
