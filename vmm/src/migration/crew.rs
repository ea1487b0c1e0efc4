//! The senders of a migration at work on one round together.
//!
//! The first connection's sender works on the thread of the migration itself,
//! and alone when there is only one; each other has a thread, which ends with
//! the crew. What fails one stops all.

use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, mpsc};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Duration;

use ballast_model::{Refusal, RefusalCode};
use rustls::ClientConfig;

use super::Trouble;
use super::control::Control;
use super::framing::Join;
use super::negotiation::Terms;
use super::round::Round;
use super::sender::{Meters, Sender};
use super::stream::{Handle, Stream};
use super::wire::Wire;
use crate::memory::Memory;

/// How long a connection may take to come about.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a destination that closed its connections may take to be heard. The guest may be
/// paused meanwhile.
const LAST_WORD_PATIENCE: Duration = Duration::from_millis(200);

/// What all senders of a migration have in common.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Common<'env> {
    pub(crate) memory: &'env Memory,
    pub(crate) control: &'env Control,
    pub(crate) meters: &'env Meters,
    pub(crate) version: u16,
    /// Pages may be compressed, where that pays.
    pub(crate) compress: bool,
}

/// All senders.
pub(crate) struct Crew<'env> {
    /// The one on this thread; its connection carries everything that is no page, too.
    pub(crate) main: Sender<'env>,
    meters: &'env Meters,
    others: Vec<Worker<'env>>,
}

/// A sender on a thread of its own.
struct Worker<'env> {
    orders: mpsc::Sender<Arc<Round<'env>>>,
    done: mpsc::Receiver<Result<(), Trouble>>,
    connection: Handle,
}

/// Where the destination is, and how to talk to it.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    /// None: in the clear.
    pub(crate) tls: Option<Arc<ClientConfig>>,
}

/// Connects, and lets a verdict interrupt it.
pub(crate) fn connect(peer: &Peer, control: &Control) -> Result<Stream, Trouble> {
    let trouble = |what| move |error| Trouble::Io { what, error };
    let tcp = TcpStream::connect_timeout(&peer.address, CONNECT_TIMEOUT)
        .map_err(trouble("connecting to the destination"))?;
    let setup = |tcp: &TcpStream| {
        tcp.set_read_timeout(Some(CONNECT_TIMEOUT))?;
        tcp.set_write_timeout(Some(CONNECT_TIMEOUT))
    };
    setup(&tcp).map_err(trouble("setting up the connection"))?;
    let wire =
        Wire::of_source(tcp, peer.tls.as_ref()).map_err(trouble("agreeing on encryption"))?;
    let stream = Stream::new(wire)?;
    control.attach(stream.handle()?);
    Ok(stream)
}

impl<'env> Crew<'env> {
    /// Makes the other connections and starts their senders.
    pub(crate) fn start<'scope>(
        scope: &'scope Scope<'scope, 'env>,
        common: Common<'env>,
        peer: &'env Peer,
        terms: Terms,
        main: Stream,
    ) -> Result<Self, Trouble> {
        let sender = move |stream| Sender::new(stream, common);
        let join = move |stream: u16| {
            let mut connection = connect(peer, common.control)?;
            connection.send_raw(&Join { stream, key: terms.key }.encode())?;
            connection.speak(terms.version);
            Ok(connection)
        };
        // All at a time: each takes a round trip.
        let joining: Vec<ScopedJoinHandle<'_, Result<Stream, Trouble>>> =
            (1..terms.streams).map(|stream| scope.spawn(move || join(stream))).collect();
        let mut others = Vec::with_capacity(joining.len());
        let mut failed = None;
        for joining in joining {
            match joining.join().unwrap_or_else(|_| Err(gone())).and_then(|stream| {
                let connection = stream.handle()?;
                Worker::start(scope, sender(stream), connection)
            }) {
                Ok(worker) => others.push(worker),
                Err(trouble) => failed = Some(trouble),
            }
        }
        let crew = Self { main: sender(main), meters: common.meters, others };
        failed.map_or(Ok(crew), Err)
    }

    /// Sends all of a round over all connections. `between` is called now and then.
    pub(crate) fn send(
        &mut self,
        round: Round<'env>,
        mut between: impl FnMut(&Round<'_>),
    ) -> Result<(), Trouble> {
        let round = Arc::new(round);
        for worker in &self.others {
            worker.orders.send(Arc::clone(&round)).map_err(|_| gone())?;
        }
        let mut outcome = self.main.send_round(&round, &mut between);
        if outcome.is_err() {
            self.stop();
        }
        for worker in &self.others {
            let done = worker.done.recv().unwrap_or_else(|_| Err(gone()));
            // The first that failed has the reason; the others were interrupted.
            if matches!(outcome, Ok(()) | Err(Trouble::Interrupted)) && done.is_err() {
                outcome = done;
            }
            if outcome.is_err() {
                self.stop();
            }
        }
        outcome?;
        self.main.mark(&round)
    }

    /// Sends all of a round over the first connection alone: worth it when it is small.
    pub(crate) fn send_alone(&mut self, round: &Round<'env>) -> Result<(), Trouble> {
        self.main.send_round(round, &mut |_| {})
    }

    /// How long a write may find no room before it is trouble, on every connection.
    pub(crate) fn write_patience(&self, patience: Duration) -> Result<(), Trouble> {
        self.main.stream.handle()?.write_patience(patience)?;
        self.others.iter().try_for_each(|worker| worker.connection.write_patience(patience))
    }

    /// What the destination says of it, when connections fail.
    pub(crate) fn last_word(&mut self, trouble: Trouble) -> Trouble {
        self.main.stream.last_word(trouble, LAST_WORD_PATIENCE)
    }

    fn stop(&self) {
        self.meters.fail();
        self.others.iter().for_each(|worker| worker.connection.shut_down());
    }
}

impl Drop for Crew<'_> {
    /// Their threads end: none waits for its peer, and none gets another order.
    fn drop(&mut self) {
        self.stop();
    }
}

impl<'env> Worker<'env> {
    fn start<'scope>(
        scope: &'scope Scope<'scope, 'env>,
        mut sender: Sender<'env>,
        connection: Handle,
    ) -> Result<Self, Trouble> {
        let (orders, taken) = mpsc::channel::<Arc<Round<'env>>>();
        let (tell, done) = mpsc::channel();
        let work = move || {
            while let Ok(round) = taken.recv() {
                let sent = sender.send_round(&round, &mut |_| {});
                if tell.send(sent.and_then(|()| sender.mark(&round))).is_err() {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("sender".to_owned());
        thread.spawn_scoped(scope, work).map_err(|error| {
            Refusal::new(
                RefusalCode::HostFailure,
                format!("no thread for a connection: {error}"),
                "raise the limit on tasks of this service, or use fewer streams",
            )
        })?;
        Ok(Self { orders, done, connection })
    }
}

fn gone() -> Trouble {
    Refusal::new(RefusalCode::Internal, "a sender's thread panicked", "report a defect").into()
}
