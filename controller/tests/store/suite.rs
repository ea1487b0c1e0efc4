//! What every store must do, told once and run over each.
//!
//! Each check works under a prefix of its own, so that all can share one store.

use std::sync::Arc;
use std::time::Duration;

use ballast_controller::store::{
    Change, Compare, Entry, Store, StoreError, Transacted, Transaction,
};
use ballast_model::Revision;
use futures::StreamExt;

/// Longer than anything here takes; only a defect reaches it.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs every check.
pub(crate) async fn run(store: Arc<dyn Store>) {
    keys_remember_their_revisions(&*store).await;
    a_transaction_happens_entirely_or_not_at_all(&*store).await;
    a_transaction_that_changes_nothing_keeps_the_revision(&*store).await;
    compares_see_absence_creation_and_modification(&*store).await;
    what_is_no_transaction_is_refused(&*store).await;
    listings_are_ordered_complete_and_bounded(&*store).await;
    one_of_many_racing_transactions_wins(&store).await;
    a_watch_replays_and_goes_on(&*store).await;
    a_watch_sees_only_its_prefix(&*store).await;
    two_watches_see_the_same(&store).await;
    a_revoked_lease_takes_its_keys_along(&*store).await;
    a_lease_ends_by_itself_unless_kept_alive(&*store).await;
    a_key_leaves_its_lease_when_it_is_set_without(&*store).await;
    a_lease_that_is_gone_is_said_to_be_lost(&*store).await;
}

/// Commits or panics.
pub(crate) async fn commit(store: &dyn Store, transaction: Transaction) -> Revision {
    match store.transact(transaction).await.unwrap() {
        Transacted::Committed(revision) => revision,
        Transacted::CompareFailed => panic!("a compare did not hold"),
    }
}

async fn put(store: &dyn Store, key: &str, value: &'static str) -> Revision {
    commit(store, Transaction::default().put(key, value)).await
}

async fn next(
    watch: &mut (impl StreamExt<Item = Result<Change, StoreError>> + Unpin),
) -> Result<Change, StoreError> {
    tokio::time::timeout(PATIENCE, watch.next()).await.expect("nothing came").expect("it ended")
}

async fn keys_remember_their_revisions(store: &dyn Store) {
    assert_eq!(store.get("rev/a").await.unwrap(), None);
    let created = put(store, "rev/a", "1").await;
    let modified = put(store, "rev/a", "2").await;
    assert_eq!(modified, Revision(created.0 + 1));
    let entry = Entry { key: "rev/a".into(), value: "2".into(), created, modified };
    assert_eq!(store.get("rev/a").await.unwrap(), Some(entry));

    commit(store, Transaction::default().delete("rev/a")).await;
    assert_eq!(store.get("rev/a").await.unwrap(), None);
    let again = put(store, "rev/a", "3").await;
    let entry = store.get("rev/a").await.unwrap().unwrap();
    assert_eq!((entry.created, entry.modified), (again, again), "a new life starts anew");
}

async fn a_transaction_happens_entirely_or_not_at_all(store: &dyn Store) {
    let first = commit(store, Transaction::default().put("txn/a", "1").put("txn/b", "1")).await;
    let missed = Transaction::when(Compare::ModifiedAt("txn/a".into(), first))
        .and(Compare::Absent("txn/b".into()))
        .put("txn/a", "2")
        .delete("txn/b");
    assert_eq!(store.transact(missed).await.unwrap(), Transacted::CompareFailed);
    let listing = store.list("txn/").await.unwrap();
    assert!(listing.entries.iter().all(|e| e.modified == first && e.value == "1"), "{listing:?}");

    let second = commit(store, Transaction::default().put("txn/a", "2").delete("txn/b")).await;
    let listing = store.list("txn/").await.unwrap();
    assert_eq!(listing.entries.len(), 1);
    assert_eq!(listing.entries[0].modified, second);
    assert_eq!(listing.revision, second);
}

async fn a_transaction_that_changes_nothing_keeps_the_revision(store: &dyn Store) {
    let before = put(store, "none/a", "1").await;
    let nothing = Transaction::default().delete("none/b");
    assert_eq!(store.transact(nothing).await.unwrap(), Transacted::Committed(before));
    let only_compares = Transaction::when(Compare::ModifiedAt("none/a".into(), before));
    assert_eq!(store.transact(only_compares).await.unwrap(), Transacted::Committed(before));
    assert_eq!(put(store, "none/a", "2").await, Revision(before.0 + 1));
}

async fn compares_see_absence_creation_and_modification(store: &dyn Store) {
    let created = put(store, "cmp/a", "1").await;
    let modified = put(store, "cmp/a", "2").await;
    let key = || "cmp/a".to_owned();
    let missing = || "cmp/b".to_owned();
    let table = [
        (Compare::Absent(key()), false),
        (Compare::Absent(missing()), true),
        (Compare::CreatedAt(key(), created), true),
        (Compare::CreatedAt(key(), modified), false),
        (Compare::CreatedAt(missing(), created), false),
        (Compare::ModifiedAt(key(), modified), true),
        (Compare::ModifiedAt(key(), created), false),
        (Compare::ModifiedAt(missing(), modified), false),
    ];
    for (compare, holds) in table {
        let answer = store.transact(Transaction::when(compare.clone())).await.unwrap();
        assert_eq!(answer != Transacted::CompareFailed, holds, "{compare:?}");
    }
}

