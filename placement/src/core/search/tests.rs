//! Optima of tiny problems, lawfulness, and that a seed decides everything.

use proptest::prelude::{ProptestConfig, prop_assert, prop_assert_eq, proptest};

use super::*;
use crate::core::testing::{Size, random_problem};
use crate::core::{Item, Place, Rng};

fn options(seed: u64, threads: usize) -> SearchOptions {
    SearchOptions { seed, threads, ..SearchOptions::default() }
}

/// The best score over all assignments reachable without breaking anything further.
fn optimum(problem: &Problem) -> Score {
    let mut assignment = problem.initial();
    let mut best = problem.evaluate(&assignment).score;
    let mut choices: Vec<Vec<Place>> = Vec::new();
    for ix in 0..problem.items() {
        let item = Item::from(ix);
        let mut places: Vec<Place> = problem.home(item).into_iter().collect();
        if !problem.pinned(item) {
            for host in problem.open_hosts(item) {
                for shape in 0..problem.shapes(item) {
                    places.push(Place { host: crate::core::Host(*host), shape });
                }
            }
        }
        places.sort_unstable();
        places.dedup();
        choices.push(places);
    }
    let mut digits = vec![0; choices.len()];
    loop {
        for (ix, digit) in digits.iter().enumerate() {
            assignment.set(Item::from(ix), choices[ix].get(*digit).copied());
        }
        best = best.min(problem.evaluate(&assignment).score);
        let Some(ix) = (0..digits.len()).find(|ix| digits[*ix] + 1 < choices[*ix].len()) else {
            return best;
        };
        digits[..ix].fill(0);
        digits[ix] += 1;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn a_search_never_ends_worse_and_its_score_is_true(seed: u64) {
        let problem = random_problem(seed, Size { hosts: 8, items: 30, groups: 4 });
        let found = search(&problem, &options(seed, 2), &Budget::evaluations(20_000));
        let before = problem.evaluate(&problem.initial()).score;
        prop_assert!(found.objective.score <= before);
        prop_assert_eq!(found.objective.score, problem.evaluate(&found.assignment).score);
        prop_assert_eq!(found.moves.len(), found.assignment.moves_from(&problem.initial()).len());
    }

    #[test]
    fn a_seed_and_a_number_of_threads_decide_the_result(seed: u64) {
        let problem = random_problem(seed, Size { hosts: 6, items: 20, groups: 3 });
        let run = || search(&problem, &options(seed, 2), &Budget::evaluations(8_000));
        let (one, two) = (run(), run());
        prop_assert_eq!(one.assignment, two.assignment);
        prop_assert_eq!(one.evaluations, two.evaluations);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

    /// So many hosts that threads walk together, with rules that reach across their parts.
    #[test]
    fn threads_that_walk_together_keep_every_rule_and_agree(seed: u64) {
        let problem = random_problem(seed, Size { hosts: 40, items: 90, groups: 8 });
        for threads in [2, 3, 6] {
            let run = || search(&problem, &options(seed, threads), &Budget::evaluations(40_000));
            let (one, two) = (run(), run());
            prop_assert_eq!(&one.assignment, &two.assignment);
            let before = problem.evaluate(&problem.initial()).score;
            prop_assert!(one.objective.score <= before);
            prop_assert_eq!(one.objective.score, problem.evaluate(&one.assignment).score);
        }
    }
}

#[test]
fn tiny_problems_are_solved_to_the_optimum() {
    let mut rng = Rng::new(7);
    for _ in 0..6 {
        let problem = machine_reassignment(&mut rng);
        let found = search(&problem, &options(1, 2), &Budget::evaluations(30_000));
        assert_eq!(found.objective.score, optimum(&problem));
    }
}

/// Three hosts, seven items, one sum, with rules; the initial assignment is lawful.
fn machine_reassignment(rng: &mut Rng) -> Problem {
    use crate::core::*;
    let mut b = ProblemBuilder::new(ObjectiveTable::one_sum());
    for _ in 0..2 {
        b.resource(ResourceSpec { safety_weight: 10, ..ResourceSpec::allocation() });
    }
    for _ in 0..3 {
        b.host(HostSpec { capacity: vec![100, 100], safety: vec![40, 50], ..HostSpec::default() });
    }
    let items: Vec<Item> = (0..7)
        .map(|ix| {
            b.item(ItemSpec {
                shapes: vec![vec![1 + rng.below(30) as i64, 1 + rng.below(30) as i64]],
                home: Some(Place::on(Host(ix % 3))),
                move_cost: rng.below(40) as i64,
                ..ItemSpec::default()
            })
        })
        .collect();
    let group = b.group(vec![items[0], items[1]]);
    let partition = b.host_partition();
    b.rule(RuleSpec {
        group,
        partition,
        kind: RuleKind::AtMostPerDomain(1),
        strength: Strength::Hard,
    });
    b.build().unwrap()
}

#[test]
fn new_items_are_placed_and_drained_hosts_emptied() {
    use crate::core::*;
    let mut b = ProblemBuilder::new(ObjectiveTable::cluster());
    b.resource(ResourceSpec::allocation());
    let host = |drained| HostSpec { capacity: vec![100], drained, ..HostSpec::default() };
    let leaving = b.host(host(true));
    b.host(host(false));
    b.host(host(false));
    for size in [60, 50, 40, 30] {
        let home = (size != 40).then_some(Place::on(leaving));
        b.item(ItemSpec { shapes: vec![vec![size]], home, ..ItemSpec::default() });
    }
    let problem = b.build().unwrap();
    let found = search(&problem, &options(3, 1), &Budget::evaluations(20_000));
    assert_eq!(found.objective.score.hard, 0, "{:?}", problem.violations(&found.assignment));
}

/// Hosts of equal size, items spread by chance.
fn uneven(hosts: u32, items: usize) -> Problem {
    use crate::core::*;
    let mut rng = Rng::new(5);
    let mut b = ProblemBuilder::new(ObjectiveTable::cluster());
    let spec = ResourceSpec { imbalance_weight: 1, ..ResourceSpec::demand() };
    b.resource(spec);
    b.resource(ResourceSpec { imbalance_weight: 1, ..ResourceSpec::allocation() });
    for _ in 0..hosts {
        b.host(HostSpec { capacity: vec![1000, 1000], ..HostSpec::default() });
    }
    for _ in 0..items {
        let shapes = vec![vec![10 + rng.below(90) as i64, 10 + rng.below(60) as i64]];
        let home = Some(Place::on(Host(rng.below(hosts as usize) as u32)));
        b.item(ItemSpec { shapes, home, move_bytes: 10, ..ItemSpec::default() });
    }
    b.build().unwrap()
}

#[test]
fn limits_on_moves_and_bytes_are_kept_and_the_curve_falls() {
    let problem = uneven(20, 160);
    for (moves_max, bytes_max, most) in
        [(Some(12), None, 12), (None, Some(55), 5), (Some(0), None, 0)]
    {
        let limited = SearchOptions { moves_max, bytes_max, ..options(1, 1) };
        let found = search(&problem, &limited, &Budget::evaluations(10_000_000));
        assert!(found.moves.len() <= most);
        assert_eq!(found.curve.last().map(|point| point.score), Some(found.objective.score));
        assert!(found.curve.is_sorted_by(|a, b| a.moves < b.moves && a.score > b.score));
        assert!(most == 0 || found.moves.len() * 2 > most, "nothing was gained");
    }
}

#[test]
fn repair_keeps_the_limit_on_moves() {
    use crate::core::*;
    let mut b = ProblemBuilder::new(ObjectiveTable::cluster());
    b.resource(ResourceSpec::allocation());
    let leaving = b.host(HostSpec { capacity: vec![100], drained: true, ..HostSpec::default() });
    b.host(HostSpec { capacity: vec![100], ..HostSpec::default() });
    for _ in 0..6 {
        let home = Some(Place::on(leaving));
        b.item(ItemSpec { shapes: vec![vec![10]], home, ..ItemSpec::default() });
    }
    let problem = b.build().unwrap();
    for most in [0, 2, 6] {
        let limited = SearchOptions { moves_max: Some(most), ..options(1, 1) };
        let found = search(&problem, &limited, &Budget::evaluations(10_000));
        assert_eq!(found.moves.len(), most as usize);
    }
}
