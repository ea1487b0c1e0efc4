use super::*;
use crate::testing::{Cluster, gib, keep_apart};
use RefusalCode::{CapacityExceeded, NotFound, RuleViolation, Unavailable, WrongState};
use ballast_model::snapshot::MoveInFlight;
use ballast_model::{Millicores, Resources, Rule, RuleKind};

fn cluster() -> Cluster {
    Cluster::new(3, 4, 16).vm("a", "h0", 100, 8).vm("b", "h1", 100, 10).draining("h2")
}

fn unknown(mut snapshot: ClusterSnapshot, host: &str) -> ClusterSnapshot {
    let host = snapshot.hosts.get_mut(&host.parse().unwrap()).unwrap();
    host.telemetry = Telemetry::Unknown { why: "no report for 30 s".into() };
    snapshot
}

fn refused(snapshot: &ClusterSnapshot, vm: &str, to: &str, code: RefusalCode, words: &str) {
    let refusal = check_step(snapshot, &vm.parse().unwrap(), &to.parse().unwrap()).unwrap_err();
    assert_eq!(refusal.code, code, "{refusal}");
    assert!(refusal.reason.contains(words), "{refusal}");
    assert!(!refusal.remedy.is_empty());
}

#[test]
fn a_vm_goes_where_its_local_disks_have_room() {
    let mut snapshot = Cluster::new(4, 4, 16).vm("a", "h0", 100, 1).0;
    snapshot.vms.values_mut().for_each(|vm| vm.local_disks = gib(20));
    // h3 does not say.
    for (host, room) in [("h0", 0), ("h1", 19), ("h2", 20)] {
        let host = snapshot.hosts.get_mut(&host.parse().unwrap()).unwrap();
        host.local_disk_room = Some(gib(room));
    }
    refused(&snapshot, "a", "h1", CapacityExceeded, "takes 20.0 GiB of local disks along");
    for host in ["h2", "h3"] {
        check_step(&snapshot, &"a".parse().unwrap(), &host.parse().unwrap()).unwrap();
    }
    let chosen = choose_target(&snapshot, &"a".parse().unwrap(), &PlanOptions::default());
    assert_eq!(chosen.unwrap().as_str(), "h2");
}

#[test]
fn a_vm_may_go_where_there_is_room_even_if_the_cpu_gets_tight() {
    let snapshot = Cluster::new(2, 4, 16).vm("a", "h0", 9000, 8).vm("b", "h1", 9000, 8).0;
    check_step(&snapshot, &"a".parse().unwrap(), &"h1".parse().unwrap()).unwrap();
}

#[test]
fn each_no_names_its_cause() {
    let plain = cluster().0;
    refused(&plain, "zz", "h1", NotFound, "no VM zz");
    refused(&plain, "a", "zz", NotFound, "no host zz");
    refused(&plain, "a", "h0", WrongState, "on host h0 already");
    refused(&plain, "a", "h2", WrongState, "being emptied");
    refused(&plain, "a", "h1", CapacityExceeded, "needs 8.0 GiB of memory and host h1 has 6.0 GiB");
    refused(&unknown(cluster().0, "h1"), "a", "h1", Unavailable, "no report for 30 s");
    refused(&unknown(cluster().0, "h0"), "a", "h1", Unavailable, "where VM a is");
}

#[test]
fn rules_are_named() {
    let small = || Cluster::new(3, 4, 16).vm("a", "h0", 100, 1).vm("b", "h1", 100, 1).0;
    let apart = keep_apart(small(), &["a", "b"]);
    refused(&apart, "a", "h1", RuleViolation, "rule apart keeps VM a apart from VM b");
    let mut bound = small();
    let kind = RuleKind::VmHost {
        vms: ["a".parse().unwrap()].into(),
        hosts: ["h2".parse().unwrap()].into(),
    };
    let rule = Rule::must("licence".parse().unwrap(), kind);
    bound.rules.insert(rule.id.clone(), rule);
    refused(&bound, "a", "h1", RuleViolation, "rule licence does not let VM a run on host h1");
    check_step(&bound, &"a".parse().unwrap(), &"h2".parse().unwrap()).unwrap();
}

