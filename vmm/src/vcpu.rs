//! vCPU threads: running, pausing, ending.
//!
//! ```text
//!             resume                    a guest that ends, a KVM failure
//!   parked ───────────▶ running ─────────────────────────────────▶ ended
//!      ▲                   │
//!      └───────────────────┘ pause: immediate_exit + signal
//! ```
//!
//! One thread per vCPU owns its file descriptor while it runs, and leaves it
//! unlocked while parked, so that its state can be read and set. All of them
//! share one [`State`]: what they shall do, and how many are parked. A guest that
//! ends on one vCPU has the others parked as well.
//!
//! A vCPU parks only after `KVM_RUN` returned EINTR. With `immediate_exit` set,
//! `KVM_RUN` completes the I/O instruction of the last exit before it returns
//! so (api.rst 5, "immediate_exit"; 4.10, KVM_RUN, the note on pending
//! operations): no half-done instruction is ever saved.

use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Once, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use ballast_model::{Refusal, RefusalCode};
use kvm_bindings::{
    KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_SIMUL_EX,
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET,
    KVM_SYSTEM_EVENT_SHUTDOWN,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::devices::Devices;
use crate::jail::{self, ThreadKind};
use crate::power::{self, GuestEnd};

/// Called once when the guest ends by itself, with the reason.
pub(crate) type OnEnd = Arc<dyn Fn(&GuestEnd) + Send + Sync>;

/// How long all vCPUs may take to park. Milliseconds are usual; this is for a
/// machine that is starved of CPU.
const PAUSE_TIMEOUT: Duration = Duration::from_secs(10);

/// All vCPUs of a machine. Dropping it ends their threads.
#[derive(Debug)]
pub(crate) struct Vcpus {
    shared: Arc<Shared>,
}

/// What the threads and their owner share.
struct Shared {
    vcpus: Vec<Vcpu>,
    state: Mutex<State>,
    changed: Condvar,
    /// Never held while waiting for a thread: a vCPU that ends kicks the others.
    threads: Mutex<Vec<JoinHandle<()>>>,
    devices: Arc<Devices>,
    on_end: OnEnd,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("state", &self.state).finish_non_exhaustive()
    }
}

/// One vCPU. Locked by its thread while it runs, free while it is parked.
#[derive(Debug)]
struct Vcpu {
    fd: Mutex<VcpuFd>,
    /// `immediate_exit` in the `kvm_run` page, which `fd` keeps mapped.
    immediate_exit: *const AtomicU8,
    /// How long it shall not run, in microseconds, when it next leaves the guest.
    nap_micros: AtomicU64,
}

// SAFETY: `immediate_exit` points into the mapping that `fd` owns and that lives as long as
// this value; it is only used atomically.
unsafe impl Send for Vcpu {}
// SAFETY: as above.
unsafe impl Sync for Vcpu {}

