//! Better without more moves: what is left when no single move pays.
//!
//! A VM that moves anyway may as well go elsewhere, and which VM leaves a host is
//! open as well. So every change is weighed with what it does to the *number* of
//! VMs that move: each is worth the least gain of its move.
//!
//! ```text
//!  retarget   v: a ─▶ c instead of a ─▶ b              as many moves
//!  replace    u: a ─▶ b instead of v, v stays at a     as many moves
//!  trade      v: a ─▶ d and w: c ─▶ b instead of
//!             v: a ─▶ b and w: c ─▶ d                  as many moves
//!  drop       v stays at a, another one takes its      one move fewer
//!             place at b or is replaced by a larger
//! ```

use ballast_model::plan::StepCost;

use crate::cost;
use crate::door::problem::{HostIx, VmIx};
use crate::door::state::Cause;
use crate::solve::Solver;
use crate::solve::balance::{allowed, may_go_alone};
use crate::solve::movers::Movers;
use crate::solve::scan::Scan;
use crate::solve::swaps::exchange;

/// Rounds over all kinds of change.
const ROUNDS_MAX: usize = 6;
/// A round that lowers what is left by less than this share is the last.
const ROUND_MIN: f64 = 0.01;
/// The least a change must be worth, as a share of what a move must be worth.
const WORTH_MIN: f64 = 0.01;
/// Trades weighed in a round.
const TRADES_MAX: usize = 2_000_000;
/// VMs that a round tries to do without, those that are missed least.
const DROPS_MAX: usize = 256;
/// How often a move is given up for another one.
const EXCHANGES_MAX: usize = 64;
/// The best repairs of a host that are tried before it is left alone.
const TRIES_MAX: usize = 4;

/// Improves the state without more moves, or for fewer of them; whether it could.
pub(super) fn polish(solver: &mut Solver<'_, '_, '_>, floor: f64) -> bool {
    let mut polish = Polish { home: solver.home(), floor, least: WORTH_MIN * floor };
    let mut moved = false;
    for _ in 0..ROUNDS_MAX {
        let before = solver.moves.len();
        let worth = polish.objective(solver);
        polish.retarget(solver);
        polish.replace(solver);
        polish.trade(solver);
        polish.drop(solver);
        if solver.moves.len() == before {
            break;
        }
        moved = true;
        if polish.objective(solver) > (1.0 - ROUND_MIN) * worth {
            break;
        }
    }
    moved
}

/// Brings the state down to what the plan's budget allows, the least missed given up one by one, and makes the best of it.
pub(super) fn fit(solver: &mut Solver<'_, '_, '_>, floor: f64) {
    let mut polish = Polish { home: solver.home(), floor, least: WORTH_MIN * floor };
    if !polish.shrink(solver) {
        return;
    }
    while polish.add_one(solver) {}
    polish.same_number(solver);
    if !polish.shrink(solver) {
        return;
    }
    // One given up for others, as long as that is better.
    for _ in 0..EXCHANGES_MAX {
        let (before, spread) = (solver.moves.len(), solver.state.sums().spread());
        if polish.give_up_one(solver) && polish.add_one(solver) {
            while polish.add_one(solver) {}
            polish.same_number(solver);
        }
        let is_better = solver.state.sums().spread() <= spread - polish.least;
        if !is_better || !polish.is_afforded(solver) {
            solver.take_back_to(before);
            return;
        }
    }
}

struct Polish {
    /// Where each VM was at the beginning.
    home: Vec<HostIx>,
    /// What a move must be worth.
    floor: f64,
    /// What a change must be worth.
    least: f64,
}

impl Polish {
    /// The spread, and what the moves cost.
    fn objective(&self, solver: &Solver<'_, '_, '_>) -> f64 {
        let state = &*solver.state;
        let price: f64 = self.away(solver).map(|vm| state.problem.vm(vm).price).sum();
        state.sums().spread() + self.floor * price
    }

