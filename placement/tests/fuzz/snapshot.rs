//! Snapshots of any content: read and planned on, and every question asked of them.

use std::collections::BTreeSet;

use ballast_model::{Bytes, ClusterSnapshot, Refusal, RefusalCode, Resources};
use ballast_placement::ask::{self, Shape};
use ballast_placement::core::Rng;
use ballast_placement::explain::conflict;
use ballast_placement::{
    PlanOptions, check_move, check_start, check_step, choose_target, imbalance, place, plan,
    scenario, usage, yardstick,
};
use serde_json::Value;

use super::{scenario_texts, scratch};

/// The most changes of one input.
const CHANGES_MAX: usize = 3;
const NUMBERS: [f64; 9] = [0.0, 1.0, -1.0, 0.5, 4e9, 9.3e18, 1.8e19, 1e300, -1e300];
const WORDS: [&str; 8] = ["", "h0", "zz", "known", "unknown", "fixed", "12GiB", "\u{0}\u{1F600}"];

/// The clusters of the scenarios and a made-up one.
pub(super) fn seeds() -> Vec<Value> {
    let parsed = scenario_texts().into_iter().filter_map(|text| scenario::parse(&text).ok());
    let mut seeds: Vec<Value> =
        parsed.map(|scenario| serde_json::to_value(scenario.snapshot).unwrap()).collect();
    seeds.push(serde_json::to_value(yardstick::cluster(4, 24, 1)).unwrap());
    assert!(seeds.len() > 60);
    seeds
}

pub(super) fn input(seeds: &[Value], number: u64) -> Vec<u8> {
    let mut random = Rng::new(number);
    let mut value = seeds[random.below(seeds.len())].clone();
    let foreign = &seeds[random.below(seeds.len())];
    for _ in 0..=random.below(CHANGES_MAX) {
        change(&mut value, foreign, &mut random);
    }
    let mut text = value.to_string().into_bytes();
    if random.below(8) == 0 {
        for _ in 0..=random.below(CHANGES_MAX) {
            scratch(&mut text, &mut random);
        }
    }
    text
}

/// Changes something somewhere inside.
fn change(value: &mut Value, foreign: &Value, random: &mut Rng) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            let keys: Vec<String> = fields.keys().cloned().collect();
            let key = &keys[random.below(keys.len())];
            match random.below(24) {
                0 => drop(fields.remove(key)),
                1 => drop(fields.insert("unheard-of".to_owned(), Value::Null)),
                _ => {
                    let foreign = foreign.get(key).unwrap_or(foreign);
                    change(&mut fields[key.as_str()], foreign, random);
                }
            }
        }
        Value::Array(items) if !items.is_empty() => {
            let at = random.below(items.len());
            let theirs = foreign.as_array().filter(|theirs| !theirs.is_empty());
            match random.below(16) {
                0 => drop(items.remove(at)),
                1 => items.push(items[at].clone()),
                2 => items.extend(theirs.map(|theirs| theirs[random.below(theirs.len())].clone())),
                _ => {
                    let foreign = theirs.map_or(foreign, |theirs| &theirs[at % theirs.len()]);
                    change(&mut items[at], foreign, random);
                }
            }
        }
        leaf => *leaf = other(leaf, foreign, random),
    }
}

fn other(leaf: &Value, foreign: &Value, random: &mut Rng) -> Value {
    match (leaf, random.below(12)) {
        (_, 0) => Value::Null,
        (Value::Number(_), 1) => Value::from(NUMBERS[random.below(NUMBERS.len())]),
        (Value::Number(_), 2 | 3) => Value::from(u64::MAX),
        (Value::Number(_), 4) => Value::from(random.bits()),
        (Value::Number(_), 5) => Value::from(0),
        (Value::Number(number), 6..) => {
            Value::from(number.as_u64().unwrap_or(1).saturating_mul(1 << random.below(40)))
        }
        (Value::Bool(flag), _) => Value::from(!flag),
        (_, 1) => Value::from(WORDS[random.below(WORDS.len())]),
        _ => foreign.clone(),
    }
}

