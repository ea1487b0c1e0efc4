//! The threads that serve one disk's queue.
//!
//! ```text
//!            queue empty                   a request, a kick
//!   serving ─────────────▶ on the watch ───────────────▶ serving
//!      │  ▲                (one thread)
//!      │  └── woken: there is more than one request ─┐
//!      └───── somebody else is on the watch ─▶ asleep
//! ```
//!
//! The thread on the watch looks at the queue for some microseconds before it
//! sleeps ([`Patience`]): a guest that waits for each request sends the next one
//! sooner than a thread wakes up, and need not leave its vCPU for a kick.
//!
//! Every thread takes a request, carries it out and answers it, so that a single
//! request never changes threads; another thread is woken only when there is a
//! second one. The queue is behind one lock, held to take and to answer, never
//! during I/O. A flush needs no order of its own: the driver sends it after the
//! writes it is about have been answered, and those are in the page cache.
//!
//! To stop is to take nothing more. What was taken is finished and answered
//! before the threads end; what was not stays in the queue, for whoever
//! starts there next. So no request is lost, and none is carried out twice.

use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ballast_model::hardware::RateLimit;
use ballast_model::{Refusal, RefusalCode};
use virtio_bindings::virtio_blk::VIRTIO_BLK_F_FLUSH;
use virtio_queue::{Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::disk::Disk;
use super::request::{Malformed, Request};
use crate::devices::rate_limit::RateLimiter;
use crate::devices::virtio::{Activation, Interrupt};
use crate::jail::{self, ThreadKind};
use crate::memory::GuestRam;

/// Threads per disk: how many requests are with the host at a time.
const THREADS: usize = 4;

/// The threads of a disk that works.
#[derive(Debug)]
pub(super) struct Workers {
    service: Arc<Service>,
    threads: Vec<JoinHandle<()>>,
}

/// How long it pays to look at an empty queue before sleeping, learnt from how long it was empty.
#[derive(Debug, Default)]
struct Patience(Duration);

impl Patience {
    const LEAST: Duration = Duration::from_micros(4);
    const MOST: Duration = Duration::from_micros(32);

    /// The queue was empty for this long.
    fn learn(&mut self, empty: Duration) {
        if empty > Self::MOST {
            self.0 = Duration::ZERO;
        } else if empty > self.0 {
            self.0 = (self.0 * 2).clamp(Self::LEAST, Self::MOST);
        }
    }
}

/// What the threads of one disk share.
#[derive(Debug)]
pub(super) struct Service {
    disk: Arc<Disk>,
    memory: GuestRam,
    interrupt: Interrupt,
    write_through: bool,
    kick: EventFd,
    stop: EventFd,
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Debug)]
struct State {
    queue: Queue,
    limiter: RateLimiter,
    /// A thread waits for requests.
    watched: bool,
    patience: Patience,
    stopping: bool,
}

/// What there is to do.
enum Next {
    Serve(Request),
    /// Nothing; the driver has not been asked to kick.
    Empty,
    /// The rate limit does not let the next one pass yet.
    Hold(Duration),
}

