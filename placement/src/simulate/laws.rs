//! What must hold, counted from who is where.

use std::collections::BTreeSet;

use super::Law;
use super::hotel::Hotel;

impl Law {
    /// Whose moves it has to do with, of so many guests.
    pub(super) fn bound(&self, all: usize) -> Box<dyn Iterator<Item = usize> + '_> {
        match self {
            Self::Crowd { guests, .. }
            | Self::Breadth { guests, .. }
            | Self::Narrowness { guests, .. }
            | Self::Inside { guests, .. } => Box::new(guests.iter().copied()),
            Self::Company { guests, others, .. } => Box::new(guests.iter().chain(others).copied()),
            Self::Reserve { .. } => Box::new(0..all),
        }
    }
}

impl Hotel<'_> {
    /// Per resource, by how much the room is over.
    pub(super) fn over(&self, room: usize) -> Vec<u64> {
        let sum = |resource: usize| {
            let need = |guest: &usize| self.world.guests[*guest].need.get(resource).copied();
            self.present[room].iter().filter_map(need).map(u128::from).sum::<u128>()
        };
        let over = |(resource, most): (usize, &u64)| {
            u64::try_from(sum(resource).saturating_sub(u128::from(*most))).unwrap_or(u64::MAX)
        };
        self.world.rooms[room].iter().enumerate().map(over).collect()
    }

    /// How badly a law is broken, zero if it holds.
    pub(super) fn broken(&self, law: usize) -> u64 {
        let scopes_of = |guests: &[usize], scopes: &[usize], rooms: &[Vec<usize>]| {
            let mut list = Vec::new();
            for guest in guests {
                let own: BTreeSet<usize> = rooms[*guest].iter().map(|room| scopes[*room]).collect();
                list.extend(own);
            }
            list.sort_unstable();
            list
        };
        let distinct = |mut list: Vec<usize>| {
            list.dedup();
            list
        };
        let broken = match &self.world.laws[law] {
            Law::Crowd { guests, scopes, most } => {
                let list = scopes_of(guests, scopes, &self.occupies);
                list.chunk_by(|a, b| a == b).map(|same| same.len().saturating_sub(*most)).sum()
            }
            Law::Breadth { guests, scopes, least } => {
                least.saturating_sub(distinct(scopes_of(guests, scopes, &self.lives)).len())
            }
            Law::Narrowness { guests, scopes, most } => {
                distinct(scopes_of(guests, scopes, &self.occupies)).len().saturating_sub(*most)
            }
            Law::Inside { guests, rooms } => guests
                .iter()
                .flat_map(|guest| &self.occupies[*guest])
                .filter(|room| !rooms.contains(room))
                .count(),
            Law::Company { guests, others, scopes } => {
                let company = distinct(scopes_of(others, scopes, &self.lives));
                let alone = distinct(scopes_of(guests, scopes, &self.occupies));
                alone.iter().filter(|scope| company.binary_search(scope).is_err()).count()
            }
            Law::Reserve { rooms } => return self.reserve_missing(*rooms),
        };
        broken as u64
    }

    fn reserve_missing(&self, lost: usize) -> u64 {
        let resources = self.world.rooms.iter().map(Vec::len).max().unwrap_or(0);
        let mut worst = 0;
        for resource in 0..resources {
            let mut sizes: Vec<u128> = self
                .world
                .rooms
                .iter()
                .map(|room| u128::from(room.get(resource).copied().unwrap_or(0)))
                .collect();
            sizes.sort_unstable_by(|a, b| b.cmp(a));
            let kept: u128 = sizes.iter().skip(lost).sum();
            let used: u128 = self
                .occupies
                .iter()
                .zip(&self.world.guests)
                .map(|(rooms, guest)| {
                    rooms.len() as u128 * u128::from(guest.need.get(resource).copied().unwrap_or(0))
                })
                .sum();
            worst = worst.max(u64::try_from(used.saturating_sub(kept)).unwrap_or(u64::MAX));
        }
        worst
    }
}
