//! Where virtio devices stand: one page of registers and one interrupt each.
//!
//! Transport, saved state and the tables the guest finds its devices in all
//! count from here. A device keeps its slot for life: its number is its place
//! in the VM's specification, disks first, then networks, then the entropy
//! source, then the console.

use ballast_model::hardware::{DISKS_MAX, NETWORKS_MAX};

/// The most devices: every disk and network of a VM, the entropy source, the console.
pub(crate) const SLOTS: usize = DISKS_MAX + NETWORKS_MAX + 2;
/// The registers of slot 0, in the hole below 4 GiB.
const BASE: u64 = 0xd000_0000;
/// The registers of one device, in bytes.
pub(crate) const SLOT_BYTES: u64 = 0x1000;

/// Interrupts by slot. Those of the timer (0, 2), the serial ports (3, 4), the
/// clock (8), ACPI (9) and the mouse (12) stay free.
const GSIS: [u32; SLOTS] = [5, 6, 7, 10, 11, 16, 17, 18, 19, 20, 21, 22, 23, 13, 14, 15];

/// One place for a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot {
    /// Guest physical address of its registers.
    pub(crate) address: u64,
    /// Its interrupt, edge-triggered and active high.
    pub(crate) gsi: u32,
}

/// Slot number `n`, below [`SLOTS`].
pub(crate) const fn slot(n: usize) -> Slot {
    Slot { address: BASE + n as u64 * SLOT_BYTES, gsi: GSIS[n] }
}

/// The slot whose registers an address is among, and which of its bytes it is.
pub(crate) fn find(address: u64) -> Option<(usize, u64)> {
    let offset = address.checked_sub(BASE)?;
    let number = usize::try_from(offset / SLOT_BYTES).ok()?;
    (number < SLOTS).then_some((number, offset % SLOT_BYTES))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_belongs_to_one_slot() {
        assert_eq!(find(BASE - 1), None);
        for n in 0..SLOTS {
            assert_eq!(find(slot(n).address), Some((n, 0)));
            assert_eq!(find(slot(n).address + SLOT_BYTES - 1), Some((n, SLOT_BYTES - 1)));
        }
        assert_eq!(find(slot(SLOTS - 1).address + SLOT_BYTES), None);
    }

    #[test]
    fn no_two_devices_share_an_interrupt() {
        for (place, gsi) in GSIS.iter().enumerate() {
            assert!(!GSIS[..place].contains(gsi), "{gsi}");
            assert!(![0, 2, 3, 4, 8, 9, 12].contains(gsi) && *gsi < 24, "{gsi}");
        }
    }
}
