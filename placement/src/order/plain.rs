//! A [`Ground`] for tests: places with capacities, VMs with needs, and rules that
//! hold all the time.
//!
//! Keys are two numbers of 32 bits: what is counted, and where.

use std::sync::Arc;

use super::{Claim, Counter, Ground, Group, Key, Place, Vm};

/// Something VMs can be at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PlainHost {
    /// Per resource, the most that may be in use, by all VMs together.
    pub(super) capacity: Vec<u64>,
}

/// A VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PlainVm {
    /// Where it is; nothing if it does not run.
    pub(super) at: Option<Place>,
    /// Per resource, what it takes.
    pub(super) need: Vec<u64>,
    /// Its memory in bytes, for the time a move takes.
    pub(super) bytes: u64,
    /// Bytes a second that it dirties.
    pub(super) dirty_rate: u64,
}

/// A rule that holds before, during and after every step. Domains are given per place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Rule {
    /// At most `most` of the VMs in one domain.
    Apart {
        /// Whom it binds.
        vms: Vec<Vm>,
        /// The domain of each place; nothing if each is its own.
        domains: Option<Arc<[u32]>>,
        /// How many a domain may hold.
        most: u64,
    },
    /// The VMs that run are in at least `least` domains.
    Spread {
        /// Whom it binds.
        vms: Vec<Vm>,
        /// The domain of each place.
        domains: Arc<[u32]>,
        /// How many domains.
        least: u32,
    },
    /// The VMs run at these places only.
    Among {
        /// Whom it binds.
        vms: Vec<Vm>,
        /// Per place, whether it is one of them.
        places: Arc<[bool]>,
    },
    /// The VMs run at no more than `most` places at a time.
    Licence {
        /// Whom it binds.
        vms: Vec<Vm>,
        /// How many places.
        most: u32,
    },
    /// Where one of the VMs is, one of `of` is in the same domain.
    Near {
        /// Whom it binds.
        vms: Vec<Vm>,
        /// Whom they depend on.
        of: Vec<Vm>,
        /// The domain of each place.
        domains: Arc<[u32]>,
    },
    /// What is in use in all leaves room for the VMs of the `places` largest.
    Spare {
        /// How many may fail.
        places: usize,
    },
}

/// Places, VMs and rules.
#[derive(Debug, Clone, Default)]
pub(super) struct Plain {
    hosts: Vec<PlainHost>,
    vms: Vec<PlainVm>,
    rules: Vec<Rule>,
    rules_of: Vec<Vec<u32>>,
    used: Vec<Vec<u64>>,
    resources: usize,
    spare: Vec<u32>,
}

impl Plain {
    /// Numbers are indices: places into `hosts`, VMs into `vms`. Every capacity and need names the same resources.
    pub(super) fn new(hosts: Vec<PlainHost>, vms: Vec<PlainVm>, rules: Vec<Rule>) -> Self {
        let resources = hosts.iter().map(|host| host.capacity.len()).max().unwrap_or(0);
        let mut used = vec![vec![0_u64; resources]; hosts.len()];
        for vm in &vms {
            if let Some(at) = vm.at {
                for (used, need) in used[at as usize].iter_mut().zip(&vm.need) {
                    *used = used.saturating_add(*need);
                }
            }
        }
        let mut rules_of = vec![Vec::new(); vms.len()];
        let mut spare = Vec::new();
        for (n, rule) in (0_u32..).zip(&rules) {
            let (bound, of): (&[Vm], &[Vm]) = match rule {
                Rule::Apart { vms, .. }
                | Rule::Spread { vms, .. }
                | Rule::Among { vms, .. }
                | Rule::Licence { vms, .. } => (vms, &[]),
                Rule::Near { vms, of, .. } => (vms, of),
                Rule::Spare { .. } => {
                    spare.push(n);
                    (&[], &[])
                }
            };
            for vm in bound.iter().chain(of) {
                rules_of[*vm as usize].push(n);
            }
        }
        rules_of.iter_mut().for_each(|rules| {
            rules.sort_unstable();
            rules.dedup();
        });
        Self { hosts, vms, rules, rules_of, used, resources, spare }
    }

    fn key(what: usize, scope: u32) -> Key {
        (what as u64) << 32 | u64::from(scope)
    }

    /// The counter of a rule; one that binds two sets has two.
    fn rule_key(&self, rule: u32, second: bool, scope: u32) -> Key {
        Self::key(2 * self.resources + 2 * rule as usize + usize::from(second), scope)
    }

    fn count(&self, vms: &[Vm], here: impl Fn(Place) -> bool) -> u64 {
        let at = |vm: &&Vm| self.vms[**vm as usize].at.is_some_and(&here);
        vms.iter().filter(at).count() as u64
    }

    /// What a spare rule leaves of a resource.
    fn total_limit(&self, resource: usize) -> u64 {
        let mut capacity: Vec<u64> = self
            .hosts
            .iter()
            .map(|host| host.capacity.get(resource).copied().unwrap_or(0))
            .collect();
        capacity.sort_unstable();
        let kept = |rule: &u32| match self.rules[*rule as usize] {
            Rule::Spare { places } => capacity.len().saturating_sub(places),
            _ => capacity.len(),
        };
        let kept = self.spare.iter().map(kept).min().unwrap_or(capacity.len());
        capacity[..kept].iter().fold(0, |sum, c| sum.saturating_add(*c))
    }

