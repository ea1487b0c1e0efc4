//! The registers of a virtio-mmio transport (virtio 1.2, section 4.2), version 2.
//!
//! Each access is an exit to user space. They are single moves, which the
//! emulation of every hypervisor knows.

use core::arch::asm;

const MAGIC: u64 = 0x00;
const VERSION: u64 = 0x04;
const DEVICE_ID: u64 = 0x08;
const DEVICE_FEATURES: u64 = 0x10;
const DEVICE_FEATURES_WORD: u64 = 0x14;
const DRIVER_FEATURES: u64 = 0x20;
const DRIVER_FEATURES_WORD: u64 = 0x24;
const QUEUE_SELECT: u64 = 0x30;
const QUEUE_SIZE_MAX: u64 = 0x34;
const QUEUE_SIZE: u64 = 0x38;
const QUEUE_READY: u64 = 0x44;
const QUEUE_NOTIFY: u64 = 0x50;
const STATUS: u64 = 0x70;
const QUEUE_DESCRIPTORS: u64 = 0x80;
const QUEUE_AVAILABLE: u64 = 0x90;
const QUEUE_USED: u64 = 0xa0;
const CONFIG: u64 = 0x100;

const MAGIC_VALUE: u32 = 0x7472_6976;
const MODERN: u32 = 2;
/// Transports are looked for in so many places.
const SLOTS: u64 = 16;
/// A device resets within so many looks at its status.
const RESET_POLLS_MAX: u32 = 10_000;

const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;

/// It is a device of virtio 1.0 or later.
const VERSION_1: u64 = 1 << 32;
/// Both sides say from which entry on they want to be told.
pub const EVENT_INDEX: u64 = 1 << 29;

/// What devices there are here that the guest knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum DeviceKind {
    Net = 1,
    Block = 2,
}

/// Where the transports stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Physical address of the first.
    pub base: u64,
    /// Bytes from one to the next.
    pub stride: u64,
}

/// One device's registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Registers {
    base: u64,
}

/// The first device of a kind.
pub fn find(window: Window, kind: DeviceKind) -> Option<Registers> {
    (0..SLOTS).map(|slot| Registers { base: window.base + slot * window.stride }).find(
        |registers| {
            registers.read(MAGIC) == MAGIC_VALUE
                && registers.read(VERSION) == MODERN
                && registers.read(DEVICE_ID) == kind as u32
        },
    )
}

impl Registers {
    /// Resets the device and agrees on those of the `wanted` features it has. Returns them.
    pub fn negotiate(self, wanted: u64) -> Result<u64, &'static str> {
        self.write(STATUS, 0);
        if !(0..RESET_POLLS_MAX).any(|_| self.read(STATUS) == 0) {
            return Err("does not reset");
        }
        self.write(STATUS, ACKNOWLEDGE | DRIVER);
        let mut offered = 0;
        for word in 0..2 {
            self.write(DEVICE_FEATURES_WORD, word);
            offered |= u64::from(self.read(DEVICE_FEATURES)) << (32 * word);
        }
        if offered & VERSION_1 == 0 {
            return Err("is not of virtio 1.0 or later");
        }
        let agreed = offered & (wanted | VERSION_1);
        for word in 0..2 {
            self.write(DRIVER_FEATURES_WORD, word);
            self.write(DRIVER_FEATURES, (agreed >> (32 * word)) as u32);
        }
        self.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        if self.read(STATUS) & FEATURES_OK == 0 {
            return Err("refuses the features it offers");
        }
        Ok(agreed)
    }

    /// Tells the device of a queue's memory.
    pub fn set_up_queue(
        self,
        number: u32,
        size: u32,
        descriptors: u64,
        available: u64,
        used: u64,
    ) -> Result<(), &'static str> {
        self.write(QUEUE_SELECT, number);
        if self.read(QUEUE_READY) != 0 || self.read(QUEUE_SIZE_MAX) < size {
            return Err("has no queue of the length needed");
        }
        self.write(QUEUE_SIZE, size);
        let parts =
            [(QUEUE_DESCRIPTORS, descriptors), (QUEUE_AVAILABLE, available), (QUEUE_USED, used)];
        for (register, address) in parts {
            self.write(register, address as u32);
            self.write(register + 4, (address >> 32) as u32);
        }
        self.write(QUEUE_READY, 1);
        Ok(())
    }

    /// The device may begin.
    pub fn start(self) {
        self.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    /// Something new is in a queue.
    pub fn notify(self, queue: u32) {
        self.write(QUEUE_NOTIFY, queue);
    }

    /// A byte of the device's own configuration.
    pub fn config_u8(self, offset: u64) -> u8 {
        let value;
        // SAFETY: as in `read`.
        unsafe {
            asm!("mov {}, [{}]", out(reg_byte) value, in(reg) self.base + CONFIG + offset,
                options(nostack, preserves_flags));
        }
        value
    }

    /// A little-endian 64-bit number of the device's own configuration that never changes.
    pub fn config_u64(self, offset: u64) -> u64 {
        let low = self.read(CONFIG + offset);
        let high = self.read(CONFIG + offset + 4);
        u64::from(high) << 32 | u64::from(low)
    }

    fn read(self, register: u64) -> u32 {
        let value;
        // SAFETY: a load from a device's registers, or from where none is, below 4 GiB and so
        // mapped; `Window` lies outside of RAM.
        unsafe {
            asm!("mov {:e}, [{}]", out(reg) value, in(reg) self.base + register,
                options(nostack, preserves_flags));
        }
        value
    }

    fn write(self, register: u64, value: u32) {
        // SAFETY: a store to a device's registers, mapped as above. What the device then does to
        // memory, it does to what queues describe. Not `nomem`: what was stored before is stored.
        unsafe {
            asm!("mov [{}], {:e}", in(reg) self.base + register, in(reg) value,
                options(nostack, preserves_flags));
        }
    }
}
