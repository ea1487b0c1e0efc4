//! KVM calls that `kvm-ioctls` does not wrap. Each names its section of the
//! kernel's Documentation/virt/kvm/api.rst (or devices/vcpu.rst).

use kvm_bindings::{
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_CAP_SREGS2, KVM_DIRTY_LOG_INITIALLY_SET,
    KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO,
    kvm_clear_dirty_log, kvm_clear_dirty_log__bindgen_ty_1, kvm_device_attr, kvm_enable_cap,
    kvm_sregs2, kvm_xsave,
};
use kvm_ioctls::{Cap, Error, VcpuFd, VmFd};
use vmm_sys_util::ioctl::{ioctl_with_mut_ptr, ioctl_with_mut_ref, ioctl_with_ptr, ioctl_with_ref};
use vmm_sys_util::{ioctl_ior_nr, ioctl_iow_nr, ioctl_iowr_nr};

ioctl_iowr_nr!(KVM_CLEAR_DIRTY_LOG, KVMIO, 0xc0, kvm_clear_dirty_log);
ioctl_ior_nr!(KVM_GET_SREGS2, KVMIO, 0xcc, kvm_sregs2);
ioctl_iow_nr!(KVM_SET_SREGS2, KVMIO, 0xcd, kvm_sregs2);
ioctl_ior_nr!(KVM_GET_XSAVE, KVMIO, 0xa4, kvm_xsave);
ioctl_ior_nr!(KVM_GET_XSAVE2, KVMIO, 0xcf, kvm_xsave);
ioctl_iow_nr!(KVM_SET_XSAVE, KVMIO, 0xa5, kvm_xsave);
ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);
ioctl_iow_nr!(KVM_HAS_DEVICE_ATTR, KVMIO, 0xe3, kvm_device_attr);

/// The size of `struct kvm_xsave` before its flexible part, in bytes.
const XSAVE_BYTES_MIN: usize = 4096;
/// The largest XSAVE area accepted, in bytes. AMX brings it to about 11 KiB.
pub(crate) const XSAVE_BYTES_MAX: usize = 64 << 10;

fn check(result: i32) -> Result<(), Error> {
    if result == 0 { Ok(()) } else { Err(Error::last()) }
}

/// How the dirty log of a VM works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DirtyLogKind {
    /// Reading the log also clears it and protects the pages again.
    ClearedByRead,
    /// Reading changes nothing; `clear_dirty_log` clears and protects.
    Manual {
        /// The log starts with every page set, and nothing is protected until cleared.
        initially_set: bool,
    },
}

/// Switches to the manual dirty log where there is one (api.rst 7.18). Before
/// the first memory slot with logging.
pub(crate) fn enable_manual_dirty_log(vm: &VmFd) -> DirtyLogKind {
    let have = vm.check_extension_raw(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2.into());
    let have = u64::try_from(have).unwrap_or(0);
    let enable = u64::from(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE);
    let initially_set = u64::from(KVM_DIRTY_LOG_INITIALLY_SET);
    if have & enable == 0 {
        return DirtyLogKind::ClearedByRead;
    }
    let flags = have & (enable | initially_set);
    let mut cap = kvm_enable_cap { cap: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, ..Default::default() };
    cap.args[0] = flags;
    match vm.enable_cap(&cap) {
        Ok(()) => DirtyLogKind::Manual { initially_set: flags & initially_set != 0 },
        Err(_) => DirtyLogKind::ClearedByRead,
    }
}

/// Clears the pages whose bits are set in `bitmap` and protects them again
/// (api.rst 4.117). Bit 0 is `first_page`, a multiple of 64; so is `pages`,
/// unless the range ends with the slot.
pub(crate) fn clear_dirty_log(
    vm: &VmFd,
    slot: u32,
    first_page: u64,
    pages: u32,
    bitmap: &mut [u64],
) -> Result<(), Error> {
    assert!(bitmap.len() * 64 >= pages as usize, "the bitmap covers the range");
    let clear = kvm_clear_dirty_log {
        slot,
        num_pages: pages,
        first_page,
        __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 {
            dirty_bitmap: bitmap.as_mut_ptr().cast(),
        },
    };
    // SAFETY: a VM file descriptor; the kernel reads `pages` bits of the bitmap, which has them.
    check(unsafe { ioctl_with_ref(vm, KVM_CLEAR_DIRTY_LOG(), &clear) })
}

