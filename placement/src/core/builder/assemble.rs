//! Turns what was checked into dense arrays.

use ballast_model::Refusal;

use super::check::refuse;
use super::tallies::Tallies;
use super::{HostSpec, ItemSpec, ProblemBuilder};
use crate::core::ids::{Host, NONE, Place};
use crate::core::objective::{DEVIATION_MAX, LEVELS_MAX, Term, UTILISATION_ONE};
use crate::core::problem::{
    BalanceSpec, HostBits, Problem, ResourceSpec, Rows, TermLevels, UNLIMITED, Weighted,
};

/// What the load of hosts counts.
#[derive(Default)]
struct LoadWeights {
    safety: Vec<i64>,
    unmet: Vec<Weighted>,
    imbalance: Vec<Weighted>,
    fragments: Vec<Weighted>,
}

impl ProblemBuilder {
    pub(super) fn assemble(self) -> Result<Problem, Refusal> {
        let (levels, levels_used) = self.levels()?;
        let tallies = Tallies::new(&self)?;
        let load = self.load_weights()?;
        let (reciprocal, mean_utilisation) = self.utilisation(&load.imbalance);
        let (hosts, items) = (&self.hosts, &self.items);
        Ok(Problem {
            levels,
            levels_used,
            overload_weight: self.overload_weights(),
            has_transient: self.resources.iter().any(|spec| spec.transient),
            safety_weight: load.safety,
            balances: self.balance_specs()?,
            unmet: load.unmet,
            imbalance: load.imbalance,
            fragments: load.fragments,
            mean_utilisation,
            hosts: hosts.len(),
            capacity: hosts.iter().flat_map(|host| host.capacity.iter().copied()).collect(),
            safety: self.safety(),
            reciprocal,
            closed: hosts.iter().map(|host| host.closed || host.drained).collect(),
            drained: hosts.iter().map(|host| host.drained).collect(),
            activation: self.activation()?,
            way_weight: self.table.weight(Term::HostMoves),
            items: items.len(),
            first_row: first_rows(items),
            need: items.iter().flat_map(|item| item.shapes.iter().flatten().copied()).collect(),
            home_claim: self.home_claims(),
            home: items.iter().map(|item| item.home.unwrap_or(Place::NOWHERE)).collect(),
            pinned: items.iter().map(|item| item.pinned && item.home.is_some()).collect(),
            move_cost: self.move_cost()?,
            move_bytes: items.iter().map(|item| item.move_bytes).collect(),
            move_group: self.move_group_of_items(),
            move_groups: self.move_groups.len(),
            move_group_weight: self.table.weight(Term::GroupMoves),
            allowed: items.iter().map(|item| item.allowed.map_or(NONE, |set| set.0)).collect(),
            preferred: Rows::collect(self.weighted_preferences()?),
            sets: self.sets.iter().map(|set| HostBits::new(hosts.len(), set)).collect(),
            open_hosts: self.open_hosts(),
            groups: Rows::collect(self.groups.iter().map(|group| group.iter().map(|item| item.0))),
            partitions: tallies.partitions,
            domains: tallies.domains,
            tallies: tallies.specs,
            tally_cells: tallies.cells,
            class: tallies.class,
            class_linked: tallies.class_linked,
            class_entangled: tallies.class_entangled,
            class_tallies: tallies.class_tallies,
            rules: self.rules,
            resources: self.resources,
            way_cost: self.way_cost,
            table: self.table,
        })
    }

    /// The weight of something in a term, by the table.
    fn weight_in(&self, term: Term, of: i64) -> Result<i64, Refusal> {
        let weight = self.table.weight(term);
        match weight.checked_mul(of) {
            Some(product) if product <= UNLIMITED => Ok(product),
            _ => refuse(format!("the weight {weight} times {of} leaves 64 bits")),
        }
    }

    fn load_weights(&self) -> Result<LoadWeights, Refusal> {
        let mut load = LoadWeights::default();
        for (ix, spec) in self.resources.iter().enumerate() {
            let weighted = |unit, weight| Weighted { resource: ix as u32, unit, weight };
            load.safety.push(self.weight_in(Term::Safety, spec.safety_weight)?);
            let unmet = self.weight_in(Term::Unmet, spec.unmet_weight)?;
            if unmet > 0 && !spec.hard {
                load.unmet.push(weighted(1, unmet));
            }
            let imbalance = self.weight_in(Term::Imbalance, spec.imbalance_weight)?;
            if imbalance > 0 {
                load.imbalance.push(weighted(1, imbalance));
            }
            if let Some((unit, of)) = spec.fragment {
                load.fragments.push(weighted(unit, self.weight_in(Term::Fragments, of)?));
            }
        }
        Ok(load)
    }

    fn balance_specs(&self) -> Result<Vec<BalanceSpec>, Refusal> {
        let specs = self.balances.iter().map(|(first, second, target, of)| {
            let weight = self.weight_in(Term::Balance, *of)?;
            Ok(BalanceSpec { first: first.0, second: second.0, target: *target, weight })
        });
        specs.collect()
    }

    fn activation(&self) -> Result<Vec<i64>, Refusal> {
        self.hosts.iter().map(|host| self.weight_in(Term::HostsInUse, host.activation)).collect()
    }

    fn move_cost(&self) -> Result<Vec<i64>, Refusal> {
        self.items.iter().map(|item| self.weight_in(Term::ItemMoves, item.move_cost)).collect()
    }

