//! Runs one guest on a bare KVM machine with a serial port, prints its console,
//! and ends after a number of seconds. For work on guests and on `boot`; the
//! real machine is `ballast-vmm`.
//!
//! `run_guest <kernel> <memory MiB> <seconds> [command line]`

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use ballast_vmm::boot;
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_pit_config, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit};
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, kernel, mib, seconds, cmdline @ ..] = args.as_slice() else {
        return Err("usage: run_guest <kernel> <memory MiB> <seconds> [command line]".into());
    };
    let bytes = mib.parse::<usize>()? << 20;
    let end = Instant::now() + Duration::from_secs(seconds.parse()?);

    let kvm = Kvm::new()?;
    let vm = kvm.create_vm()?;
    vm.set_tss_address(0xfffb_d000)?;
    vm.create_irq_chip()?;
    vm.create_pit2(kvm_pit_config::default())?;
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), bytes)])?;
    for (slot, region) in memory.iter().enumerate() {
        let region = kvm_userspace_memory_region {
            slot: u32::try_from(slot)?,
            flags: 0,
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: memory.get_host_address(region.start_addr())? as u64,
        };
        // SAFETY: the mapping outlives the VM: `memory` is dropped after it.
        unsafe { vm.set_user_memory_region(region)? };
    }
    let mut vcpu = vm.create_vcpu(0)?;
    vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?)?;
    let tsc_khz = vcpu.get_tsc_khz()?;
    boot::load(&memory, Path::new(kernel), &cmdline.join(" "), tsc_khz)?.apply(&vcpu, 0)?;

    let mut out = std::io::stdout();
    while Instant::now() < end {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(0x3f8, data)) => {
                out.write_all(data)?;
                out.flush()?;
            }
            Ok(VcpuExit::IoIn(0x3fd, data)) => data.fill(0x60),
            Ok(VcpuExit::IoIn(_, data)) => data.fill(0xff),
            Ok(VcpuExit::IoOut(..)) => {}
            Ok(exit) => return Err(format!("unexpected exit {exit:?}").into()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