impl Service {
    /// # Errors
    /// `HostFailure` when the process has no file descriptors left.
    pub(super) fn new(
        disk: &Arc<Disk>,
        limit: &RateLimit,
        queue: Queue,
        kick: EventFd,
        with: &Activation,
    ) -> Result<Self, Refusal> {
        let stop = EventFd::new(EFD_NONBLOCK).map_err(|error| cannot_work(disk, &error))?;
        let limiter = RateLimiter::new(limit, Instant::now());
        Ok(Self {
            disk: Arc::clone(disk),
            memory: with.memory.clone(),
            interrupt: with.interrupt.clone(),
            write_through: with.features & 1 << VIRTIO_BLK_F_FLUSH == 0,
            kick,
            stop,
            state: Mutex::new(State {
                queue,
                limiter,
                watched: false,
                patience: Patience::default(),
                stopping: false,
            }),
            wake: Condvar::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A thread's life.
    fn serve(&self) {
        loop {
            let mut state = self.lock();
            while state.watched && !state.stopping {
                state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.stopping {
                return;
            }
            match self.next(&mut state) {
                Ok(Next::Serve(request)) => {
                    drop(state);
                    // Whether there is more to do: another thread finds out while this one works.
                    self.wake.notify_one();
                    self.carry_out(&request);
                }
                Ok(Next::Empty) => self.watch(state),
                Ok(Next::Hold(time)) => self.hold(state, time),
                Err(why) => {
                    self.interrupt.broken(why);
                    // Nothing more to do, but to be there when the device is stopped.
                    self.hold(state, Duration::MAX);
                }
            }
        }
    }

    /// Takes the next request out of the queue.
    fn next(&self, state: &mut State) -> Result<Next, Malformed> {
        const QUEUE: Malformed = Malformed("in a queue that is no queue");
        if self.interrupt.is_broken() {
            return Ok(Next::Hold(Duration::MAX));
        }
        if let Err(wait) = state.limiter.ready(Instant::now()) {
            return Ok(Next::Hold(wait));
        }
        let chain = state.queue.iter(&self.memory).map_err(|_| QUEUE)?.next();
        let Some(chain) = chain else { return Ok(Next::Empty) };
        let request = Request::parse(chain, &self.memory)?;
        state.limiter.charge(request.bytes());
        Ok(Next::Serve(request))
    }

    fn carry_out(&self, request: &Request) {
        let written = request.carry_out(&self.disk, &self.memory, self.write_through);
        let answered = written.and_then(|written| {
            let mut state = self.lock();
            let queue = &mut state.queue;
            queue
                .add_used(&self.memory, request.head, written)
                .and_then(|()| queue.needs_notification(&self.memory))
                .map_err(|_| Malformed("in a queue that takes no answer"))
        });
        match answered {
            Ok(true) => self.interrupt.used(0),
            Ok(false) => {}
            Err(why) => self.interrupt.broken(why),
        }
    }

    /// Waits until there is something in the queue, or the end.
    fn watch(&self, mut state: MutexGuard<'_, State>) {
        let began = Instant::now();
        state.watched = true;
        let (patience, seen) = (state.patience.0, Seen::of(&state.queue));
        drop(state);
        let mut came = false;
        while !came && began.elapsed() < patience {
            std::hint::spin_loop();
            came = seen.has_changed(&self.memory);
        }
        if !came {
            // Looks again after it has asked to be told: nothing falls between.
            let asked = self.lock().queue.enable_notification(&self.memory);
            // What is wrong with the queue shows when it is looked at.
            if let Ok(false) = asked {
                wait_readable(&[&self.stop, &self.kick], None);
                // Taken back before the queue is looked at: a later kick is for later requests.
                let _ = self.kick.read();
            }
        }
        let mut state = self.lock();
        state.watched = false;
        state.patience.learn(began.elapsed());
    }

    /// Waits for that time, or the end.
    fn hold(&self, mut state: MutexGuard<'_, State>, time: Duration) {
        state.watched = true;
        drop(state);
        wait_readable(&[&self.stop], Some(time));
        self.lock().watched = false;
    }

    /// Carries out what is in the queue with the caller's thread, until it is empty or the device broken.
    #[cfg(test)]
    pub(super) fn serve_here(&self) {
        loop {
            let next = self.next(&mut self.lock());
            match next {
                Ok(Next::Serve(request)) => self.carry_out(&request),
                Ok(Next::Empty) => {
                    if !matches!(self.lock().queue.enable_notification(&self.memory), Ok(true)) {
                        return;
                    }
                }
                Ok(Next::Hold(_)) => return,
                Err(why) => self.interrupt.broken(why),
            }
        }
    }

    pub(super) fn queue(&self) -> QueueState {
        self.lock().queue.state()
    }
}

impl Workers {
    /// # Errors
    /// `HostFailure` when the process may have no more threads.
    pub(super) fn start(service: Service, name: &str) -> Result<Self, Refusal> {
        let mut workers = Self { service: Arc::new(service), threads: Vec::new() };
        for number in 0..THREADS {
            let service = Arc::clone(&workers.service);
            let serve = move || service.serve();
            let thread = jail::spawn(ThreadKind::Device, format!("{name}-{number}"), serve)
                .map_err(|error| cannot_work(&workers.service.disk, &error));
            match thread {
                Ok(thread) => workers.threads.push(thread),
                // One is enough to work, if slowly.
                Err(refusal) if workers.threads.is_empty() => return Err(refusal),
                Err(refusal) => {
                    tracing::warn!(%refusal, number, "a disk works with fewer threads");
                    break;
                }
            }
        }
        Ok(workers)
    }

    /// Returns when everything taken has been answered; the queue as it stands then.
    pub(super) fn stop(mut self) -> QueueState {
        self.end();
        self.service.queue()
    }

    fn end(&mut self) {
        self.service.lock().stopping = true;
        self.service.wake.notify_all();
        // Never read: it stays readable for every thread that looks.
        if let Err(error) = self.service.stop.write(1) {
            tracing::error!(%error, "the threads of a disk may not hear that they shall end");
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                self.service.interrupt.broken("a thread of its disk had panicked");
            }
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.end();
    }
}

/// Where a driver tells of new requests, and what it had told.
struct Seen {
    index: GuestAddress,
    value: u16,
}

impl Seen {
    fn of(queue: &Queue) -> Self {
        // virtio 1.2, 2.7.6: behind the ring's flags.
        Self { index: GuestAddress(queue.avail_ring().wrapping_add(2)), value: queue.next_avail() }
    }

    fn has_changed(&self, memory: &GuestRam) -> bool {
        // What cannot be read shows when the queue is looked at.
        memory
            .load::<u16>(self.index, Ordering::Acquire)
            .is_ok_and(|now| u16::from_le(now) != self.value)
    }
}

/// Waits until one of them is readable, or that time has passed.
fn wait_readable(events: &[&EventFd], time: Option<Duration>) {
    let mut polled: Vec<_> = events
        .iter()
        .map(|event| libc::pollfd { fd: event.as_raw_fd(), events: libc::POLLIN, revents: 0 })
        .collect();
    let deadline = time.and_then(|time| Instant::now().checked_add(time));
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = left.map(|left| libc::timespec {
            tv_sec: libc::time_t::try_from(left.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: left.subsec_nanos().into(),
        });
        let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: the array and the time live through the call; no signal mask is given.
        let ready = unsafe {
            libc::ppoll(
                polled.as_mut_ptr(),
                polled.len() as libc::nfds_t,
                timeout,
                std::ptr::null(),
            )
        };
        let interrupted = std::io::Error::last_os_error().kind() == std::io::ErrorKind::Interrupted;
        if ready >= 0 || !interrupted {
            return;
        }
    }
}

fn cannot_work(disk: &Disk, error: &std::io::Error) -> Refusal {
    Refusal::new(
        RefusalCode::HostFailure,
        format!("no thread or file descriptor for disk {}: {error}", disk.path().display()),
        "raise the limits on tasks and open files of this service",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_grows_to_what_pays_and_is_lost_when_it_does_not() {
        let micros = Duration::from_micros;
        let mut patience = Patience::default();
        let mut after = |empty| {
            patience.learn(micros(empty));
            patience.0
        };
        assert_eq!([after(10), after(10), after(10)], [micros(4), micros(8), micros(16)]);
        assert_eq!(after(10), micros(16), "long enough");
        assert_eq!([after(30), after(31)], [micros(32), micros(32)]);
        assert_eq!([after(33), after(33)], [micros(0), micros(0)]);
    }
}