/// Reads, plans and asks; whether the input was a snapshot at all.
pub(super) fn run(input: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(input) else { return false };
    let snapshot = match ClusterSnapshot::from_json(text) {
        Ok(snapshot) => snapshot,
        Err(refusal) => {
            assert!(!refusal.reason.is_empty() && !refusal.remedy.is_empty());
            return false;
        }
    };
    let again = serde_json::to_string(&snapshot).unwrap();
    assert_eq!(ClusterSnapshot::from_json(&again).unwrap(), snapshot);
    let planning = match plan(&snapshot, &PlanOptions::default()) {
        Ok(planning) => planning,
        Err(refusal) => {
            assert_eq!(refusal.code, RefusalCode::InvalidArgument, "{refusal}");
            return true;
        }
    };
    assert!(imbalance(&snapshot).get() >= 0.0);
    assert!(planning.verdicts.keys().eq(snapshot.vms.keys()));
    for used in usage(&snapshot).unwrap().values() {
        let parts = [used.memory_vms, used.memory_moving, used.memory_free];
        let sum = parts.iter().fold(used.memory_overhead, |sum: Bytes, part| {
            Bytes(sum.get().saturating_add(part.get()))
        });
        let all = used.memory_capacity.get().saturating_add(used.memory_over.get());
        assert!(sum.get() == all || all == u64::MAX || sum.get() == u64::MAX, "{used:?}");
    }
    question(&snapshot);
    true
}

/// Asks about the first VM and the first hosts; a no names a reason and a remedy.
fn question(snapshot: &ClusterSnapshot) {
    let options = PlanOptions::default();
    said(ask::reboot_groups(snapshot, 2, &options));
    said(ask::consolidate(snapshot, 1, &options));
    said(conflict(snapshot));
    let lost: BTreeSet<_> = snapshot.hosts.keys().take(2).cloned().collect();
    if let Some(found) = said(ask::restart(snapshot, &lost, &options)) {
        let starts = found.starts.iter().map(|start| &start.vm);
        let all: BTreeSet<_> = starts.chain(found.stranded.iter().map(|(vm, _)| vm)).collect();
        assert_eq!(all.len(), found.starts.len() + found.stranded.len());
        assert!(found.starts.iter().all(|start| !lost.contains(&start.to)));
    }
    for host in &lost {
        for change in ["drain", "quarantine", "fail", "add host like"] {
            said(ask::what_if(snapshot, &format!("{change} {host}"), &options));
        }
    }
    for rule in snapshot.rules.keys().take(2) {
        said(ask::what_if(snapshot, &format!("without rule {rule}"), &options));
    }
    let Some(vm) = snapshot.vms.values().next() else { return };
    for change in ["add 2 vms like", "without vm"] {
        said(ask::what_if(snapshot, &format!("{change} {}", vm.id), &options));
    }
    said(choose_target(snapshot, &vm.id, &options));
    said(place(snapshot, &vm.id, vm.size, &options));
    for host in &lost {
        said(check_step(snapshot, &vm.id, host));
        said(check_move(snapshot, &vm.id, host));
        said(check_start(snapshot, &vm.id, host));
    }
    // Shapes of which a host holds few: counting millions is no test of anything but patience.
    let largest = snapshot.hosts.values().map(|host| host.capacity.memory.get()).max().unwrap_or(0);
    let memory = Bytes(vm.size.memory.get().max(largest / 64).max(1));
    let size = Resources::new(vm.size.cpu, memory);
    let shape = Shape { size, demand: vm.demand.cpu, needs: vm.needs.clone() };
    for failures in 0..3 {
        said(ask::spare(snapshot, &shape, failures, &options));
    }
    said(ask::room(snapshot, &shape, &options));
}

fn said<T>(answer: Result<T, Refusal>) -> Option<T> {
    if let Err(refusal) = &answer {
        assert!(!refusal.reason.is_empty() && !refusal.remedy.is_empty(), "{refusal:?}");
    }
    answer.ok()
}
