//! What each step of a legal sequence has to wait for, so that every
//! interleaving is legal too.
//!
//! For a step, take the state in which all earlier steps have taken what they
//! take, and of what they give back only what the step waits for: the *most*
//! that can be in use. Let any set of steps be under way in any order the lists
//! allow, and take the one with the highest index that has taken something of a
//! counter: what is in use is no more than its *most*. So it is enough that each
//! step's most is within the limits of the counters it takes from. Floors are
//! the same upside down: the *least* counts every earlier departure and only
//! the arrivals waited for. As the sequence is legal one by one, waiting for
//! every earlier step always suffices; what is found here is little of that.

use std::collections::{BTreeSet, HashMap};

use super::books::{Ledger, Move, Slot};
use super::{Key, Step, Vm};

/// How many steps that a step waits for indirectly are remembered, at most. Forgetting some costs needless waiting,
/// never legality.
const ANCESTORS_MAX: usize = 4_096;

/// The moves with their `after` lists.
pub(super) fn steps(moves: Vec<Move>, ledger: &Ledger) -> Vec<Step> {
    let mut waits = Waits::new(ledger, &moves);
    for n in 0..moves.len() {
        waits.enter(n);
    }
    let after = waits.after;
    let plain = |(step, after): (Move, Vec<u32>)| Step {
        vm: step.vm,
        from: step.from,
        to: step.to,
        role: step.role,
        after,
    };
    moves.into_iter().zip(after).map(plain).collect()
}

/// A counter over the earlier steps.
#[derive(Default, Clone)]
struct Account {
    /// In use if every earlier step had come and none had gone.
    most: u64,
    /// In use if every earlier step had gone and none had come: below zero if some that came have gone again.
    least: i128,
    /// In use after the earlier steps.
    now: u64,
    takes: Vec<(usize, u64)>,
    frees: Vec<(usize, u64)>,
}

struct Waits<'a> {
    ledger: &'a Ledger,
    moves: &'a [Move],
    accounts: Vec<Account>,
    after: Vec<Vec<u32>>,
    ancestors: Vec<Vec<u32>>,
    /// The length of the longest chain that ends with the step.
    depth: Vec<u32>,
    /// Which steps the present one waits for: those marked with its number.
    mark: Vec<usize>,
    /// The present step's direct waits.
    direct: BTreeSet<usize>,
    last_of_vm: HashMap<Vm, usize>,
}

impl<'a> Waits<'a> {
    fn new(ledger: &'a Ledger, moves: &'a [Move]) -> Self {
        let accounts = ledger.counters.iter().map(|counter| Account {
            most: counter.used,
            least: i128::from(counter.used),
            now: counter.used,
            ..Account::default()
        });
        Self {
            ledger,
            moves,
            accounts: accounts.collect(),
            after: Vec::with_capacity(moves.len()),
            ancestors: Vec::with_capacity(moves.len()),
            depth: Vec::with_capacity(moves.len()),
            mark: vec![usize::MAX; moves.len()],
            direct: BTreeSet::new(),
            last_of_vm: HashMap::new(),
        }
    }

    fn enter(&mut self, n: usize) {
        let step = &self.moves[n];
        if let Some(before) = self.last_of_vm.insert(step.vm, n) {
            self.wait(n, before);
        }
        for (slot, amount) in &step.takes {
            self.arrive(n, *slot, *amount);
        }
        for (slot, amount) in &step.frees {
            self.depart(n, *slot, *amount);
        }
        self.close();
    }

    /// Waits until the counter has room for what the step takes.
    fn arrive(&mut self, n: usize, slot: Slot, amount: u64) {
        let ix = slot as usize;
        let account = &mut self.accounts[ix];
        account.most = account.most.saturating_add(amount);
        account.now = account.now.saturating_add(amount);
        let most = account.most;
        let limit = self.ledger.counters[ix].limit;
        loop {
            let gone = self.waited(n, |account| &account.frees, slot);
            let Some(over) = (most - gone.min(most)).checked_sub(limit).filter(|over| *over > 0)
            else {
                break;
            };
            if !self.wait_for_one(n, |account| &account.frees, &[slot], over) {
                break;
            }
        }
        self.accounts[ix].takes.push((n, amount));
        if let Some(group) = self.ledger.counters[ix].group {
            let book = &self.ledger.groups[&group];
            let allowed = book.start.open_max.max(book.start.open);
            while self.open(n, group, true) > allowed
                && self.wait_for_one(n, |account| &account.frees, &book.slots, u64::MAX)
            {
            }
        }
        for other in &self.ledger.needs[ix] {
            while self.least(n, *other) == 0
                && self.wait_for_one(n, |account| &account.takes, &[*other], 1)
            {}
        }
    }

