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
//! share one [`Control`]: what they shall do, and how many do it.
//!
//! A vCPU parks only after `KVM_RUN` returned EINTR. With `immediate_exit` set,
//! `KVM_RUN` completes the I/O instruction of the last exit before it returns
//! so (api.rst 5, "immediate_exit"; 4.10, KVM_RUN, the note on pending
//! operations): no half-done instruction is ever saved.

use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Once, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use ballast_model::{Refusal, RefusalCode};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::devices::Devices;

/// How long all vCPUs may take to park. Milliseconds are usual; this is for a
/// machine that is starved of CPU.
const PAUSE_TIMEOUT: Duration = Duration::from_secs(10);

/// All vCPUs of a machine.
#[derive(Debug)]
pub(crate) struct Vcpus {
    vcpus: Vec<Arc<Vcpu>>,
    control: Arc<Control>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// One vCPU. Locked by its thread while it runs, free while it is parked.
#[derive(Debug)]
struct Vcpu {
    index: u32,
    fd: Mutex<VcpuFd>,
    /// `immediate_exit` in the `kvm_run` page, which `fd` keeps mapped.
    immediate_exit: *const AtomicU8,
}

// SAFETY: `immediate_exit` points into the mapping that `fd` owns and that lives as long as
// this value; it is only used atomically.
unsafe impl Send for Vcpu {}
// SAFETY: as above.
unsafe impl Sync for Vcpu {}

#[derive(Debug)]
struct Control {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    order: Order,
    parked: usize,
    /// Why the guest runs no more, once it does not.
    ended: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Park,
    Run,
    End,
}

impl Control {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

impl Vcpus {
    /// Starts a parked thread for each of `fds`. `on_end` is called once, from a
    /// vCPU's thread, when the guest ends by itself.
    pub(crate) fn start(
        fds: Vec<VcpuFd>,
        devices: &Arc<Devices>,
        on_end: &Arc<dyn Fn(&str) + Send + Sync>,
    ) -> Result<Self, Refusal> {
        install_kick_handler()?;
        let state = State { order: Order::Park, parked: 0, ended: None };
        let control = Arc::new(Control { state: Mutex::new(state), changed: Condvar::new() });
        let vcpus: Vec<Arc<Vcpu>> =
            (0..).zip(fds).map(|(index, fd)| Arc::new(Vcpu::new(index, fd))).collect();
        let all = Self { vcpus, control, threads: Mutex::new(Vec::new()) };
        for vcpu in &all.vcpus {
            let (vcpu, control) = (Arc::clone(vcpu), Arc::clone(&all.control));
            let (devices, on_end) = (Arc::clone(devices), Arc::clone(on_end));
            let thread = std::thread::Builder::new()
                .name(format!("vcpu{}", vcpu.index))
                .spawn(move || vcpu.thread(&control, &devices, &*on_end))
                .map_err(|error| {
                    Refusal::new(
                        RefusalCode::HostFailure,
                        format!("no thread for a vCPU: {error}"),
                        "raise the limit on tasks of this service, or free memory on the host",
                    )
                })?;
            all.threads().push(thread);
        }
        all.wait_parked()?;
        Ok(all)
    }

    fn threads(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.vcpus.len()
    }

    /// Lets all of them run; returns once each has left its parking place.
    pub(crate) fn resume(&self) {
        let mut state = self.control.lock();
        if state.order != Order::Park {
            return;
        }
        state.order = Order::Run;
        self.control.changed.notify_all();
        while state.parked > 0 && state.order == Order::Run && state.ended.is_none() {
            state = self.control.wait(state);
        }
    }

    /// Stops all of them between two instructions; returns once all are parked.
    ///
    /// # Errors
    /// `Timeout` when one does not park; then all run on.
    pub(crate) fn pause(&self) -> Result<(), Refusal> {
        {
            let mut state = self.control.lock();
            if state.order == Order::End {
                return Ok(());
            }
            state.order = Order::Park;
            // Under the lock: a thread clears the flag under the lock when it leaves its
            // parking place, so none runs on past this order.
            for vcpu in &self.vcpus {
                vcpu.immediate_exit().store(1, Ordering::SeqCst);
            }
        }
        self.kick();
        let parked = self.wait_parked();
        if parked.is_err() {
            self.resume();
        }
        parked
    }

    fn kick(&self) {
        for thread in self.threads().iter() {
            if let Err(error) = thread.kill(SIGRTMIN()) {
                tracing::debug!(%error, "a vCPU's thread took no signal");
            }
        }
    }

