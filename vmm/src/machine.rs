//! One virtual machine: memory, vCPUs, interrupt controllers, devices.
//!
//! A machine is built either for a kernel to boot on ([`Machine::boot`]) or
//! empty, for a saved state to be loaded into ([`Machine::empty`]). Both build
//! the same hardware in the same order; only where the first state comes from
//! differs. Dropping it ends the vCPU threads, then frees everything.
//!
//! Order of building (api.rst): the interrupt controllers (4.24) and the PIT
//! (4.71) before any vCPU; memory slots before a vCPU runs; `KVM_SET_CPUID2`
//! (4.20) before any register is set, because KVM checks them against it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ballast_model::hardware::CpuBaseline;
use ballast_model::{Refusal, RefusalCode, VmSpec};
use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_pit_config, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use crate::boot;
use crate::cpu::{self, CpuModel};
use crate::devices::{Beginning, Devices, virtio};
use crate::kvm::ioctl::{DirtyLogKind, enable_manual_dirty_log, has_sregs2, xsave_bytes};
use crate::kvm::{self, failed};
use crate::memory::{Layout, Memory, PAGE_BYTES, Slot, Taken};
use crate::state::MachineState;
use crate::vcpu::{OnEnd, Vcpus};

/// Three pages below the BIOS that KVM needs on Intel; no memory and no device is there.
const TSS_ADDRESS: usize = 0xfffb_d000;
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;

/// A virtual machine.
#[derive(Debug)]
pub(crate) struct Machine {
    // Threads first: nothing of the rest may go while one runs.
    pub(crate) vcpus: Vcpus,
    pub(crate) devices: Arc<Devices>,
    pub(crate) vm: Arc<VmFd>,
    pub(crate) traits: Traits,
    // Last: KVM maps it into the guest.
    pub(crate) memory: Memory,
}

/// What this host's KVM is like, as far as saving and moving a machine goes.
#[derive(Debug, Clone)]
pub(crate) struct Traits {
    pub(crate) cpu: CpuModel,
    pub(crate) tsc_khz: u32,
    pub(crate) dirty_log: DirtyLogKind,
    pub(crate) xsave_bytes: usize,
    pub(crate) sregs2: bool,
    pub(crate) msrs: Vec<u32>,
}

/// What a machine is built into.
pub(crate) struct Surroundings {
    /// Where local disks are.
    pub(crate) disk_root: PathBuf,
    pub(crate) on_end: OnEnd,
    /// How far its memory is, while it is built.
    pub(crate) taken: Arc<Taken>,
}

/// The parts, before threads are started.
struct Parts {
    fds: Vec<VcpuFd>,
    devices: Arc<Devices>,
    vm: Arc<VmFd>,
    traits: Traits,
    memory: Memory,
}

impl Machine {
    /// A machine about to run its kernel's first instruction, paused.
    ///
    /// # Errors
    /// `NotFound` and others for the kernel (see [`boot::load`]),
    /// `CapacityExceeded` for memory, `HostFailure` and `Unsupported` for KVM.
    pub(crate) fn boot(spec: &VmSpec, around: &Surroundings) -> Result<Self, Refusal> {
        let parts = Parts::build(spec, around, Beginning::Boot)?;
        let devices: Vec<_> = parts.devices.slots().map(mmio_device).collect();
        let order = boot::Order {
            kernel: &spec.kernel,
            initrd: spec.initrd.as_deref(),
            cmdline: &spec.cmdline,
            vcpus: spec.vcpus,
            tsc_khz: parts.traits.tsc_khz,
            devices: &devices,
        };
        let state = boot::load(parts.memory.mmap(), &order)?;
        for (index, vcpu) in (0..).zip(&parts.fds) {
            state.apply(vcpu, index)?;
        }
        parts.assemble(&around.on_end)
    }

    /// A machine without contents, paused, for a state to be loaded into.
    ///
    /// # Errors
    /// `CapacityExceeded` for memory, `HostFailure` and `Unsupported` for KVM.
    pub(crate) fn empty(
        spec: &VmSpec,
        beginning: Beginning,
        around: &Surroundings,
    ) -> Result<Self, Refusal> {
        Parts::build(spec, around, beginning)?.assemble(&around.on_end)
    }

    /// Lets the guest run, its devices first, and before them makes the disks this machine's.
    /// Idempotent.
    ///
    /// # Errors
    /// `Conflict` when a disk is in somebody else's use; then nothing runs.
    pub(crate) fn resume(&self) -> Result<(), Refusal> {
        self.devices.acquire_disks()?;
        self.devices.resume();
        self.excuse_the_pause();
        self.vcpus.resume();
        Ok(())
    }

    /// Tells a guest that has a kvmclock that it stood still, so that its watchdogs forgive it
    /// (api.rst 4.70, `KVM_KVMCLOCK_CTRL`). One without is told nothing.
    fn excuse_the_pause(&self) {
        if self.vcpus.is_running() {
            return;
        }
        let told = self.vcpus.each(|_, vcpu| match vcpu.kvmclock_ctrl() {
            Err(error) if error.errno() != libc::EINVAL => Err(error),
            _ => Ok(()),
        });
        if let Err(error) = told {
            tracing::warn!(%error, "the guest could not be told that it stood still");
        }
    }

    /// Ends the guest for good. What its devices have begun is finished.
    pub(crate) fn end(&self) {
        self.vcpus.end();
        self.devices.pause();
    }

    /// Stops the guest between two instructions, then its devices between two requests.
    pub(crate) fn pause(&self) -> Result<(), Refusal> {
        self.vcpus.pause()?;
        self.devices.pause();
        Ok(())
    }

    /// Everything but memory. The machine is paused.
    pub(crate) fn save(&self) -> Result<MachineState, Refusal> {
        MachineState::save(self)
    }

