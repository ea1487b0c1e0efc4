//! The cost of an assignment, straight from the challenge's text.
//!
//! Written separately from the solver, from the rules of the challenge: its
//! own reading, its own arithmetic (128 bits), nothing shared. What it says
//! is what is reported.

use std::collections::{BTreeMap, BTreeSet};

use ballast_model::{Refusal, RefusalCode};

/// The cost of an assignment that breaks no rule.
///
/// # Errors
/// `RuleViolation` for a broken constraint, naming it; `InvalidArgument` for
/// texts that do not fit each other.
pub fn check(model: &str, initial: &str, assignment: &str) -> Result<i128, Refusal> {
    let (initial, assignment) = (numbers(initial)?, numbers(assignment)?);
    let model = numbers(model)?;
    let mut reader = Reader { numbers: &model, next: 0 };
    Instance::read(&mut reader)?.cost(&initial, &assignment)
}

fn numbers(text: &str) -> Result<Vec<i128>, Refusal> {
    text.split_whitespace()
        .map(|word| word.parse::<i64>().map(i128::from))
        .collect::<Result<_, _>>()
        .map_err(|_| unfit("a word is not an integer"))
}

fn unfit(what: &str) -> Refusal {
    Refusal::new(RefusalCode::InvalidArgument, what, "check the files belong together")
}

fn broken(what: String) -> Refusal {
    Refusal::new(RefusalCode::RuleViolation, what, "report the defect with the instance")
}

struct Reader<'a> {
    numbers: &'a [i128],
    next: usize,
}

impl<'a> Reader<'a> {
    fn one(&mut self) -> Result<i128, Refusal> {
        Ok(self.many(1)?[0])
    }

    fn index(&mut self) -> Result<usize, Refusal> {
        usize::try_from(self.one()?).map_err(|_| unfit("a number that counts is negative"))
    }

    fn many(&mut self, count: usize) -> Result<&'a [i128], Refusal> {
        let end = self.next.saturating_add(count);
        let slice =
            self.numbers.get(self.next..end).ok_or_else(|| unfit("the model is too short"))?;
        self.next = end;
        Ok(slice)
    }
}

struct Machine<'a> {
    neighbourhood: usize,
    location: usize,
    capacity: &'a [i128],
    safety: &'a [i128],
    move_cost: &'a [i128],
}

struct Process<'a> {
    service: usize,
    need: &'a [i128],
    move_cost: i128,
}

struct Instance<'a> {
    transient: Vec<bool>,
    load_weight: Vec<i128>,
    machines: Vec<Machine<'a>>,
    services: Vec<(usize, Vec<usize>)>,
    processes: Vec<Process<'a>>,
    balances: Vec<(usize, usize, i128, i128)>,
    weights: &'a [i128],
}

impl<'a> Instance<'a> {
    fn read(r: &mut Reader<'a>) -> Result<Self, Refusal> {
        let (mut transient, mut load_weight) = (Vec::new(), Vec::new());
        for _ in 0..r.index()? {
            transient.push(r.one()? != 0);
            load_weight.push(r.one()?);
        }
        let resources = transient.len();
        let count = r.index()?;
        let mut machines = Vec::new();
        for _ in 0..count {
            machines.push(Machine {
                neighbourhood: r.index()?,
                location: r.index()?,
                capacity: r.many(resources)?,
                safety: r.many(resources)?,
                move_cost: r.many(count)?,
            });
        }
        let mut services = Vec::new();
        for _ in 0..r.index()? {
            let spread = r.index()?;
            let dependencies = (0..r.index()?).map(|_| r.index()).collect::<Result<_, _>>()?;
            services.push((spread, dependencies));
        }
        let mut processes = Vec::new();
        for _ in 0..r.index()? {
            processes.push(Process {
                service: r.index()?,
                need: r.many(resources)?,
                move_cost: r.one()?,
            });
        }
        let mut balances = Vec::new();
        for _ in 0..r.index()? {
            balances.push((r.index()?, r.index()?, r.one()?, r.one()?));
        }
        let weights = r.many(3)?;
        Ok(Self { transient, load_weight, machines, services, processes, balances, weights })
    }

