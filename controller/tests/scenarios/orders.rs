//! Operators' orders: creation, removal, rules, drain.

use std::path::PathBuf;

use ballast_controller::migration::Order;
use ballast_controller::vms::Creation;
use ballast_model::rule::RuleKind;
use ballast_model::{Bytes, Epoch, RefusalCode, Revision, Rule, VmId};

use crate::cluster::{Cluster, eventually, order, reasons, spec};
use crate::hosts::{Call, Fault};

#[tokio::test]
async fn a_creation_that_the_host_refuses_leaves_nothing() {
    let cluster = Cluster::start().await;
    for fault in [Fault::Refused, Fault::Lost, Fault::AnswerLost] {
        cluster.world.fail("h1", Call::Create, &[fault]);
        let host = Some("h1".parse().unwrap());
        let answer = cluster.controller.create_vm(Creation::boot(spec("a"), host), reasons()).await;
        assert!(answer.is_err(), "{fault:?}");
        assert!(cluster.settled().await.is_empty());
        assert!(cluster.world.holds(&"a".parse().unwrap()).is_empty(), "{fault:?}");
    }
    // The name is free, and its epochs go on.
    cluster.create("a", "h1").await;
    assert_eq!(cluster.settled().await["a"], "h1");
}

#[tokio::test]
async fn a_creation_on_a_host_that_falls_silent_is_undone_when_it_answers() {
    let cluster = Cluster::start().await;
    cluster.world.fail("h1", Call::Create, &[Fault::AnswerLost]);
    cluster.world.fail("h1", Call::Destroy, &[Fault::Lost]);
    let host = Some("h1".parse().unwrap());
    let refusal =
        cluster.controller.create_vm(Creation::boot(spec("a"), host), reasons()).await.unwrap_err();
    assert!(refusal.reason.contains("being undone"), "{refusal}");
    // The host runs it after all: the record is completed rather than a running guest killed.
    let vms = cluster.settled().await;
    assert_eq!(vms.get("a").map(String::as_str), Some("h1"));
}

#[tokio::test]
async fn what_does_not_fit_is_refused_before_anything_is_written() {
    let cluster = Cluster::start().await;
    let mut huge = spec("huge");
    huge.memory = Bytes::gib(64);
    for host in [None, Some("h1".parse().unwrap())] {
        let refusal = cluster
            .controller
            .create_vm(Creation::boot(huge.clone(), host), reasons())
            .await
            .unwrap_err();
        assert_eq!(refusal.code, RefusalCode::CapacityExceeded, "{refusal}");
    }
    let nowhere = Some("h9".parse().unwrap());
    let refusal = cluster
        .controller
        .create_vm(Creation::boot(spec("a"), nowhere), reasons())
        .await
        .unwrap_err();
    assert_eq!(refusal.code, RefusalCode::NotFound);
    cluster.create("a", "h1").await;
    let refusal =
        cluster.controller.create_vm(Creation::boot(spec("a"), None), reasons()).await.unwrap_err();
    assert_eq!(refusal.code, RefusalCode::AlreadyExists);
    cluster.settled().await;
}

#[tokio::test]
async fn a_vm_goes_to_a_file_and_comes_back_elsewhere() {
    let cluster = Cluster::start().await;
    let (vm, file) = ("a".parse().unwrap(), PathBuf::from("/shared/a"));
    cluster.create("a", "h1").await;
    let saved = cluster.controller.snapshot_vm(&vm, file.clone(), false, reasons()).await.unwrap();
    assert_eq!(saved.host, "h1");
    let h2 = "h2".parse().unwrap();
    let twice = cluster.controller.restore_vm(file.clone(), h2, reasons()).await.unwrap_err();
    assert_eq!(twice.code, RefusalCode::AlreadyExists);

    cluster.controller.snapshot_vm(&vm, file.clone(), true, reasons()).await.unwrap();
    assert!(cluster.settled().await.is_empty());
    assert!(cluster.world.holds(&vm).is_empty(), "a VM that is in a file is nowhere else");
    let h2 = "h2".parse().unwrap();
    assert_eq!(cluster.controller.restore_vm(file, h2, reasons()).await.unwrap(), vm);
    assert_eq!(cluster.settled().await["a"], "h2");
}

