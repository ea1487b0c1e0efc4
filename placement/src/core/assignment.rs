//! Which item is where. A value: cheap to copy, compare and write down.

use super::ids::{Host, Item, Place};

/// A place, or none, for every item of a problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    places: Vec<Place>,
}

impl Assignment {
    /// Nothing is placed.
    pub fn empty(items: usize) -> Self {
        Self { places: vec![Place::NOWHERE; items] }
    }

    /// From one optional place an item.
    pub fn from_places(places: impl IntoIterator<Item = Option<Place>>) -> Self {
        Self { places: places.into_iter().map(|place| place.unwrap_or(Place::NOWHERE)).collect() }
    }

    /// How many items it speaks of.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether it speaks of no item.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Where an item is.
    pub fn place(&self, item: Item) -> Option<Place> {
        let place = self.places[item.ix()];
        place.is_somewhere().then_some(place)
    }

    /// The host an item is on.
    pub fn host(&self, item: Item) -> Option<Host> {
        self.place(item).map(|place| place.host)
    }

    /// Puts an item somewhere, or nowhere.
    pub fn set(&mut self, item: Item, place: Option<Place>) {
        self.places[item.ix()] = place.unwrap_or(Place::NOWHERE);
    }

    /// The items in order with where they are.
    pub fn iter(&self) -> impl Iterator<Item = (Item, Option<Place>)> + '_ {
        self.places
            .iter()
            .enumerate()
            .map(|(ix, place)| (Item::from(ix), place.is_somewhere().then_some(*place)))
    }

    /// What differs from `before`, in the order of items. Both speak of the same items.
    pub fn moves_from(&self, before: &Self) -> Vec<Move> {
        self.iter()
            .zip(before.iter())
            .filter(|((_, now), (_, then))| now != then)
            .map(|((item, to), (_, from))| Move { item, from, to })
            .collect()
    }
}

/// One item going from one place to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    /// Which item.
    pub item: Item,
    /// Where it was; `None` for a new item.
    pub from: Option<Place>,
    /// Where it goes; `None` for an item nothing has room for.
    pub to: Option<Place>,
}