    fn cost(&self, initial: &[i128], assignment: &[i128]) -> Result<i128, Refusal> {
        let (before, after) = (self.machines_of(initial)?, self.machines_of(assignment)?);
        let used = self.check_capacity(&before, &after)?;
        self.check_services(&after)?;
        let mut cost = 0;
        for (machine, used) in self.machines.iter().zip(&used) {
            for (r, weight) in self.load_weight.iter().enumerate() {
                cost += weight * (used[r] - machine.safety[r]).max(0);
            }
            for (first, second, target, weight) in &self.balances {
                let free = |r: usize| machine.capacity[r] - used[r];
                cost += weight * (target * free(*first) - free(*second)).max(0);
            }
        }
        let mut moved = vec![0_i128; self.services.len()];
        for (process, (from, to)) in self.processes.iter().zip(before.iter().zip(&after)) {
            if from != to {
                moved[process.service] += 1;
                cost += self.weights[0] * process.move_cost;
                cost += self.weights[2] * self.machines[*from].move_cost[*to];
            }
        }
        Ok(cost + self.weights[1] * moved.into_iter().max().unwrap_or(0))
    }

    fn machines_of(&self, assignment: &[i128]) -> Result<Vec<usize>, Refusal> {
        if assignment.len() != self.processes.len() {
            return Err(unfit("an assignment has another number of processes than the model"));
        }
        assignment
            .iter()
            .map(|machine| usize::try_from(*machine).ok().filter(|m| *m < self.machines.len()))
            .collect::<Option<_>>()
            .ok_or_else(|| unfit("an assignment names a machine there is not"))
    }

    /// Checks capacities, transient use included, and returns what is used without it.
    fn check_capacity(&self, before: &[usize], after: &[usize]) -> Result<Vec<Vec<i128>>, Refusal> {
        let mut used = vec![vec![0_i128; self.transient.len()]; self.machines.len()];
        let mut lingering = used.clone();
        for (process, (from, to)) in self.processes.iter().zip(before.iter().zip(after)) {
            for (r, need) in process.need.iter().enumerate() {
                used[*to][r] += need;
                if self.transient[r] && from != to {
                    lingering[*from][r] += need;
                }
            }
        }
        for (m, machine) in self.machines.iter().enumerate() {
            for (r, capacity) in machine.capacity.iter().enumerate() {
                let total = used[m][r] + lingering[m][r];
                if total > *capacity {
                    return Err(broken(format!(
                        "machine {m} holds {total} of resource {r} and has {capacity}"
                    )));
                }
            }
        }
        Ok(used)
    }

    fn check_services(&self, after: &[usize]) -> Result<(), Refusal> {
        let mut on: BTreeSet<(usize, usize)> = BTreeSet::new();
        let mut locations: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
        let mut neighbourhoods: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
        for (p, (process, machine)) in self.processes.iter().zip(after).enumerate() {
            let s = process.service;
            if !on.insert((s, *machine)) {
                return Err(broken(format!(
                    "process {p} shares machine {machine} with its service {s}"
                )));
            }
            locations.entry(s).or_default().insert(self.machines[*machine].location);
            neighbourhoods.entry(s).or_default().insert(self.machines[*machine].neighbourhood);
        }
        let nowhere = BTreeSet::new();
        for (s, (spread, dependencies)) in self.services.iter().enumerate() {
            let count = locations.get(&s).map_or(0, BTreeSet::len);
            if count < *spread {
                return Err(broken(format!("service {s} is in {count} locations of {spread}")));
            }
            let mine = neighbourhoods.get(&s).unwrap_or(&nowhere);
            for other in dependencies {
                let theirs = neighbourhoods.get(other).unwrap_or(&nowhere);
                if let Some(missing) = mine.difference(theirs).next() {
                    return Err(broken(format!(
                        "service {s} misses service {other} in neighbourhood {missing}"
                    )));
                }
            }
        }
        Ok(())
    }
}
