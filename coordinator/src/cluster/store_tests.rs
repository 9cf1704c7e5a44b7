//! The store over restarts, conflicts, snapshots and damage.

use raft::Storage;

use super::*;
use crate::cluster::test_dir;

const FORMATS: Formats = Formats { oldest: 4, newest: 4 };

fn identity() -> Identity {
    Identity { cluster_id: "c".into(), id: 1, voters: vec![1, 2, 3] }
}

fn entry(index: u64, term: u64) -> Entry {
    Entry { index, term, data: vec![index as u8; 3], ..Entry::default() }
}

fn open(dir: &Path) -> LogStore {
    LogStore::open(dir, &identity(), FORMATS).expect("a valid store")
}

fn all(store: &LogStore) -> Vec<(u64, u64)> {
    let context = GetEntriesContext::empty(false);
    let (first, last) = (store.first_index().expect("known"), store.last_index().expect("known"));
    let entries = store.entries(first, last + 1, None, context).expect("in range");
    entries.iter().map(|e| (e.index, e.term)).collect()
}

#[test]
fn a_restart_finds_what_was_written_and_conflicts_are_replaced() {
    let dir = test_dir();
    let hard = HardState { term: 2, vote: 3, commit: 2 };
    {
        let mut store = open(dir.path());
        assert_eq!(store.initial_state().expect("known").conf_state.voters, [1, 2, 3]);
        store
            .persist(&[entry(1, 1), entry(2, 1), entry(3, 1), entry(4, 1)], Some(&hard), None)
            .expect("written");
        store.persist(&[entry(3, 2)], None, None).expect("written");
    }
    let store = open(dir.path());
    assert_eq!(all(&store), [(1, 1), (2, 1), (3, 2)]);
    assert_eq!(store.initial_state().expect("known").hard_state, hard);
    assert_eq!(store.term(0).expect("known"), 0);
    assert!(store.term(4).is_err());
}

#[test]
fn compacting_and_received_snapshots_survive_a_restart() {
    let dir = test_dir();
    {
        let mut store = open(dir.path());
        store.persist(&(1..=6).map(|i| entry(i, 1)).collect::<Vec<_>>(), None, None).expect("written");
        store.compact(4, b"state at 4".to_vec()).expect("written");
        assert_eq!(all(&store), [(5, 1), (6, 1)]);
    }
    {
        let mut store = open(dir.path());
        assert_eq!((all(&store), store.snapshot_data()), (vec![(5, 1), (6, 1)], &b"state at 4"[..]));
        assert_eq!(store.initial_state().expect("known").hard_state.commit, 4);
        assert!(store.entries(4, 5, None, GetEntriesContext::empty(false)).is_err(), "compacted");
        let mut snapshot = store.snapshot(0, 2).expect("there is one");
        (snapshot.mut_metadata().index, snapshot.mut_metadata().term) = (20, 3);
        store.persist(&[entry(21, 3)], None, Some(&snapshot)).expect("written");
    }
    let store = open(dir.path());
    assert_eq!((all(&store), store.snapshot_index()), (vec![(21, 3)], 20));
}

#[test]
fn a_store_of_another_cluster_or_coordinator_is_refused() {
    let dir = test_dir();
    drop(open(dir.path()));
    for other in [
        Identity { cluster_id: "d".into(), ..identity() },
        Identity { id: 2, ..identity() },
        Identity { voters: vec![1], ..identity() },
    ] {
        let error = LogStore::open(dir.path(), &other, FORMATS).err().expect("refused").to_string();
        assert!(error.contains("belongs to coordinator 1 of cluster `c`"), "{error}");
    }
}

#[test]
fn a_damaged_entry_is_found_at_start() {
    let dir = test_dir();
    {
        let mut store = open(dir.path());
        store.persist(&[entry(1, 1), entry(2, 1)], None, None).expect("written");
        let mut bytes = codec::seal(&entry(2, 1).encode_to_vec());
        *bytes.last_mut().expect("not empty") ^= 4;
        store.commit(|_, table| table.insert(2, bytes.as_slice()).map(drop)).expect("written");
    }
    let error = LogStore::open(dir.path(), &identity(), FORMATS).err().expect("refused").to_string();
    assert!(error.contains("log entry: damaged"), "{error}");
}

