//! Remembers the best assignment seen, at a cost that follows the moves made
//! and not the number of items.

use crate::core::assignment::Assignment;
use crate::core::ids::Item;
use crate::core::objective::Score;
use crate::core::state::State;

/// The best assignment, and which items may differ from it by now.
#[derive(Debug)]
pub(super) struct Keeper<const L: usize> {
    best: Assignment,
    score: Score<L>,
    dirty: Vec<Item>,
    is_dirty: Vec<bool>,
}

impl<const L: usize> Keeper<L> {
    pub(super) fn new(state: &State<'_, L>) -> Self {
        Self {
            best: state.assignment(),
            score: state.score(),
            dirty: Vec::new(),
            is_dirty: vec![false; state.problem().items()],
        }
    }

    pub(super) fn score(&self) -> Score<L> {
        self.score
    }

    /// To be told of every item that was moved.
    #[inline]
    pub(super) fn touched(&mut self, item: Item) {
        if !std::mem::replace(&mut self.is_dirty[item.ix()], true) {
            self.dirty.push(item);
        }
    }

    /// Keeps the state if it is the best so far.
    #[inline]
    pub(super) fn look(&mut self, state: &State<'_, L>) {
        if state.score() < self.score {
            self.settle(state);
        }
    }

    /// Keeps the state, which is as good as the best or better.
    pub(super) fn settle(&mut self, state: &State<'_, L>) {
        self.score = state.score();
        for item in self.dirty.drain(..) {
            self.is_dirty[item.ix()] = false;
            self.best.set(item, state.place(item));
        }
    }

    /// Brings the state back to the best. Returns the items that may have moved.
    pub(super) fn restore(&mut self, state: &mut State<'_, L>) -> Vec<Item> {
        for item in &self.dirty {
            self.is_dirty[item.ix()] = false;
            let place = self.best.place(*item);
            state.apply(*item, place);
        }
        std::mem::take(&mut self.dirty)
    }

    pub(super) fn into_best(self) -> (Score<L>, Assignment) {
        (self.score, self.best)
    }
}
