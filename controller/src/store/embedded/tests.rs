//! A disk that fails at every step: the store is before or after each transaction, and goes on.

use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::FutureExt;
use redb::backends::FileBackend;
use redb::{Builder, DatabaseError, StorageBackend};

use super::*;

/// A file whose disk takes so many more writes and syncs, and none after.
#[derive(Debug)]
struct FullDisk {
    file: FileBackend,
    left: Arc<AtomicU64>,
}

impl FullDisk {
    fn spend(&self) -> std::io::Result<()> {
        let spent =
            self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        spent.map(|_| ()).map_err(|_| std::io::ErrorKind::StorageFull.into())
    }
}

impl StorageBackend for FullDisk {
    fn len(&self) -> std::io::Result<u64> {
        self.file.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.file.read(offset, out)
    }
    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.spend()?;
        self.file.set_len(len)
    }
    fn sync_data(&self) -> std::io::Result<()> {
        self.spend()?;
        self.file.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.spend()?;
        self.file.write(offset, data)
    }
    fn close(&self) -> std::io::Result<()> {
        self.file.close()
    }
}

/// A store on a disk whose room can be set.
fn store_on(path: &Path) -> (EmbeddedStore, Arc<AtomicU64>) {
    let left = Arc::new(AtomicU64::new(u64::MAX));
    let (target, room) = (path.to_owned(), Arc::clone(&left));
    let opener = move || -> Result<Database, DatabaseError> {
        let file = File::options().read(true).write(true).open(&target)?;
        let file = FileBackend::new(file)?;
        Builder::new().create_with_backend(FullDisk { file, left: Arc::clone(&room) })
    };
    File::create(path).unwrap();
    let database = opener().unwrap();
    let revision = file::check(path, &database).unwrap();
    let limits = LogLimits::default();
    (EmbeddedStore::start(path, database, Box::new(opener), revision, limits), left)
}

fn values(listing: &Listing) -> Vec<u8> {
    listing.entries.iter().map(|entry| entry.value[0]).collect()
}

/// The disk fails at its `room`-th step during a transaction. Whether the transaction happened.
async fn fail_after(room: u64) -> bool {
    let dir = tempfile::tempdir().unwrap();
    let (store, left) = store_on(&dir.path().join("store"));
    let both = |value: u8| {
        let value = vec![value; 50_000];
        Transaction::default().put("a", value.clone()).put("b", value)
    };
    let Transacted::Committed(first) = store.transact(both(1)).await.unwrap() else { panic!() };
    let mut watch = store.watch("", first).await.unwrap();

    left.store(room, Ordering::SeqCst);
    let answer = store.transact(both(2)).await;
    left.store(u64::MAX, Ordering::SeqCst);

    let listing = store.list("").await.unwrap();
    let happened = match &answer {
        Ok(Transacted::Committed(revision)) => {
            assert_eq!(*revision, Revision(first.0 + 1));
            true
        }
        Err(StoreError::Failed(_)) => false,
        // The disk failed while the file was opened again: only the file knows.
        Err(StoreError::Unavailable { .. }) => listing.revision > first,
        other => panic!("{other:?}"),
    };
    let value = if happened { 2 } else { 1 };
    assert_eq!(values(&listing), [value, value], "room {room}: {answer:?}");

    // With room again it goes on, and a watch misses nothing.
    let Transacted::Committed(last) = store.transact(both(3)).await.unwrap() else { panic!() };
    assert_eq!(last.0, first.0 + 1 + u64::from(happened));
    assert_eq!(values(&store.list("").await.unwrap()), [3, 3]);
    let mut seen = Vec::new();
    while let Some(Some(Ok(change))) = watch.next().now_or_never() {
        seen.push(change.revision().0);
    }
    let expected: Vec<u64> = (first.0 + 1..=last.0).flat_map(|r| [r, r]).collect();
    assert_eq!(seen, expected, "room {room}");
    happened
}

#[tokio::test]
async fn a_disk_that_fails_at_any_step_leaves_nothing_half_done() {
    let mut happened = Vec::new();
    for room in 0..64 {
        happened.push(fail_after(room).await);
        if happened.ends_with(&[true, true, true, true]) {
            break;
        }
    }
    assert!(!happened[0], "without any room nothing can happen");
    assert!(happened.ends_with(&[true, true, true, true]), "{happened:?}");
}

#[tokio::test]
async fn a_disk_that_stays_full_is_said_to_be_and_reading_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (store, left) = store_on(&dir.path().join("store"));
    store.transact(Transaction::default().put("a", "1")).await.unwrap();
    left.store(0, Ordering::SeqCst);
    for _ in 0..3 {
        let answer = store.transact(Transaction::default().put("a", "2")).await;
        assert!(answer.is_err(), "{answer:?}");
    }
    left.store(u64::MAX, Ordering::SeqCst);
    assert_eq!(store.get("a").await.unwrap().unwrap().value, "1");
    store.transact(Transaction::default().put("a", "3")).await.unwrap();
}