#[test]
fn a_file_that_is_no_store_is_an_error_and_not_a_panic() {
    let dir = test_dir();
    std::fs::write(dir.path().join("raft.redb"), vec![7; 10_000]).expect("written");
    assert!(LogStore::open(dir.path(), &identity(), FORMATS).is_err());
}

const FILES: [&str; 2] = ["raft.redb", "raft.commits"];

/// A store with a snapshot at 4 and entries 5 to 8, as kill -9 leaves it: never closed.
fn files() -> [Vec<u8>; 2] {
    let dir = test_dir();
    let mut store = open(dir.path());
    let hard = HardState { term: 2, vote: 3, commit: 6 };
    store.persist(&(1..=8).map(|i| entry(i, 1)).collect::<Vec<_>>(), Some(&hard), None).expect("written");
    store.compact(4, b"state at 4".to_vec()).expect("written");
    read(dir.path())
}

fn read(dir: &Path) -> [Vec<u8>; 2] {
    FILES.map(|name| std::fs::read(dir.join(name)).expect("read"))
}

/// Opens a store of these files.
fn reopen(files: [&[u8]; 2]) -> Result<LogStore, StoreError> {
    let dir = test_dir();
    for (name, bytes) in FILES.iter().zip(files) {
        std::fs::write(dir.path().join(name), bytes).expect("written");
    }
    // An open file outlives its name.
    LogStore::open(dir.path(), &identity(), FORMATS)
}

fn is_whole(store: &LogStore) -> bool {
    let hard = store.initial_state().expect("known").hard_state;
    all(store) == [(5, 1), (6, 1), (7, 1), (8, 1)]
        && store.snapshot_data() == b"state at 4"
        && hard == HardState { term: 2, vote: 3, commit: 6 }
}

#[test]
fn every_write_survives_a_crash_right_after_it() {
    let dir = test_dir();
    let mut store = open(dir.path());
    for i in 1..=12 {
        store.persist(&[entry(i, 1)], None, None).expect("written");
        if i % 5 == 0 {
            store.compact(i - 1, i.to_le_bytes().to_vec()).expect("written");
        }
        let [store_bytes, commits] = read(dir.path());
        let crashed = reopen([&store_bytes, &commits]).expect("a valid store");
        assert_eq!(all(&crashed), all(&store), "after entry {i}");
        assert_eq!(crashed.snapshot_data(), store.snapshot_data());
    }
}

#[test]
fn a_damaged_file_is_found_or_harmless_never_believed() {
    let [good, commits] = files();
    assert!(is_whole(&reopen([&good, &commits]).expect("a valid store")));
    assert!(is_whole(&reopen([&good, b"torn"]).expect("the number beside it is only a check")));
    let used: Vec<usize> = (0..good.len()).filter(|at| good[*at] != 0).collect();
    let step = (used.len() / 100).max(1);
    let mut found = 0;
    for at in used.into_iter().step_by(step) {
        let mut bytes = good.clone();
        bytes[at] ^= 0x10;
        match reopen([&bytes, &commits]) {
            Ok(store) => assert!(is_whole(&store), "a flipped bit at {at} was believed"),
            Err(error) => {
                found += 1;
                assert!(!error.reason.is_empty());
            }
        }
    }
    assert!(found > 0, "some of it mattered");
}

#[test]
fn a_file_that_was_cut_off_is_found() {
    let [good, commits] = files();
    for part in 0..16 {
        let cut = good.len() * part / 16;
        match reopen([&good[..cut], &commits]) {
            Ok(store) => assert!(is_whole(&store), "{cut} bytes of {} were believed", good.len()),
            Err(error) => assert!(error.to_string().contains("raft.redb"), "{error}"),
        }
    }
}