async fn what_is_no_transaction_is_refused(store: &dyn Store) {
    let mut many = Transaction::default();
    for n in 0..=Transaction::OPERATIONS_MAX {
        many = many.put(format!("bad/{n}"), "x");
    }
    let large = Transaction::default().put("bad/large", vec![0; Transaction::BYTES_MAX + 1]);
    let bad = [
        Transaction::default().put("bad/a", "1").delete("bad/a"),
        Transaction::default().put("", "1"),
        Transaction::when(Compare::CreatedAt("bad/a".into(), Revision(0))),
        many,
        large,
    ];
    for transaction in bad {
        let answer = store.transact(transaction).await;
        assert!(matches!(answer, Err(StoreError::Invalid(_))), "{answer:?}");
    }
    assert_eq!(store.list("bad/").await.unwrap().entries, []);
    let full = vec![7; Transaction::BYTES_MAX - 100];
    commit(store, Transaction::default().put("bad/fits", full.clone())).await;
    assert_eq!(store.get("bad/fits").await.unwrap().unwrap().value, full);
}

async fn listings_are_ordered_complete_and_bounded(store: &dyn Store) {
    // More than one page of the largest pages any implementation asks for.
    const COUNT: usize = 2_345;
    let mut numbers = (0..COUNT).rev().collect::<Vec<_>>();
    while !numbers.is_empty() {
        let mut transaction = Transaction::default();
        for n in numbers.split_off(numbers.len().saturating_sub(Transaction::OPERATIONS_MAX)) {
            transaction = transaction.put(format!("list/{n:05}"), n.to_string());
        }
        commit(store, transaction).await;
    }
    put(store, "list", "before the prefix").await;
    put(store, "list0", "after the prefix").await;

    let listing = store.list("list/").await.unwrap();
    let expected: Vec<String> = (0..COUNT).map(|n| format!("list/{n:05}")).collect();
    assert_eq!(listing.entries.iter().map(|e| e.key.clone()).collect::<Vec<_>>(), expected);
    assert!(listing.entries.iter().all(|entry| entry.modified <= listing.revision));

    let keys = |from: &'static str, to: &'static str, limit| async move {
        let listing = store.range(from, to, limit).await.unwrap();
        listing.entries.into_iter().map(|entry| entry.key).collect::<Vec<_>>()
    };
    assert_eq!(keys("list/00003", "list/00005", 10).await, ["list/00003", "list/00004"]);
    assert_eq!(keys("list/00003", "list/9", 2).await, ["list/00003", "list/00004"]);
    assert_eq!(keys("list/", "list/~", 0).await, [""; 0]);
    assert_eq!(keys("list/5", "list/4", 10).await, [""; 0]);
    assert_eq!(keys("list/", "list/~", COUNT + 1).await.len(), COUNT);
    assert_eq!(store.list("nothing/").await.unwrap().entries, []);
}

async fn one_of_many_racing_transactions_wins(store: &Arc<dyn Store>) {
    const RACERS: usize = 16;
    let start = put(&**store, "race/owner", "nobody").await;
    let race = (0..RACERS).map(|n| {
        let store = Arc::clone(store);
        tokio::spawn(async move {
            let compare = Compare::ModifiedAt("race/owner".into(), start);
            let swap = Transaction::when(compare).put("race/owner", n.to_string());
            store.transact(swap).await.unwrap()
        })
    });
    let answers: Vec<_> = futures::future::join_all(race).await;
    let won = answers.iter().position(|a| *a.as_ref().unwrap() != Transacted::CompareFailed);
    let losers =
        answers.iter().filter(|a| *a.as_ref().unwrap() == Transacted::CompareFailed).count();
    assert_eq!(losers, RACERS - 1);
    let entry = store.get("race/owner").await.unwrap().unwrap();
    assert_eq!(entry.value, won.unwrap().to_string());
    assert_eq!(entry.modified, Revision(start.0 + 1));
}

async fn a_watch_replays_and_goes_on(store: &dyn Store) {
    let start = put(store, "watch/a", "1").await;
    let second = commit(store, Transaction::default().put("watch/b", "1").delete("watch/a")).await;
    let mut watch = store.watch("watch/", start).await.unwrap();
    let b = |value: &'static str, modified| {
        Change::Put(Entry { key: "watch/b".into(), value: value.into(), created: second, modified })
    };
    assert_eq!(next(&mut watch).await.unwrap(), b("1", second));
    assert_eq!(next(&mut watch).await.unwrap(), Change::Deleted("watch/a".into(), second));
    let third = put(store, "watch/b", "2").await;
    assert_eq!(next(&mut watch).await.unwrap(), b("2", third));

    let mut late = store.watch("watch/", second).await.unwrap();
    assert_eq!(next(&mut late).await.unwrap(), b("2", third), "nothing twice, nothing missing");
}

