//! Log, hard state and snapshot of one coordinator, in a redb file.
//!
//! The log since the last snapshot is also kept in memory (it is small), so raft-rs reads never touch the disk. A write is
//! one redb transaction, durable when it returns. Every value carries a checksum of its own.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use prost011::Message as _;
use raft::prelude::{ConfState, Entry, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState, StorageError};
use redb::{Database, ReadableDatabase, TableDefinition};
use serde::{Deserialize, Serialize};

use super::codec::{self, CodecError, Stored};
use super::format::Formats;
use super::seal::Seal;

const ENTRIES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("entries");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const IDENTITY: &str = "identity";
const HARD_STATE: &str = "hard_state";
const SNAPSHOT: &str = "snapshot";
const COMMITS: &str = "commits";
/// The log is kept in memory by us; the library need not keep it too.
const CACHE_BYTES: usize = 4 << 20;
/// What errors that are not about the file itself call the store.
const STORE: &str = "raft.redb";
const RESTORE: &str = "if the disk is at fault, give this coordinator a new id and an empty data folder";

/// Of what kind it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is damaged, or cannot be read or written.
    Broken,
    /// It is the store of another coordinator: nothing is wrong with it.
    Foreign,
    /// It is in a format that only a newer program reads, or the cluster is: nothing is wrong with it.
    Newer,
}

/// Why a store cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct StoreError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong, and what to do.
    pub reason: String,
    /// Of what kind that is.
    pub fault: Fault,
}

impl StoreError {
    /// Of this member's store, whose path is known to whoever shows it.
    pub(super) fn of_member(reason: String) -> Self {
        Self { path: PathBuf::from(STORE), reason, fault: Fault::Broken }
    }

    /// That `what` cannot be decoded.
    pub(super) fn of_codec(what: &str, error: &CodecError) -> Self {
        let fault = if matches!(error, CodecError::Newer { .. }) { Fault::Newer } else { Fault::Broken };
        Self { fault, ..Self::of_member(format!("{what} cannot be read: {error}")) }
    }
}

/// Whose store it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    pub(super) cluster_id: String,
    pub(super) id: u64,
    pub(super) voters: Vec<u64>,
}

impl Stored for Identity {
    type V1 = Self;
    type V2 = Self;
    type V3 = Self;
    type V4 = Self;
}

/// The store of one coordinator.
pub(super) struct LogStore {
    path: PathBuf,
    db: Database,
    /// Commits made, and where they are counted a second time.
    commits: u64,
    seal: Seal,
    hard_state: HardState,
    /// Its metadata says where the log begins.
    snapshot: Snapshot,
    /// Entries after the snapshot, without gaps.
    entries: VecDeque<Entry>,
    /// Of their data.
    log_bytes: usize,
    /// Seconds spent in durable commits, and how many there were.
    pub(super) sync_seconds: f64,
    pub(super) syncs: u64,
}

impl LogStore {
    /// Opens the store in `dir`, or makes one.
    pub(super) fn open(dir: &Path, identity: &Identity, formats: Formats) -> Result<Self, StoreError> {
        let path = dir.join("raft.redb");
        let fail = |reason: String| StoreError { path: path.clone(), reason, fault: Fault::Broken };
        std::fs::create_dir_all(dir).map_err(|e| fail(format!("making its folder: {e}")))?;
        let db = open_database(&path).map_err(fail)?;
        let counted = dir.join("raft.commits");
        let (seal, sealed) = Seal::open(&counted).map_err(|e| fail(format!("{}: {e}", counted.display())))?;
        // The file's name must be as durable as what is in it.
        let synced = std::fs::File::open(dir).and_then(|dir| dir.sync_all());
        synced.map_err(|e| fail(format!("syncing its folder: {e}")))?;
        let mut store = Self {
            path: path.clone(),
            db,
            commits: 0,
            seal,
            hard_state: HardState::default(),
            snapshot: initial_snapshot(identity),
            entries: VecDeque::new(),
            log_bytes: 0,
            sync_seconds: 0.0,
            syncs: 0,
        };
        store.commits = store.count()?;
        if let Some(sealed) = sealed.filter(|sealed| *sealed > store.commits) {
            let found = store.commits;
            return Err(fail(format!("has lost writes: {found} commits are there of {sealed}; {RESTORE}")));
        }
        match store.read_meta(IDENTITY)? {
            None => {
                let bytes = codec::encode(identity, formats.oldest).map_err(|e| fail(e.to_string()))?;
                store.commit(|meta, _| meta.insert(IDENTITY, bytes.as_slice()).map(drop))?;
            }
            Some(bytes) => {
                let known: Identity =
                    codec::decode(&bytes, formats.newest).map_err(|e| fail(format!("identity: {e}")))?;
                if known != *identity {
                    let error = fail(format!(
                        "belongs to coordinator {} of cluster `{}` with members {:?}, not to {} of `{}` with {:?}; \
                         give another data folder, or the right id and peers",
                        known.id,
                        known.cluster_id,
                        known.voters,
                        identity.id,
                        identity.cluster_id,
                        identity.voters
                    ));
                    return Err(StoreError { fault: Fault::Foreign, ..error });
                }
            }
        }
        store.load()?;
        Ok(store)
    }

