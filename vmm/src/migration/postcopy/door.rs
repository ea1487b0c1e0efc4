//! Where a source comes back to whose connection broke: the key it shows, and
//! the connection it brings.
//!
//! A key is good for one return. Its successor goes out over the new connection,
//! and may be lost with that: so the last key shown stays good until the one
//! issued after it has been shown. Whoever shows the right one replaces
//! whatever connection there is.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::migration::framing::TOKEN_BYTES;
use crate::migration::lobby::same_token;
use crate::migration::wire::Wire;

/// What the lobby and the thread that fetches pages share.
#[derive(Debug)]
pub(crate) struct Door {
    state: Mutex<State>,
    /// Signalled when somebody has come.
    pub(super) bell: EventFd,
}

#[derive(Debug, Default)]
struct State {
    shown: Option<[u8; TOKEN_BYTES]>,
    issued: Option<[u8; TOKEN_BYTES]>,
    came: Option<Wire>,
}

impl Door {
    /// A closed one: nobody has a key.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { state: Mutex::default(), bell: EventFd::new(EFD_NONBLOCK)? })
    }

    /// The next key.
    pub(crate) fn issue(&self) -> [u8; TOKEN_BYTES] {
        let key = rand::random();
        self.state().issued = Some(key);
        key
    }

    /// Whether anybody may come.
    pub(crate) fn is_open(&self) -> bool {
        self.state().issued.is_some()
    }

    /// Whether this key opens it; uses it up.
    pub(crate) fn admit(&self, key: &[u8; TOKEN_BYTES]) -> bool {
        let mut state = self.state();
        let is = |known: Option<[u8; TOKEN_BYTES]>| known.is_some_and(|one| same_token(&one, key));
        let (issued, shown) = (is(state.issued), is(state.shown));
        if issued {
            state.shown = state.issued;
        }
        issued || shown
    }

    /// Hands over the connection of one that was admitted.
    pub(crate) fn arrived(&self, wire: Wire) {
        self.state().came = Some(wire);
        // It cannot be full: every ring is heard.
        let _ = self.bell.write(1);
    }

    /// Who has come last, if anybody has.
    pub(super) fn take(&self) -> Option<Wire> {
        self.state().came.take()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_good_until_its_successor_is_shown() {
        let door = Door::new().unwrap();
        assert!(!door.is_open() && !door.admit(&[0; TOKEN_BYTES]));
        let first = door.issue();
        assert!(door.is_open() && !door.admit(&[7; TOKEN_BYTES]));
        assert!(door.admit(&first));
        let second = door.issue();
        assert!(door.admit(&first), "the second may have been lost");
        let third = door.issue();
        assert!(!door.admit(&second), "it was replaced before it was shown");
        assert!(door.admit(&third));
        assert!(!door.admit(&first), "its successor has been shown");
    }
}
