//! The least machine a guest boots on: one vCPU, KVM's own interrupt
//! controller, memory from address 0, a serial port that only sends.
//!
//! For tests of guests and of `ballast_vmm::boot`, which should not need all of
//! the VMM to work. [`Mini`] is a machine that stands still, [`Running`] one
//! whose vCPU has a thread.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use ballast_vmm::GuestRam;
use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, Msrs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_pit_config,
    kvm_regs, kvm_sregs, kvm_userspace_memory_region, kvm_vcpu_events, kvm_xsave,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

const SERIAL_DATA: u16 = 0x3f8;
const SERIAL_LINE_STATUS: u16 = 0x3fd;
const SERIAL_READY: u8 = 0x60;
const MSR_TSC: u32 = 0x10;

/// A machine that stands still.
pub(crate) struct Mini {
    vcpu: VcpuFd,
    vm: VmFd,
    /// Dropped last: KVM uses the mapping as long as the VM exists.
    memory: GuestRam,
}

/// A machine whose vCPU runs in a thread of its own.
pub(crate) struct Running {
    /// What the guest sends, as it comes.
    pub(crate) console: Receiver<Vec<u8>>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<Mini>>,
}

/// As much of a vCPU as the probe guest has.
pub(crate) struct VcpuState {
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: kvm_xsave,
    tsc: u64,
    /// For tests that lose an interrupt on the way.
    pub(crate) lapic: kvm_lapic_state,
    events: kvm_vcpu_events,
    mp_state: kvm_mp_state,
}

impl Mini {
    /// A machine with memory of its own, all zeroes.
    pub(crate) fn new(memory_mib: usize) -> io::Result<Self> {
        let memory = GuestRam::from_ranges(&[(GuestAddress(0), memory_mib << 20)])
            .map_err(io::Error::other)?;
        let kvm = Kvm::new()?;
        let vm = kvm.create_vm()?;
        vm.set_tss_address(0xfffb_d000)?;
        vm.create_irq_chip()?;
        vm.create_pit2(kvm_pit_config::default())?;
        for (slot, region) in memory.iter().enumerate() {
            let host = memory.get_host_address(region.start_addr()).map_err(io::Error::other)?;
            let region = kvm_userspace_memory_region {
                slot: u32::try_from(slot).map_err(io::Error::other)?,
                flags: 0,
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: host as u64,
            };
            // SAFETY: the mapping outlives the VM, see the order of `Mini`'s fields.
            unsafe { vm.set_user_memory_region(region)? };
        }
        let vcpu = vm.create_vcpu(0)?;
        vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?)?;
        Ok(Self { vcpu, vm, memory })
    }

    /// A further vCPU, which nothing runs.
    pub(crate) fn add_vcpu(&self, index: u64) -> io::Result<VcpuFd> {
        let vcpu = self.vm.create_vcpu(index)?;
        vcpu.set_cpuid2(&self.vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES)?)?;
        Ok(vcpu)
    }

    pub(crate) fn memory(&self) -> &GuestRam {
        &self.memory
    }

    pub(crate) fn vcpu(&self) -> &VcpuFd {
        &self.vcpu
    }

    pub(crate) fn save(&self) -> io::Result<VcpuState> {
        let mut tsc = Msrs::from_entries(&[kvm_msr_entry { index: MSR_TSC, ..Default::default() }])
            .map_err(io::Error::other)?;
        self.vcpu.get_msrs(&mut tsc)?;
        Ok(VcpuState {
            regs: self.vcpu.get_regs()?,
            sregs: self.vcpu.get_sregs()?,
            xsave: self.vcpu.get_xsave()?,
            tsc: tsc.as_slice()[0].data,
            lapic: self.vcpu.get_lapic()?,
            events: self.vcpu.get_vcpu_events()?,
            mp_state: self.vcpu.get_mp_state()?,
        })
    }

    pub(crate) fn restore(&self, state: &VcpuState) -> io::Result<()> {
        let tsc = kvm_msr_entry { index: MSR_TSC, data: state.tsc, ..Default::default() };
        self.vcpu.set_sregs(&state.sregs)?;
        self.vcpu.set_regs(&state.regs)?;
        // SAFETY: no feature beyond the legacy 4 KiB was enabled by this process.
        unsafe { self.vcpu.set_xsave(&state.xsave)? };
        self.vcpu.set_msrs(&Msrs::from_entries(&[tsc]).map_err(io::Error::other)?)?;
        self.vcpu.set_lapic(&state.lapic)?;
        self.vcpu.set_vcpu_events(&state.events)?;
        self.vcpu.set_mp_state(state.mp_state)?;
        Ok(())
    }

    /// Lets it run.
    pub(crate) fn start(self) -> io::Result<Running> {
        extern "C" fn nothing(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
        register_signal_handler(SIGRTMIN(), nothing)?;
        let (sender, console) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("vcpu0".to_owned())
            .spawn(move || self.run(&sender, &stopped))?;
        Ok(Running { console, stop, thread })
    }

    /// Ends at an interruption only, when the I/O of the last exit is complete.
    fn run(mut self, console: &Sender<Vec<u8>>, stop: &AtomicBool) -> io::Result<Self> {
        loop {
            match self.vcpu.run() {
                // A closed channel means that nobody listens any more; `stop` ends the thread.
                Ok(VcpuExit::IoOut(SERIAL_DATA, data)) => drop(console.send(data.to_vec())),
                Ok(VcpuExit::IoIn(SERIAL_LINE_STATUS, data)) => data.fill(SERIAL_READY),
                Ok(VcpuExit::IoIn(_, data)) => data.fill(0xff),
                Ok(VcpuExit::IoOut(..)) => {}
                Ok(exit) => return Err(io::Error::other(format!("unexpected exit {exit:?}"))),
                Err(error) if error.errno() == libc::EINTR => {
                    if stop.load(Ordering::Acquire) {
                        return Ok(self);
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Running {
    /// Makes it stand still; what the guest sent and nobody read yet comes along.
    pub(crate) fn stop(self) -> io::Result<(Mini, Receiver<Vec<u8>>)> {
        self.stop.store(true, Ordering::Release);
        // Again and again: a signal between the check of `stop` and the next entry is lost.
        while !self.thread.is_finished() {
            // Fails only when the thread has ended meanwhile.
            let _ = self.thread.kill(SIGRTMIN());
            thread::sleep(Duration::from_millis(1));
        }
        let end = self.thread.join().map_err(|_| io::Error::other("the vCPU thread panicked"))?;
        Ok((end?, self.console))
    }
}
