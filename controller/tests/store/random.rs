//! Random transactions: every store answers as a model in memory does.

use std::collections::BTreeMap;

use ballast_controller::store::embedded::EmbeddedStore;
use ballast_controller::store::{Change, Compare, Entry, Store, Transacted, Transaction, Write};
use ballast_model::Revision;
use futures::StreamExt;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tokio::runtime::Runtime;

/// Few keys, so that transactions meet.
const KEYS: usize = 4;

#[derive(Debug, Clone)]
enum Guess {
    /// What holds.
    Right,
    /// The revision so many after the start.
    After(u64),
}

#[derive(Debug, Clone)]
enum Test {
    Absent(usize),
    Created(usize, Guess),
    Modified(usize, Guess),
}

#[derive(Debug, Clone)]
struct Step {
    tests: Vec<Test>,
    /// For each key: leave it, delete it, or set it.
    writes: [Option<Option<u8>>; KEYS],
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let guess = || prop_oneof![3 => Just(Guess::Right), 1 => (1..20u64).prop_map(Guess::After)];
    let test = prop_oneof![
        (0..KEYS).prop_map(Test::Absent),
        (0..KEYS, guess()).prop_map(|(key, guess)| Test::Created(key, guess)),
        (0..KEYS, guess()).prop_map(|(key, guess)| Test::Modified(key, guess)),
    ];
    let write = || {
        prop_oneof![
            3 => Just(None),
            1 => Just(Some(None)),
            2 => any::<u8>().prop_map(|value| Some(Some(value))),
        ]
    };
    let step = (prop::collection::vec(test, 0..3), [write(), write(), write(), write()])
        .prop_map(|(tests, writes)| Step { tests, writes });
    prop::collection::vec(step, 1..25)
}

/// What a store must do, in a few lines.
struct Model {
    start: Revision,
    revision: Revision,
    keys: BTreeMap<String, Entry>,
    changes: Vec<Change>,
}

impl Model {
    fn resolve(&self, prefix: &str, test: &Test) -> Compare {
        let name = |key: &usize| format!("{prefix}{key}");
        let resolve = |key: &usize, guess: &Guess, right: fn(&Entry) -> Revision| match guess {
            // A key that is not there has no right answer; any revision is wrong.
            Guess::Right => self.keys.get(&name(key)).map_or(self.revision, right),
            Guess::After(n) => Revision(self.start.0 + n),
        };
        match test {
            Test::Absent(key) => Compare::Absent(name(key)),
            Test::Created(key, guess) => {
                Compare::CreatedAt(name(key), resolve(key, guess, |entry| entry.created))
            }
            Test::Modified(key, guess) => {
                Compare::ModifiedAt(name(key), resolve(key, guess, |entry| entry.modified))
            }
        }
    }

    fn transaction(&self, prefix: &str, step: &Step) -> Transaction {
        let compares = step.tests.iter().map(|test| self.resolve(prefix, test)).collect();
        let writes = step.writes.iter().enumerate().filter_map(|(key, write)| {
            let key = format!("{prefix}{key}");
            Some(match (*write)? {
                Some(value) => Write::Put { key, value: vec![value].into(), lease: None },
                None => Write::Delete { key },
            })
        });
        Transaction { compares, writes: writes.collect() }
    }

    fn transact(&mut self, transaction: &Transaction) -> Transacted {
        let holds = |compare: &Compare| match compare {
            Compare::Absent(key) => !self.keys.contains_key(key),
            Compare::CreatedAt(key, at) => self.keys.get(key).is_some_and(|e| e.created == *at),
            Compare::ModifiedAt(key, at) => self.keys.get(key).is_some_and(|e| e.modified == *at),
        };
        if !transaction.compares.iter().all(holds) {
            return Transacted::CompareFailed;
        }
        let modified = Revision(self.revision.0 + 1);
        for write in &transaction.writes {
            match write.clone() {
                Write::Put { key, value, .. } => {
                    let created = self.keys.get(&key).map_or(modified, |old| old.created);
                    let entry = Entry { key: key.clone(), value, created, modified };
                    self.keys.insert(key, entry.clone());
                    self.changes.push(Change::Put(entry));
                }
                Write::Delete { key } => {
                    if self.keys.remove(&key).is_some() {
                        self.changes.push(Change::Deleted(key, modified));
                    }
                }
            }
        }
        if self.changes.last().is_some_and(|change| change.revision() == modified) {
            self.revision = modified;
        }
        Transacted::Committed(self.revision)
    }
}

async fn compare_with_model(store: &dyn Store, prefix: &str, steps: &[Step]) {
    let start = store.list(prefix).await.unwrap().revision;
    let mut model = Model { start, revision: start, keys: BTreeMap::new(), changes: Vec::new() };
    let live = store.watch(prefix, start).await.unwrap();
    for step in steps {
        let transaction = model.transaction(prefix, step);
        let expected = model.transact(&transaction);
        assert_eq!(store.transact(transaction).await.unwrap(), expected, "{step:?}");
    }
    let listing = store.list(prefix).await.unwrap();
    assert_eq!(listing.entries, model.keys.into_values().collect::<Vec<_>>());
    assert_eq!(listing.revision, model.revision);
    let replay = store.watch(prefix, start).await.unwrap();
    for watch in [live, replay] {
        let seen: Vec<_> = watch.take(model.changes.len()).map(Result::unwrap).collect().await;
        assert_eq!(seen, model.changes);
    }
}

/// Each case works under keys of its own.
fn check(runtime: &Runtime, store: &dyn Store, cases: u32) {
    let number = std::cell::Cell::new(0);
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let result = TestRunner::new(config).run(&steps(), |steps| {
        number.set(number.get() + 1);
        let prefix = format!("random/{}/", number.get());
        runtime.block_on(compare_with_model(store, &prefix, &steps));
        Ok(())
    });
    result.unwrap();
}

#[test]
fn the_embedded_store_is_the_model() {
    let runtime = Runtime::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let store = runtime.block_on(EmbeddedStore::open(&dir.path().join("store"))).unwrap();
    check(&runtime, &store, 64);
}

#[test]
fn etcd_is_the_model() {
    let runtime = Runtime::new().unwrap();
    let Some((_dir, process)) = runtime.block_on(crate::etcd::start()) else { return };
    let store = runtime.block_on(crate::etcd::connect(&process));
    check(&runtime, &*store, 48);
}
