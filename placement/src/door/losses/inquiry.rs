//! What the worst loss would leave without a place.

use super::super::obstacle::lacking;
use super::super::problem::{HostIx, Problem, VmIx};
use super::super::reach::Coming;
use super::{Losses, Occupancy};

/// Sets of lost hosts that are packed one by one for one answer: all pairs of 180 hosts.
const SETS_MAX: usize = 1 << 14;

/// VMs to come, all alike.
pub(crate) struct Newcomers<'n> {
    /// Of one, in bytes; not zero.
    pub(crate) memory: u64,
    /// How many by host.
    pub(crate) by_host: &'n [u64],
    /// By host, whether it offers what they need.
    pub(crate) fits: &'n [bool],
}

/// The question what a loss would leave without a place.
#[derive(Clone, Copy)]
pub(crate) struct Inquiry<'q, 'p, 'a> {
    pub(crate) problem: &'p Problem<'a>,
    pub(crate) losses: &'q Losses,
    pub(crate) occupancy: &'q Occupancy,
    pub(crate) newcomers: Option<&'q Newcomers<'q>>,
}

impl Inquiry<'_, '_, '_> {
    /// Hosts whose loss leaves VMs without a place among the hosts that `open` allows; `None` when there are none.
    pub(crate) fn fatal(&self, open: impl Fn(HostIx) -> bool) -> Option<Vec<HostIx>> {
        let mut hosts: Vec<(usize, HostIx)> =
            self.problem.host_ixs().map(|host| (self.count(host), host)).collect();
        hosts.sort_unstable_by_key(|(count, host)| (std::cmp::Reverse(*count), *host));
        let room = self.room(open);
        let largest = self.newcomers.map_or(0, |new| new.memory).max(self.losses.largest);
        let roomy = room.len() - room.partition_point(|(free, _)| *free < largest);
        let mut search = Search {
            inquiry: self,
            harmless: self.is_plain().then(|| roomy.saturating_sub(self.losses.failures)),
            room,
            hosts,
            left: SETS_MAX,
        };
        let mut lost = Vec::with_capacity(self.losses.failures);
        search.finds(0, &mut lost, 0).then_some(lost)
    }

    /// Whether just these hosts' loss leaves VMs without a place.
    pub(super) fn strands(&self, lost: &[HostIx]) -> bool {
        self.strands_in(lost, &self.room(|_| true))
    }

    /// Bytes of memory that are missing in all when the hosts are lost that matter most, wherever what is there would go.
    pub(super) fn shortfall(&self) -> u64 {
        let bytes = |vm: &VmIx| self.problem.vm(*vm).memory;
        let weighed = |host: HostIx| {
            let alone = self.occupancy.lost_with(&[host]);
            let new =
                self.newcomers.map_or(0, |new| new.memory.saturating_mul(new.by_host[host.0]));
            let lost = alone.iter().map(bytes).fold(new, u64::saturating_add);
            let takes = self.problem.host(host).counts();
            (u128::from(lost), u128::from(if takes { self.free(host) } else { 0 }))
        };
        let all: Vec<(u128, u128)> = self.problem.host_ixs().map(weighed).collect();
        let free: u128 = all.iter().map(|(_, free)| free).sum();
        let mut matter: Vec<u128> = all.iter().map(|(lost, free)| lost + free).collect();
        matter.sort_unstable_by_key(|bytes| std::cmp::Reverse(*bytes));
        let most: u128 = matter.iter().take(self.losses.failures).sum();
        u64::try_from(most.saturating_sub(free)).unwrap_or(u64::MAX)
    }

    fn strands_in(&self, lost: &[HostIx], room: &[(u64, HostIx)]) -> bool {
        let mut vms = self.occupancy.lost_with(lost);
        vms.sort_unstable_by_key(|vm| (std::cmp::Reverse(self.problem.vm(*vm).memory), *vm));
        vms.dedup();
        let new: u64 = self.newcomers.map_or(0, |new| lost.iter().map(|h| new.by_host[h.0]).sum());
        if vms.is_empty() && new == 0 {
            return false;
        }
        let left: Vec<(u64, HostIx)> =
            room.iter().filter(|(_, host)| !lost.contains(host)).copied().collect();
        let largest = vms.first().map_or(0, |vm| self.problem.vm(*vm).memory);
        let largest = largest.max(self.newcomers.map_or(0, |new| new.memory));
        let roomy = left.len() - left.partition_point(|(free, _)| *free < largest);
        let plain = self.fits_everywhere() && vms.iter().all(|vm| self.losses.plain[vm.0]);
        if plain && (vms.len() as u64).saturating_add(new) <= roomy as u64 {
            return false;
        }
        !self.packs(&vms, new, left.clone(), Fit::Least) && !self.packs(&vms, new, left, Fit::Most)
    }

    /// Whether all find a place in `room`, which is sorted by what is free.
    fn packs(&self, vms: &[VmIx], new: u64, mut room: Vec<(u64, HostIx)>, fit: Fit) -> bool {
        let mut waiting = self.newcomers.filter(|_| new > 0);
        for vm in vms {
            let info = self.problem.vm(*vm);
            if let Some(all) = waiting.take_if(|all| all.memory >= info.memory)
                && !fill(&mut room, all, new)
            {
                return false;
            }
            let from = room.partition_point(|(free, _)| *free < info.memory);
            let takes = |n: &usize| {
                let host = room[*n].1;
                self.losses.plain[vm.0]
                    || lacking(self.problem, *vm, host, Coming::Starting).is_none()
            };
            let found = match fit {
                Fit::Least => (from..room.len()).find(takes),
                Fit::Most => (from..room.len()).rev().find(takes),
            };
            let Some(n) = found else { return false };
            let (free, host) = room.remove(n);
            let rest = (free - info.memory, host);
            room.insert(room.partition_point(|other| *other < rest), rest);
        }
        waiting.is_none_or(|all| fill(&mut room, all, new))
    }

    /// What each host that takes VMs has free, the least first.
    fn room(&self, open: impl Fn(HostIx) -> bool) -> Vec<(u64, HostIx)> {
        let takes = |host: &HostIx| self.problem.host(*host).counts() && open(*host);
        let mut room: Vec<(u64, HostIx)> =
            self.problem.host_ixs().filter(takes).map(|host| (self.free(host), host)).collect();
        room.sort_unstable();
        room
    }

    fn free(&self, host: HostIx) -> u64 {
        let new = self.newcomers.map_or(0, |new| new.memory.saturating_mul(new.by_host[host.0]));
        let taken = self.occupancy.taken[host.0].saturating_add(new);
        self.problem.host(host).memory.saturating_sub(taken)
    }

    fn count(&self, host: HostIx) -> usize {
        let new = self.newcomers.map_or(0, |new| new.by_host[host.0]);
        self.occupancy.on[host.0].len().saturating_add(usize::try_from(new).unwrap_or(usize::MAX))
    }

    fn fits_everywhere(&self) -> bool {
        self.newcomers.is_none_or(|new| new.fits.iter().all(|fits| *fits))
    }

    fn is_plain(&self) -> bool {
        self.losses.all_plain && self.fits_everywhere()
    }
}

