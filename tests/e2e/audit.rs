//! A trail that was tampered with is found out, and the entry named.

use std::path::PathBuf;

use ballast_cli::cluster::StoreKind;
use ballast_controller::store::{Entry, Store, StoreConfig, Transaction, Write, keys, open};
use ballast_guest::Params;
use ballast_tests::{Guest, TestCluster, kvm_or_skip};

use crate::PROGRAM;

/// Puts `value` under `key`, or removes it, behind the controller's back.
async fn write(store: &dyn Store, key: &str, value: Option<bytes::Bytes>) {
    let key = key.to_owned();
    let write = match value {
        Some(value) => Write::Put { key, value, lease: None },
        None => Write::Delete { key },
    };
    store.transact(Transaction { compares: Vec::new(), writes: vec![write] }).await.unwrap();
}

async fn entry(store: &dyn Store, sequence: u64) -> Entry {
    store.get(&keys::audit_entry(sequence)).await.unwrap().expect("the entry is there")
}

/// One way to tamper; answers with the entry that must be named.
async fn tamper(store: &dyn Store, way: &str) -> u64 {
    let (second, third) = (entry(store, 2).await, entry(store, 3).await);
    match way {
        "changed" => {
            let text = String::from_utf8(second.value.to_vec()).unwrap();
            let forged = text.replacen("host-", "h0st-", 1);
            assert_ne!(forged, text);
            write(store, &second.key, Some(forged.into())).await;
            2
        }
        "deleted" => {
            write(store, &third.key, None).await;
            3
        }
        "reordered" => {
            write(store, &second.key, Some(third.value.clone())).await;
            write(store, &third.key, Some(second.value.clone())).await;
            2
        }
        other => panic!("no way {other}"),
    }
}

#[tokio::test]
async fn tampering_is_found_and_the_entry_named() {
    if !kvm_or_skip("the audit") {
        return;
    }
    let mut test = TestCluster::start(PROGRAM, StoreKind::Embedded).await;
    let guest = Guest::create(&test, "probe", "host-1", &Params::default()).await;
    let id = test.migrate(&guest.vm, "host-2").await;
    assert_eq!(test.ended(&id).await.phase, "completed");
    let verified = test.audit_verify(PROGRAM).await;
    assert_eq!(verified.code, Some(0), "{verified:?}");

    let path: PathBuf = test.cluster.dir().join("state/controller.redb");
    test.cluster.kill_controller().await.unwrap();
    let untouched = std::fs::read(&path).unwrap();
    for way in ["changed", "deleted", "reordered"] {
        std::fs::write(&path, &untouched).unwrap();
        let named = {
            let store = open(&StoreConfig::Embedded { path: path.clone() }).await.unwrap();
            tamper(&*store, way).await
        };
        test.cluster.restart_controller().await.unwrap();
        let verified = test.audit_verify(PROGRAM).await;
        assert_ne!(verified.code, Some(0), "{way}: {verified:?}");
        let line = format!("entry {named}");
        assert!(verified.stderr.contains(&line), "{way}: {line:?} in {verified:?}");
        test.cluster.kill_controller().await.unwrap();
    }
    std::fs::write(&path, &untouched).unwrap();
    test.cluster.restart_controller().await.unwrap();
    test.stop().await;
}
