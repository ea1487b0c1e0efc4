//! Which hosts offer what a VM needs, with words turned into numbers once.
//!
//! Every VM is asked about on every host, many times: comparing words letter by letter there would cost more than
//! anything else.

use std::collections::{BTreeSet, HashMap};

use ballast_model::ClusterSnapshot;

use super::problem::{HostIx, VmIx};
use crate::core::{Host, HostBits};

/// How a VM comes to a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Coming {
    /// It starts there: what it needs is enough.
    Starting,
    /// It moves there while it runs, and needs what its guest has met besides.
    Moving,
}

/// By word that some VM needs, the hosts that offer it; and by VM, its words.
#[derive(Debug)]
pub(crate) struct Reach {
    offered: Vec<HostBits>,
    to_start: Vec<Vec<u32>>,
    to_move: Vec<Vec<u32>>,
    /// VMs that need a word which not every host offers, to start.
    choosy: Vec<VmIx>,
}

impl Reach {
    pub(crate) fn new(snapshot: &ClusterSnapshot) -> Self {
        let mut numbers: HashMap<&str, u32> = HashMap::new();
        let to_start: Vec<Vec<u32>> =
            snapshot.vms.values().map(|vm| number(&vm.needs, &mut numbers)).collect();
        let to_move =
            snapshot.vms.values().map(|vm| number(&vm.needs_to_move, &mut numbers)).collect();
        let mut offering: Vec<Vec<Host>> = vec![Vec::new(); numbers.len()];
        for (host, n) in snapshot.hosts.values().zip(0..) {
            for word in host.offers.iter().filter_map(|word| numbers.get(word.as_str())) {
                offering[*word as usize].push(Host(n));
            }
        }
        let hosts = snapshot.hosts.len();
        let offered = offering.iter().map(|those| HostBits::new(hosts, those)).collect();
        let is_scarce = |word: &u32| offering[*word as usize].len() < hosts;
        let choosy = to_start.iter().enumerate().filter(|(_, words)| words.iter().any(is_scarce));
        let choosy = choosy.map(|(n, _)| VmIx(n)).collect();
        Self { offered, to_start, to_move, choosy }
    }

    /// The VMs that may be on a host without what they need: the others find it everywhere.
    pub(crate) fn choosy(&self) -> impl Iterator<Item = VmIx> {
        self.choosy.iter().copied()
    }

    /// Whether the host offers all that the VM needs to come there so.
    pub(crate) fn meets(&self, vm: VmIx, host: HostIx, coming: Coming) -> bool {
        let offers =
            |words: &[u32]| words.iter().all(|word| self.offered[*word as usize].contains(host.0));
        offers(&self.to_start[vm.0]) && (coming == Coming::Starting || offers(&self.to_move[vm.0]))
    }
}

fn number<'a>(words: &'a BTreeSet<String>, numbers: &mut HashMap<&'a str, u32>) -> Vec<u32> {
    let number = |word: &'a String| {
        let next = numbers.len() as u32;
        *numbers.entry(word.as_str()).or_insert(next)
    };
    words.iter().map(number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::parse;

    #[test]
    fn a_host_meets_needs_when_it_offers_every_word() {
        let text = "host a 8 16G offers=san+dmz+v3 : both 1 1G needs=san+dmz, none 1 1G\n\
                    host b 8 16G offers=san+v3 : moves 1 1G needs=san needs-to-move=v3\n\
                    host c 8 16G offers=san";
        let snapshot = parse(text).unwrap().snapshot;
        let reach = Reach::new(&snapshot);
        let met = |vm: &str, coming: Coming| -> String {
            let vm = VmIx(snapshot.vms.keys().position(|id| id.as_str() == vm).unwrap());
            let hosts = snapshot.hosts.keys().enumerate();
            let met = hosts.filter(|(n, _)| reach.meets(vm, HostIx(*n), coming));
            met.map(|(_, id)| id.as_str()).collect()
        };
        assert_eq!(
            (met("none", Coming::Moving), met("both", Coming::Moving)),
            ("abc".into(), "a".into())
        );
        assert_eq!(met("moves", Coming::Starting), "abc");
        assert_eq!(met("moves", Coming::Moving), "ab");
    }
}