#[derive(Debug)]
struct State {
    order: Order,
    parked: usize,
    /// Why the guest runs no more, once it does not.
    ended: Option<GuestEnd>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Park,
    Run,
    End,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Vcpus {
    /// Starts a parked thread for each of `fds`. `on_end` is called once, from a
    /// vCPU's thread, when the guest ends by itself.
    pub(crate) fn start(
        fds: Vec<VcpuFd>,
        devices: &Arc<Devices>,
        on_end: &OnEnd,
    ) -> Result<Self, Refusal> {
        install_kick_handler()?;
        let count = fds.len();
        let shared = Arc::new(Shared {
            vcpus: fds.into_iter().map(Vcpu::new).collect(),
            state: Mutex::new(State { order: Order::Park, parked: 0, ended: None }),
            changed: Condvar::new(),
            threads: Mutex::new(Vec::with_capacity(count)),
            devices: Arc::clone(devices),
            on_end: Arc::clone(on_end),
        });
        let all = Self { shared };
        for index in 0..count {
            let shared = Arc::clone(&all.shared);
            let run = move || shared.thread(index);
            let thread = jail::spawn(ThreadKind::Vcpu, format!("vcpu{index}"), run);
            let thread = thread.map_err(|error| {
                Refusal::new(
                    RefusalCode::HostFailure,
                    format!("no thread for a vCPU: {error}"),
                    "raise the limit on tasks of this service, or free memory on the host",
                )
            })?;
            lock(&all.shared.threads).push(thread);
        }
        all.shared.wait_parked()?;
        Ok(all)
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.shared.vcpus.len()
    }

    /// Lets all of them run; returns once each has left its parking place. A
    /// guest that has ended stays where it is.
    pub(crate) fn resume(&self) {
        let shared = &self.shared;
        let mut state = lock(&shared.state);
        if state.order != Order::Park || state.ended.is_some() {
            return;
        }
        state.order = Order::Run;
        shared.changed.notify_all();
        while state.parked > 0 && state.order == Order::Run {
            state = shared.wait(state);
        }
    }

    /// Stops all of them between two instructions; returns once all are parked.
    ///
    /// # Errors
    /// `Timeout` when one does not park; then all run on.
    pub(crate) fn pause(&self) -> Result<(), Refusal> {
        if !self.shared.give_order(Order::Park) {
            return Ok(());
        }
        let parked = self.shared.wait_parked();
        if parked.is_err() {
            self.resume();
        }
        parked
    }

    /// Whether the guest runs.
    pub(crate) fn is_running(&self) -> bool {
        lock(&self.shared.state).order == Order::Run
    }

    /// Why the guest runs no more, once it does not.
    pub(crate) fn ended(&self) -> Option<GuestEnd> {
        lock(&self.shared.state).ended.clone()
    }

    /// Calls `with` on vCPU after vCPU, in order. Blocks while one runs: pause first.
    pub(crate) fn each<E>(
        &self,
        mut with: impl FnMut(usize, &VcpuFd) -> Result<(), E>,
    ) -> Result<(), E> {
        self.shared.vcpus.iter().enumerate().try_for_each(|(place, vcpu)| {
            let fd = lock(&vcpu.fd);
            with(place, &fd)
        })
    }

    /// CPU time all vCPU threads have used.
    pub(crate) fn cpu_time(&self) -> Duration {
        self.cpu_times().iter().sum()
    }

    /// CPU time each vCPU's thread has used.
    pub(crate) fn cpu_times(&self) -> Vec<Duration> {
        lock(&self.shared.threads).iter().map(thread_cpu_time).collect()
    }

    /// Keeps one vCPU from running for this long, or until it is to park; if it naps already,
    /// after that. Does not wait for it.
    pub(crate) fn nap(&self, index: usize, time: Duration) {
        let shared = &self.shared;
        let Some(vcpu) = shared.vcpus.get(index) else { return };
        {
            let state = lock(&shared.state);
            if state.order != Order::Run {
                return;
            }
            let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
            vcpu.nap_micros.store(micros, Ordering::SeqCst);
            vcpu.immediate_exit().store(1, Ordering::SeqCst);
        }
        if let Some(thread) = lock(&shared.threads).get(index)
            && let Err(error) = thread.kill(SIGRTMIN())
        {
            tracing::debug!(%error, "a vCPU's thread took no signal");
        }
    }

    /// Ends all threads and waits for them. Nothing runs afterwards.
    pub(crate) fn end(&self) {
        self.shared.give_order(Order::End);
        let threads = std::mem::take(&mut *lock(&self.shared.threads));
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a vCPU's thread had panicked");
            }
        }
    }
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Has every vCPU leave the guest and look at its orders; false when the
    /// order to end was given before.
    fn give_order(&self, order: Order) -> bool {
        {
            let mut state = lock(&self.state);
            if state.order == Order::End && order != Order::End {
                return false;
            }
            state.order = order;
            // Under the lock: a thread clears the flag under the lock when it leaves its
            // parking place, so none runs on past this order.
            for vcpu in &self.vcpus {
                vcpu.immediate_exit().store(1, Ordering::SeqCst);
            }
            self.changed.notify_all();
        }
        for thread in lock(&self.threads).iter() {
            if let Err(error) = thread.kill(SIGRTMIN()) {
                tracing::debug!(%error, "a vCPU's thread took no signal");
            }
        }
        true
    }

    fn wait_parked(&self) -> Result<(), Refusal> {
        let all = self.vcpus.len();
        let (state, _) = self
            .changed
            .wait_timeout_while(lock(&self.state), PAUSE_TIMEOUT, |state| state.parked < all)
            .unwrap_or_else(PoisonError::into_inner);
        if state.parked < all {
            return Err(Refusal::new(
                RefusalCode::Timeout,
                format!("only {} of {all} vCPUs stopped within {PAUSE_TIMEOUT:?}", state.parked),
                "check the load of the host, then try again",
            ));
        }
        Ok(())
    }

    fn thread(&self, index: usize) {
        while self.park(index) {
            if let Err(why) = self.run(index) {
                self.guest_ended(&why);
            }
        }
    }

    /// Waits for the order to run; false when the order is to end.
    fn park(&self, index: usize) -> bool {
        let mut state = lock(&self.state);
        state.parked += 1;
        self.changed.notify_all();
        while state.order == Order::Park {
            state = self.wait(state);
        }
        let go = state.order == Order::Run;
        if go {
            state.parked -= 1;
            self.vcpus[index].immediate_exit().store(0, Ordering::SeqCst);
            self.changed.notify_all();
        }
        go
    }

    /// Sits out what [`Vcpus::nap`] asked for; false when the order is no longer to run.
    fn nap(&self, index: usize) -> bool {
        let vcpu = &self.vcpus[index];
        let mut state = lock(&self.state);
        // Again when more was asked for meanwhile.
        while state.order == Order::Run {
            let time = Duration::from_micros(vcpu.nap_micros.swap(0, Ordering::SeqCst));
            if time.is_zero() {
                // Under the lock, as in `park`: an order to stop sets it again.
                vcpu.immediate_exit().store(0, Ordering::SeqCst);
                return true;
            }
            let waited =
                self.changed.wait_timeout_while(state, time, |state| state.order == Order::Run);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
        false
    }

    /// Parks the whole machine, for good.
    fn guest_ended(&self, why: &GuestEnd) {
        let first = {
            let mut state = lock(&self.state);
            let first = state.ended.is_none();
            state.ended.get_or_insert_with(|| why.clone());
            first
        };
        if first {
            self.give_order(Order::Park);
            (self.on_end)(why);
        }
    }

    /// Runs until the order changes. An error says why the guest cannot go on.
    fn run(&self, index: usize) -> Result<(), GuestEnd> {
        let devices = &self.devices;
        let mut fd = lock(&self.vcpus[index].fd);
        loop {
            match fd.run() {
                Ok(VcpuExit::IoIn(port, data)) => match power::read(port) {
                    Some(value) => data.fill(value),
                    None => devices.port_read(port, data),
                },
                Ok(VcpuExit::IoOut(port, data)) => match power::written(port, data) {
                    Some(end) => return Err(end),
                    None => devices.port_write(port, data),
                },
                Ok(VcpuExit::MmioRead(address, data)) => devices.mmio_read(address, data),
                Ok(VcpuExit::MmioWrite(address, data)) => devices.mmio_write(address, data),
                Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen) => {}
                Ok(VcpuExit::InternalError) => return Err(internal_error(index, &mut fd)),
                Ok(exit) => return Err(end_of(index, &exit)),
                Err(error) if error.errno() == libc::EINTR => {
                    if !self.nap(index) {
                        return Ok(());
                    }
                }
                // A vCPU that waits for its start-up IPI was woken: ask again.
                Err(error) if error.errno() == libc::EAGAIN => {}
                Err(error) => {
                    return Err(GuestEnd::KvmFailed { vcpu: index, what: error.to_string() });
                }
            }
        }
    }
}