/// Whether `sregs2` is there (api.rst 4.132): it keeps the PDPTRs of a guest in PAE mode.
pub(crate) fn has_sregs2(vm: &VmFd) -> bool {
    vm.check_extension_raw(KVM_CAP_SREGS2.into()) > 0
}

/// Reads the special registers with their PDPTRs.
pub(crate) fn get_sregs2(vcpu: &VcpuFd) -> Result<kvm_sregs2, Error> {
    let mut sregs = kvm_sregs2::default();
    // SAFETY: a vCPU file descriptor; the kernel writes one `kvm_sregs2`.
    check(unsafe { ioctl_with_mut_ref(vcpu, KVM_GET_SREGS2(), &mut sregs) })?;
    Ok(sregs)
}

/// Sets the special registers with their PDPTRs.
pub(crate) fn set_sregs2(vcpu: &VcpuFd, sregs: &kvm_sregs2) -> Result<(), Error> {
    // SAFETY: a vCPU file descriptor; the kernel reads one `kvm_sregs2`.
    check(unsafe { ioctl_with_ref(vcpu, KVM_SET_SREGS2(), sregs) })
}

/// The size of this VM's XSAVE area in bytes (api.rst 4.134).
pub(crate) fn xsave_bytes(vm: &VmFd) -> usize {
    usize::try_from(vm.check_extension_int(Cap::Xsave2)).unwrap_or(0).max(XSAVE_BYTES_MIN)
}

/// Reads the XSAVE area, `bytes` of it, as [`xsave_bytes`] said.
pub(crate) fn get_xsave(vcpu: &VcpuFd, bytes: usize) -> Result<Vec<u8>, Error> {
    let mut area = vec![0; bytes.max(XSAVE_BYTES_MIN)];
    let call = if bytes > XSAVE_BYTES_MIN { KVM_GET_XSAVE2() } else { KVM_GET_XSAVE() };
    // SAFETY: a vCPU file descriptor; the area has at least the size KVM_CAP_XSAVE2 promised,
    // and no feature is enabled by arch_prctl() later on.
    check(unsafe { ioctl_with_mut_ptr(vcpu, call, area.as_mut_ptr()) })?;
    Ok(area)
}

/// Sets the XSAVE area; false when it has not the size this VM needs.
pub(crate) fn set_xsave(vcpu: &VcpuFd, bytes: usize, area: &[u8]) -> Result<bool, Error> {
    if area.len() != bytes.max(XSAVE_BYTES_MIN) {
        return Ok(false);
    }
    // SAFETY: a vCPU file descriptor; the kernel reads as many bytes as KVM_CAP_XSAVE2 said,
    // which is the length just compared.
    check(unsafe { ioctl_with_ptr(vcpu, KVM_SET_XSAVE(), area.as_ptr()) })?;
    Ok(true)
}

fn tsc_offset_attribute(value: &mut u64) -> kvm_device_attr {
    kvm_device_attr {
        flags: 0,
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr: std::ptr::from_mut(value) as u64,
    }
}

/// The guest's TSC minus the host's (devices/vcpu.rst 4); none where KVM has no such attribute.
pub(crate) fn get_tsc_offset(vcpu: &VcpuFd) -> Result<Option<u64>, Error> {
    let mut offset = 0;
    let attribute = tsc_offset_attribute(&mut offset);
    // SAFETY: a vCPU file descriptor; the kernel only looks at group and attribute.
    if unsafe { ioctl_with_ref(vcpu, KVM_HAS_DEVICE_ATTR(), &attribute) } != 0 {
        return Ok(None);
    }
    // SAFETY: as above; the kernel writes a u64 to `addr`, which is `offset`, alive until the end.
    check(unsafe { ioctl_with_ref(vcpu, KVM_GET_DEVICE_ATTR(), &attribute) })?;
    Ok(Some(offset))
}

/// Sets the guest's TSC minus the host's.
pub(crate) fn set_tsc_offset(vcpu: &VcpuFd, mut offset: u64) -> Result<(), Error> {
    let attribute = tsc_offset_attribute(&mut offset);
    // SAFETY: a vCPU file descriptor; the kernel reads a u64 from `addr`, which is `offset`.
    check(unsafe { ioctl_with_ref(vcpu, KVM_SET_DEVICE_ATTR(), &attribute) })
}