    /// The VMs that are elsewhere than at the beginning.
    fn away<'s>(&'s self, solver: &'s Solver<'_, '_, '_>) -> impl Iterator<Item = VmIx> + 's {
        let state = &*solver.state;
        state.problem.vm_ixs().filter(|vm| state.at(*vm) != self.home[vm.0])
    }

    /// The VMs that move and may move elsewhere.
    fn moved(&self, solver: &Solver<'_, '_, '_>) -> Vec<VmIx> {
        let problem = solver.state.problem;
        let is_moved = |vm: &VmIx| {
            let at = solver.state.at(*vm);
            at != self.home[vm.0] && problem.host(at).counts() && may_go_alone(solver.state, *vm)
        };
        problem.vm_ixs().filter(is_moved).collect()
    }

    /// What it costs in moves that the VM goes to that host.
    fn price(&self, solver: &Solver<'_, '_, '_>, vm: VmIx, to: HostIx) -> f64 {
        let is_away = |at: HostIx| f64::from(u8::from(at != self.home[vm.0]));
        let price = self.floor * solver.state.problem.vm(vm).price;
        price * (is_away(to) - is_away(solver.state.at(vm)))
    }

    fn swap_worth(&self, solver: &Solver<'_, '_, '_>, one: VmIx, other: VmIx) -> f64 {
        let (a, b) = (solver.state.at(one), solver.state.at(other));
        let price = self.price(solver, one, b) + self.price(solver, other, a);
        solver.state.swap_gain(one, other) - price
    }

    fn retarget(&mut self, solver: &mut Solver<'_, '_, '_>) {
        let mut scan = Scan::new(solver.state);
        for vm in self.moved(solver) {
            let (from, home) = (solver.state.at(vm), self.home[vm.0]);
            let counts = solver.state.problem.host(home).counts();
            let back = solver.state.gain(vm, home) - self.price(solver, vm, home);
            let best =
                scan.best(solver.state, vm, self.least, |to| to != home && allowed(solver, vm, to));
            let elsewhere = best.map_or(0.0, |best| best.gain);
            let to = if counts && back > elsewhere.max(self.least) && allowed(solver, vm, home) {
                home
            } else if let Some(best) = best {
                best.to
            } else {
                continue;
            };
            solver.make(vm, to, Cause::Balance);
            scan.note(solver.state, [from, to]);
        }
    }

    /// Another VM of the same host moves instead.
    fn replace(&mut self, solver: &mut Solver<'_, '_, '_>) {
        for vm in self.moved(solver) {
            let home = self.home[vm.0];
            if solver.state.at(vm) != home && solver.state.problem.host(home).counts() {
                let others = self.others_on(solver, home);
                self.best_swap(solver, vm, &others, self.least);
            }
        }
    }

    fn others_on(&self, solver: &Solver<'_, '_, '_>, host: HostIx) -> Vec<VmIx> {
        let may = |vm: &VmIx| may_go_alone(solver.state, *vm);
        solver.state.vms_on(host).iter().copied().filter(may).collect()
    }

    /// Makes the best exchange of the VM with one of the others that is worth so much.
    fn best_swap(
        &self,
        solver: &mut Solver<'_, '_, '_>,
        vm: VmIx,
        others: &[VmIx],
        least: f64,
    ) -> bool {
        let at = solver.state.at(vm);
        let mut swaps: Vec<(f64, VmIx)> = others
            .iter()
            .filter(|other| solver.state.at(**other) != at)
            .map(|other| (self.swap_worth(solver, vm, *other), *other))
            .filter(|(worth, _)| *worth > least)
            .collect();
        swaps.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let mut best = swaps.into_iter().take(TRIES_MAX);
        best.any(|(_, other)| exchange(solver, vm, other) || exchange(solver, other, vm))
    }

    /// VMs that move exchange their targets.
    fn trade(&mut self, solver: &mut Solver<'_, '_, '_>) {
        let moved = self.moved(solver);
        let partners = (TRADES_MAX / moved.len().max(1)).min(moved.len() / 2);
        let mut movers = Movers::new(&self.home, self.floor, solver.state, &moved);
        for (n, vm) in moved.iter().enumerate() {
            // So many after it in the list, around the end.
            let numbers: Vec<usize> = (1..=partners)
                .map(|d| (n + d) % moved.len())
                .filter(|other| movers.trade_worth(n, *other) > self.least)
                .collect();
            let others: Vec<VmIx> = numbers.iter().map(|other| moved[*other]).collect();
            let at = solver.state.at(*vm);
            if !others.is_empty() && self.best_swap(solver, *vm, &others, self.least) {
                let hosts = [at, solver.state.at(*vm)];
                movers.note(solver.state, hosts, numbers.into_iter().chain([n]));
            }
        }
    }

    /// Does without the VMs that are missed least, as long as another one can make up for it.
    fn drop(&mut self, solver: &mut Solver<'_, '_, '_>) {
        let state = &*solver.state;
        let moved = self.moved(solver);
        let mut missed: Vec<(f64, usize)> = (0..moved.len())
            .filter(|n| state.problem.host(self.home[moved[*n].0]).counts())
            .map(|n| (-state.gain(moved[n], self.home[moved[n].0]), n))
            .collect();
        missed.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let mut movers = Movers::new(&self.home, self.floor, solver.state, &moved);
        for (_, n) in missed.into_iter().take(DROPS_MAX) {
            let vm = moved[n];
            let (away, home) = (solver.state.at(vm), self.home[vm.0]);
            if away != home && allowed(solver, vm, home) {
                let loss = self.price(solver, vm, home) - solver.state.gain(vm, home);
                let before = solver.moves.len();
                solver.make(vm, home, Cause::Balance);
                movers.note(solver.state, [home, away], [n]);
                if !self.make_up(solver, &mut movers, &moved, [home, away], loss + self.least) {
                    solver.take_back_to(before);
                    movers.note(solver.state, [home, away], [n]);
                }
            }
        }
    }

    /// Improves the state with as many moves.
    fn same_number(&mut self, solver: &mut Solver<'_, '_, '_>) {
        for _ in 0..ROUNDS_MAX {
            let before = solver.moves.len();
            self.retarget(solver);
            self.replace(solver);
            self.trade(solver);
            if solver.moves.len() == before {
                return;
            }
        }
    }

    /// The number of VMs that are elsewhere, and what that costs.
    fn spent(&self, solver: &Solver<'_, '_, '_>) -> (usize, StepCost) {
        self.away(solver).fold((0, StepCost::ZERO), |(steps, cost), vm| {
            (steps + 1, cost + self.cost(solver, vm, solver.state.at(vm)))
        })
    }

    fn cost(&self, solver: &Solver<'_, '_, '_>, vm: VmIx, to: HostIx) -> StepCost {
        let problem = solver.state.problem;
        let (from, to) = (problem.host(self.home[vm.0]), problem.host(to));
        cost::of_move(problem.vm(vm).vm, from.host, to.host)
    }

    fn is_afforded(&self, solver: &Solver<'_, '_, '_>) -> bool {
        let (steps, cost) = self.spent(solver);
        solver.options.affords(steps, cost)
    }

    /// Does without what is missed least for what it takes of the budget, until the rest is within it; whether it is then.
    fn shrink(&mut self, solver: &mut Solver<'_, '_, '_>) -> bool {
        while !self.is_afforded(solver) {
            if !self.give_up_one(solver) {
                return false;
            }
        }
        true
    }

    /// Makes the single move of a VM that stays so far that is worth most for what it takes of the budget.
    fn add_one(&mut self, solver: &mut Solver<'_, '_, '_>) -> bool {
        let (state, scan) = (&*solver.state, Scan::new(solver.state));
        let stays = |vm: &VmIx| {
            let at = state.at(*vm);
            at == self.home[vm.0] && state.problem.host(at).counts() && may_go_alone(state, *vm)
        };
        let (steps, spent) = self.spent(solver);
        if !solver.options.affords(steps + 1, spent) {
            return false;
        }
        let mut best: Option<(f64, VmIx, HostIx)> = None;
        for vm in state.problem.vm_ixs().filter(stays) {
            // Its own host's link stands for that of the target, which is not chosen yet.
            let share = solver.options.budget_share(self.cost(solver, vm, self.home[vm.0]));
            let floor = best
                .map_or(0.0, |(most, ..)| most * share + self.least)
                .max(self.floor * state.problem.vm(vm).price);
            let fits =
                |to: HostIx| solver.options.affords(steps + 1, spent + self.cost(solver, vm, to));
            let found = scan.best(state, vm, floor, |to| allowed(solver, vm, to) && fits(to));
            if let Some(found) = found {
                best = Some((found.gain / share, vm, found.to));
            }
        }
        if let Some((_, vm, to)) = best {
            solver.make(vm, to, Cause::Balance);
        }
        best.is_some()
    }

    /// Does without the VM that is missed least, for what it takes of the budget, when another one makes up for it as well
    /// as it can.
    fn give_up_one(&mut self, solver: &mut Solver<'_, '_, '_>) -> bool {
        let moved = self.moved(solver);
        let mut best: Option<(f64, VmIx, Option<VmIx>)> = None;
        for vm in &moved {
            let (away, home) = (solver.state.at(*vm), self.home[vm.0]);
            if !solver.state.problem.host(home).counts() || !allowed(solver, *vm, home) {
                continue;
            }
            let loss = -solver.state.gain(*vm, home);
            solver.make(*vm, home, Cause::Balance);
            let (made_up, other) = self.best_for(solver, &moved, *vm, away);
            solver.unmake();
            let share = solver.options.budget_share(self.cost(solver, *vm, away));
            let worth = (made_up - loss) / share;
            if best.is_none_or(|(most, ..)| worth > most) {
                best = Some((worth, *vm, other));
            }
        }
        let Some((_, vm, other)) = best else { return false };
        let away = solver.state.at(vm);
        solver.make(vm, self.home[vm.0], Cause::Balance);
        if let Some(other) = other {
            solver.make(other, away, Cause::Balance);
        }
        true
    }

    /// The best of those that move to go to that host instead, and what that is worth.
    fn best_for(
        &self,
        solver: &Solver<'_, '_, '_>,
        moved: &[VmIx],
        but: VmIx,
        to: HostIx,
    ) -> (f64, Option<VmIx>) {
        let mut best = (0.0, None);
        for vm in moved.iter().filter(|vm| **vm != but && solver.state.at(**vm) != to) {
            let worth = solver.state.gain(*vm, to);
            if worth > best.0 && to != self.home[vm.0] && allowed(solver, *vm, to) {
                best = (worth, Some(*vm));
            }
        }
        best
    }

    /// Makes up for a VM that is back `home` and not `away`: another one goes there, or is replaced.
    fn make_up(
        &self,
        solver: &mut Solver<'_, '_, '_>,
        movers: &mut Movers,
        moved: &[VmIx],
        [home, away]: [HostIx; 2],
        least: f64,
    ) -> bool {
        if least <= 0.0 {
            return true;
        }
        let best = movers.best_for(away, least);
        if let Some(n) = best.filter(|n| allowed(solver, moved[*n], away)) {
            let from = solver.state.at(moved[n]);
            solver.make(moved[n], away, Cause::Balance);
            movers.note(solver.state, [from, away], [n]);
            return true;
        }
        let staying = self.others_on(solver, home);
        let from_home: Vec<usize> = movers.away_from(home).collect();
        from_home.into_iter().any(|n| {
            let from = solver.state.at(moved[n]);
            let is_made_up = self.best_swap(solver, moved[n], &staying, least);
            if is_made_up {
                movers.note(solver.state, [from, home], 0..moved.len());
            }
            is_made_up
        })
    }
}
