//! Orders of random clusters against the simulator, and of tiny ones against
//! brute force.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::sync::Arc;

use proptest::prelude::*;

use super::plain::{Plain, PlainHost, PlainVm, Rule};
use super::*;
use crate::simulate::{Act, Guest, Law, World, replay};

/// A cluster and where its VMs shall be.
#[derive(Debug, Clone)]
struct Case {
    capacity: Vec<Vec<u64>>,
    need: Vec<Vec<u64>>,
    from: Vec<Option<u32>>,
    to: Vec<u32>,
    rules: Vec<Rule>,
}

impl Case {
    fn plain(&self) -> Plain {
        let host = |capacity: &Vec<u64>| PlainHost { capacity: capacity.clone() };
        let vm = |(need, at): (&Vec<u64>, &Option<u32>)| PlainVm {
            at: *at,
            need: need.clone(),
            bytes: need[0] << 30,
            dirty_rate: 1 << 20,
        };
        let vms = self.need.iter().zip(&self.from).map(vm).collect();
        Plain::new(self.capacity.iter().map(host).collect(), vms, self.rules.clone())
    }

    fn transitions(&self) -> Vec<Transition> {
        (0..)
            .zip(self.from.iter().zip(&self.to))
            .filter(|(_, (from, to))| **from != Some(**to))
            .map(|(vm, (from, to))| Transition { vm, from: *from, to: *to, weight: 1 })
            .collect()
    }

    fn world(&self) -> World {
        let guest = |(need, at): (&Vec<u64>, &Option<u32>)| Guest {
            rooms: at.iter().map(|at| *at as usize).collect(),
            need: need.clone(),
        };
        World {
            rooms: self.capacity.clone(),
            guests: self.need.iter().zip(&self.from).map(guest).collect(),
            laws: self.rules.iter().map(|rule| law(rule, self.capacity.len())).collect(),
        }
    }

    /// The world as it would be with the VMs elsewhere, to see whether that is legal at all.
    fn legal_at(&self, places: &[Option<u32>]) -> bool {
        let mut nobody = self.clone();
        nobody.from = vec![None; self.from.len()];
        let mut world = nobody.world();
        world.laws.retain(|law| !matches!(law, Law::Breadth { .. } | Law::Company { .. }));
        let acts: Vec<Act> = places
            .iter()
            .enumerate()
            .filter_map(|(vm, at)| {
                at.map(|at| Act { guest: vm, from: vec![], to: vec![at as usize], after: vec![] })
            })
            .collect();
        let domains = |vms: &[u32], domains: &[u32]| {
            let at = vms.iter().filter_map(|vm| places[*vm as usize]);
            at.map(|at| domains[at as usize]).collect::<BTreeSet<u32>>()
        };
        let lasting = self.rules.iter().all(|rule| match rule {
            Rule::Spread { vms, domains: of, least } => domains(vms, of).len() >= *least as usize,
            Rule::Near { vms, of, domains: by } => domains(vms, by).is_subset(&domains(of, by)),
            _ => true,
        });
        lasting && replay(&world, &acts, 1, 0).is_ok()
    }
}

fn law(rule: &Rule, places: usize) -> Law {
    let numbers = |vms: &[u32]| vms.iter().map(|vm| *vm as usize).collect::<Vec<_>>();
    let scopes = |domains: &[u32]| domains.iter().map(|d| *d as usize).collect::<Vec<_>>();
    let own: Vec<usize> = (0..places).collect();
    match rule {
        Rule::Apart { vms, domains, most } => Law::Crowd {
            guests: numbers(vms),
            scopes: domains.as_deref().map_or(own, scopes),
            most: usize::try_from(*most).unwrap(),
        },
        Rule::Spread { vms, domains, least } => {
            Law::Breadth { guests: numbers(vms), scopes: scopes(domains), least: *least as usize }
        }
        Rule::Among { vms, places } => Law::Inside {
            guests: numbers(vms),
            rooms: (0..places.len()).filter(|place| places[*place]).collect(),
        },
        Rule::Licence { vms, most } => {
            Law::Narrowness { guests: numbers(vms), scopes: own, most: *most as usize }
        }
        Rule::Near { vms, of, domains } => {
            Law::Company { guests: numbers(vms), others: numbers(of), scopes: scopes(domains) }
        }
        Rule::Spare { places } => Law::Reserve { rooms: *places },
    }
}

