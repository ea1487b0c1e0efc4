//! The registers of one vCPU.
//!
//! # Order of saving
//!
//! 1. `mp_state`: reading it may first act on a pending INIT or start-up IPI
//!    and so change registers and local APIC (Linux `kvm_arch_vcpu_ioctl_get_mpstate`).
//! 2. Registers, XSAVE area, XCRs, debug registers.
//! 3. Local APIC: reading it brings its timer's count up to date.
//! 4. MSRs.
//! 5. Events last: what the calls before may have queued is in there.
//!
//! # Order of loading
//!
//! CPUID was set when the vCPU was created. Then:
//!
//! 1. Special registers: they hold the APIC base, and with it the mode
//!    (x2APIC) in which the local APIC's page is read; KVM checks CR0, CR4 and
//!    EFER against CPUID.
//! 2. General registers. KVM clears pending exceptions with them, so events come later.
//! 3. XSAVE area, then XCRs (QEMU `kvm_arch_put_registers` and Firecracker alike).
//! 4. Debug registers.
//! 5. Local APIC, before the MSRs: the TSC-deadline MSR is only taken by an
//!    APIC timer that is in that mode.
//! 6. MSRs, the TSC first and the TSC deadline last (see [`super::msr`]).
//! 7. `mp_state`: after the registers, because a waiting vCPU that becomes
//!    runnable starts from them.
//! 8. Events last: setting registers changes what is pending.

use ballast_model::{Refusal, RefusalCode};
use kvm_bindings::{
    KVM_SREGS2_FLAGS_PDPTRS_VALID, KVM_VCPUEVENT_VALID_NMI_PENDING,
    KVM_VCPUEVENT_VALID_SIPI_VECTOR, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_regs,
    kvm_sregs, kvm_sregs2, kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::VcpuFd;

use super::msr::MsrState;
use crate::codec::{Decoder, Encoder, Malformed};
use crate::kvm::failed;
use crate::kvm::ioctl::{XSAVE_BYTES_MAX, get_sregs2, get_xsave, set_sregs2, set_xsave};
use crate::machine::Traits;

/// Everything the guest can see of one vCPU, but its TSC offset.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct VcpuState {
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    /// Page-directory pointers of a guest in PAE mode, where KVM tells them.
    pdptrs: Option<[u64; 4]>,
    xsave: Vec<u8>,
    xcrs: kvm_xcrs,
    debugregs: kvm_debugregs,
    lapic: kvm_lapic_state,
    msrs: MsrState,
    events: kvm_vcpu_events,
}

impl VcpuState {
    pub(crate) fn save(vcpu: &VcpuFd, traits: &Traits) -> Result<Self, Refusal> {
        // Field by field in the order the module documentation gives reasons for.
        let mp_state = vcpu.get_mp_state().map_err(|error| failed("read mp_state", error))?;
        let regs = vcpu.get_regs().map_err(|error| failed("read registers", error))?;
        let sregs = vcpu.get_sregs().map_err(|error| failed("read sregs", error))?;
        let pdptrs = if traits.sregs2 {
            let sregs2 = get_sregs2(vcpu).map_err(|error| failed("read sregs2", error))?;
            let valid = sregs2.flags & u64::from(KVM_SREGS2_FLAGS_PDPTRS_VALID) != 0;
            valid.then_some(sregs2.pdptrs)
        } else {
            None
        };
        let xsave = get_xsave(vcpu, traits.xsave_bytes)
            .map_err(|error| failed("read the XSAVE area", error))?;
        let xcrs = vcpu.get_xcrs().map_err(|error| failed("read XCRs", error))?;
        let debugregs =
            vcpu.get_debug_regs().map_err(|error| failed("read debug registers", error))?;
        let lapic = vcpu.get_lapic().map_err(|error| failed("read the local APIC", error))?;
        let msrs = MsrState::save(vcpu, &traits.msrs)?;
        let events = vcpu.get_vcpu_events().map_err(|error| failed("read events", error))?;
        Ok(Self { mp_state, regs, sregs, pdptrs, xsave, xcrs, debugregs, lapic, msrs, events })
    }

