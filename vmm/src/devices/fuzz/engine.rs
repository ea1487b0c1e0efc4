//! A small fuzzer: mutates inputs, keeps those that reach something new.
//!
//! Everything follows from the seed, so that a campaign can be repeated. An
//! input is written down before it is run: whatever becomes of the process, it
//! is there to look at.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::coverage::Reached;

/// The longest input, in bytes.
const INPUT_BYTES_MAX: usize = 4096;
/// The most inputs kept of a campaign in the repository.
const CORPUS_MAX: usize = 48;
/// An input that takes longer is a defect: nothing here waits for anything.
const INPUT_TIME_MAX: Duration = Duration::from_secs(30);
const PROGRESS: Duration = Duration::from_secs(30);

/// What is fuzzed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target {
    pub(super) name: &'static str,
    pub(super) run: fn(&[u8]),
}

/// When a campaign is over.
#[derive(Debug)]
pub(super) enum Bound {
    Inputs(u64),
    Time(Duration),
}

/// Runs the target on mutations of the corpus; all that is worth keeping. An
/// input that panics ends it, with its name.
pub(super) fn campaign(
    target: &Target,
    corpus: &[Vec<u8>],
    bound: &Bound,
    seed: u64,
) -> Vec<Vec<u8>> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut inputs = corpus.to_vec();
    inputs.push(vec![]);
    let mut reached = Reached::default();
    let current = Current::new(target);
    for input in &inputs {
        current.run(target, input);
        reached.add();
    }
    let (begin, mut told, mut count) = (Instant::now(), Instant::now(), 0);
    while match bound {
        Bound::Inputs(most) => count < *most,
        Bound::Time(time) => begin.elapsed() < *time,
    } {
        let input = mutated(&inputs, &mut random);
        current.run(target, &input);
        count += 1;
        if reached.add() {
            inputs.push(input);
        }
        if told.elapsed() > PROGRESS {
            told = Instant::now();
            eprintln!(
                "{}: {count} inputs in {:?}, {} kept, {} branches",
                target.name,
                begin.elapsed(),
                inputs.len(),
                reached.branches()
            );
        }
    }
    if matches!(bound, Bound::Time(_)) {
        eprintln!(
            "{}: nothing found with {count} inputs in {:?}, seed {seed}, {} branches",
            target.name,
            begin.elapsed(),
            reached.branches()
        );
    }
    smallest(target, inputs)
}

/// A part of the inputs that reaches what all of them do, the short ones first.
fn smallest(target: &Target, mut inputs: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    inputs.sort_by_key(Vec::len);
    let mut reached = Reached::default();
    inputs.retain(|input| {
        (target.run)(input);
        reached.add()
    });
    inputs
}

/// The input being run, in a file and under a clock.
struct Current {
    file: std::fs::File,
    path: PathBuf,
    /// The number of the input, odd while it runs.
    turn: Arc<AtomicU64>,
}

impl Current {
    fn new(target: &Target) -> Self {
        let name = format!("ballast-fuzz-{}-{}", target.name, std::process::id());
        let path = std::env::temp_dir().join(name);
        let file = std::fs::File::create(&path).unwrap();
        let turn = Arc::new(AtomicU64::new(0));
        let (watched, shown) = (Arc::downgrade(&turn), path.clone());
        std::thread::spawn(move || {
            let mut last = 0;
            while let Some(turn) = watched.upgrade() {
                let now = turn.load(Ordering::Relaxed);
                drop(turn);
                if now % 2 == 1 && now == last {
                    eprintln!("the input {} does not end", shown.display());
                    std::process::abort();
                }
                last = now;
                std::thread::sleep(INPUT_TIME_MAX);
            }
        });
        Self { file, path, turn }
    }

    fn run(&self, target: &Target, input: &[u8]) {
        self.file.set_len(input.len() as u64).unwrap();
        self.file.write_all_at(input, 0).unwrap();
        self.turn.fetch_add(1, Ordering::Relaxed);
        let outcome = std::panic::catch_unwind(|| (target.run)(input));
        self.turn.fetch_add(1, Ordering::Relaxed);
        assert!(outcome.is_ok(), "target {} panics on {}", target.name, self.path.display());
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Another input: one of those, changed in a few places.
fn mutated(inputs: &[Vec<u8>], random: &mut StdRng) -> Vec<u8> {
    let mut input = inputs.choose(random).cloned().unwrap_or_default();
    for _ in 0..random.random_range(1..=6) {
        mutate(&mut input, inputs, random);
    }
    input.truncate(INPUT_BYTES_MAX);
    input
}

fn mutate(input: &mut Vec<u8>, inputs: &[Vec<u8>], random: &mut StdRng) {
    const VALUES: [u8; 10] = [0, 1, 2, 4, 15, 16, 0x7f, 0x80, 0xfe, 0xff];
    let at = random.random_range(0..=input.len());
    let some = random.random_range(0..=(input.len() - at).min(64));
    match random.random_range(0..7) {
        0 if at < input.len() => input[at] ^= 1 << random.random_range(0..8),
        1 if at < input.len() => input[at] = random.random(),
        2 if at < input.len() => input[at] = *VALUES.choose(random).unwrap_or(&0),
        3 => drop(input.drain(at..at + some)),
        4 => {
            let copy = input[at..at + some].to_vec();
            let to = random.random_range(0..=input.len());
            input.splice(to..to, copy);
        }
        5 => {
            let other = inputs.choose(random).map_or(&[][..], Vec::as_slice);
            let from = random.random_range(0..=other.len());
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
        _ => {
            let new: Vec<u8> = (0..random.random_range(1..32)).map(|_| random.random()).collect();
            input.splice(at..at, new);
        }
    }
}

/// The inputs kept in a directory, in a settled order.
pub(super) fn read_corpus(dir: &Path) -> Vec<Vec<u8>> {
    let Ok(entries) = std::fs::read_dir(dir) else { return vec![] };
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

/// Puts new inputs into a directory; those there stay.
pub(super) fn write_corpus(dir: &Path, inputs: &[Vec<u8>]) {
    std::fs::create_dir_all(dir).unwrap();
    let room = CORPUS_MAX.saturating_sub(read_corpus(dir).len());
    for input in inputs.iter().filter(|input| !input.is_empty()).rev().take(room) {
        let mut hash = DefaultHasher::new();
        input.hash(&mut hash);
        std::fs::write(dir.join(format!("{:016x}", hash.finish())), input).unwrap();
    }
}

/// Takes an input apart; beyond its end are zeroes.
#[derive(Debug)]
pub(super) struct Input<'a>(pub(super) &'a [u8]);

impl Input<'_> {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn u8(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    pub(super) fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.u8(), self.u8()])
    }

    pub(super) fn u32(&mut self) -> u32 {
        u32::from(self.u16()) | u32::from(self.u16()) << 16
    }

    pub(super) fn u64(&mut self) -> u64 {
        u64::from(self.u32()) | u64::from(self.u32()) << 32
    }
}
