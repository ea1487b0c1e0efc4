//! Turns a kernel image into a machine that is about to run its first instruction.
//!
//! [`load`] puts the image, its command line, its initial RAM disk and the
//! description of the machine into guest memory and answers with the state each
//! vCPU starts in, as plain data. The files are somebody else's: nothing in
//! them is trusted.
//!
//! | kernel | entered in | finds its machine by |
//! | --- | --- | --- |
//! | bzImage ([`bzimage`], [`long_mode`]) | 64-bit mode, ring 0 | boot parameters, ACPI |
//! | ELF with a Xen note ([`pvh`]) | 32-bit mode, ring 0 | start information, ACPI |
//! | ELF with a Ballast note ([`ring3`]) | 64-bit mode, ring 3 | start information |
//!
//! ```text
//!   kernel ──bzimage | elf──▶ guest memory        [`low`]: addresses and memory map
//!   initrd ──archive, initrd──▶ guest memory      [`acpi`]: vCPUs, devices, power
//!                       │                               │
//!                 BootState { vCPU 0 } ◀─ boot params or start_info
//! ```

mod acpi;
mod archive;
mod bzimage;
mod cmdline;
mod elf;
mod fault;
mod firmware;
mod initrd;
mod long_mode;
mod low;
mod pvh;
mod ring3;
mod start_info;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use ballast_model::{Refusal, RefusalCode};
use kvm_bindings::{
    KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED, kvm_mp_state, kvm_regs, kvm_sregs,
};
use kvm_ioctls::VcpuFd;

use crate::memory::GuestRam;
use bzimage::BzImage;
use fault::Fault;
use initrd::{Initrd, Room};
use start_info::StartInfo;

/// What is read of a file to tell its kind.
const HEAD_BYTES: usize = 0x210;

/// What is to be booted, and on which machine.
#[derive(Debug, Clone, Copy)]
pub struct Order<'a> {
    /// The kernel image.
    pub kernel: &'a Path,
    /// The initial RAM disk.
    pub initrd: Option<&'a Path>,
    /// The kernel command line. A ring-3 guest finds ` tsc_khz=` and [`tsc_khz`](Self::tsc_khz)
    /// appended to it: it sees no CPUID leaf with the frequency of its time stamp counter.
    pub cmdline: &'a str,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Frequency of the time stamp counter.
    pub tsc_khz: u32,
    /// The virtio devices.
    pub devices: &'a [MmioDevice],
}

/// Where a virtio device stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MmioDevice {
    /// Guest physical address of its registers.
    pub address: u64,
    /// Size of its registers, in bytes.
    pub bytes: u64,
    /// Its interrupt, edge-triggered and active high.
    pub gsi: u32,
}

/// What [`load`] found out: how the vCPUs start.
///
/// vCPU 0 starts at the image's entry. All others wait for a start-up IPI in
/// KVM's interrupt controller, as on a real machine; those of a ring-3 guest,
/// which cannot send one, start with vCPU 0.
#[derive(Debug, Clone)]
pub struct BootState {
    entry: Entry,
    /// Where the guest finds what it is told: boot parameters or start information.
    info: u64,
}

#[derive(Debug, Clone)]
enum Entry {
    Ring3(ring3::Entry),
    LongMode(u64),
    Pvh(u64),
}

enum Kernel {
    BzImage(BzImage),
    Elf(elf::Image),
}

/// Loads a kernel and everything it is told.
///
/// # Errors
/// `NotFound` or `HostFailure` for the files; `InvalidArgument` for one that is
/// not a well-formed kernel or initial RAM disk, or a command line that is too
/// long; `CapacityExceeded` when guest memory is too small; `Unsupported` for an
/// ELF program that does not say how to enter it.
pub fn load(memory: &GuestRam, order: &Order<'_>) -> Result<BootState, Refusal> {
    let kernel =
        load_kernel(memory, order.kernel).map_err(|fault| fault.into_refusal(order.kernel))?;
    match kernel {
        Kernel::BzImage(image) => boot_bzimage(memory, &image, order),
        Kernel::Elf(image) => match ring3::Entry::find(&image, order.kernel)? {
            Some(entry) => boot_ring3(memory, entry, order),
            None => boot_pvh(memory, &image, order),
        },
    }
}

fn load_kernel(memory: &GuestRam, path: &Path) -> Result<Kernel, Fault> {
    let mut file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(Fault::NotAKernel);
    }
    let mut head = [0; HEAD_BYTES];
    let mut there = 0;
    while there < head.len() {
        match file.read_at(&mut head[there..], there as u64)? {
            0 => break,
            more => there += more,
        }
    }
    if bzimage::is_bzimage(&head[..there]) {
        return BzImage::load(memory, &mut file).map(Kernel::BzImage);
    }
    elf::load(memory, &mut file).map(Kernel::Elf)
}

fn boot_bzimage(
    memory: &GuestRam,
    image: &BzImage,
    order: &Order<'_>,
) -> Result<BootState, Refusal> {
    cmdline::write(memory, order.cmdline, image.cmdline_bytes_max())?;
    let initrd = load_initrd(memory, order, image.initrd_room())?;
    let rsdp = acpi::write(memory, order.vcpus, order.devices)?;
    firmware::write_reset_vector(memory)?;
    long_mode::write(memory)?;
    let info = image.write_boot_params(memory, &low::memory_map(memory), initrd, rsdp)?;
    Ok(BootState { entry: Entry::LongMode(image.entry()), info })
}