#[tokio::test]
async fn a_snapshot_that_fails_leaves_the_vm_where_it_is() {
    let cluster = Cluster::start().await;
    cluster.create("a", "h1").await;
    let (vm, file) = ("a".parse().unwrap(), PathBuf::from("/shared/a"));
    for fault in [Fault::Refused, Fault::Lost] {
        cluster.world.fail("h1", Call::Save, &[fault]);
        let saved = cluster.controller.snapshot_vm(&vm, file.clone(), true, reasons()).await;
        assert!(saved.is_err(), "{fault:?}");
        assert_eq!(cluster.settled().await["a"], "h1");
    }
    // Saved, but its host falls silent before the VM is removed: the file is whole, and said so.
    cluster.world.fail("h1", Call::Destroy, &[Fault::Lost]);
    let refusal = cluster.controller.snapshot_vm(&vm, file, true, reasons()).await.unwrap_err();
    assert!(refusal.reason.contains("is whole in /shared/a on host h1"), "{refusal}");
    assert!(cluster.settled().await.is_empty(), "it is removed once its host answers");
}

#[tokio::test]
async fn a_removed_vm_is_gone_everywhere() {
    let cluster = Cluster::start().await;
    cluster.create("a", "h1").await;
    cluster.world.fail("h1", Call::Destroy, &[Fault::Lost]);
    let vm: VmId = "a".parse().unwrap();
    let refusal = cluster.controller.delete_vm(&vm, reasons()).await.unwrap_err();
    assert_eq!(refusal.code, RefusalCode::Unavailable);
    // Its host answers again: it is removed without being asked for once more.
    assert!(cluster.settled().await.is_empty());
    assert!(cluster.world.holds(&vm).is_empty());
    let refusal = cluster.controller.delete_vm(&vm, reasons()).await.unwrap_err();
    assert_eq!(refusal.code, RefusalCode::NotFound);
}

#[tokio::test]
async fn rules_are_checked_when_set_and_kept_when_moving() {
    let cluster = Cluster::start().await;
    cluster.create("a", "h1").await;
    cluster.create("b", "h2").await;
    let apart = |vms: &[&str]| {
        let vms = vms.iter().map(|vm| vm.parse().unwrap()).collect();
        Rule::must("apart".parse().unwrap(), RuleKind::AntiAffinity { vms, per_host_max: 1 })
    };
    let refusal =
        cluster.controller.set_rule(apart(&["a", "x"]), false, reasons()).await.unwrap_err();
    assert_eq!(refusal.code, RefusalCode::NotFound);
    let set = cluster.controller.set_rule(apart(&["a", "b"]), false, reasons()).await.unwrap();
    let refusal = cluster.migrate("a", "h2").await.unwrap_err();
    assert_eq!(refusal.code, RefusalCode::RuleViolation, "{refusal}");
    let stale = Rule { revision: Revision(set.revision.0 + 1), ..set.clone() };
    let refusal = cluster.controller.set_rule(stale, false, reasons()).await.unwrap_err();
    assert_eq!(refusal.code, RefusalCode::Conflict);
    cluster.controller.delete_rule(&set.id, reasons()).await.unwrap();
    let id = cluster.migrate("a", "h2").await.unwrap();
    assert_eq!(cluster.ended(id).await.phase.name(), "completed");
    cluster.settled().await;
}

