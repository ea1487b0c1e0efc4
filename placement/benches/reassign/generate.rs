//! Instances in the manner of the challenge's set B, as its text.
//!
//! Thousands of services of very different sizes, needs with a heavy tail and
//! large next to what moves cost, as in the published sets, a lawful initial
//! assignment that leaves some machines crowded and others idle. Spread and dependencies are drawn from what the initial assignment
//! keeps, so it is lawful by construction.

use std::collections::BTreeSet;
use std::fmt::Write;

use ballast_placement::core::Rng;

/// How large an instance is: `machines,processes,seed[,resources[,transient[,services[,balances[,scale]]]]]`.
/// The scale is how large needs are next to what moves cost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    machines: usize,
    processes: usize,
    seed: u64,
    resources: usize,
    transient: usize,
    services: usize,
    balances: usize,
    scale: usize,
}

impl Size {
    pub(crate) fn parse(text: &str) -> Self {
        let numbers: Vec<usize> = text.split(',').map(|word| word.parse().unwrap()).collect();
        let or = |ix: usize, default| numbers.get(ix).copied().unwrap_or(default);
        Self {
            machines: numbers[0],
            processes: numbers[1],
            seed: or(2, 1) as u64,
            resources: or(3, 6),
            transient: or(4, 2),
            services: or(5, numbers[1] / 3),
            balances: or(6, 1),
            scale: or(7, 1000),
        }
    }

    fn neighbourhood(&self, machine: usize) -> usize {
        machine % 5
    }

    fn location(&self, machine: usize) -> usize {
        machine % (self.machines / 10).max(2)
    }
}

struct Instance {
    size: Size,
    rng: Rng,
    service: Vec<usize>,
    need: Vec<Vec<i64>>,
    home: Vec<usize>,
    used: Vec<Vec<i64>>,
}

/// The texts of a model and of its initial assignment.
pub(crate) fn instance(size: &Size) -> (String, String) {
    let mut instance = Instance::new(*size);
    instance.place();
    let homes: Vec<String> = instance.home.iter().map(ToString::to_string).collect();
    (instance.text(), homes.join(" ") + "\n")
}

impl Instance {
    fn new(size: Size) -> Self {
        let mut rng = Rng::new(size.seed);
        // Every service has a process; the others fall to services by a power law.
        let mut service: Vec<usize> = (0..size.services.min(size.processes)).collect();
        let mut members = vec![1; size.services];
        assert!(size.services * size.machines > size.processes * 3, "too few services");
        while service.len() < size.processes {
            let share = rng.unit().powi(3);
            let drawn = (share * size.services as f64) as usize;
            // A service has at most half as many processes as there are machines.
            if members[drawn] * 2 < size.machines {
                members[drawn] += 1;
                service.push(drawn);
            }
        }
        let need = (0..size.processes)
            .map(|_| {
                let scale = 20.0 * size.scale as f64 * (1.0 / (1.0 - rng.unit() * 0.995)).powf(0.9);
                (0..size.resources)
                    .map(
                        |_| if rng.below(5) == 0 { 0 } else { (scale * (0.2 + rng.unit())) as i64 },
                    )
                    .collect()
            })
            .collect();
        let used = vec![vec![0; size.resources]; size.machines];
        Self { size, rng, service, need, home: Vec::new(), used }
    }