fn boot_pvh(
    memory: &GuestRam,
    image: &elf::Image,
    order: &Order<'_>,
) -> Result<BootState, Refusal> {
    let entry = pvh::entry(image).ok_or_else(|| {
        Refusal::new(
            RefusalCode::Unsupported,
            format!(
                "kernel {} does not say how to enter it: it has no ELF note of owner Xen (PVH) or Ballast (ring 3)",
                order.kernel.display()
            ),
            "use a bzImage, a Linux kernel built with CONFIG_PVH, or the probe guest",
        )
    })?;
    cmdline::write(memory, order.cmdline, usize::MAX)?;
    let room = Room { start: image.end, end: u64::from(u32::MAX) };
    let initrd = load_initrd(memory, order, room)?;
    let rsdp = acpi::write(memory, order.vcpus, order.devices)?;
    firmware::write_reset_vector(memory)?;
    let info = StartInfo { map: &low::memory_map(memory), initrd, rsdp }.write(memory)?;
    Ok(BootState { entry: Entry::Pvh(entry), info: info.0 })
}

fn boot_ring3(
    memory: &GuestRam,
    entry: ring3::Entry,
    order: &Order<'_>,
) -> Result<BootState, Refusal> {
    if let Some(initrd) = order.initrd {
        return Err(Refusal::new(
            RefusalCode::InvalidArgument,
            format!("the kernel has a ring-3 entry and takes no initrd {}", initrd.display()),
            "leave the initrd out of the VM's specification",
        ));
    }
    let separator = if order.cmdline.is_empty() { "" } else { " " };
    let text = format!("{}{separator}tsc_khz={}", order.cmdline, order.tsc_khz);
    cmdline::write(memory, &text, usize::MAX)?;
    let info = StartInfo { map: &low::regions(memory), initrd: None, rsdp: 0 }.write(memory)?;
    Ok(BootState { entry: Entry::Ring3(entry), info: info.0 })
}

fn load_initrd(
    memory: &GuestRam,
    order: &Order<'_>,
    room: Room,
) -> Result<Option<Initrd>, Refusal> {
    order.initrd.map(|path| initrd::load(memory, path, room)).transpose()
}

impl BootState {
    /// Sets the state vCPU `index` starts in.
    ///
    /// Call it once per vCPU, after the in-kernel interrupt controller and the
    /// guest's memory slots exist and after `KVM_SET_CPUID2` on this vCPU: KVM
    /// checks CR4, EFER and the x2APIC bit against CPUID. On a vCPU that starts
    /// it sets special registers first and general registers after them.
    ///
    /// # Errors
    /// `HostFailure` when KVM refuses.
    pub fn apply(&self, vcpu: &VcpuFd, index: u32) -> Result<(), Refusal> {
        if !matches!(self.entry, Entry::Ring3(_)) {
            firmware::set_up(vcpu)?;
        }
        let starts = match &self.entry {
            Entry::Ring3(entry) => entry.takes(index),
            Entry::LongMode(_) | Entry::Pvh(_) => index == 0,
        };
        if !starts {
            let waiting = kvm_mp_state { mp_state: KVM_MP_STATE_UNINITIALIZED };
            return vcpu.set_mp_state(waiting).map_err(|error| kvm("set the run state", error));
        }
        let reset = vcpu.get_sregs().map_err(|error| kvm("read special registers", error))?;
        vcpu.set_sregs(&self.sregs(index, reset))
            .map_err(|error| kvm("set special registers", error))?;
        vcpu.set_regs(&self.regs(index)).map_err(|error| kvm("set general registers", error))?;
        let runs = kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE };
        vcpu.set_mp_state(runs).map_err(|error| kvm("set the run state", error))
    }

    /// The general registers a vCPU that starts starts with.
    pub fn regs(&self, index: u32) -> kvm_regs {
        match &self.entry {
            Entry::Ring3(entry) => entry.regs(index, self.info),
            Entry::LongMode(entry) => long_mode::regs(*entry, self.info),
            Entry::Pvh(entry) => pvh::regs(*entry, self.info),
        }
    }

    /// The special registers such a vCPU starts with; what the guest has no say in
    /// (the APIC's base address) is taken over from `reset`.
    pub fn sregs(&self, index: u32, reset: kvm_sregs) -> kvm_sregs {
        match &self.entry {
            Entry::Ring3(entry) => entry.sregs(index, reset),
            Entry::LongMode(_) => long_mode::sregs(reset),
            Entry::Pvh(_) => pvh::sregs(reset),
        }
    }
}

fn kvm(what: &str, error: kvm_ioctls::Error) -> Refusal {
    Refusal::new(
        RefusalCode::HostFailure,
        format!("KVM did not {what} of a new vCPU: {error}"),
        "check the kernel log of the host; its KVM may lack a feature the guest's CPU model needs",
    )
}
