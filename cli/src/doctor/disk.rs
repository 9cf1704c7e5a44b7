//! The disk of a coordinator's data folder, and those of models: writable, room, kind, and how long it takes to be sure of a write.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::statvfs;

use super::asked::Asked;
use super::finding::{Finding, Severity};
use super::{mounts, sync_speed};
use crate::output::bytes;

const SECTION: &str = "disk";
/// Log and snapshot are a few megabytes. What is needed of models that others hold may be 512 MiB for each.
const LEAST_FREE: u64 = 64 << 20;
const FREE: u64 = 1 << 30;
/// File systems that forget, and those that are elsewhere.
const MEMORY: [&str; 2] = ["tmpfs", "ramfs"];
const REMOTE: [&str; 6] = ["nfs", "nfs4", "cifs", "smb3", "9p", "ceph"];
/// What a durable commit of the log waits for, at the median: the cluster changes that much slower.
const SLOW: Duration = Duration::from_millis(10);
const TOO_SLOW: Duration = Duration::from_millis(50);

/// What is known of a folder's disk.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Disk {
    /// What it is for.
    option: &'static str,
    folder: PathBuf,
    /// The part of the path that is there.
    there: PathBuf,
    free_bytes: u64,
    free_files: Option<u64>,
    kind: Option<String>,
    /// How long each durable write took, shortest first; or why none could be made. `None` if nothing is written there.
    writes: Option<Result<Vec<Duration>, String>>,
}

/// Those that are named.
pub(super) fn check(asked: &Asked) -> Vec<Finding> {
    let mut findings: Vec<Finding> = match &asked.data_dir {
        Some(folder) => data(&look("--data-dir", folder, true)),
        None if asked.roles.coordinator => {
            vec![Finding::note(
                SECTION,
                "not looked at: --data-dir DIR says where a coordinator keeps its log",
            )]
        }
        None => Vec::new(),
    };
    findings.extend(asked.models.iter().map(|folder| models(folder, &look("--models", folder, false))));
    findings
}

fn look(option: &'static str, folder: &Path, write: bool) -> Disk {
    let absolute = std::path::absolute(folder).unwrap_or_else(|_| folder.to_path_buf());
    let there = absolute.ancestors().find_map(|part| part.canonicalize().ok()).unwrap_or(absolute);
    let room = statvfs(&there).ok();
    let room = room.as_ref();
    Disk {
        option,
        folder: folder.to_path_buf(),
        free_bytes: room.map_or(0, |room| room.f_bavail * room.f_frsize),
        // Some file systems have no such number, and say 0 of 0.
        free_files: room.filter(|room| room.f_files > 0).map(|room| room.f_favail),
        kind: mounts::file_system(&there),
        writes: write.then(|| sync_speed::measure(&there)),
        there,
    }
}

fn data(disk: &Disk) -> Vec<Finding> {
    let Disk { option, folder, there, free_bytes, .. } = disk;
    let place = format!("{option} {}", folder.display());
    let mut findings = Vec::new();
    let mut add =
        |severity, what: String, remedy: String| findings.push(Finding::new(SECTION, severity, what, remedy));
    let roomy =
        format!("make room (`du -xh {} | sort -h | tail`), or give another {option}", there.display());
    match *free_bytes {
        ..LEAST_FREE => add(
            Severity::Fault,
            format!(
                "{place}: no space, {} free; {} are needed at least",
                bytes(*free_bytes),
                bytes(LEAST_FREE)
            ),
            roomy.clone(),
        ),
        LEAST_FREE..FREE => {
            add(Severity::Warning, format!("{place}: {} free", bytes(*free_bytes)), roomy.clone())
        }
        _ => {}
    }
    if disk.free_files.is_some_and(|files| files < 16) {
        add(Severity::Fault, format!("{place}: no space for more files (inodes)"), roomy);
    }
    let kind = disk.kind.as_deref().unwrap_or("a file system that is not known");
    if MEMORY.contains(&kind) {
        let what = format!(
            "{place} is on {kind}: the log, and with it this coordinator's votes, are gone after a restart of the host"
        );
        add(Severity::Warning, what, format!("give a {option} on a disk"));
    } else if REMOTE.contains(&kind) {
        let what = format!("{place} is on {kind}: every change of the cluster waits for that server");
        add(Severity::Warning, what, format!("give a {option} on a local disk"));
    }
    match &disk.writes {
        Some(Ok(writes)) => add_speed(&place, kind, *free_bytes, writes, &mut findings),
        // What is full cannot be written, and has been told.
        Some(Err(_)) if *free_bytes < LEAST_FREE => {}
        Some(Err(error)) => add(
            Severity::Fault,
            format!("{place} cannot be written: {error}"),
            format!("install -d -o foggara {} (the user that runs the coordinator)", folder.display()),
        ),
        None => {}
    }
    findings
}