/// Where a VM goes of all places that suffice.
#[derive(Debug, Clone, Copy)]
enum Fit {
    Least,
    Most,
}

/// Puts VMs that are alike where there is least room; whether there is enough for all.
fn fill(room: &mut [(u64, HostIx)], all: &Newcomers<'_>, mut count: u64) -> bool {
    for (free, _) in room.iter_mut().filter(|(_, host)| all.fits[host.0]) {
        let here = (*free / all.memory).min(count);
        *free -= here * all.memory;
        count -= here;
    }
    room.sort_unstable();
    count == 0
}

/// Goes through the sets of lost hosts, those with the most VMs first.
struct Search<'s, 'q, 'p, 'a> {
    inquiry: &'s Inquiry<'q, 'p, 'a>,
    room: Vec<(u64, HostIx)>,
    /// With the number of VMs on each, the most first.
    hosts: Vec<(usize, HostIx)>,
    /// So many VMs surely find a place, each on a host of its own; `None`: not so.
    harmless: Option<usize>,
    /// Sets that may still be packed.
    left: usize,
}

impl Search<'_, '_, '_, '_> {
    /// Adds hosts from number `next` on to those lost, which have `count` VMs, until some VM has no place.
    fn finds(&mut self, next: usize, lost: &mut Vec<HostIx>, count: usize) -> bool {
        let missing = self.inquiry.losses.failures - lost.len();
        if missing == 0 {
            self.left = self.left.saturating_sub(1);
            return self.inquiry.strands_in(lost, &self.room);
        }
        for n in next..self.hosts.len() {
            let most = self.hosts[n..].iter().take(missing);
            let most = most.fold(count, |sum, (count, _)| sum.saturating_add(*count));
            let is_harmless = self.harmless.is_some_and(|harmless| most <= harmless);
            let is_complete = self.hosts.len() - n >= missing;
            if most == 0 || is_harmless || !is_complete || self.left == 0 {
                return false;
            }
            let (here, host) = self.hosts[n];
            lost.push(host);
            if self.finds(n + 1, lost, count.saturating_add(here)) {
                return true;
            }
            lost.pop();
        }
        false
    }
}
