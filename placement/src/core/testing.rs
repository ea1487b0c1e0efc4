//! Random problems with everything in them, for tests.

use super::*;

/// How large a random problem is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    pub(super) hosts: usize,
    pub(super) items: usize,
    pub(super) groups: usize,
}

/// A problem that follows from its seed, with every kind of term, rule and flag.
pub(super) fn random_problem(seed: u64, size: Size) -> Problem {
    builder(seed, size).build().unwrap()
}

/// A problem of one sum whose load the first look can tell: items of one shape, hard rules alone.
pub(super) fn load_problem(seed: u64, size: Size) -> Problem {
    let mut rng = Rng::new(seed);
    let mut b = ProblemBuilder::new(ObjectiveTable::one_sum());
    let resources: Vec<Resource> = (0..2 + rng.below(12))
        .map(|n| {
            let safety_weight = rng.below(4).max(usize::from(n == 0)) as i64;
            let transient = rng.below(3) == 0;
            b.resource(ResourceSpec { transient, safety_weight, ..ResourceSpec::allocation() })
        })
        .collect();
    let balances = resources.len().min(1 + rng.below(4));
    for n in 1..balances {
        b.balance(resources[n - 1], resources[n], 1 + rng.below(3) as i64, 1 + rng.below(9) as i64);
    }
    // Large amounts next to small ones: what single precision rounds must not decide.
    let unit = 1 + rng.below(200_000) as i64;
    for _ in 0..size.hosts {
        let capacity: Vec<i64> =
            resources.iter().map(|_| unit * (40 + rng.below(60) as i64)).collect();
        let safety = capacity.iter().map(|c| c * 6 / 10 + rng.below(3) as i64).collect();
        b.host(HostSpec { capacity, safety, ..HostSpec::default() });
    }
    for _ in 0..size.items {
        let mut item = random_item(&mut rng, size, &[]);
        let need = |_: &Resource| unit * rng.below(25) as i64 + rng.below(3) as i64;
        item.shapes = vec![resources.iter().map(need).collect()];
        item.home = item.home.map(|home| Place { shape: 0, ..home });
        item.allowed = None;
        b.item(item);
    }
    let each = b.host_partition();
    for _ in 0..size.groups {
        let group =
            b.group((0..size.items).filter(|_| rng.below(4) == 0).map(Item::from).collect());
        let kind = RuleKind::AtMostPerDomain(1 + rng.below(3) as u32);
        b.rule(RuleSpec { group, partition: each, kind, strength: Strength::Hard });
    }
    b.build().unwrap()
}

pub(super) fn builder(seed: u64, size: Size) -> ProblemBuilder {
    let mut rng = Rng::new(seed);
    let tables =
        [ObjectiveTable::cluster(), ObjectiveTable::consolidate(), ObjectiveTable::one_sum()];
    let mut b = ProblemBuilder::new(tables[rng.below(3)].clone());
    add_resources(&mut b, &mut rng);
    for _ in 0..size.hosts {
        let capacity: Vec<i64> = (0..4).map(|_| 40 + rng.below(60) as i64).collect();
        let safety = capacity.iter().map(|c| c * 6 / 10).collect();
        b.host(HostSpec {
            capacity,
            safety,
            closed: rng.below(8) == 0,
            drained: rng.below(10) == 0,
            unbalanced: rng.below(10) == 0,
            activation: 1 + rng.below(5) as i64,
        });
    }
    let sets: Vec<HostSet> = (0..3).map(|_| b.host_set(some_hosts(&mut rng, size.hosts))).collect();
    for _ in 0..size.items {
        let item = random_item(&mut rng, size, &sets);
        let item = b.item(item);
        if rng.below(4) == 0 {
            b.prefer(item, sets[rng.below(3)], 1 + rng.below(9) as i64);
        }
    }
    if rng.below(2) == 0 {
        b.way_costs((0..size.hosts * size.hosts).map(|_| rng.below(3) as u32).collect());
    }
    add_rules(&mut b, &mut rng, size);
    b
}

fn add_resources(b: &mut ProblemBuilder, rng: &mut Rng) {
    let cpu = b.resource(ResourceSpec {
        imbalance_weight: 1,
        safety_weight: 3,
        ..ResourceSpec::demand()
    });
    let memory = b.resource(ResourceSpec {
        transient: rng.below(2) == 0,
        safety_weight: 2,
        ..ResourceSpec::allocation()
    });
    b.resource(ResourceSpec { fragment: Some((16, 1)), ..ResourceSpec::allocation() });
    b.resource(ResourceSpec { fragment: Some((16, 1)), ..ResourceSpec::allocation() });
    b.balance(cpu, memory, 2, 5);
}

fn some_hosts(rng: &mut Rng, hosts: usize) -> Vec<Host> {
    let some: Vec<Host> = (0..hosts).filter(|_| rng.below(3) > 0).map(Host::from).collect();
    if some.is_empty() { vec![Host(0)] } else { some }
}

fn random_item(rng: &mut Rng, size: Size, sets: &[HostSet]) -> ItemSpec {
    let (cpu, memory, cores) = (rng.below(30) as i64, rng.below(30) as i64, rng.below(12) as i64);
    let shapes = match rng.below(3) {
        0 => vec![vec![cpu, memory, cores / 2, cores - cores / 2]],
        _ => vec![vec![cpu, memory, cores, 0], vec![cpu, memory, 0, cores]],
    };
    let shape = rng.below(shapes.len()) as u8;
    let host = Host::from(rng.below(size.hosts));
    ItemSpec {
        shapes,
        home: (rng.below(8) > 0).then_some(Place { host, shape }),
        pinned: rng.below(12) == 0,
        move_cost: rng.below(10) as i64,
        move_bytes: rng.below(1000) as u64,
        allowed: if rng.below(4) == 0 {
            sets.get(rng.below(sets.len().max(1))).copied()
        } else {
            None
        },
    }
}

fn add_rules(b: &mut ProblemBuilder, rng: &mut Rng, size: Size) {
    let each = b.host_partition();
    let racks =
        b.partition((0..size.hosts).map(|h| (h % 5 != 4).then_some((h % 3) as u32)).collect());
    let groups: Vec<Group> = (0..size.groups)
        .map(|_| {
            let chance = 2 + rng.below(4);
            let items = (0..size.items).filter(|_| rng.below(chance) == 0).map(Item::from);
            b.group(items.collect())
        })
        .collect();
    for (ix, group) in groups.iter().enumerate() {
        for partition in [each, racks] {
            let other = groups[rng.below(groups.len())];
            let kinds = [
                RuleKind::AtMostPerDomain(1 + rng.below(3) as u32),
                RuleKind::MinDomains(1 + rng.below(3) as u32),
                RuleKind::MaxDomains(1 + rng.below(3) as u32),
                RuleKind::Requires(other),
                RuleKind::Excludes(other),
            ];
            for kind in kinds {
                if rng.below(3) == 0 {
                    let strength = if rng.below(2) == 0 {
                        Strength::Hard
                    } else {
                        Strength::Soft(1 + ix as i64)
                    };
                    b.rule(RuleSpec { group: *group, partition, kind, strength });
                }
            }
        }
    }
    // Move groups do not overlap: every third item in one of two.
    for n in 0..2 {
        let items = (0..size.items).filter(|ix| ix % 3 == n).map(Item::from).collect();
        let group = b.group(items);
        b.move_group(group);
    }
}