fn add_speed(place: &str, kind: &str, free: u64, writes: &[Duration], findings: &mut Vec<Finding>) {
    let (Some(median), Some(worst)) = (writes.get(writes.len() / 2), writes.last()) else { return };
    let millis = |time: &Duration| time.as_secs_f64() * 1e3;
    let what = format!(
        "{place} ({kind}, {} free): a durable write takes {:.1} ms, at worst {:.1} ms of {}",
        bytes(free),
        millis(median),
        millis(worst),
        writes.len()
    );
    let severity = match *median {
        time if time > TOO_SLOW => Severity::Fault,
        time if time > SLOW => Severity::Warning,
        _ => return findings.push(Finding::ok(SECTION, what)),
    };
    let what = format!("{what}: a slow disk, and all that changes the cluster waits for it");
    let remedy = "see with `iostat -x 1 5` who else uses it; give --data-dir on an SSD, or in a cloud on a disk with guaranteed operations per second";
    findings.push(Finding::new(SECTION, severity, what, remedy));
}

fn models(folder: &Path, disk: &Disk) -> Finding {
    let place = format!("--models {}", folder.display());
    if !folder.is_dir() {
        let remedy = format!("mkdir -p {}, or mount what holds the models", folder.display());
        return Finding::new(SECTION, Severity::Fault, format!("{place}: there is no such folder"), remedy);
    }
    if let Err(error) = folder.read_dir() {
        let remedy = format!("chmod a+rx {}", folder.display());
        return Finding::new(SECTION, Severity::Fault, format!("{place} cannot be read: {error}"), remedy);
    }
    match disk.kind.as_deref() {
        Some(kind) if REMOTE.contains(&kind) => Finding::new(
            SECTION,
            Severity::Note,
            format!(
                "{place} is on {kind}: weights that are mapped are read from there while a model is served"
            ),
            "foggara worker --weights copied",
        ),
        kind => Finding::ok(
            SECTION,
            format!("{place} ({}), {} free", kind.unwrap_or("unknown"), bytes(disk.free_bytes)),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::{severities, worst};
    use super::*;

    fn disk(kind: &str, free_bytes: u64, millis: u64) -> Disk {
        Disk {
            option: "--data-dir",
            folder: "/d".into(),
            there: "/d".into(),
            free_bytes,
            free_files: Some(1000),
            kind: Some(kind.into()),
            writes: Some(Ok(vec![
                Duration::from_millis(1),
                Duration::from_millis(millis),
                Duration::from_millis(200),
            ])),
        }
    }

    #[test]
    fn room_kind_and_speed_are_judged() {
        for (disk, expected) in [
            (disk("ext4", 10 << 30, 2), vec![Severity::Ok]),
            (disk("ext4", 10 << 30, 20), vec![Severity::Warning]),
            (disk("ext4", 10 << 30, 80), vec![Severity::Fault]),
            (disk("ext4", 500 << 20, 2), vec![Severity::Warning, Severity::Ok]),
            (disk("ext4", 1 << 20, 2), vec![Severity::Fault, Severity::Ok]),
            (disk("tmpfs", 10 << 30, 0), vec![Severity::Warning, Severity::Ok]),
            (disk("nfs4", 10 << 30, 12), vec![Severity::Warning, Severity::Warning]),
        ] {
            assert_eq!(severities(&data(&disk)), expected, "{disk:?}");
        }
        let no_files = Disk { free_files: Some(0), ..disk("ext4", 10 << 30, 2) };
        assert_eq!(worst(&data(&no_files)), Severity::Fault);
    }

    #[test]
    fn what_cannot_be_written_is_a_fault_once() {
        let shut = Disk { writes: Some(Err("permission denied".into())), ..disk("ext4", 10 << 30, 0) };
        assert_eq!(severities(&data(&shut)), [Severity::Fault]);
        let full = Disk { writes: Some(Err("no space left".into())), ..disk("ext4", 0, 0) };
        let found = data(&full);
        assert_eq!(severities(&found), [Severity::Fault]);
        assert!(found[0].what.contains("no space"), "{found:?}");
    }

    #[test]
    fn a_folder_of_models_must_be_there() {
        let (gone, here) = (Path::new("/nowhere/at/all"), std::env::temp_dir());
        assert_eq!(models(gone, &disk("ext4", 0, 0)).severity, Severity::Fault);
        assert_eq!(models(&here, &disk("ext4", 0, 0)).severity, Severity::Ok);
        assert_eq!(models(&here, &disk("nfs", 0, 0)).severity, Severity::Note);
    }

    #[test]
    fn a_folder_that_is_to_be_made_is_judged_by_the_one_it_will_be_in() {
        let looked = look("--data-dir", &std::env::temp_dir().join("no/such/folder"), false);
        assert_eq!(looked.there, std::env::temp_dir().canonicalize().expect("it is there"));
        assert!(looked.free_bytes > 0 && looked.kind.is_some(), "{looked:?}");
    }
}
