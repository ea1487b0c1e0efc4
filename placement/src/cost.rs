//! What a live migration is expected to cost.
//!
//! Pre-copy sends all memory, then what was dirtied meanwhile, and so on: with
//! dirty rate `d` and link rate `r` each round is `d / r` of the one before, a
//! geometric series that converges when `d < r`. A round never sends more than
//! the whole memory, and the number of rounds is bounded, as in the engine.

use std::time::Duration;

use ballast_model::host::LINK_ASSUMED;
use ballast_model::plan::StepCost;
use ballast_model::snapshot::PlacedVm;
use ballast_model::{Bytes, BytesPerSec, Host};

use crate::door::problem::Problem;
use crate::door::state::Move;

/// The most rounds that are counted before the last one.
const ROUNDS_MAX: u32 = 30;
/// A rest that takes no longer than this goes in the last, paused round.
const LAST_ROUND: Duration = Duration::from_millis(300);
/// A migration that takes no longer is ordinary.
const ORDINARY: Duration = Duration::from_secs(300);
/// The most its duration makes of a VM's price, and the most recent moves that are counted.
const PRICE_MAX: f64 = 1000.0;
const MOVES_RECENT_MAX: u32 = 100;

/// Bytes that pre-copy sends for so much memory, dirtied at and sent at so many bytes a second.
pub(crate) fn bytes_sent(memory: f64, dirty: f64, link: f64) -> f64 {
    let (mut sent, mut rest) = (0.0, memory);
    for _ in 0..ROUNDS_MAX {
        if rest <= link * LAST_ROUND.as_secs_f64() {
            break;
        }
        sent += rest;
        rest = (rest * (dirty / link)).min(memory);
    }
    sent + rest
}

/// What a host's link is taken to carry each way.
pub(crate) fn link(host: &Host) -> BytesPerSec {
    if host.link == BytesPerSec::ZERO { LINK_ASSUMED } else { host.link }
}

/// Bytes and time to move `vm` from one host to the other, alone on the slower of the two links.
pub(crate) fn of_move(vm: &PlacedVm, from: &Host, to: &Host) -> StepCost {
    let rate = link(from).min(link(to));
    let link = rate.get() as f64;
    let memory = vm.size.memory.get() as f64;
    // Disks go once, before memory; what is written to them meanwhile is little beside them.
    let disks = vm.local_disks.get() as f64;
    let sent = disks + bytes_sent(memory, vm.dirty_rate.get() as f64, link);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    // float-to-int casts saturate
    let bytes = Bytes(sent.round() as u64);
    let millis = bytes.time_at(rate);
    // Whole milliseconds: more digits would be invented.
    let millis = u64::try_from(millis.unwrap_or_default().as_millis()).unwrap_or(u64::MAX);
    StepCost { bytes, duration: Duration::from_millis(millis) }
}

/// What has to be gained for the VM to move, in times what has to be for an ordinary one: more the longer it keeps the link of
/// its host, and once more for every time it was moved not long ago. At least 1, and exactly that for nearly all VMs.
pub(crate) fn price(vm: &PlacedVm, host: &Host) -> f64 {
    let duration = of_move(vm, host, host).duration.as_secs_f64();
    (duration / ORDINARY.as_secs_f64()).clamp(1.0, PRICE_MAX)
        + f64::from(vm.moves_recent.min(MOVES_RECENT_MAX))
}

/// What one move of a plan costs.
pub(crate) fn of_step(problem: &Problem<'_>, step: &Move) -> StepCost {
    of_move(problem.vm(step.vm).vm, problem.host(step.from).host, problem.host(step.to).host)
}

/// What all moves of a plan cost together.
pub(crate) fn of_steps(problem: &Problem<'_>, moves: &[Move]) -> StepCost {
    moves.iter().fold(StepCost::ZERO, |sum, step| sum + of_step(problem, step))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Cluster, gib};

    fn cost(memory_gib: u64, dirty: u64, link: u64) -> StepCost {
        let mut cluster = Cluster::new(2, 4, 64).vm("v", "h0", 100, memory_gib).0;
        for host in cluster.hosts.values_mut() {
            host.link = BytesPerSec(link);
        }
        let vm = cluster.vms.values_mut().next().unwrap();
        vm.dirty_rate = BytesPerSec(dirty);
        let mut hosts = cluster.hosts.values();
        of_move(
            &cluster.vms.values().next().unwrap().clone(),
            hosts.next().unwrap(),
            hosts.next().unwrap(),
        )
    }

    #[test]
    fn only_long_transfers_and_recent_moves_have_a_price_of_their_own() {
        let priced = |memory_gib, link, moves_recent| {
            let mut cluster = Cluster::new(1, 4, 64).vm("v", "h0", 100, memory_gib).0;
            let mut host = cluster.hosts.pop_first().unwrap().1;
            host.link = BytesPerSec(link);
            let mut vm = cluster.vms.pop_first().unwrap().1;
            vm.moves_recent = moves_recent;
            price(&vm, &host)
        };
        assert_eq!(priced(16, 1 << 30, 0), 1.0);
        assert_eq!(priced(16, 1 << 30, 2), 3.0);
        assert_eq!(priced(600, 1 << 30, 0), 2.0);
        assert_eq!(priced(600, 1, u32::MAX), 1100.0);
    }

    #[test]
    fn an_idle_vm_is_sent_once() {
        let cost = cost(1, 0, 1 << 30);
        assert_eq!((cost.bytes, cost.duration), (gib(1), Duration::from_secs(1)));
    }

    #[test]
    fn local_disks_are_a_part_of_it() {
        let mut cluster = Cluster::new(2, 4, 64).vm("v", "h0", 100, 1).0;
        let hosts: Vec<_> = cluster.hosts.values().cloned().collect();
        let vm = cluster.vms.values_mut().next().unwrap();
        let without = of_move(vm, &hosts[0], &hosts[1]);
        vm.local_disks = gib(10);
        let with = of_move(vm, &hosts[0], &hosts[1]);
        assert_eq!(with.bytes - without.bytes, gib(10));
        assert!(with.duration > without.duration * 10);
    }

    #[test]
    fn dirty_pages_are_sent_again_as_a_geometric_series() {
        let cost = cost(8, 1 << 29, 1 << 30);
        let (least, limit) = (gib(15), gib(16));
        assert!(cost.bytes > least && cost.bytes < limit, "{}", cost.bytes);
    }

    #[test]
    fn a_vm_that_dirties_faster_than_the_link_has_a_bounded_cost() {
        let cost = cost(1, 1 << 33, 1 << 30);
        assert_eq!(cost.bytes, gib(u64::from(ROUNDS_MAX) + 1));
    }

    #[test]
    fn an_unknown_link_is_taken_for_a_gigabit() {
        assert_eq!(cost(1, 0, 0).duration, Duration::from_millis(8_589));
    }
}