    /// The host sets each item prefers, and what it costs to be elsewhere.
    fn weighted_preferences(&self) -> Result<Vec<Vec<(u32, i64)>>, Refusal> {
        let mut preferences = vec![Vec::new(); self.items.len()];
        for (item, set, of) in &self.preferences {
            preferences[item.ix()].push((set.0, self.weight_in(Term::SoftRules, *of)?));
        }
        Ok(preferences)
    }

    fn move_group_of_items(&self) -> Vec<u32> {
        let mut move_group = vec![NONE; self.items.len()];
        for (ix, group) in self.move_groups.iter().enumerate() {
            for item in &self.groups[group.ix()] {
                move_group[item.ix()] = ix as u32;
            }
        }
        move_group
    }

    /// Numbers the levels in use without gaps.
    fn levels(&self) -> Result<(TermLevels, usize), Refusal> {
        let table = &self.table;
        let mut used: Vec<u8> = Term::ALL
            .into_iter()
            .filter(|term| table.weight(*term) > 0)
            .map(|term| table.level(term))
            .collect();
        used.sort_unstable();
        used.dedup();
        if used.len() > LEVELS_MAX {
            return refuse(format!(
                "the objective has {} levels, at most {LEVELS_MAX} are possible",
                used.len()
            ));
        }
        let of =
            |term| used.iter().position(|level| *level == table.level(term)).unwrap_or(0) as u8;
        let levels = TermLevels {
            soft_rules: of(Term::SoftRules),
            unmet: of(Term::Unmet),
            safety: of(Term::Safety),
            balance: of(Term::Balance),
            imbalance: of(Term::Imbalance),
            fragments: of(Term::Fragments),
            hosts_in_use: of(Term::HostsInUse),
            item_moves: of(Term::ItemMoves),
            group_moves: of(Term::GroupMoves),
            host_moves: of(Term::HostMoves),
        };
        Ok((levels, used.len().max(1)))
    }

    fn home_claims(&self) -> Vec<i64> {
        if !self.resources.iter().any(|spec| spec.transient) {
            return Vec::new();
        }
        let row = |item: &ItemSpec| -> Vec<i64> {
            let need = &item.shapes[item.home.map_or(0, |home| usize::from(home.shape))];
            let claims = need.iter().zip(&self.resources);
            claims.map(|(need, spec)| if spec.transient { 0 } else { *need }).collect()
        };
        self.items.iter().flat_map(row).collect()
    }

    fn overload_weights(&self) -> Vec<f64> {
        let weight = |(r, spec): (usize, &ResourceSpec)| {
            let sum: f64 = self.hosts.iter().map(|host| host.capacity[r] as f64).sum();
            if spec.hard { self.hosts.len() as f64 / sum.max(1.0) } else { 0.0 }
        };
        self.resources.iter().enumerate().map(weight).collect()
    }

    fn safety(&self) -> Vec<i64> {
        let resources = self.resources.len();
        let row = |host: &HostSpec| {
            if host.safety.is_empty() { vec![UNLIMITED; resources] } else { host.safety.clone() }
        };
        self.hosts.iter().flat_map(row).collect()
    }

    /// Reciprocals of capacities and the utilisation of the whole cluster.
    fn utilisation(&self, imbalance: &[Weighted]) -> (Vec<i64>, Vec<i64>) {
        let counted = |host: &HostSpec| !host.unbalanced && !host.drained;
        let mut reciprocal = Vec::with_capacity(self.hosts.len() * imbalance.len());
        for host in &self.hosts {
            for entry in imbalance {
                let capacity = host.capacity[entry.resource as usize];
                let counts = counted(host) && capacity > 0;
                reciprocal.push(if counts { (UTILISATION_ONE << 32) / capacity } else { 0 });
            }
        }
        let mean = imbalance
            .iter()
            .map(|entry| {
                let r = entry.resource as usize;
                let capacity: i128 = self
                    .hosts
                    .iter()
                    .filter(|host| counted(host))
                    .map(|host| i128::from(host.capacity[r]))
                    .sum();
                // What sits on hosts that are left out, and stays there, is left out too.
                let stays = |item: &ItemSpec| {
                    item.home.is_some_and(|home| {
                        let host = &self.hosts[home.host.ix()];
                        item.pinned && !counted(host)
                    })
                };
                let need: i128 = self
                    .items
                    .iter()
                    .filter(|item| !stays(item))
                    .map(|item| i128::from(item.shapes[0][r]))
                    .sum();
                let mean = need * i128::from(UTILISATION_ONE) / capacity.max(1);
                i64::try_from(mean).unwrap_or(DEVIATION_MAX).min(DEVIATION_MAX)
            })
            .collect();
        (reciprocal, mean)
    }

    fn open_hosts(&self) -> Rows<u32> {
        let open = |ix: &u32| {
            let host = &self.hosts[*ix as usize];
            !host.closed && !host.drained
        };
        let set = |set: &Vec<Host>| {
            let mut hosts: Vec<u32> = set.iter().map(|host| host.0).filter(open).collect();
            hosts.sort_unstable();
            hosts.dedup();
            hosts
        };
        let all = (0..self.hosts.len() as u32).filter(open).collect();
        Rows::collect(self.sets.iter().map(set).chain([all]))
    }
}

fn first_rows(items: &[ItemSpec]) -> Vec<u32> {
    let mut next = 0;
    let mut rows = vec![0];
    for item in items {
        next += item.shapes.len() as u32;
        rows.push(next);
    }
    rows
}