    /// Loads what [`save`](Self::save) took. The machine is paused and has not run.
    pub(crate) fn load(&self, state: &MachineState) -> Result<(), Refusal> {
        state.load(self)
    }

    /// CPU time of all vCPU threads since the machine was built.
    pub(crate) fn cpu_time(&self) -> Duration {
        self.vcpus.cpu_time()
    }

    /// Switches dirty logging of all memory on or off.
    pub(crate) fn log_dirty_pages(&self, on: bool) -> Result<(), Refusal> {
        let flags = if on { KVM_MEM_LOG_DIRTY_PAGES } else { 0 };
        self.memory.slots().iter().try_for_each(|slot| set_slot(&self.vm, slot, flags))
    }
}

impl Parts {
    fn build(spec: &VmSpec, around: &Surroundings, beginning: Beginning) -> Result<Self, Refusal> {
        let kvm = kvm::open()?;
        let cpu = cpu::baseline::apply(&CpuModel::of_host(kvm)?, spec.cpu)?;
        check_limits(kvm, spec)?;
        let memory =
            Memory::map_watched(Layout::of_size(spec.memory), spec.memory_backing, &around.taken)?;
        let vm = create_vm(kvm)?;
        let dirty_log = enable_manual_dirty_log(&vm);
        for slot in memory.slots() {
            set_slot(&vm, slot, 0)?;
        }
        cpu::msr::filter(&vm, spec.cpu)?;
        let mut fds = Vec::new();
        for index in 0..spec.vcpus {
            let vcpu = vm
                .create_vcpu(u64::from(index))
                .map_err(|error| failed(&format!("create vCPU {index}"), error))?;
            vcpu.set_cpuid2(&cpu.for_vcpu(index, spec.vcpus)?)
                .map_err(|error| failed("accept the CPUID table", error))?;
            fds.push(vcpu);
        }
        let mut msrs = crate::state::msr::saved_indices(kvm)?;
        msrs.retain(|&index| cpu::msr::is_visible(spec.cpu, index));
        let tsc_khz = fds.first().map_or(Ok(0), VcpuFd::get_tsc_khz);
        let traits = Traits {
            cpu,
            tsc_khz: tsc_khz.map_err(|error| failed("tell the TSC's frequency", error))?,
            dirty_log,
            xsave_bytes: xsave_bytes(&vm),
            sregs2: has_sregs2(&vm),
            msrs,
        };
        let vm = Arc::new(vm);
        let devices =
            Arc::new(Devices::new(&vm, memory.mmap(), spec, &around.disk_root, beginning)?);
        Ok(Self { fds, devices, vm, traits, memory })
    }

    fn assemble(self, on_end: &OnEnd) -> Result<Machine, Refusal> {
        let Self { fds, devices, vm, traits, memory } = self;
        let vcpus = Vcpus::start(fds, &devices, on_end)?;
        Ok(Machine { vcpus, devices, vm, traits, memory })
    }
}

fn mmio_device(slot: virtio::slots::Slot) -> boot::MmioDevice {
    boot::MmioDevice { address: slot.address, bytes: virtio::slots::SLOT_BYTES, gsi: slot.gsi }
}

/// What this host's KVM and the VM's CPU can have at most.
fn check_limits(kvm: &Kvm, spec: &VmSpec) -> Result<(), Refusal> {
    let most = kvm.get_max_vcpus();
    if usize::try_from(spec.vcpus).is_ok_and(|vcpus| vcpus > most) {
        return Err(Refusal::new(
            RefusalCode::CapacityExceeded,
            format!(
                "VM {} asks for {} vCPUs, this host's KVM gives at most {most}",
                spec.id, spec.vcpus
            ),
            "give the VM fewer vCPUs",
        ));
    }
    if spec.cpu != CpuBaseline::Host && spec.memory > cpu::baseline::MEMORY_MAX {
        return Err(Refusal::new(
            RefusalCode::CapacityExceeded,
            format!(
                "CPU baseline {} addresses less than the {} of VM {}",
                spec.cpu, spec.memory, spec.id
            ),
            "give the VM less memory, or the CPU baseline host",
        ));
    }
    Ok(())
}

fn create_vm(kvm: &Kvm) -> Result<VmFd, Refusal> {
    let vm = kvm.create_vm().map_err(|error| failed("create a VM", error))?;
    vm.set_identity_map_address(IDENTITY_MAP_ADDRESS)
        .and_then(|()| vm.set_tss_address(TSS_ADDRESS))
        .map_err(|error| failed("place its own pages", error))?;
    vm.create_irq_chip().map_err(|error| failed("create interrupt controllers", error))?;
    // No speaker: port 0x61 stays what it is, a port without a device.
    vm.create_pit2(kvm_pit_config::default()).map_err(|error| failed("create a PIT", error))?;
    Ok(vm)
}

fn set_slot(vm: &VmFd, slot: &Slot, flags: u32) -> Result<(), Refusal> {
    let region = kvm_userspace_memory_region {
        slot: slot.number,
        flags,
        guest_phys_addr: slot.guest,
        memory_size: slot.pages * PAGE_BYTES as u64,
        userspace_addr: slot.host.as_ptr() as u64,
    };
    // SAFETY: the range is mapped, nobody else's, and outlives the VM: `Memory` is the last
    // field of `Machine` and the last of `Parts`.
    unsafe { vm.set_user_memory_region(region) }.map_err(|error| {
        if error.errno() == libc::ENOMEM {
            Refusal::new(
                RefusalCode::CapacityExceeded,
                format!("KVM has no room for a memory slot of {} pages", slot.pages),
                "free memory on the host",
            )
        } else {
            failed("accept the guest's memory", error)
        }
    })
}