fn acts(order: &Order) -> Vec<Act> {
    let act = |step: &Step| Act {
        guest: step.vm as usize,
        from: step.from.iter().map(|from| *from as usize).collect(),
        to: vec![step.to as usize],
        after: step.after.iter().map(|before| *before as usize).collect(),
    };
    order.steps.iter().map(act).collect()
}

/// What must hold of every order.
fn check(case: &Case) -> Order {
    let (plain, transitions) = (case.plain(), case.transitions());
    let order = order(&plain, &transitions);
    if let Err(fault) = replay(&case.world(), &acts(&order), 24, 7) {
        panic!("{fault}: {order:?}");
    }
    let dropped: HashSet<u32> = order.dropped.iter().map(|wanted| wanted.vm).collect();
    for wanted in &transitions {
        let last = order.steps.iter().rev().find(|step| step.vm == wanted.vm);
        match last {
            Some(Step { role: Role::Back, to, .. }) => {
                assert!(wanted.from == Some(*to) && dropped.contains(&wanted.vm), "{order:?}");
            }
            Some(step) => {
                assert!(step.to == wanted.to && !dropped.contains(&wanted.vm), "{order:?}");
                assert_eq!(step.role, Role::Final, "{order:?}");
            }
            None => assert!(dropped.contains(&wanted.vm), "{order:?}"),
        }
    }
    let timing =
        Timing::estimate(&plain, &order, &|_| HostLimits::default(), std::time::Duration::ZERO);
    for (n, step) in order.steps.iter().enumerate() {
        for before in &step.after {
            let before = *before as usize;
            assert!(before < n && timing.stages[before] < timing.stages[n]);
            assert!(timing.starts[before] <= timing.starts[n]);
        }
        assert!(
            timing.starts[n] + timing.durations[n]
                <= timing.makespan + std::time::Duration::from_millis(2)
        );
    }
    order
}

/// The fewest moves, one after the other and only of VMs that shall be elsewhere, by breadth-first search over whole placements; nothing if there is no way.
fn fewest(case: &Case) -> Option<usize> {
    let goal: Vec<Option<u32>> = case.to.iter().map(|to| Some(*to)).collect();
    let mut seen = HashSet::from([case.from.clone()]);
    let mut queue = VecDeque::from([(case.from.clone(), 0)]);
    while let Some((at, moves)) = queue.pop_front() {
        if at == goal {
            return Some(moves);
        }
        for vm in (0..at.len()).filter(|vm| case.from[*vm] != Some(case.to[*vm])) {
            for to in 0..u32::try_from(case.capacity.len()).unwrap() {
                let mut next = at.clone();
                next[vm] = Some(to);
                if at[vm] == Some(to) || seen.contains(&next) {
                    continue;
                }
                let mut here = case.clone();
                here.from.clone_from(&at);
                let from = at[vm].iter().map(|at| *at as usize).collect();
                let act = Act { guest: vm, from, to: vec![to as usize], after: vec![] };
                if replay(&here.world(), &[act], 1, 0).is_ok() {
                    seen.insert(next.clone());
                    queue.push_back((next, moves + 1));
                }
            }
        }
    }
    None
}

prop_compose! {
    /// Hosts of ten, VMs of one to six; placements and rules at random, some of them illegal.
    fn any_case(hosts_max: usize, vms_max: usize)
        (hosts in 2..=hosts_max, vms in 2..=vms_max, resources in 1_usize..=2)
        (
            capacity in prop::collection::vec(prop::collection::vec(6_u64..=12, resources), hosts),
            need in prop::collection::vec(prop::collection::vec(1_u64..=6, resources), vms),
            from in prop::collection::vec(prop::option::weighted(0.9, 0..u32::try_from(hosts).unwrap()), vms),
            to in prop::collection::vec(0..u32::try_from(hosts).unwrap(), vms),
            rules in prop::collection::vec(any_rule(hosts, vms), 0..3),
        ) -> Case {
            Case { capacity, need, from, to, rules }
        }
}

fn any_rule(hosts: usize, vms: usize) -> impl Strategy<Value = Rule> {
    let some = prop::collection::btree_set(0..u32::try_from(vms).unwrap(), 2..=vms.min(4));
    let some = some.prop_map(|vms| vms.into_iter().collect::<Vec<_>>());
    let domains = prop::collection::vec(0..3_u32, hosts).prop_map(Arc::<[u32]>::from);
    let places =
        prop::collection::vec(prop::bool::weighted(0.8), hosts).prop_map(Arc::<[bool]>::from);
    (some.clone(), some, domains, places, 0..7, 1_u32..=2).prop_map(
        |(vms, of, domains, places, kind, n)| match kind {
            0 => Rule::Apart { vms, domains: None, most: 1 },
            1 => Rule::Apart { vms, domains: Some(domains), most: u64::from(n) },
            2 => Rule::Spread { vms, domains, least: n },
            3 => Rule::Among { vms, places },
            4 => Rule::Licence { vms, most: n + 1 },
            5 => Rule::Near { vms, of, domains },
            _ => Rule::Spare { places: 1 },
        },
    )
}

