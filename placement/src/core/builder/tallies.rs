//! Rules gathered into counters, and items into classes.

use std::collections::HashMap;

use ballast_model::Refusal;

use super::check::refuse;
use super::{CELLS_MAX, ProblemBuilder};
use crate::core::ids::NONE;
use crate::core::objective::Term;
use crate::core::problem::{Limit, Rows, RuleKind, Strength, TallySpec};

/// A group with at most this many members is counted when asked, in partitions of many domains.
const SCANNED_MEMBERS_MAX: usize = 8;
const SCANNED_DOMAINS_MIN: usize = 64;
/// Rules gathered into counters, and items into classes.
pub(super) struct Tallies {
    pub(super) partitions: Vec<Vec<u32>>,
    pub(super) domains: Vec<u32>,
    pub(super) specs: Vec<TallySpec>,
    pub(super) cells: usize,
    pub(super) class: Vec<u32>,
    pub(super) class_tallies: Rows<u32>,
    pub(super) class_linked: Vec<bool>,
    pub(super) class_entangled: Vec<bool>,
}

impl Tallies {
    pub(super) fn new(b: &ProblemBuilder) -> Result<Self, Refusal> {
        let partitions: Vec<Vec<u32>> = b
            .partitions
            .iter()
            .map(|domains| domains.iter().map(|domain| domain.unwrap_or(NONE)).collect())
            .collect();
        let domains: Vec<u32> = b
            .partitions
            .iter()
            .map(|domains| domains.iter().flatten().max().map_or(0, |max| max + 1))
            .collect();
        let mut specs = gather(b)?;
        let mut cells = 0;
        for spec in &mut specs {
            let count = domains[spec.partition as usize] as usize;
            let members = b.groups[spec.group as usize].len();
            let scanned = !spec.linked() && !spec.counts_domains();
            if !scanned || members > SCANNED_MEMBERS_MAX || count < SCANNED_DOMAINS_MIN {
                spec.row = cells as u32;
                cells += count;
            }
            if cells > CELLS_MAX {
                return refuse("the rules need too many counters".into());
            }
        }
        let mut of_item = vec![Vec::new(); b.items.len()];
        for (ix, spec) in specs.iter().enumerate() {
            for item in &b.groups[spec.group as usize] {
                of_item[item.ix()].push(ix as u32);
            }
        }
        let mut numbers: HashMap<Vec<u32>, u32> = HashMap::new();
        let mut lists: Vec<Vec<u32>> = Vec::new();
        let class = of_item
            .into_iter()
            .map(|list| {
                *numbers.entry(list).or_insert_with_key(|list| {
                    lists.push(list.clone());
                    lists.len() as u32 - 1
                })
            })
            .collect();
        let class_linked =
            lists.iter().map(|list| list.iter().any(|t| specs[*t as usize].linked())).collect();
        let class_entangled = lists.iter().map(|list| entangled(list, &specs)).collect();
        let class_tallies = Rows::collect(lists);
        Ok(Self {
            partitions,
            domains,
            specs,
            cells,
            class,
            class_tallies,
            class_linked,
            class_entangled,
        })
    }
}

fn entangled(list: &[u32], specs: &[TallySpec]) -> bool {
    list.iter().any(|t| {
        let spec = &specs[*t as usize];
        spec.requires.iter().chain(&spec.excludes).any(|(other, _)| list.contains(other))
    })
}

fn gather(b: &ProblemBuilder) -> Result<Vec<TallySpec>, Refusal> {
    let mut specs: Vec<TallySpec> = Vec::new();
    let mut numbers: HashMap<(u32, u32), u32> = HashMap::new();
    let mut tally = |specs: &mut Vec<TallySpec>, group: u32, partition: u32| {
        *numbers.entry((group, partition)).or_insert_with(|| {
            specs.push(TallySpec {
                group,
                partition,
                at_most: None,
                min_domains: None,
                max_domains: None,
                requires: Vec::new(),
                required_by: Vec::new(),
                excludes: Vec::new(),
                row: NONE,
            });
            specs.len() as u32 - 1
        })
    };
    let term = b.table.weight(Term::SoftRules);
    for (ix, rule) in b.rules.iter().enumerate() {
        let weight = match rule.strength {
            Strength::Hard => 0,
            // A soft rule in a table without soft rules costs nothing: it is left out.
            Strength::Soft(_) if term == 0 => continue,
            Strength::Soft(weight) => match weight.checked_mul(term) {
                Some(weight) => weight,
                None => return refuse(format!("the weight of rule {ix} leaves 64 bits")),
            },
        };
        let mine = tally(&mut specs, rule.group.0, rule.partition.0);
        let spec = &mut specs[mine as usize];
        let set = |slot: &mut Option<Limit>, value: u32| match slot {
            Some(_) => refuse(format!(
                "rule {ix} repeats the kind of an earlier rule of its group and partition"
            )),
            None => {
                *slot = Some(Limit { value, weight });
                Ok(())
            }
        };
        match rule.kind {
            RuleKind::AtMostPerDomain(value) => set(&mut spec.at_most, value)?,
            RuleKind::MinDomains(value) => set(&mut spec.min_domains, value)?,
            RuleKind::MaxDomains(value) => set(&mut spec.max_domains, value)?,
            RuleKind::Requires(other) | RuleKind::Excludes(other) => {
                if other == rule.group {
                    continue; // where the group is, it is
                }
                let theirs = tally(&mut specs, other.0, rule.partition.0);
                if matches!(rule.kind, RuleKind::Requires(_)) {
                    specs[mine as usize].requires.push((theirs, weight));
                    specs[theirs as usize].required_by.push((mine, weight));
                } else {
                    specs[mine as usize].excludes.push((theirs, weight));
                    specs[theirs as usize].excludes.push((mine, weight));
                }
            }
        }
    }
    Ok(specs)
}
