//! The destination's door: who may come in.
//!
//! Listening goes on until one shows the token: strangers that connect and say
//! nothing, or the wrong thing, keep nobody waiting. Each has
//! [`GREETING_TIMEOUT`], its handshake included, and at most [`GREETINGS_MAX`] are heard at a time, each by a
//! thread of its own. When the source is in, the door stays open for its other
//! connections ([`Join`]), each of which comes once, and with post-copy for a source that comes
//! back ([`Back`]).

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use ballast_model::{MigrationId, VmId};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::framing::{Back, HELLO_BYTES, Hello, Join, STREAMS_MAX, TOKEN_BYTES};
use super::postcopy::door::Door;
use super::tls::Identity;
use super::wire::{Decrypted, Wire};

/// How long a peer may take to show its token.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
/// How many peers may be greeting at a time.
const GREETINGS_MAX: usize = 16;
/// How long one that cannot be accepted keeps others waiting: out of descriptors, most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the destination expects of the source.
#[derive(Debug, Clone)]
pub(crate) struct Expected {
    pub(crate) migration: MigrationId,
    pub(crate) token: [u8; TOKEN_BYTES],
    pub(crate) vm: VmId,
    /// What other connections show. Known to nobody until the source has shown the token.
    pub(crate) key: [u8; TOKEN_BYTES],
    /// None: connections are not encrypted.
    pub(crate) identity: Option<Identity>,
    /// What one shows that comes back.
    pub(crate) door: Arc<Door>,
}

/// The source's other connections, as they come: their number and themselves.
pub(crate) type Joined = mpsc::Receiver<(u16, Wire)>;

/// Listens for one migration's source.
#[derive(Debug)]
pub(crate) struct Lobby {
    listener: TcpListener,
    expected: Expected,
}

/// Somebody who showed what it takes.
enum Guest {
    Source(Wire, Hello),
    Another(Wire, u16),
    Returned(Wire),
}

impl Lobby {
    pub(crate) fn new(listener: TcpListener, expected: Expected) -> Self {
        Self { listener, expected }
    }

    pub(crate) fn door(&self) -> Arc<Door> {
        Arc::clone(&self.expected.door)
    }

    pub(crate) fn key(&self) -> [u8; TOKEN_BYTES] {
        self.expected.key
    }

    /// Waits for the source. Anybody without the token is dropped.
    pub(crate) async fn await_source(&self) -> (Wire, Hello) {
        let mut greetings = JoinSet::new();
        loop {
            if let Some(Guest::Source(peer, hello)) = self.next(&mut greetings).await {
                return (peer, hello);
            }
        }
    }

    /// Lets the source's other connections in, and the source when it comes back, for as long as
    /// somebody takes them.
    pub(crate) async fn await_others(self, others: mpsc::SyncSender<(u16, Wire)>) {
        let mut greetings = JoinSet::new();
        let mut seen = [false; STREAMS_MAX as usize];
        loop {
            let (peer, stream) = match self.next(&mut greetings).await {
                Some(Guest::Another(peer, stream)) => (peer, stream),
                Some(Guest::Returned(peer)) => {
                    self.expected.door.arrived(peer);
                    continue;
                }
                _ => continue,
            };
            match seen.get_mut(usize::from(stream)) {
                // There is room for each: this does not block.
                Some(seen @ false) if stream > 0 => match others.try_send((stream, peer)) {
                    Ok(()) => *seen = true,
                    Err(_) => tracing::warn!(stream, "dropped a connection that came too late"),
                },
                _ => tracing::warn!(stream, "dropped a connection that had come already"),
            }
        }
    }

    /// The next that showed something right; none when one was dropped.
    async fn next(&self, greetings: &mut JoinSet<Option<Guest>>) -> Option<Guest> {
        tokio::select! {
            accepted = self.listener.accept(), if greetings.len() < GREETINGS_MAX => {
                match accepted.and_then(|(peer, _)| peer.into_std()) {
                    Ok(peer) => {
                        let expected = self.expected.clone();
                        greetings.spawn_blocking(move || greet(peer, &expected));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
                None
            }
            Some(greeted) = greetings.join_next() => greeted.ok().flatten(),
        }
    }
}

/// Hears a peer out.
fn greet(peer: TcpStream, expected: &Expected) -> Option<Guest> {
    let from = peer.peer_addr().ok();
    let dropped = |why: &str| {
        tracing::warn!(?from, why, "dropped a peer");
        None
    };
    peer.set_nonblocking(false).ok()?;
    let mut patient = Patient { peer: &peer, until: Instant::now() + GREETING_TIMEOUT };
    let mut bytes = [0; HELLO_BYTES];
    let tls = match &expected.identity {
        None => {
            patient.read_exact(&mut bytes).ok()?;
            None
        }
        Some(identity) => {
            let Ok(mut tls) = identity.accept(&mut patient) else {
                return dropped("there was no handshake");
            };
            Decrypted { tls: &mut tls, from: &mut patient }.read_exact(&mut bytes).ok()?;
            Some(tls)
        }
    };
    let peer = Wire::new(peer, tls);
    if let Ok(join) = Join::decode(&bytes) {
        if !same_token(&join.key, &expected.key) {
            return dropped("it showed the wrong key");
        }
        return Some(Guest::Another(peer, join.stream));
    }
    if let Ok(back) = Back::decode(&bytes) {
        if !expected.door.admit(&back.key) {
            return dropped("it came back with the wrong key");
        }
        return Some(Guest::Returned(peer));
    }
    let Ok(hello) = Hello::decode(&bytes) else { return dropped("it said something else") };
    // The token first, in constant time: who lacks it learns nothing else.
    if !same_token(&hello.token, &expected.token) {
        return dropped("it showed the wrong token");
    }
    if hello.migration != expected.migration || hello.vm != expected.vm {
        return dropped("it came for another migration or VM");
    }
    Some(Guest::Source(peer, hello))
}

/// Reads and writes that all together end at a time.
struct Patient<'a> {
    peer: &'a TcpStream,
    until: Instant,
}

impl Read for Patient<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.peer.set_read_timeout(Some(left))?;
        self.peer.read(into)
    }
}

impl Write for Patient<'_> {
    /// What fits the socket's buffer, as answers to a handshake do.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.peer.set_write_timeout(Some(GREETING_TIMEOUT))?;
        self.peer.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Takes the same time wherever the two differ.
pub(super) fn same_token(a: &[u8; TOKEN_BYTES], b: &[u8; TOKEN_BYTES]) -> bool {
    let difference = a.iter().zip(b).fold(0u8, |all, (a, b)| all | (a ^ b));
    std::hint::black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_compared_whole() {
        let mut other = [7; TOKEN_BYTES];
        assert!(same_token(&[7; TOKEN_BYTES], &other));
        other[TOKEN_BYTES - 1] = 8;
        assert!(!same_token(&[7; TOKEN_BYTES], &other));
    }
}