    pub(crate) fn load(&self, vcpu: &VcpuFd, traits: &Traits) -> Result<(), Refusal> {
        self.load_sregs(vcpu, traits)?;
        vcpu.set_regs(&self.regs).map_err(|error| failed("set registers", error))?;
        let fits = set_xsave(vcpu, traits.xsave_bytes, &self.xsave)
            .map_err(|error| failed("set the XSAVE area", error))?;
        if !fits {
            return Err(Refusal::new(
                RefusalCode::Incompatible,
                format!(
                    "the XSAVE area has {} bytes, this host's {}",
                    self.xsave.len(),
                    traits.xsave_bytes
                ),
                "move the VM to a host with the same CPU and kernel features",
            ));
        }
        vcpu.set_xcrs(&self.xcrs).map_err(|error| failed("set XCRs", error))?;
        vcpu.set_debug_regs(&self.debugregs)
            .map_err(|error| failed("set debug registers", error))?;
        vcpu.set_lapic(&self.lapic).map_err(|error| failed("set the local APIC", error))?;
        self.msrs.load(vcpu)?;
        vcpu.set_mp_state(self.mp_state).map_err(|error| failed("set mp_state", error))?;
        // Reading leaves out two validity flags that setting needs (api.rst 4.31, 4.32).
        let mut events = self.events;
        events.flags |= KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SIPI_VECTOR;
        vcpu.set_vcpu_events(&events).map_err(|error| failed("set events", error))
    }

    fn load_sregs(&self, vcpu: &VcpuFd, traits: &Traits) -> Result<(), Refusal> {
        let Some(pdptrs) = self.pdptrs else {
            return vcpu.set_sregs(&self.sregs).map_err(|error| failed("set sregs", error));
        };
        if !traits.sregs2 {
            return Err(Refusal::new(
                RefusalCode::Incompatible,
                "the guest is in PAE mode and this host's KVM cannot set its PDPTRs",
                "move the VM to a host with Linux 5.14 or later",
            ));
        }
        // The bitmap of `sregs` is not in `sregs2`: the pending interrupt is among the events.
        let s = &self.sregs;
        let sregs2 = kvm_sregs2 {
            cs: s.cs,
            ds: s.ds,
            es: s.es,
            fs: s.fs,
            gs: s.gs,
            ss: s.ss,
            tr: s.tr,
            ldt: s.ldt,
            gdt: s.gdt,
            idt: s.idt,
            cr0: s.cr0,
            cr2: s.cr2,
            cr3: s.cr3,
            cr4: s.cr4,
            cr8: s.cr8,
            efer: s.efer,
            apic_base: s.apic_base,
            flags: KVM_SREGS2_FLAGS_PDPTRS_VALID.into(),
            pdptrs,
        };
        set_sregs2(vcpu, &sregs2).map_err(|error| failed("set sregs2", error))
    }

    /// What stays the same as long as the vCPU does not run.
    #[cfg(test)]
    pub(crate) fn without_time(mut self) -> Self {
        const TIMER_CURRENT_COUNT: std::ops::Range<usize> = 0x390..0x394;
        self.lapic.regs[TIMER_CURRENT_COUNT].fill(0);
        self.msrs.forget_tsc();
        self
    }

    pub(crate) fn encode(&self, to: &mut Encoder) {
        to.plain(&self.mp_state).plain(&self.regs).plain(&self.sregs);
        to.u16(self.pdptrs.is_some().into());
        for entry in self.pdptrs.unwrap_or_default() {
            to.u64(entry);
        }
        to.bytes(&self.xsave).plain(&self.xcrs).plain(&self.debugregs).plain(&self.lapic);
        self.msrs.encode(to);
        to.plain(&self.events);
    }

    pub(crate) fn decode(from: &mut Decoder<'_>) -> Result<Self, Malformed> {
        const WHAT: &str = "the state of a vCPU";
        let (mp_state, regs, sregs) = (from.plain(WHAT)?, from.plain(WHAT)?, from.plain(WHAT)?);
        let has_pdptrs = match from.u16(WHAT)? {
            0 => false,
            1 => true,
            _ => return Err(Malformed(WHAT)),
        };
        let mut pdptrs = [0; 4];
        for entry in &mut pdptrs {
            *entry = from.u64(WHAT)?;
        }
        Ok(Self {
            mp_state,
            regs,
            sregs,
            pdptrs: has_pdptrs.then_some(pdptrs),
            xsave: from.bytes(XSAVE_BYTES_MAX, WHAT)?.to_vec(),
            xcrs: from.plain(WHAT)?,
            debugregs: from.plain(WHAT)?,
            lapic: from.plain(WHAT)?,
            msrs: MsrState::decode(from)?,
            events: from.plain(WHAT)?,
        })
    }
}