    fn fail(&self, reason: impl std::fmt::Display) -> StoreError {
        StoreError { path: self.path.clone(), reason: reason.to_string(), fault: Fault::Broken }
    }

    /// A sealed value of the meta table.
    fn read_meta(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let transaction = self.db.begin_read().map_err(|e| self.fail(e))?;
        let table = match transaction.open_table(META) {
            Ok(table) => table,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
            Err(e) => return Err(self.fail(e)),
        };
        let value = table.get(key).map_err(|e| self.fail(e))?;
        Ok(value.map(|value| value.value().to_vec()))
    }

    /// Commits that are in the file.
    fn count(&self) -> Result<u64, StoreError> {
        let Some(bytes) = self.read_meta(COMMITS)? else { return Ok(0) };
        let number = bytes.try_into().map_err(|_| self.fail("the number of commits is damaged"))?;
        Ok(u64::from_le_bytes(number))
    }

    fn load(&mut self) -> Result<(), StoreError> {
        if let Some(bytes) = self.read_meta(HARD_STATE)? {
            self.hard_state = self.unseal("hard state", &bytes)?;
        }
        if let Some(bytes) = self.read_meta(SNAPSHOT)? {
            self.snapshot = self.unseal("snapshot", &bytes)?;
        }
        let transaction = self.db.begin_read().map_err(|e| self.fail(e))?;
        let table = match transaction.open_table(ENTRIES) {
            Ok(table) => table,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(()),
            Err(e) => return Err(self.fail(e)),
        };
        let mut next = self.snapshot_index() + 1;
        let mut entries = VecDeque::new();
        for row in table.range(next..).map_err(|e| self.fail(e))? {
            let (index, bytes) = row.map_err(|e| self.fail(e))?;
            let entry: Entry = self.unseal("log entry", bytes.value())?;
            if index.value() != next || entry.index != next {
                return Err(self.fail(format!("log entry {next} is missing; {RESTORE}")));
            }
            next += 1;
            entries.push_back(entry);
        }
        if self.hard_state.commit >= next {
            let (commit, last) = (self.hard_state.commit, next - 1);
            return Err(self.fail(format!("committed up to {commit}, but the log ends at {last}; {RESTORE}")));
        }
        self.entries = entries;
        self.log_bytes = bytes_of(&self.entries);
        Ok(())
    }

    fn unseal<M: prost011::Message + Default>(&self, what: &str, bytes: &[u8]) -> Result<M, StoreError> {
        let body = codec::open(bytes).map_err(|e| self.fail(format!("{what}: {e}")))?;
        M::decode(body).map_err(|e| self.fail(format!("{what}: {e}")))
    }

    /// One durable transaction.
    fn commit(
        &mut self,
        write: impl FnOnce(
            &mut redb::Table<'_, &'static str, &'static [u8]>,
            &mut redb::Table<'_, u64, &'static [u8]>,
        ) -> Result<(), redb::StorageError>,
    ) -> Result<(), StoreError> {
        let started = std::time::Instant::now();
        let transaction = self.db.begin_write().map_err(|e| self.fail(e))?;
        {
            let mut meta = transaction.open_table(META).map_err(|e| self.fail(e))?;
            let mut entries = transaction.open_table(ENTRIES).map_err(|e| self.fail(e))?;
            write(&mut meta, &mut entries).map_err(|e| self.fail(e))?;
            let number = (self.commits + 1).to_le_bytes();
            meta.insert(COMMITS, number.as_slice()).map_err(|e| self.fail(e))?;
        }
        transaction.commit().map_err(|e| self.fail(e))?;
        self.commits += 1;
        self.seal.set(self.commits).map_err(|e| self.fail(format!("counting a commit: {e}")))?;
        self.sync_seconds += started.elapsed().as_secs_f64();
        self.syncs += 1;
        Ok(())
    }

    pub(super) fn snapshot_index(&self) -> u64 {
        self.snapshot.get_metadata().index
    }

    /// Bytes of the state in the last snapshot; empty for none.
    pub(super) fn snapshot_data(&self) -> &[u8] {
        &self.snapshot.data
    }

    /// Changes, encoded, of the entries since the last snapshot.
    pub(super) fn changes(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let entries = self.entries.iter().filter(|entry| !entry.data.is_empty());
        entries.map(|entry| (entry.index, &entry.data[..]))
    }

    /// Bytes of the entries since the last snapshot.
    pub(super) fn log_bytes(&self) -> usize {
        self.log_bytes
    }

    pub(super) fn last(&self) -> u64 {
        self.snapshot_index() + self.entries.len() as u64
    }