    /// Each process to a random machine without its service, crowded machines preferred by half of them.
    fn place(&mut self) {
        let machines = self.size.machines;
        let mut there: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); machines];
        for process in 0..self.size.processes {
            let service = self.service[process];
            let mut machine = match self.rng.below(2) {
                0 => self.rng.below(machines),
                _ => self.rng.below(machines / 2 + 1),
            };
            while there[machine].contains(&service) {
                machine = (machine + 1 + self.rng.below(3)) % machines;
            }
            there[machine].insert(service);
            self.home.push(machine);
            for (used, need) in self.used[machine].iter_mut().zip(&self.need[process]) {
                *used += need;
            }
        }
    }

    fn members(&self) -> Vec<Vec<usize>> {
        let mut members = vec![Vec::new(); self.size.services];
        for (process, service) in self.service.iter().enumerate() {
            members[*service].push(process);
        }
        members
    }

    fn text(&mut self) -> String {
        let size = self.size;
        let mut out = format!("{}\n", size.resources);
        for r in 0..size.resources {
            writeln!(out, "{} {}", u8::from(r < size.transient), 1 + 10 * (r % 2)).unwrap();
        }
        writeln!(out, "{}", size.machines).unwrap();
        self.machines(&mut out);
        self.services(&mut out);
        writeln!(out, "{}", size.processes).unwrap();
        for (service, need) in self.service.iter().zip(&self.need) {
            let need: Vec<String> = need.iter().map(ToString::to_string).collect();
            writeln!(out, "{service} {} {}", need.join(" "), 1 + self.rng.below(20)).unwrap();
        }
        writeln!(out, "{}", size.balances).unwrap();
        for n in 0..size.balances {
            writeln!(out, "{} {} {}\n10", n % size.resources, (n + 1) % size.resources, 1).unwrap();
        }
        out + "1 10 100\n"
    }

    /// Capacities leave each machine a tenth to a half of what is there; safety is where the mean load is.
    fn machines(&mut self, out: &mut String) {
        let size = self.size;
        let mean: Vec<i64> = (0..size.resources)
            .map(|r| self.used.iter().map(|used| used[r]).sum::<i64>() / size.machines as i64)
            .collect();
        for machine in 0..size.machines {
            let grade = [80, 100, 130][machine % 3];
            let capacity: Vec<i64> = (0..size.resources)
                .map(|r| {
                    let least = self.used[machine][r] * (105 + self.rng.below(30) as i64) / 100;
                    least.max(mean[r] * grade * 14 / 1000)
                })
                .collect();
            let safety: Vec<i64> = (0..size.resources)
                .map(|r| (mean[r] * grade * 98 / 10_000).min(capacity[r] * 9 / 10))
                .collect();
            let words: Vec<String> =
                capacity.iter().chain(&safety).map(ToString::to_string).collect();
            write!(
                out,
                "{} {} {}",
                size.neighbourhood(machine),
                size.location(machine),
                words.join(" ")
            )
            .unwrap();
            for other in 0..size.machines {
                let near = size.location(machine) == size.location(other);
                let cost = if machine == other { 0 } else { 1 + 4 * u8::from(!near) };
                write!(out, " {cost}").unwrap();
            }
            out.push('\n');
        }
    }

    fn services(&mut self, out: &mut String) {
        let size = self.size;
        let members = self.members();
        let places = |service: usize, of: &dyn Fn(usize) -> usize| -> BTreeSet<usize> {
            members[service].iter().map(|process| of(self.home[*process])).collect()
        };
        let near: Vec<BTreeSet<usize>> =
            (0..size.services).map(|s| places(s, &|m| size.neighbourhood(m))).collect();
        let spreads: Vec<usize> =
            (0..size.services).map(|s| places(s, &|m| size.location(m)).len()).collect();
        writeln!(out, "{}", size.services).unwrap();
        for service in 0..size.services {
            let spread = match self.rng.below(3) {
                0 => spreads[service],
                1 => 1 + self.rng.below(spreads[service]),
                _ => 1,
            };
            let tries = self.rng.below(4);
            let depends: BTreeSet<usize> = (0..tries * 4)
                .map(|_| self.rng.below(size.services))
                .filter(|other| *other != service && near[service].is_subset(&near[*other]))
                .take(tries)
                .collect();
            write!(out, "{spread} {}", depends.len()).unwrap();
            for other in depends {
                write!(out, " {other}").unwrap();
            }
            out.push('\n');
        }
    }
}
