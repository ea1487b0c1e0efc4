//! A client of the guest's request counter, for whom every answer must be the
//! next one: nothing lost, nothing counted twice, nothing forgotten.

use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Two numbers, a space and the end of the line.
const ANSWER_BYTES_MAX: u64 = 42;

/// The only client of a guest's counter.
#[derive(Debug)]
pub struct CountClient {
    answers: BufReader<TcpStream>,
    asked: u64,
    count: Option<u64>,
}

impl CountClient {
    /// On a connection to the counter's port. `patience` is how long an answer may take.
    ///
    /// # Errors
    /// The connection is not open.
    pub fn new(stream: TcpStream, patience: Duration) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        Ok(Self { answers: BufReader::new(stream), asked: 0, count: None })
    }

    /// Sends one request and takes its answer. Returns the guest's count.
    ///
    /// # Errors
    /// The connection was reset or closed, or the answer did not come or is not the next one.
    pub fn ask(&mut self) -> io::Result<u64> {
        let number = self.asked;
        writeln!(self.answers.get_mut(), "{number}")?;
        self.asked += 1;
        let mut answer = String::new();
        io::Read::take(&mut self.answers, ANSWER_BYTES_MAX).read_line(&mut answer)?;
        let wrong = || {
            let last = self.count;
            io::Error::other(format!("request {number} after count {last:?} brought {answer:?}"))
        };
        let (echoed, count) =
            answer.strip_suffix('\n').and_then(|line| line.split_once(' ')).ok_or_else(wrong)?;
        let count: u64 = count.parse().map_err(|_| wrong())?;
        let next = self.count.is_none_or(|last| count == last + 1);
        if echoed != number.to_string() || !next {
            return Err(wrong());
        }
        self.count = Some(count);
        Ok(count)
    }

    /// Goes on asking on a thread of its own until told to stop.
    pub fn keep_asking(self) -> Asking {
        let shared = Arc::new(Shared::default());
        let ours = Arc::clone(&shared);
        Asking { shared, thread: Some(std::thread::spawn(move || ask_on(self, &ours))) }
    }
}

/// What a client went through that kept asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answered {
    /// Requests that were answered.
    pub requests: u64,
    /// The longest time from a request to its answer: switchovers as a client sees them.
    pub wait_max: Duration,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    answered: AtomicU64,
    /// Of all since it was last taken, in microseconds.
    wait_max_micros: AtomicU64,
}

/// A client that keeps asking; dropped, it stops.
#[derive(Debug)]
pub struct Asking {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<io::Result<Answered>>>,
}

impl Asking {
    /// Requests answered so far.
    pub fn answered(&self) -> u64 {
        self.shared.answered.load(Ordering::Relaxed)
    }

    /// The longest wait for an answer since this was last asked.
    pub fn take_wait_max(&self) -> Duration {
        Duration::from_micros(self.shared.wait_max_micros.swap(0, Ordering::Relaxed))
    }

    /// Whether it has ended by itself, which is always for an error.
    pub fn has_failed(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Ends it.
    ///
    /// # Errors
    /// The first one it met: see [`CountClient::ask`].
    pub fn stop(mut self) -> io::Result<Answered> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        ended.and_then(Result::ok).unwrap_or_else(|| Err(io::Error::other("the thread panicked")))
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

fn ask_on(mut client: CountClient, shared: &Shared) -> io::Result<Answered> {
    let mut answered = Answered { requests: 0, wait_max: Duration::ZERO };
    while !shared.stop.load(Ordering::Relaxed) {
        let asked = Instant::now();
        client.ask()?;
        answered.requests += 1;
        let waited = asked.elapsed();
        answered.wait_max = answered.wait_max.max(waited);
        let micros = u64::try_from(waited.as_micros()).unwrap_or(u64::MAX);
        shared.wait_max_micros.fetch_max(micros, Ordering::Relaxed);
        shared.answered.store(answered.requests, Ordering::Relaxed);
    }
    Ok(answered)
}