#[test]
fn a_vm_in_flight_stays_and_holds_memory_on_both_hosts() {
    let mut snapshot = Cluster::new(3, 4, 16).vm("a", "h0", 100, 10).vm("b", "h2", 100, 10).0;
    snapshot.migrations.push(MoveInFlight {
        id: "01900000-0000-7000-8000-000000000001".parse().unwrap(),
        vm: "a".parse().unwrap(),
        from: "h0".parse().unwrap(),
        to: "h1".parse().unwrap(),
    });
    refused(&snapshot, "a", "h2", WrongState, "being migrated already");
    refused(&snapshot, "b", "h0", CapacityExceeded, "6.0 GiB free");
    refused(&snapshot, "b", "h1", CapacityExceeded, "6.0 GiB free");
}

#[test]
fn after_the_commit_a_vm_in_flight_counts_as_before() {
    let mut snapshot = Cluster::new(3, 4, 16).vm("a", "h0", 100, 10).0;
    snapshot.migrations.push(MoveInFlight {
        id: "01900000-0000-7000-8000-000000000001".parse().unwrap(),
        vm: "a".parse().unwrap(),
        from: "h0".parse().unwrap(),
        to: "h1".parse().unwrap(),
    });
    let before = crate::usage(&snapshot).unwrap();
    snapshot.vms.values_mut().next().unwrap().host = "h1".parse().unwrap();
    assert_eq!(crate::usage(&snapshot).unwrap(), before);
    assert_eq!(before[&"h1".parse().unwrap()].memory_vms, gib(10));
    assert_eq!(before[&"h0".parse().unwrap()].memory_moving, gib(10));
}

#[test]
fn a_target_is_chosen_by_room_and_level_or_refused_with_a_count() {
    let options = PlanOptions::default();
    let vm = "a".parse().unwrap();
    let level = Cluster::new(3, 4, 16).vm("a", "h0", 100, 8).vm("b", "h1", 100, 1).0;
    assert_eq!(choose_target(&level, &vm, &options).unwrap().as_str(), "h2");
    let refusal = choose_target(&cluster().0, &vm, &options).unwrap_err();
    assert_eq!(refusal.code, CapacityExceeded);
    assert!(refusal.reason.contains("1 lack memory (it needs 8.0 GiB"), "{refusal}");
    assert!(refusal.reason.contains("1 drain or are unknown"), "{refusal}");
}

fn placed(snapshot: &ClusterSnapshot, memory_gib: u64) -> Result<HostId, Refusal> {
    let size = Resources::new(Millicores::cores(1), gib(memory_gib));
    place(snapshot, &"new".parse().unwrap(), size, &PlanOptions::default())
}

#[test]
fn a_new_vm_starts_on_the_host_that_leaves_the_load_most_level() {
    assert_eq!(placed(&cluster().0, 4).unwrap().as_str(), "h0");
    assert_eq!(placed(&Cluster::new(2, 4, 16).0, 4).unwrap().as_str(), "h0");
}

#[test]
fn too_large_for_any_host_and_no_room_now_are_told_apart() {
    let never = placed(&cluster().0, 17).unwrap_err();
    assert!(never.reason.contains("larger than any host"), "{never}");
    assert!(never.reason.contains("17.0 GiB") && never.reason.contains("16.0 GiB"), "{never}");
    let not_now = placed(&cluster().0, 9).unwrap_err();
    assert!(not_now.reason.contains("no host has room"), "{not_now}");
    assert!(not_now.reason.contains("h0, has 8.0 GiB free"), "{not_now}");
    assert_eq!(never.code, CapacityExceeded);
    let closed = placed(&Cluster::new(1, 4, 16).draining("h0").0, 1).unwrap_err();
    assert_eq!(closed.code, Unavailable);
    assert_eq!(placed(&Cluster::new(0, 4, 16).0, 1).unwrap_err().code, Unavailable);
}