#[tokio::test]
async fn a_rule_that_nothing_can_keep_is_refused_with_those_it_conflicts_with() {
    let cluster = Cluster::start().await;
    cluster.create("a", "h1").await;
    cluster.create("b", "h1").await;
    let vms = || ["a", "b"].map(|vm| vm.parse().unwrap()).into();
    let pin = RuleKind::VmHost { vms: vms(), hosts: ["h1".parse().unwrap()].into() };
    let pin = Rule::must("pin".parse().unwrap(), pin);
    cluster.controller.set_rule(pin, false, reasons()).await.unwrap();
    let apart = RuleKind::AntiAffinity { vms: vms(), per_host_max: 1 };
    let apart = Rule::must("apart".parse().unwrap(), apart);
    let refusal = cluster.controller.set_rule(apart.clone(), false, reasons()).await.unwrap_err();
    assert_eq!(refusal.code, RefusalCode::RuleViolation);
    assert!(refusal.reason.contains("together with pin"), "{refusal}");
    cluster.controller.set_rule(apart, true, reasons()).await.unwrap();
}

#[tokio::test]
async fn a_vm_created_on_a_named_host_keeps_the_rules_that_name_it() {
    let cluster = Cluster::start().await;
    cluster.create("a", "h1").await;
    cluster.create("b", "h2").await;
    let vms = ["a", "b"].map(|vm| vm.parse().unwrap()).into();
    let apart = RuleKind::AntiAffinity { vms, per_host_max: 1 };
    let apart = Rule::must("apart".parse().unwrap(), apart);
    cluster.controller.set_rule(apart, false, reasons()).await.unwrap();
    cluster.controller.delete_vm(&"b".parse().unwrap(), reasons()).await.unwrap();
    let create = |host: Option<&str>| {
        let host = host.map(|host| host.parse().unwrap());
        cluster.controller.create_vm(Creation::boot(spec("b"), host), reasons())
    };
    let refusal = create(Some("h1")).await.unwrap_err();
    assert_eq!(refusal.code, RefusalCode::RuleViolation, "{refusal}");
    create(None).await.unwrap();
    assert_ne!(cluster.world.holds(&"b".parse().unwrap()), vec!["h1".parse().unwrap()]);
}

#[tokio::test]
async fn a_rule_outlives_the_vms_it_names() {
    let cluster = Cluster::start().await;
    cluster.create("a", "h1").await;
    cluster.create("b", "h2").await;
    let kind = RuleKind::VmHost {
        vms: ["a".parse().unwrap()].into(),
        hosts: ["h1".parse().unwrap()].into(),
    };
    let bound = Rule::must("bound".parse().unwrap(), kind);
    cluster.controller.set_rule(bound, false, reasons()).await.unwrap();
    cluster.controller.delete_vm(&"a".parse().unwrap(), reasons()).await.unwrap();
    let id = cluster.migrate("b", "").await.unwrap();
    cluster.ended(id).await;
    cluster.settled().await;
}

#[tokio::test]
async fn a_stale_copy_is_destroyed_when_its_host_registers() {
    let cluster = Cluster::start().await;
    cluster.create("a", "h1").await;
    cluster.world.plant("h2", "a", Epoch(0));
    cluster.world.plant("h2", "stranger", Epoch(7));
    cluster.register(&"h2".parse().unwrap()).await.unwrap();
    let vm = "a".parse().unwrap();
    eventually("the copy goes", || async { cluster.world.holds(&vm).len() == 1 }).await;
    assert_eq!(cluster.settled().await["a"], "h1");
    let stranger = "stranger".parse().unwrap();
    assert_eq!(cluster.world.holds(&stranger).len(), 1, "what nobody knows is left alone");
}

#[tokio::test]
async fn caps_limit_what_runs_at_a_time() {
    let cluster = Cluster::start_with(|config| config.migration.migrations_per_host_max = 1).await;
    cluster.create("a", "h1").await;
    cluster.create("b", "h1").await;
    cluster.world.set_stuck("a", true);
    let first = cluster.migrate("a", "h2").await.unwrap();
    let refusal = cluster.migrate("b", "h3").await.unwrap_err();
    assert_eq!(refusal.code, RefusalCode::RateLimited, "{refusal}");
    cluster.world.set_stuck("a", false);
    cluster.ended(first).await;
    let second: Order = order("b", "h3");
    let id = cluster.controller.begin_migration(second).await.unwrap();
    cluster.ended(id).await;
    cluster.settled().await;
}
