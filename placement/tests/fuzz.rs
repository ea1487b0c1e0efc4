//! Snapshots of any content: refused with a reason, or planned.
//!
//! An input is the JSON of a small cluster with some values changed for extreme,
//! foreign or missing ones, or with some bytes changed. Whatever it is, reading it
//! and planning on it ends, without a panic and without the planner finding fault
//! with its own plan. Every input follows from its number: a failure names it, and
//! `FUZZ_FIRST=number` begins there.
//!
//! The ordinary test runs some hundred inputs; `make fuzz` runs [`campaign`] for
//! `FUZZ_MINUTES` minutes.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a test fails by panicking

use std::path::Path;
use std::time::{Duration, Instant};

use ballast_model::{Bytes, ClusterSnapshot, RefusalCode};
use ballast_placement::core::Rng;
use ballast_placement::{PlanOptions, imbalance, plan, scenario, usage, yardstick};
use serde_json::Value;

/// The most changes of one input.
const CHANGES_MAX: usize = 3;
/// How often a campaign says how far it is.
const PROGRESS: Duration = Duration::from_secs(60);
const NUMBERS: [f64; 9] = [0.0, 1.0, -1.0, 0.5, 4e9, 9.3e18, 1.8e19, 1e300, -1e300];
const WORDS: [&str; 8] = ["", "h0", "zz", "known", "unknown", "fixed", "12GiB", "\u{0}\u{1F600}"];

/// The clusters of the scenarios and a made-up one.
fn seeds() -> Vec<Value> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let mut files: Vec<_> =
        std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let texts = files.iter().map(|file| std::fs::read_to_string(file).unwrap());
    let parsed = texts.filter_map(|text| scenario::parse(&text).ok());
    let mut seeds: Vec<Value> =
        parsed.map(|scenario| serde_json::to_value(scenario.snapshot).unwrap()).collect();
    seeds.push(serde_json::to_value(yardstick::cluster(4, 24, 1)).unwrap());
    assert!(seeds.len() > 60);
    seeds
}

fn input(seeds: &[Value], number: u64) -> Vec<u8> {
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

/// Changes some bytes.
fn scratch(text: &mut Vec<u8>, random: &mut Rng) {
    let at = random.below(text.len().max(1));
    let some = random.below((text.len() - at).clamp(1, 32));
    match random.below(3) {
        0 if at < text.len() => text[at] ^= 1 << random.below(8),
        1 => drop(text.drain(at..at + some)),
        _ => {
            let copy = text[at..at + some].to_vec();
            let to = random.below(text.len().max(1));
            text.splice(to..to, copy);
        }
    }
}

/// Reads and plans; whether the input was a snapshot at all.
fn run(input: &[u8]) -> bool {
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
    true
}

fn run_number(seeds: &[Value], number: u64) -> bool {
    let input = input(seeds, number);
    let outcome = std::panic::catch_unwind(|| run(&input));
    let Ok(is_snapshot) = outcome else {
        let path = std::env::temp_dir().join(format!("ballast-fuzz-snapshot-{number}.json"));
        std::fs::write(&path, &input).unwrap();
        panic!("input {number} fails: {}", path.display());
    };
    is_snapshot
}

#[test]
fn snapshots_of_any_content_are_refused_or_planned() {
    let seeds = seeds();
    let snapshots = (0..300).filter(|number| run_number(&seeds, *number)).count();
    assert!((30..290).contains(&snapshots), "{snapshots} of 300 inputs were snapshots");
}

#[test]
#[ignore = "runs for FUZZ_MINUTES minutes"]
fn campaign() {
    let seeds = seeds();
    let of = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let time = Duration::from_secs(60 * of("FUZZ_MINUTES").unwrap_or(10));
    let (first, begin) = (of("FUZZ_FIRST").unwrap_or(0_u64), Instant::now());
    let (mut number, mut snapshots, mut told) = (first, 0_u64, Instant::now());
    while begin.elapsed() < time {
        snapshots += u64::from(run_number(&seeds, number));
        number += 1;
        if told.elapsed() > PROGRESS {
            told = Instant::now();
            eprintln!("snapshot: {} inputs, {snapshots} of them snapshots", number - first);
        }
    }
    eprintln!("snapshot: nothing found with {} inputs, {snapshots} snapshots", number - first);
}