    fn rule_counter(&self, rule: u32, second: bool, scope: u32) -> Counter {
        let once = |used, limit| Counter { once: true, ..Counter::at_most(used, limit) };
        match &self.rules[rule as usize] {
            Rule::Apart { vms, domains, most } => {
                once(self.count(vms, |at| domain(domains.as_deref(), at) == scope), *most)
            }
            Rule::Spread { vms, domains, .. } => {
                let used = self.count(vms, |at| domains[at as usize] == scope);
                Counter { group: Some(u64::from(rule)), ..once(used, u64::MAX) }
            }
            Rule::Licence { vms, .. } => {
                let used = self.count(vms, |at| at == scope);
                Counter { group: Some(u64::from(rule)), ..once(used, u64::MAX) }
            }
            Rule::Near { vms, of, domains } => {
                let vms = if second { of } else { vms };
                once(self.count(vms, |at| domains[at as usize] == scope), u64::MAX)
            }
            Rule::Among { .. } | Rule::Spare { .. } => once(0, u64::MAX),
        }
    }
}

fn domain(domains: Option<&[u32]>, at: Place) -> u32 {
    domains.map_or(at, |domains| domains[at as usize])
}

impl Ground for Plain {
    fn places(&self) -> Place {
        Place::try_from(self.hosts.len()).unwrap_or(Place::MAX)
    }

    fn counter(&self, key: Key) -> Counter {
        let (what, scope) = split(key);
        let resources = self.resources;
        if what < resources {
            let limit = self.hosts[scope as usize].capacity.get(what).copied().unwrap_or(0);
            Counter::at_most(self.used[scope as usize][what], limit)
        } else if what < 2 * resources {
            let what = what - resources;
            let used = self.used.iter().fold(0_u64, |sum, used| sum.saturating_add(used[what]));
            Counter::at_most(used, self.total_limit(what))
        } else {
            let what = what - 2 * resources;
            self.rule_counter(u32::try_from(what / 2).unwrap_or(u32::MAX), what % 2 == 1, scope)
        }
    }

    fn group(&self, group: Key) -> Group {
        let open = |vms: &[Vm], domains: Option<&[u32]>| {
            let at = vms.iter().filter_map(|vm| self.vms[*vm as usize].at);
            let mut open: Vec<u32> = at.map(|at| domain(domains, at)).collect();
            open.sort_unstable();
            open.dedup();
            u32::try_from(open.len()).unwrap_or(u32::MAX)
        };
        match &self.rules[split(group).1 as usize] {
            Rule::Spread { vms, domains, least } => {
                Group { open: open(vms, Some(domains)), open_max: u32::MAX, open_min: *least }
            }
            Rule::Licence { vms, most } => {
                Group { open: open(vms, None), open_max: *most, open_min: 0 }
            }
            _ => Group { open: 0, open_max: u32::MAX, open_min: 0 },
        }
    }

    fn claims(&self, vm: Vm, place: Place, out: &mut Vec<Claim>) {
        let info = &self.vms[vm as usize];
        for (n, need) in info.need.iter().enumerate().filter(|(_, need)| **need > 0) {
            out.push(Claim { key: Self::key(n, place), amount: *need });
            if !self.spare.is_empty() {
                out.push(Claim { key: Self::key(self.resources + n, 0), amount: *need });
            }
        }
        for rule in &self.rules_of[vm as usize] {
            let mut claim = |second: bool, scope: u32| {
                out.push(Claim { key: self.rule_key(*rule, second, scope), amount: 1 });
            };
            match &self.rules[*rule as usize] {
                Rule::Apart { domains, .. } => claim(false, domain(domains.as_deref(), place)),
                Rule::Spread { domains, .. } => claim(false, domains[place as usize]),
                Rule::Licence { .. } => claim(false, place),
                Rule::Near { vms, of, domains } => {
                    if vms.contains(&vm) {
                        claim(false, domains[place as usize]);
                    }
                    if of.contains(&vm) {
                        claim(true, domains[place as usize]);
                    }
                }
                Rule::Among { .. } | Rule::Spare { .. } => {}
            }
        }
    }

    fn needs(&self, key: Key, out: &mut Vec<Key>) {
        self.bound(key, false, out);
    }

    fn needed_by(&self, key: Key, out: &mut Vec<Key>) {
        self.bound(key, true, out);
    }

    fn allows(&self, vm: Vm, place: Place) -> bool {
        self.rules_of[vm as usize].iter().all(|rule| match &self.rules[*rule as usize] {
            Rule::Among { places, .. } => places[place as usize],
            _ => true,
        })
    }

    fn host(&self, place: Place) -> u32 {
        place
    }

    fn bytes(&self, vm: Vm) -> u64 {
        self.vms[vm as usize].bytes
    }

    fn dirty_rate(&self, vm: Vm) -> u64 {
        self.vms[vm as usize].dirty_rate
    }
}

impl Plain {
    /// The counter on the other side of a rule of nearness, if `key` is on the side asked for.
    fn bound(&self, key: Key, second: bool, out: &mut Vec<Key>) {
        let (what, scope) = split(key);
        let Some(what) = what.checked_sub(2 * self.resources) else { return };
        let rule = u32::try_from(what / 2).unwrap_or(u32::MAX);
        let near = matches!(self.rules.get(rule as usize), Some(Rule::Near { .. }));
        if near && (what % 2 == 1) == second {
            out.push(self.rule_key(rule, !second, scope));
        }
    }
}

#[allow(clippy::cast_possible_truncation)] // both halves have 32 bits
fn split(key: Key) -> (usize, u32) {
    ((key >> 32) as usize, key as u32)
}