    /// Makes entries (replacing conflicting ones), hard state and a received snapshot durable, all or nothing.
    pub(super) fn persist(
        &mut self,
        entries: &[Entry],
        hard_state: Option<&HardState>,
        snapshot: Option<&Snapshot>,
    ) -> Result<(), StoreError> {
        let sealed: Vec<(u64, Vec<u8>)> =
            entries.iter().map(|entry| (entry.index, codec::seal(&entry.encode_to_vec()))).collect();
        let mut hard_state = hard_state.cloned().unwrap_or_else(|| self.hard_state.clone());
        // What a snapshot holds was committed; on disk the two must not disagree.
        hard_state.commit =
            hard_state.commit.max(snapshot.map_or(0, |snapshot| snapshot.get_metadata().index));
        let hard_bytes = codec::seal(&hard_state.encode_to_vec());
        let snapshot_bytes = snapshot.map(|snapshot| codec::seal(&snapshot.encode_to_vec()));
        let first = entries.first().map(|entry| entry.index);
        self.commit(|meta, table| {
            meta.insert(HARD_STATE, hard_bytes.as_slice())?;
            if let Some(bytes) = &snapshot_bytes {
                meta.insert(SNAPSHOT, bytes.as_slice())?;
                table.retain(|_, _| false)?;
            }
            if let Some(first) = first {
                table.retain_in(first.., |_, _| false)?;
            }
            for (index, bytes) in &sealed {
                table.insert(index, bytes.as_slice())?;
            }
            Ok(())
        })?;
        self.hard_state = hard_state;
        if let Some(snapshot) = snapshot {
            self.snapshot = snapshot.clone();
            self.entries.clear();
        }
        if let Some(first) = first {
            let keep = first.saturating_sub(self.snapshot_index() + 1);
            self.entries.truncate(usize::try_from(keep).unwrap_or(usize::MAX));
            self.entries.extend(entries.iter().cloned());
        }
        self.log_bytes = bytes_of(&self.entries);
        Ok(())
    }

    /// Replaces the log up to `index` by the state there. Followers that lag behind it are sent the snapshot.
    pub(super) fn compact(&mut self, index: u64, data: Vec<u8>) -> Result<(), StoreError> {
        let term = raft::Storage::term(self, index).map_err(|e| self.fail(e))?;
        let mut snapshot = self.snapshot.clone();
        snapshot.data = data;
        let metadata = snapshot.mut_metadata();
        (metadata.index, metadata.term) = (index, term);
        let bytes = codec::seal(&snapshot.encode_to_vec());
        let mut hard_state = self.hard_state.clone();
        // What has been applied was committed; on disk the two must not disagree.
        hard_state.commit = hard_state.commit.max(index);
        let hard_bytes = codec::seal(&hard_state.encode_to_vec());
        self.commit(|meta, table| {
            meta.insert(SNAPSHOT, bytes.as_slice())?;
            meta.insert(HARD_STATE, hard_bytes.as_slice())?;
            table.retain_in(..=index, |_, _| false)?;
            Ok(())
        })?;
        let drop_count = usize::try_from(index - self.snapshot_index()).unwrap_or(usize::MAX);
        self.entries.drain(..drop_count.min(self.entries.len()));
        self.log_bytes = bytes_of(&self.entries);
        (self.snapshot, self.hard_state) = (snapshot, hard_state);
        Ok(())
    }
}

/// Opens or makes the file. Every page of it is checked, so that damage is found now and not in the middle of an election.
fn open_database(path: &Path) -> Result<Database, String> {
    let open = || {
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
        builder.create(path)
    };
    match std::panic::catch_unwind(open) {
        Ok(Ok(database)) => Ok(database),
        Ok(Err(redb::DatabaseError::DatabaseAlreadyOpen)) => Err("another coordinator is using it".into()),
        Ok(Err(error)) => Err(format!("{error}; {RESTORE}")),
        // The library trusts what it has written more than a damaged disk deserves.
        Err(_) => Err(format!("it is damaged; {RESTORE}")),
    }
}

fn bytes_of(entries: &VecDeque<Entry>) -> usize {
    entries.iter().map(|entry| entry.data.len()).sum()
}

/// Before anything has happened: the members, at index 0.
fn initial_snapshot(identity: &Identity) -> Snapshot {
    let mut snapshot = Snapshot::default();
    let conf_state = ConfState { voters: identity.voters.clone(), ..ConfState::default() };
    snapshot.mut_metadata().conf_state = Some(conf_state);
    snapshot
}

impl raft::Storage for LogStore {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let conf_state = self.snapshot.get_metadata().get_conf_state().clone();
        Ok(RaftState { hard_state: self.hard_state.clone(), conf_state })
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.snapshot_index() {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        if high > self.last() + 1 {
            return Err(raft::Error::Store(StorageError::Unavailable));
        }
        let at = |index: u64| usize::try_from(index - self.snapshot_index() - 1).unwrap_or(usize::MAX);
        let mut entries: Vec<Entry> = self.entries.range(at(low)..at(high)).cloned().collect();
        raft::util::limit_size(&mut entries, max_size.into());
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        let metadata = self.snapshot.get_metadata();
        if index == metadata.index {
            return Ok(metadata.term);
        }
        if index < metadata.index {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        let at = usize::try_from(index - metadata.index - 1).unwrap_or(usize::MAX);
        self.entries.get(at).map(|entry| entry.term).ok_or(raft::Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.snapshot_index() + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        if self.snapshot_index() < request_index {
            return Err(raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        }
        Ok(self.snapshot.clone())
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