/// KVM's own account of why it gives up (api.rst 5, KVM_EXIT_INTERNAL_ERROR).
fn internal_error(vcpu: usize, fd: &mut VcpuFd) -> GuestEnd {
    // SAFETY: the exit was KVM_EXIT_INTERNAL_ERROR, for which KVM fills in this part of the union.
    let error = unsafe { fd.get_kvm_run().__bindgen_anon_1.internal };
    let what = match error.suberror {
        KVM_INTERNAL_ERROR_EMULATION => "an instruction it does not emulate".to_owned(),
        KVM_INTERNAL_ERROR_SIMUL_EX => "two exceptions at a time".to_owned(),
        KVM_INTERNAL_ERROR_DELIVERY_EV => "an exit while an event was delivered".to_owned(),
        KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => "an exit reason it does not know".to_owned(),
        other => format!("internal error {other}"),
    };
    let at = fd.get_regs().map_or_else(|_| String::new(), |regs| format!(" at {:#x}", regs.rip));
    GuestEnd::KvmInternal { vcpu, what: format!("{what}{at}") }
}

/// What an exit means that the guest does not come back from.
fn end_of(vcpu: usize, exit: &VcpuExit<'_>) -> GuestEnd {
    match exit {
        VcpuExit::Hlt => GuestEnd::Halted,
        VcpuExit::Shutdown | VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_CRASH, _) => {
            GuestEnd::TripleFault { vcpu }
        }
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _) => GuestEnd::PowerOff,
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _) => GuestEnd::Reset,
        other => GuestEnd::KvmFailed { vcpu, what: format!("{other:?}") },
    }
}

impl Vcpu {
    fn new(mut fd: VcpuFd) -> Self {
        let immediate_exit = (&raw mut fd.get_kvm_run().immediate_exit).cast::<AtomicU8>();
        Self { fd: Mutex::new(fd), immediate_exit, nap_micros: AtomicU64::new(0) }
    }

    fn immediate_exit(&self) -> &AtomicU8 {
        // SAFETY: points to a byte of the `kvm_run` page, mapped as long as `self.fd` lives.
        // The kernel reads it; everybody here uses it atomically.
        unsafe { &*self.immediate_exit }
    }
}

fn install_kick_handler() -> Result<(), Refusal> {
    extern "C" fn nothing(
        _signal: libc::c_int,
        _info: *mut libc::siginfo_t,
        _context: *mut libc::c_void,
    ) {
    }
    static ONCE: Once = Once::new();
    let mut outcome = Ok(());
    ONCE.call_once(|| outcome = register_signal_handler(SIGRTMIN(), nothing));
    outcome.map_err(|error| {
        Refusal::new(
            RefusalCode::HostFailure,
            format!("cannot handle the signal that pauses vCPUs: {error}"),
            "report a defect",
        )
    })
}

/// CPU time of one thread; zero when it has ended.
fn thread_cpu_time(thread: &JoinHandle<()>) -> Duration {
    let mut clock = 0;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the handle has not been joined, so its pthread_t is valid; both calls write only
    // to the variables given.
    let known = unsafe {
        libc::pthread_getcpuclockid(thread.as_pthread_t(), &raw mut clock) == 0
            && libc::clock_gettime(clock, &raw mut time) == 0
    };
    if !known {
        return Duration::ZERO;
    }
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0))
}
