//! The guest's clocks.
//!
//! The KVM clock goes on through a migration: it is set to its saved value plus
//! the real time that has passed, right before the guest runs. Where KVM tells
//! a pair of clock and CLOCK_REALTIME (api.rst 4.29, KVM_CLOCK_REALTIME) it does
//! that arithmetic itself; elsewhere the real time is taken here, next to the clock.
//!
//! The TSC is the host's plus an offset per vCPU where KVM has
//! KVM_VCPU_TSC_OFFSET. The offset on the new host follows from both hosts'
//! (clock, TSC) pairs, by the algorithm in the kernel's
//! Documentation/virt/kvm/devices/vcpu.rst, section 4.1. Where the pair or the
//! attribute is missing (KVM-PVM shows the host's TSC, whatever is set), the TSC
//! MSR's value is all there is.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ballast_model::Refusal;
use kvm_bindings::{KVM_CLOCK_HOST_TSC, KVM_CLOCK_REALTIME, kvm_clock_data};

use crate::codec::{Decoder, Encoder, Malformed};
use crate::kvm::failed;
use crate::kvm::ioctl::{get_tsc_offset, set_tsc_offset};
use crate::machine::Machine;

/// The most real time a clock is moved forward by: hosts whose clocks disagree
/// by more than this must not throw the guest into the future.
const ELAPSED_MAX: Duration = Duration::from_secs(3600);

/// The KVM clock and TSC offsets at the moment of saving.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TimeState {
    /// The KVM clock, in nanoseconds.
    clock: u64,
    /// CLOCK_REALTIME at the same moment, in nanoseconds since 1970.
    realtime: u64,
    /// The host's TSC at the same moment, where KVM tells it.
    host_tsc: Option<u64>,
    /// Per vCPU; empty where KVM has no such attribute.
    tsc_offsets: Vec<u64>,
}

impl TimeState {
    pub(crate) fn save(machine: &Machine) -> Result<Self, Refusal> {
        let data = machine.vm.get_clock().map_err(|error| failed("read its clock", error))?;
        let told = |flag: u32| data.flags & flag != 0;
        let realtime = if told(KVM_CLOCK_REALTIME) { data.realtime } else { realtime_now() };
        let mut tsc_offsets = Vec::new();
        machine.vcpus.each(|_, fd| {
            let offset = get_tsc_offset(fd).map_err(|error| failed("read a TSC offset", error))?;
            tsc_offsets.extend(offset);
            Ok::<(), Refusal>(())
        })?;
        Ok(Self {
            clock: data.clock,
            realtime,
            host_tsc: told(KVM_CLOCK_HOST_TSC).then_some(data.host_tsc),
            tsc_offsets,
        })
    }

    /// No time at all, for comparing the rest.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self { clock: 0, realtime: 0, host_tsc: None, tsc_offsets: vec![] }
    }

    /// Takes the time of saving for now, so that no time has passed since.
    pub(crate) fn go_on_now(&mut self) {
        self.realtime = realtime_now();
    }

    /// Right before the guest runs.
    pub(crate) fn load(&self, machine: &Machine) -> Result<(), Refusal> {
        let data = kvm_clock_data { clock: self.clock_at(realtime_now()), ..Default::default() };
        machine.vm.set_clock(&data).map_err(|error| failed("set its clock", error))?;
        let Some(source_tsc) = self.host_tsc else { return Ok(()) };
        let here = machine.vm.get_clock().map_err(|error| failed("read its clock", error))?;
        if here.flags & KVM_CLOCK_HOST_TSC == 0 {
            return Ok(());
        }
        let source = Pair { clock: self.clock, tsc: source_tsc };
        let destination = Pair { clock: here.clock, tsc: here.host_tsc };
        machine.vcpus.each(|place, fd| {
            let Some(&offset) = self.tsc_offsets.get(place) else { return Ok(()) };
            let offset = moved_offset(offset, source, destination, machine.traits.tsc_khz);
            set_tsc_offset(fd, offset).map_err(|error| failed("set a TSC offset", error))
        })
    }

    /// The clock's value when the real time is `realtime`.
    fn clock_at(&self, realtime: u64) -> u64 {
        let elapsed = Duration::from_nanos(realtime.saturating_sub(self.realtime));
        self.clock.saturating_add(nanos(elapsed.min(ELAPSED_MAX)))
    }

    pub(crate) fn encode(&self, to: &mut Encoder) {
        to.u64(self.clock).u64(self.realtime);
        to.u16(self.host_tsc.is_some().into()).u64(self.host_tsc.unwrap_or(0));
        to.count(self.tsc_offsets.len());
        for &offset in &self.tsc_offsets {
            to.u64(offset);
        }
    }

    pub(crate) fn decode(from: &mut Decoder<'_>, vcpus: usize) -> Result<Self, Malformed> {
        const WHAT: &str = "the clock";
        let (clock, realtime) = (from.u64(WHAT)?, from.u64(WHAT)?);
        let (told, tsc) = (from.u16(WHAT)?, from.u64(WHAT)?);
        let count = from.count(vcpus, WHAT)?;
        let tsc_offsets = (0..count).map(|_| from.u64(WHAT)).collect::<Result<_, _>>()?;
        Ok(Self { clock, realtime, host_tsc: (told == 1).then_some(tsc), tsc_offsets })
    }
}

/// A KVM clock value and the host's TSC at the same moment.
#[derive(Debug, Clone, Copy)]
struct Pair {
    clock: u64,
    tsc: u64,
}

/// The offset that lets the guest's TSC go on at `khz` through the time between
/// the two pairs. All arithmetic wraps, as the registers do.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // modulo 2^64 by intent
fn moved_offset(offset: u64, source: Pair, destination: Pair, khz: u32) -> u64 {
    let nanos = i128::from(destination.clock) - i128::from(source.clock);
    let ticks = (nanos * i128::from(khz) / 1_000_000) as u64;
    offset.wrapping_add(source.tsc).wrapping_add(ticks).wrapping_sub(destination.tsc)
}

fn realtime_now() -> u64 {
    nanos(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved(clock: u64, realtime: u64) -> TimeState {
        TimeState { clock, realtime, host_tsc: None, tsc_offsets: vec![] }
    }

    #[test]
    fn the_clock_goes_on_with_real_time_and_never_back() {
        assert_eq!(saved(100, 1_000).clock_at(1_500), 600);
        assert_eq!(saved(100, 1_000).clock_at(500), 100);
        let hour = nanos(ELAPSED_MAX);
        assert_eq!(saved(100, 0).clock_at(u64::MAX), 100 + hour);
    }

    #[test]
    fn the_guests_tsc_goes_on_at_its_rate() {
        let source = Pair { clock: 1_000_000_000, tsc: 5_000 };
        let destination = Pair { clock: 2_000_000_000, tsc: 900_000 };
        let offset = moved_offset(70, source, destination, 2_000_000);
        // One second at 2 GHz after the guest read 5 000 + 70.
        assert_eq!(destination.tsc.wrapping_add(offset), 5_070 + 2_000_000_000);
    }
}
