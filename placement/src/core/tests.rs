//! The incremental state against the evaluation from scratch, and the builder's refusals.

use proptest::prelude::{ProptestConfig, TestCaseError, prop_assert, prop_assert_eq, proptest};

use super::sieve::Sieve;
use super::state::Limit;
use super::testing::{Size, builder, load_problem, random_problem};
use super::*;

const SMALL: Size = Size { hosts: 7, items: 24, groups: 5 };

fn random_place(rng: &mut Rng, problem: &Problem, item: Item) -> Place {
    Place {
        host: Host::from(rng.below(problem.hosts())),
        shape: rng.below(usize::from(problem.shapes(item))) as u8,
    }
}

/// A limit that one of the moves just keeps, or just does not.
fn limit_near(rng: &mut Rng, moves: [Option<(Score<1>, f64)>; 2]) -> Limit {
    let price = rng.below(90) as f64 * [1.0, 1e6][rng.below(2)];
    let cost =
        moves[rng.below(2)].map_or(0.0, |(delta, excess)| delta.soft[0] as f64 + price * excess);
    Limit { most: cost * [0.5, 1.0, 1.0, 2.0][rng.below(4)] - rng.below(2) as f64, price }
}

/// Whether moves weighed within a limit, to the letter and relaxed, are the same without those over it.
fn is_filtered(
    all: [Option<(Score<1>, f64)>; 2],
    within: [Option<(Score<1>, f64)>; 2],
    (now, limit): (Score<1>, Limit),
) -> Result<(), TestCaseError> {
    for (relaxed, (all, within)) in all.into_iter().zip(within).enumerate() {
        if within.is_some() {
            prop_assert_eq!(within, all);
        } else if let Some((delta, excess)) = all {
            let price = if relaxed == 1 { limit.price } else { 0.0 };
            prop_assert!(
                delta.soft[0] as f64 + price * excess > limit.most,
                "{:?} {}",
                delta,
                excess
            );
            prop_assert!(
                relaxed == 1 || now.hard == 0,
                "what may mend a violation is not rejected"
            );
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn the_score_kept_equals_the_score_from_scratch_after_every_move(seed: u64) {
        let problem = random_problem(seed, SMALL);
        let mut rng = Rng::new(seed ^ 1);
        let mut state: State = State::new(&problem, &problem.initial());
        prop_assert_eq!(state.score(), problem.evaluate(&state.assignment()).score);
        for _ in 0..120 {
            let item = Item::from(rng.below(problem.items()));
            let to = (rng.below(6) > 0).then(|| random_place(&mut rng, &problem, item));
            state.apply(item, to);
            let scratch = problem.evaluate(&state.assignment());
            prop_assert_eq!(state.score(), scratch.score);
            prop_assert_eq!(state.moved(), scratch.moved);
            prop_assert_eq!(state.moved_bytes(), scratch.moved_bytes);
        }
    }

    #[test]
    fn a_delta_says_what_the_move_changes_and_never_worsens_a_hard_rule(seed: u64) {
        let problem = random_problem(seed, SMALL);
        let mut rng = Rng::new(seed ^ 2);
        let mut state: State = State::new(&problem, &problem.initial());
        for _ in 0..300 {
            let item = Item::from(rng.below(problem.items()));
            let to = random_place(&mut rng, &problem, item);
            let from = state.place(item);
            let delta = state.delta(item, to);
            let blocker = state.blocker(item, to);
            if from != Some(to) {
                prop_assert_eq!(delta.is_some(), state.feasible_move(item, to));
                prop_assert_eq!(delta.is_none(), blocker.is_some(), "{:?}", blocker);
            }
            let change = state.apply(item, Some(to));
            match delta {
                Some(delta) => {
                    prop_assert_eq!(delta, change);
                    prop_assert!(delta.hard <= 0);
                }
                None if rng.below(4) > 0 => { state.apply(item, from); }
                None => {}
            }
        }
    }

    #[test]
    fn the_delta_of_a_swap_is_that_of_both_moves(seed: u64) {
        let problem = random_problem(seed, SMALL);
        let mut rng = Rng::new(seed ^ 3);
        let mut state: State = State::new(&problem, &problem.initial());
        for _ in 0..300 {
            let (a, b) = (Item::from(rng.below(problem.items())), Item::from(rng.below(problem.items())));
            let (Some(at_a), Some(at_b)) = (state.place(a), state.place(b)) else {
                let to = random_place(&mut rng, &problem, a);
                state.apply(a, Some(to));
                continue;
            };
            let to_a = Place { host: at_b.host, ..random_place(&mut rng, &problem, a) };
            let to_b = Place { host: at_a.host, ..random_place(&mut rng, &problem, b) };
            let Some(delta) = state.swap_delta(a, to_a, b, to_b) else { continue };
            prop_assert!(delta.hard <= 0);
            let before = state.score();
            state.apply(a, Some(to_a));
            state.apply(b, Some(to_b));
            prop_assert_eq!(before + delta, state.score());
        }
    }

    #[test]
    fn a_limit_rejects_only_what_is_over_it(seed: u64) {
        let problem = load_problem(seed, SMALL);
        prop_assert!(Sieve::new(&problem, &problem.overload_weight).is_some());
        let mut rng = Rng::new(seed ^ 5);
        let mut state: State<1> = State::new(&problem, &problem.initial());
        if rng.below(2) == 0 {
            state.keep_transient();
        }
        let letter = |delta: Option<Score<1>>| delta.map(|delta| (delta, 0.0));
        for _ in 0..300 {
            let (a, b) = (Item::from(rng.below(problem.items())), Item::from(rng.below(problem.items())));
            let to = random_place(&mut rng, &problem, a);
            let all = [letter(state.delta(a, to)), state.relaxed_delta(a, to, Limit::NONE)];
            let limit = limit_near(&mut rng, all);
            let within = [letter(state.delta_within(a, to, limit)), state.relaxed_delta(a, to, limit)];
            is_filtered(all, within, (state.score(), limit))?;
            if let (Some(at_a), Some(at_b)) = (state.place(a), state.place(b)) {
                let (a, b) = ((a, at_b), (b, at_a));
                let all = [
                    letter(state.swap_delta(a.0, a.1, b.0, b.1)),
                    state.relaxed_swap_delta(a, b, Limit::NONE),
                ];
                let limit = limit_near(&mut rng, all);
                let within = [
                    letter(state.swap_delta_within(a, b, limit)),
                    state.relaxed_swap_delta(a, b, limit),
                ];
                is_filtered(all, within, (state.score(), limit))?;
            }
            if rng.below(3) == 0 || state.feasible_move(a, to) {
                state.apply(a, Some(to));
            }
        }
    }

    #[test]
    fn one_level_counts_like_many(seed: u64) {
        let problem = random_problem(seed, SMALL);
        if problem.levels_used() > 1 {
            return Ok(());
        }
        let one: State<1> = State::new(&problem, &problem.initial());
        prop_assert_eq!(one.score().widen(), problem.evaluate(&problem.initial()).score);
    }

    #[test]
    fn no_assignment_is_below_the_lower_bound(seed: u64) {
        let problem = random_problem(seed, SMALL);
        let bound = problem.lower_bound();
        let mut rng = Rng::new(seed ^ 4);
        let mut assignment = problem.initial();
        for _ in 0..50 {
            for ix in 0..problem.items() {
                let item = Item::from(ix);
                assignment.set(item, Some(random_place(&mut rng, &problem, item)));
            }
            let score = problem.evaluate(&assignment).score;
            for (level, least) in bound.soft.iter().enumerate() {
                // Overfull hosts, a hard violation, are fewer hosts in use.
                if score.hard > 0 && level == usize::from(problem.levels.hosts_in_use) {
                    continue;
                }
                prop_assert!(score.soft[level] >= *least, "level {level}: {score:?} below {bound:?}");
            }
        }
    }
}

fn refusal(change: impl FnOnce(&mut ProblemBuilder)) -> String {
    let mut b = builder(1, SMALL);
    change(&mut b);
    b.build().unwrap_err().reason
}

fn item_with(need: i64) -> ItemSpec {
    ItemSpec { shapes: vec![vec![need; 4]], ..ItemSpec::default() }
}

#[test]
fn numbers_out_of_range_are_refused() {
    assert_eq!(
        refusal(|b| {
            b.item(item_with(-1));
        }),
        "item 24 has the amount -1"
    );
    assert_eq!(
        refusal(|b| {
            b.item(item_with(i64::MAX));
        }),
        format!("item 24 has the amount {}", i64::MAX)
    );
    let home = ItemSpec { home: Some(Place::on(Host(7))), ..item_with(1) };
    assert_eq!(
        refusal(|b| {
            b.item(home);
        }),
        "home of item 24 names number 7 of 7"
    );
    assert_eq!(
        refusal(|b| {
            b.item(ItemSpec::default());
        }),
        "item 24 has 0 shapes, 1 to 255 are possible"
    );
    assert_eq!(
        refusal(|b| {
            b.group(vec![Item(1), Item(1)]);
        }),
        "group 7 names item 1 twice"
    );
    assert_eq!(
        refusal(|b| b.way_costs(vec![1, 2])),
        "the matrix of way costs has 2 entries for 7 hosts"
    );
    assert_eq!(
        refusal(|b| {
            b.partition(vec![Some(0)]);
        }),
        "partition 2 names 1 domains for 7 hosts"
    );
}

#[test]
fn an_objective_that_could_leave_64_bits_is_refused() {
    let mut b = ProblemBuilder::new(ObjectiveTable::one_sum());
    b.resource(ResourceSpec { safety_weight: AMOUNT_MAX, ..ResourceSpec::allocation() });
    let host = b.host(HostSpec { capacity: vec![1], ..HostSpec::default() });
    b.item(ItemSpec {
        shapes: vec![vec![AMOUNT_MAX]],
        home: Some(Place::on(host)),
        ..ItemSpec::default()
    });
    assert_eq!(b.build().unwrap_err().reason, "the objective could leave 64 bits");
}

#[test]
fn extreme_numbers_within_range_do_not_wrap() {
    let mut b = ProblemBuilder::new(ObjectiveTable::cluster());
    b.resource(ResourceSpec { imbalance_weight: 1, ..ResourceSpec::demand() });
    let tiny = b.host(HostSpec { capacity: vec![1], ..HostSpec::default() });
    let huge = b.host(HostSpec { capacity: vec![AMOUNT_MAX], ..HostSpec::default() });
    for _ in 0..100 {
        let shapes = vec![vec![AMOUNT_MAX]];
        b.item(ItemSpec { shapes, home: Some(Place::on(tiny)), ..ItemSpec::default() });
    }
    let problem = b.build().unwrap();
    let mut state: State = State::new(&problem, &problem.initial());
    for ix in 0..100 {
        let before = state.score();
        let delta = state.delta(Item(ix), Place::on(huge)).unwrap();
        state.apply(Item(ix), Some(Place::on(huge)));
        assert_eq!(before + delta, state.score());
        assert_eq!(state.score(), problem.evaluate(&state.assignment()).score);
        assert!(state.score() < before || ix > 0, "a host of its size is better");
    }
}