fn legal(case: &Case) -> bool {
    let to: Vec<_> = case.to.iter().map(|to| Some(*to)).collect();
    case.legal_at(&case.from) && case.legal_at(&to)
}

proptest! {
    #![proptest_config(ProptestConfig { max_global_rejects: 1 << 20, ..ProptestConfig::with_cases(96) })]

    #[test]
    fn every_interleaving_is_legal(case in any_case(4, 7)) {
        check(&case);
    }

    #[test]
    fn every_interleaving_is_legal_by_the_heuristic_too(case in any_case(4, 22)) {
        check(&case);
    }

    #[test]
    fn a_tiny_order_has_the_fewest_moves(case in any_case(3, 4).prop_filter("legal", legal)) {
        let order = check(&case);
        match fewest(&case) {
            Some(moves) => prop_assert_eq!((order.steps.len(), order.dropped.len()), (moves, 0)),
            None => prop_assert!(!order.dropped.is_empty()),
        }
    }
}

/// Hosts of ten with these VMs, one row a host: (size, where it shall be).
fn rows(rows: &[&[(u64, u32)]]) -> Case {
    let mut case = Case {
        capacity: vec![vec![10]; rows.len()],
        need: vec![],
        from: vec![],
        to: vec![],
        rules: vec![],
    };
    for (host, row) in (0..).zip(rows) {
        for (size, to) in *row {
            case.need.push(vec![*size]);
            case.from.push(Some(host));
            case.to.push(*to);
        }
    }
    case
}

#[test]
fn a_chain_waits_from_its_end() {
    let order = check(&rows(&[&[(6, 1)], &[(6, 2)], &[(6, 3)], &[]]));
    assert_eq!(order.parkings(), 0);
    let timing = Timing::estimate(
        &rows(&[&[(6, 1)], &[(6, 2)], &[(6, 3)], &[]]).plain(),
        &order,
        &|_| HostLimits::default(),
        std::time::Duration::ZERO,
    );
    assert_eq!(timing.stage_count(), 3);
}

#[test]
fn a_circle_is_broken_by_its_smallest() {
    let order = check(&rows(&[&[(7, 1)], &[(6, 2)], &[(8, 0)], &[(3, 3)]]));
    assert_eq!(order.parkings(), 1);
    assert_eq!(order.steps.len(), 4);
    assert_eq!((order.steps[0].vm, order.steps[0].to), (1, 3));
}

#[test]
fn a_circle_without_room_to_park_is_given_up() {
    let order = check(&rows(&[&[(7, 1)], &[(6, 0)]]));
    assert_eq!((order.steps.len(), order.dropped.len()), (0, 2));
}

#[test]
fn moves_that_do_not_contend_run_together() {
    let order = check(&rows(&[&[(1, 3), (1, 4)], &[(1, 5)], &[(1, 3)], &[], &[], &[]]));
    assert!(order.steps.iter().all(|step| step.after.is_empty()), "{order:?}");
}

#[test]
fn room_kept_for_a_failure_limits_how_much_moves_at_once() {
    let mut case = rows(&[&[(4, 2), (4, 2)], &[(1, 1)], &[]]);
    case.rules.push(Rule::Spare { places: 1 });
    // 9 in use, 20 kept: two moves of 4 fit, and then nothing more than 3.
    assert!(check(&case).steps.iter().all(|step| step.after.is_empty()));
    case.capacity = vec![vec![8], vec![8], vec![8]];
    let order = check(&case);
    assert_eq!(order.steps.iter().map(|step| step.after.len()).collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn the_plan_that_the_simulator_should_refuse_is_refused() {
    let case = rows(&[&[(6, 1)], &[(6, 2)], &[]]);
    let mut acts = acts(&order(&case.plain(), &case.transitions()));
    acts.iter_mut().for_each(|act| act.after.clear());
    let fault = replay(&case.world(), &acts, 1, 0).unwrap_err();
    assert!(fault.to_string().starts_with("room 1 holds more than it has after start"), "{fault}");
}
