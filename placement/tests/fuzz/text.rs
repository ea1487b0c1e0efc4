//! Texts of any content: scenarios, which are answered, and instances of the reassignment challenge.

use ballast_placement::core::Rng;
use ballast_placement::{roadef, scenario};

use super::scratch;

/// The most changes of one input.
const CHANGES_MAX: usize = 4;
/// Words that mean something in one place or another, and amounts that are too much anywhere.
const WORDS: [&str; 16] = [
    "ask",
    "rule",
    "host",
    "+",
    "0",
    "-1",
    "99999999999999999999",
    "1e308",
    "16777215T",
    ":",
    "|",
    "apart",
    "what-if",
    "drain",
    "failures",
    "=",
];

/// A text with some words or lines of itself or of the other text changed, or some bytes.
pub(super) fn input(text: &str, other: &str, random: &mut Rng) -> Vec<u8> {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let others: Vec<&str> = other.lines().collect();
    for _ in 0..=random.below(CHANGES_MAX) {
        let at = random.below(lines.len().max(1));
        match random.below(8) {
            0 if at < lines.len() => drop(lines.remove(at)),
            1 if at < lines.len() => lines.insert(at, lines[at].clone()),
            2 if !others.is_empty() => {
                lines.insert(at, others[random.below(others.len())].to_owned());
            }
            _ if at < lines.len() => lines[at] = reworded(&lines[at], random),
            _ => {}
        }
    }
    let mut text = lines.join("\n").into_bytes();
    if random.below(8) == 0 {
        scratch(&mut text, random);
    }
    text
}

fn reworded(line: &str, random: &mut Rng) -> String {
    let mut words: Vec<&str> = line.split(' ').collect();
    let at = random.below(words.len());
    match random.below(4) {
        0 => drop(words.remove(at)),
        1 => words.insert(at, words[random.below(words.len())]),
        _ => words[at] = WORDS[random.below(WORDS.len())],
    }
    words.join(" ")
}

/// The instance with some numbers changed for others, now and then cut or mixed up as well.
pub(super) fn instance(random: &mut Rng) -> Vec<u8> {
    const NUMBERS: [&str; 8] =
        ["0", "1", "2", "7", "50", "1099511627776", "-1", "9223372036854775808"];
    let mut lines: Vec<Vec<&str>> =
        INSTANCE.lines().map(|line| line.split(' ').collect()).collect();
    for _ in 0..=random.below(2) {
        let line = random.below(lines.len());
        let word = random.below(lines[line].len());
        lines[line][word] = NUMBERS[random.below(NUMBERS.len())];
    }
    let text = lines.iter().map(|words| words.join(" ")).collect::<Vec<_>>().join("\n");
    if random.below(4) == 0 { input(&text, INSTANCE, random) } else { text.into_bytes() }
}

/// Reads and answers a scenario; whether it was one.
pub(super) fn run_scenario(input: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(input) else { return false };
    match scenario::parse(text) {
        Ok(scenario) => {
            assert!(!scenario::answer(&scenario).is_empty());
            true
        }
        Err(refusal) => {
            assert!(!refusal.reason.is_empty() && !refusal.remedy.is_empty());
            false
        }
    }
}

/// An instance with three machines, three processes and everything that can be said of them.
const INSTANCE: &str = "2\n1 10\n0 5\n3\n0 0 100 60 80 50 0 1 2\n0 1 100 60 80 50 1 0 1\n\
    1 1 90 70 80 50 2 1 0\n2\n2 0\n1 1 0\n3\n0 30 10 5\n0 20 10 5\n1 10 5 1\n1\n0 1 2 10\n1 10 100\n";

/// Reads an instance and weighs its processes where they are; whether it was one.
pub(super) fn run_instance(input: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(input) else { return false };
    let model = match roadef::parse_model(text) {
        Ok(model) => model,
        Err(refusal) => {
            assert!(refusal.reason.starts_with("line "), "{refusal}");
            return false;
        }
    };
    let machines = model.machines.len().max(1);
    let words: Vec<String> =
        (0..model.processes.len()).map(|n| (n % machines).to_string()).collect();
    let initial = words.join(" ");
    let Ok(assignment) = roadef::parse_assignment(&initial, &model) else { return true };
    // Whether numbers are too large for the solver is its own answer; the checker has none too large.
    let _refused_or_not = roadef::problem(&model, &assignment).is_err();
    if let Ok(cost) = roadef::checker::check(text, &initial, &initial) {
        assert!(cost >= 0, "{cost}");
    }
    true
}