async fn a_watch_sees_only_its_prefix(store: &dyn Store) {
    let start = put(store, "pre/a/1", "1").await;
    let mut watch = store.watch("pre/a/", start).await.unwrap();
    put(store, "pre/b/1", "other").await;
    put(store, "pre/a", "shorter").await;
    let wanted = put(store, "pre/a/2", "wanted").await;
    let change = next(&mut watch).await.unwrap();
    assert_eq!((change.key(), change.revision()), ("pre/a/2", wanted));
}

async fn two_watches_see_the_same(store: &Arc<dyn Store>) {
    const WRITES: usize = 200;
    let start = put(&**store, "both/start", "1").await;
    let watch = |store: Arc<dyn Store>| async move {
        let watch = store.watch("both/n", start).await.unwrap();
        watch.take(WRITES).map(Result::unwrap).collect::<Vec<_>>().await
    };
    let writer = Arc::clone(store);
    let write = async move {
        for n in 0..WRITES {
            let transaction = Transaction::default().put(format!("both/n{}", n % 7), n.to_string());
            commit(&*writer, transaction).await;
        }
    };
    let all = async { tokio::join!(watch(Arc::clone(store)), write, watch(Arc::clone(store))) };
    let (left, (), right) = tokio::time::timeout(PATIENCE, all).await.expect("changes are missing");
    assert_eq!(left, right);
    let revisions: Vec<u64> = left.iter().map(|change| change.revision().0).collect();
    assert_eq!(revisions, (start.0 + 1..=start.0 + WRITES as u64).collect::<Vec<_>>());
}

async fn a_revoked_lease_takes_its_keys_along(store: &dyn Store) {
    let lease = store.grant_lease(Duration::from_secs(60)).await.unwrap();
    let leased = Transaction::default()
        .put_leased("lease/b", "1", lease)
        .put_leased("lease/a", "1", lease)
        .put("lease/free", "1");
    let start = commit(store, leased).await;
    let mut watch = store.watch("lease/", start).await.unwrap();
    store.revoke_lease(lease).await.unwrap();
    let first = next(&mut watch).await.unwrap();
    let second = next(&mut watch).await.unwrap();
    let both = Revision(start.0 + 1);
    let mut seen = [first, second];
    seen.sort_by(|a, b| a.key().cmp(b.key()));
    let gone = |key: &str| Change::Deleted(key.into(), both);
    assert_eq!(seen, [gone("lease/a"), gone("lease/b")]);
    assert_eq!(store.list("lease/").await.unwrap().entries.len(), 1);
}

async fn a_lease_ends_by_itself_unless_kept_alive(store: &dyn Store) {
    let ends = store.grant_lease(Duration::from_secs(4)).await.unwrap();
    let kept = store.grant_lease(Duration::from_secs(3)).await.unwrap();
    let leased =
        Transaction::default().put_leased("ttl/ends", "1", ends).put_leased("ttl/kept", "1", kept);
    let start = commit(store, leased).await;
    let mut watch = store.watch("ttl/", start).await.unwrap();
    let change = loop {
        tokio::select! {
            change = next(&mut watch) => break change.unwrap(),
            () = tokio::time::sleep(Duration::from_millis(200)) => store.keep_alive(kept).await.unwrap(),
        }
    };
    assert!(matches!(&change, Change::Deleted(key, _) if key == "ttl/ends"), "{change:?}");
    assert!(store.get("ttl/kept").await.unwrap().is_some());
    store.revoke_lease(kept).await.unwrap();
}

async fn a_key_leaves_its_lease_when_it_is_set_without(store: &dyn Store) {
    let lease = store.grant_lease(Duration::from_secs(60)).await.unwrap();
    let leased =
        Transaction::default().put_leased("left/a", "1", lease).put_leased("left/b", "1", lease);
    commit(store, leased).await;
    put(store, "left/a", "2").await;
    store.revoke_lease(lease).await.unwrap();
    let left = store.list("left/").await.unwrap().entries;
    assert_eq!(left.iter().map(|entry| entry.key.as_str()).collect::<Vec<_>>(), ["left/a"]);
}

async fn a_lease_that_is_gone_is_said_to_be_lost(store: &dyn Store) {
    let lease = store.grant_lease(Duration::from_secs(60)).await.unwrap();
    store.revoke_lease(lease).await.unwrap();
    let lost = |answer: Result<(), StoreError>| {
        assert!(matches!(answer, Err(StoreError::LeaseLost)), "{answer:?}");
    };
    lost(store.keep_alive(lease).await);
    lost(store.revoke_lease(lease).await);
    let put = Transaction::default().put("lost/other", "1").put_leased("lost/a", "1", lease);
    lost(store.transact(put).await.map(|_| ()));
    assert_eq!(store.list("lost/").await.unwrap().entries, [], "nothing is half-done");
    let missed = Transaction::when(Compare::CreatedAt("lost/b".into(), Revision(1)))
        .put_leased("lost/a", "1", lease);
    assert_eq!(store.transact(missed).await.unwrap(), Transacted::CompareFailed);
}