    fn wait_parked(&self) -> Result<(), Refusal> {
        let state = self.control.lock();
        let all = self.vcpus.len();
        let (state, _) = self
            .control
            .changed
            .wait_timeout_while(state, PAUSE_TIMEOUT, |state| state.parked < all)
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

    /// Whether the order is to run.
    pub(crate) fn is_running(&self) -> bool {
        self.control.lock().order == Order::Run
    }

    /// Why the guest runs no more, once it does not.
    pub(crate) fn ended(&self) -> Option<String> {
        self.control.lock().ended.clone()
    }

    /// Calls `with` on vCPU after vCPU, in order. Blocks while one runs: pause first.
    pub(crate) fn each<E>(
        &self,
        mut with: impl FnMut(usize, &VcpuFd) -> Result<(), E>,
    ) -> Result<(), E> {
        for (place, vcpu) in self.vcpus.iter().enumerate() {
            with(place, &vcpu.fd())?;
        }
        Ok(())
    }

    /// CPU time all vCPU threads have used.
    pub(crate) fn cpu_time(&self) -> Duration {
        self.threads().iter().map(thread_cpu_time).sum()
    }

    /// Ends all threads and waits for them. Nothing runs afterwards.
    pub(crate) fn end(&self) {
        {
            let mut state = self.control.lock();
            state.order = Order::End;
            for vcpu in &self.vcpus {
                vcpu.immediate_exit().store(1, Ordering::SeqCst);
            }
            self.control.changed.notify_all();
        }
        self.kick();
        for thread in self.threads().drain(..) {
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

impl Vcpu {
    fn new(index: u32, mut fd: VcpuFd) -> Self {
        let immediate_exit = (&raw mut fd.get_kvm_run().immediate_exit).cast::<AtomicU8>();
        Self { index, fd: Mutex::new(fd), immediate_exit }
    }

    fn fd(&self) -> MutexGuard<'_, VcpuFd> {
        self.fd.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn immediate_exit(&self) -> &AtomicU8 {
        // SAFETY: points to a byte of the `kvm_run` page, mapped as long as `self.fd` lives.
        // The kernel reads it; everybody here uses it atomically.
        unsafe { &*self.immediate_exit }
    }

    fn thread(&self, control: &Control, devices: &Devices, on_end: &dyn Fn(&str)) {
        while self.park(control) {
            if let Err(why) = self.run(control, devices) {
                let first = {
                    let mut state = control.lock();
                    let first = state.ended.is_none();
                    if first {
                        state.ended = Some(why.clone());
                    }
                    control.changed.notify_all();
                    first
                };
                if first {
                    on_end(&why);
                }
                self.park_for_good(control);
                return;
            }
        }
    }

    /// Waits for the order to run; false when the order is to end.
    fn park(&self, control: &Control) -> bool {
        let mut state = control.lock();
        state.parked += 1;
        control.changed.notify_all();
        while state.order == Order::Park {
            state = control.wait(state);
        }
        state.parked -= 1;
        self.immediate_exit().store(0, Ordering::SeqCst);
        let go = state.order == Order::Run;
        if !go {
            state.parked += 1;
        }
        control.changed.notify_all();
        go
    }

    /// Counts as parked from now on: this vCPU will not run again.
    fn park_for_good(&self, control: &Control) {
        let mut state = control.lock();
        state.parked += 1;
        control.changed.notify_all();
    }

    /// Runs until the order changes. An error says why the guest cannot go on.
    fn run(&self, control: &Control, devices: &Devices) -> Result<(), String> {
        let mut fd = self.fd();
        loop {
            match fd.run() {
                Ok(VcpuExit::IoIn(port, data)) => devices.port_read(port, data),
                Ok(VcpuExit::IoOut(port, data)) => devices.port_write(port, data),
                Ok(VcpuExit::MmioRead(address, data)) => devices.mmio_read(address, data),
                Ok(VcpuExit::MmioWrite(address, data)) => devices.mmio_write(address, data),
                Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen) => {}
                Ok(VcpuExit::Hlt) => return Err("the guest halted for good".to_owned()),
                Ok(VcpuExit::Shutdown) => {
                    return Err(format!("vCPU {} shut down (triple fault)", self.index));
                }
                Ok(exit) => return Err(format!("vCPU {} cannot go on: {exit:?}", self.index)),
                Err(error) if error.errno() == libc::EINTR => {
                    if control.lock().order != Order::Run {
                        return Ok(());
                    }
                }
                // A vCPU that waits for its start-up IPI was woken: ask again.
                Err(error) if error.errno() == libc::EAGAIN => {}
                Err(error) => return Err(format!("KVM does not run vCPU {}: {error}", self.index)),
            }
        }
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