    /// Waits until the counter can do without what the step gives back.
    fn depart(&mut self, n: usize, slot: Slot, amount: u64) {
        let ix = slot as usize;
        let account = &mut self.accounts[ix];
        account.frees.push((n, amount));
        account.least -= i128::from(amount);
        account.now = account.now.saturating_sub(amount);
        // The step has ended when this counts: so has what it took itself.
        self.mark[n] = n;
        let counter = &self.ledger.counters[ix];
        while self.least(n, slot) < counter.floor
            && self.wait_for_one(n, |account| &account.takes, &[slot], u64::MAX)
        {}
        if let Some(group) = counter.group {
            let book = &self.ledger.groups[&group];
            let allowed = book.start.open_min.min(book.start.open);
            while self.open(n, group, false) < allowed
                && self.wait_for_one(n, |account| &account.takes, &book.slots, u64::MAX)
            {
            }
        }
        for other in &self.ledger.needed_by[ix] {
            // Either what needs it has gone by now, or somebody else has come.
            let empty = self.accounts[*other as usize].now == 0;
            while self.most(n, *other) > 0 && self.least(n, slot) == 0 {
                let waited = if empty {
                    self.wait_for_one(n, |account| &account.frees, &[*other], u64::MAX)
                } else {
                    self.wait_for_one(n, |account| &account.takes, &[slot], 1)
                };
                if !waited {
                    break;
                }
            }
        }
        self.mark[n] = usize::MAX;
    }

    fn most(&self, n: usize, slot: Slot) -> u64 {
        let gone = self.waited(n, |account| &account.frees, slot);
        self.accounts[slot as usize].most.saturating_sub(gone)
    }

    fn least(&self, n: usize, slot: Slot) -> u64 {
        let come = self.waited(n, |account| &account.takes, slot);
        let least = self.accounts[slot as usize].least + i128::from(come);
        u64::try_from(least.max(0)).unwrap_or(u64::MAX)
    }

    /// How many counters of a group can be in use at most, or have to be at least.
    fn open(&self, n: usize, group: Key, most: bool) -> u32 {
        let book = &self.ledger.groups[&group];
        let in_use = |slot: &&Slot| {
            if most { self.most(n, **slot) > 0 } else { self.least(n, **slot) > 0 }
        };
        let at_start = |slot: &&Slot| self.ledger.counters[**slot as usize].used > 0;
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let start = count(book.slots.iter().filter(at_start).count());
        book.start.open.saturating_sub(start) + count(book.slots.iter().filter(in_use).count())
    }

    /// How much of a counter's earlier takes or frees the step waits for.
    fn waited(&self, n: usize, of: impl Fn(&Account) -> &Vec<(usize, u64)>, slot: Slot) -> u64 {
        let list = of(&self.accounts[slot as usize]);
        let known = list.iter().filter(|(step, _)| self.mark[*step] == n && *step <= n);
        known.fold(0, |sum, (_, amount)| sum.saturating_add(*amount))
    }

    /// Waits for one more of the steps listed for these counters: if one alone gives `missing`, for that with the
    /// shortest chain, else for the one that gives most. Nothing is left to wait for if false.
    fn wait_for_one(
        &mut self,
        n: usize,
        of: impl Fn(&Account) -> &Vec<(usize, u64)>,
        slots: &[Slot],
        missing: u64,
    ) -> bool {
        let lists = slots.iter().map(|slot| of(&self.accounts[*slot as usize]));
        let best = lists
            .flatten()
            .filter(|(step, _)| *step < n && self.mark[*step] != n)
            .min_by_key(|(step, amount)| {
                let enough = *amount >= missing;
                let chain = if enough { 0 } else { u64::MAX - amount };
                (!enough, chain, self.depth[*step], *step)
            });
        let Some((step, _)) = best.copied() else { return false };
        self.wait(n, step);
        true
    }

    fn wait(&mut self, n: usize, before: usize) {
        self.direct.insert(before);
        self.mark[before] = n;
        for ancestor in &self.ancestors[before] {
            self.mark[*ancestor as usize] = n;
        }
    }

    /// Keeps the step's waits, without those that follow from the others.
    fn close(&mut self) {
        let direct = std::mem::take(&mut self.direct);
        let mut implied: BTreeSet<u32> = BTreeSet::new();
        for before in &direct {
            implied.extend(&self.ancestors[*before]);
        }
        #[allow(clippy::cast_possible_truncation)]
        // an index into the steps, of which there are as many as VMs
        let named: Vec<u32> = direct.iter().map(|before| *before as u32).collect();
        let after: Vec<u32> = named.iter().copied().filter(|d| !implied.contains(d)).collect();
        implied.extend(&named);
        let ancestors: Vec<u32> = implied.into_iter().rev().take(ANCESTORS_MAX).collect();
        self.depth.push(1 + after.iter().map(|d| self.depth[*d as usize]).max().unwrap_or(0));
        self.ancestors.push(ancestors);
        self.after.push(after);
    }
}
