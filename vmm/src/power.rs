//! How a guest ends by itself, and the ports by which it says so.
//!
//! | port | what | the guest writes |
//! | --- | --- | --- |
//! | 0x600 | ACPI sleep control (ACPI 6.5, table 4.19) | SLP_EN with the type of S5: power off |
//! | 0x601 | ACPI sleep status | reads as zero |
//! | 0xcf9 | reset control, as chipsets have it | RST_CPU: reset |
//! | 0x64 | command port of an 8042 | 0xfe: reset, for kernels that know no better |
//! | 0x505 | pvpanic (QEMU, docs/specs/pvpanic) | PANICKED: its kernel gave up |
//!
//! None of them keeps anything: there is no state to save.

use std::fmt;

pub(crate) const SLEEP_CONTROL_PORT: u16 = 0x600;
pub(crate) const SLEEP_STATUS_PORT: u16 = 0x601;
pub(crate) const RESET_PORT: u16 = 0xcf9;
pub(crate) const PANIC_PORT: u16 = 0x505;
/// SYS_RST and RST_CPU: a hard reset.
pub(crate) const RESET_VALUE: u8 = 0x06;
/// SLP_TYP of S5.
pub(crate) const SLEEP_TYPE_OFF: u8 = 5;

const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u32 = 2;
const SLEEP_TYPE_MASK: u8 = 7;
const RESET_CPU: u8 = 1 << 2;
const KEYBOARD_COMMAND_PORT: u16 = 0x64;
const KEYBOARD_PULSE_RESET: u8 = 0xfe;
/// The one event that is taken. A kernel that starts a crash kernel has another, and goes on.
const PANICKED: u8 = 1;

/// Why a guest runs no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum GuestEnd {
    /// It switched itself off.
    PowerOff,
    /// It asked for a reset.
    Reset,
    /// A vCPU shut down: a fault while a fault was handled while a fault was handled.
    TripleFault { vcpu: usize },
    /// Its kernel panicked.
    Panicked,
    /// It halted on a machine that cannot wake it.
    Halted,
    /// KVM gave up on it: it met what it can neither run nor emulate.
    KvmInternal { vcpu: usize, what: String },
    /// KVM cannot run the vCPU, or says so in a way this program does not know.
    KvmFailed { vcpu: usize, what: String },
}

impl GuestEnd {
    /// Whether the guest meant it.
    pub(crate) fn is_orderly(&self) -> bool {
        matches!(self, Self::PowerOff | Self::Reset)
    }
}

impl fmt::Display for GuestEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => f.write_str("power-off: the guest switched itself off"),
            Self::Reset => f.write_str("reset: the guest asked for a reset"),
            Self::TripleFault { vcpu } => {
                write!(f, "crash: vCPU {vcpu} shut down (triple fault)")
            }
            Self::Panicked => {
                f.write_str("crash: the guest's kernel panicked; its console says why")
            }
            Self::Halted => f.write_str("crash: the guest halted for good"),
            Self::KvmInternal { vcpu, what } => {
                write!(f, "crash: KVM can neither run nor emulate vCPU {vcpu}: {what}")
            }
            Self::KvmFailed { vcpu, what } => {
                write!(f, "host failure: KVM does not run vCPU {vcpu}: {what}")
            }
        }
    }
}

/// What the guest asks for by writing this to a port.
pub(crate) fn written(port: u16, data: &[u8]) -> Option<GuestEnd> {
    let byte = *data.first()?;
    match port {
        SLEEP_CONTROL_PORT if byte & SLEEP_ENABLE != 0 => {
            let sleep_type = byte >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK;
            (sleep_type == SLEEP_TYPE_OFF).then_some(GuestEnd::PowerOff)
        }
        RESET_PORT if byte & RESET_CPU != 0 => Some(GuestEnd::Reset),
        KEYBOARD_COMMAND_PORT if byte == KEYBOARD_PULSE_RESET => Some(GuestEnd::Reset),
        PANIC_PORT if byte & PANICKED != 0 => Some(GuestEnd::Panicked),
        _ => None,
    }
}

/// Whether a port of these is read; then with what.
pub(crate) fn read(port: u16) -> Option<u8> {
    match port {
        // All of them at rest. For the 8042 it means that it takes a command at once.
        SLEEP_CONTROL_PORT | SLEEP_STATUS_PORT | RESET_PORT | KEYBOARD_COMMAND_PORT => Some(0),
        // What it can be told.
        PANIC_PORT => Some(PANICKED),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_can_switch_itself_off_and_reset() {
        assert_eq!(written(0x600, &[5 << 2 | 0x20]), Some(GuestEnd::PowerOff));
        assert_eq!(written(0x600, &[5 << 2]), None, "SLP_EN is not set");
        assert_eq!(written(0x600, &[3 << 2 | 0x20]), None, "there is no S3");
        assert_eq!(written(0xcf9, &[0x02]), None, "the first of two steps");
        assert_eq!(written(0xcf9, &[0x06]), Some(GuestEnd::Reset));
        assert_eq!(written(0xcf9, &[0x0e]), Some(GuestEnd::Reset));
        assert_eq!(written(0x64, &[0xfe]), Some(GuestEnd::Reset));
        assert_eq!(written(0x64, &[0xd1]), None);
        assert_eq!(written(0x505, &[1]), Some(GuestEnd::Panicked));
        assert_eq!(written(0x505, &[2]), None, "it starts a crash kernel");
        assert_eq!((read(0x505), read(0x64), read(0x3f8)), (Some(1), Some(0), None));
        assert_eq!(written(0x3f8, &[0xfe]), None);
        assert_eq!(written(0x600, &[]), None);
    }

    #[test]
    fn only_the_first_two_words_are_orderly() {
        assert!(GuestEnd::PowerOff.is_orderly() && GuestEnd::Reset.is_orderly());
        assert!(!GuestEnd::TripleFault { vcpu: 0 }.is_orderly());
    }
}
