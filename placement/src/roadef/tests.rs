//! The solver's numbers and the checker agree on every assignment of a small instance.

use ballast_model::RefusalCode;

use super::*;

/// Three machines (two neighbourhoods, two locations), a service that spreads over two locations, and one that needs
/// it nearby; the first resource is transient.
const MODEL: &str = "2\n1 10\n0 5\n\
    3\n0 0 100 60 20 50 0 1 2\n0 1 55 60 40 50 1 0 1\n1 1 90 70 80 50 2 1 0\n\
    2\n2 0\n1 1 0\n\
    3\n0 30 10 5\n0 20 10 5\n1 10 5 1\n\
    1\n0 1 2\n10\n1 10 100\n";

fn words(assignment: &[u32]) -> String {
    assignment.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")
}

fn cost(assignment: &[u32]) -> Result<i128, String> {
    checker::check(MODEL, "0 1 0", &words(assignment)).map_err(|refusal| refusal.reason)
}

#[test]
fn costs_are_those_of_the_challenge() {
    // Load: 40 of 20 on machine 0 at 10. Balance at 10: 2·60 − 45, 2·35 − 50 and 2·90 − 70.
    let initial = 200 + 750 + 200 + 1_100;
    assert_eq!(cost(&[0, 1, 0]), Ok(initial));
    // Process 2 moves for 1, its service for 10, between the machines for 100; 10 less of load, the balance is linear.
    assert_eq!(cost(&[0, 1, 1]), Ok(initial - 100 + 1 + 10 + 100));
}

#[test]
fn what_is_broken_is_named() {
    let broken = |assignment: &[u32], words: &str| {
        let reason = cost(assignment).unwrap_err();
        assert!(reason.contains(words), "{reason}");
    };
    broken(&[0, 0, 0], "process 1 shares machine 0 with its service 0");
    broken(&[1, 2, 0], "service 0 is in 1 locations of 2");
    broken(&[0, 1, 2], "service 1 misses service 0 in neighbourhood 1");
    // Processes 0 and 1 change places: 30 come to machine 1 while the 20 that leave it count as well.
    let model = MODEL.replace("55 60", "45 60");
    let refusal = checker::check(&model, "0 1 0", "1 0 0").unwrap_err();
    assert_eq!(refusal.code, RefusalCode::RuleViolation);
    assert_eq!(refusal.reason, "machine 1 holds 50 of resource 0 and has 45");
    for (initial, assignment) in [("0 1", "0 1 0"), ("0 1 0", "0 1 3"), ("0 1 0", "0 1 x")] {
        let refusal = checker::check(MODEL, initial, assignment).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::InvalidArgument);
    }
}

#[test]
fn the_solver_counts_what_the_checker_counts() {
    let model = parse_model(MODEL).unwrap();
    let problem = problem(&model, &[0, 1, 0]).unwrap();
    let mut good = 0;
    for n in 0..27 {
        let machines = [n / 9, n / 3 % 3, n % 3];
        let places = machines.map(|machine| Some(Place { host: Host(machine), shape: 0 }));
        let assignment = Assignment::from_places(places);
        assert_eq!(write_assignment(&assignment), words(&machines) + "\n");
        let score = problem.evaluate(&assignment).score;
        match cost(&machines) {
            Ok(cost) => {
                good += 1;
                assert_eq!((score.hard, i128::from(score.soft[0])), (0, cost), "{machines:?}");
            }
            Err(reason) => assert!(score.hard > 0, "{machines:?}: {reason}"),
        }
    }
    assert!((3..20).contains(&good), "{good}");
}
