use super::*;

/// Three nodes of (10 cpu), VMs 0 and 1 on node 0, VM 2 on node 1, VM 3 ready; these constraints.
fn instance(constraints: &str) -> Result<Instance, Refusal> {
    let text = format!(
        r#"{{"model":{{"mapping":{{"readyVMs":[3],
            "onlineNodes":{{"0":{{"runningVMs":[0,1],"sleepingVMs":[]}},"1":{{"runningVMs":[2],"sleepingVMs":[]}},
                "2":{{"runningVMs":[],"sleepingVMs":[]}}}},"offlineNodes":[3]}},
            "attributes":{{}},"views":[{{"id":"shareableResource","rcId":"cpu","defConsumption":4,"defCapacity":10,
                "vms":{{"2":8}},"nodes":{{}}}}]}},
          "constraints":[{constraints}],"objective":{{"id":"minimizeMTTR"}}}}"#
    );
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("i.json");
    std::fs::write(&path, text).unwrap();
    load(&path)
}

fn check(constraints: &str, before: usize, moves: usize) {
    let instance = instance(constraints).unwrap();
    assert_eq!(violations(&instance, &instance.running), before);
    let solved = solve::solve(&instance).unwrap();
    assert_eq!(violations(&instance, &solved.running), 0, "{:?}", solved.running);
    assert_eq!(solved.ordered.order.steps.len(), moves);
}

fn check_refused(constraints: &str, expected: &str) {
    let refusal = instance(constraints).unwrap_err();
    assert!(refusal.reason.contains(expected), "{refusal}");
}

#[test]
fn what_holds_needs_no_moves() {
    check(r#"{"id":"online","node":0,"continuous":false},{"id":"ready","vm":3}"#, 0, 0);
}

#[test]
fn each_constraint_is_met() {
    check(r#"{"id":"spread","vms":[0,1],"continuous":true}"#, 1, 1);
    check(r#"{"id":"preserve","vm":0,"rc":"cpu","amount":7}"#, 1, 1);
    check(r#"{"id":"running","vm":3}"#, 1, 1);
    check(r#"{"id":"offline","node":0}"#, 1, 2);
    check(r#"{"id":"fence","vm":2,"nodes":[2]}"#, 1, 1);
    check(r#"{"id":"ban","vm":2,"nodes":[0,1]}"#, 1, 1);
    check(
        r#"{"id":"among","vms":[0,3],"parts":[[0],[1,2]],"continuous":true},{"id":"running","vm":3}"#,
        1,
        2,
    );
}

#[test]
fn a_mistake_is_named_with_its_place() {
    check_refused(
        r#"{"id":"online","node":0},{"id":"seq"}"#,
        "constraints[1] (\"seq\"): a constraint of this kind",
    );
    check_refused(r#"{"id":"running","vm":9}"#, "constraints[0] (\"running\"): no VM 9");
    check_refused(r#"{"id":"fence","vm":0,"nodes":[7]}"#, "no node 7");
    check_refused(r#"{"id":"preserve","vm":0,"rc":"gpu","amount":1}"#, "no resource \"gpu\"");
    check_refused(r#"{"id":"among","vms":[0],"parts":[[0],[0]]}"#, "node 0 in two parts");
    check_refused(r#"{"id":"online","node":3}"#, "switched on");
    check_refused(r#"{"id":"spread","vms":[-1]}"#, "line 6 column");
    check_refused(r#"{"id":"spread","vms":[0],"when":1}"#, "unknown field `when`");
}
