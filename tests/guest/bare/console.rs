//! COM1, a 16550A at port 0x3f8, and nothing else of it than sending.
//!
//! A byte costs an exit to user space, some 65 µs where that is slow: lines are
//! short. Before every burst of at most 16 bytes, the size of its queue, the
//! driver waits until the port's queue is empty.

use core::arch::asm;
use core::fmt;

use crate::clock::Clock;

const DATA: u16 = 0x3f8;
const FIFO_CONTROL: u16 = 0x3fa;
const LINE_STATUS: u16 = 0x3fd;
const FIFO_ENABLED_AND_CLEARED: u8 = 0x07;
const SENDER_EMPTY: u8 = 0x20;
const BURST: usize = 16;
/// A port that never gets ready loses bytes but does not stop the guest.
const READY_POLLS_MAX: u32 = 10_000;

/// A line that grows in memory and is then sent as a whole.
pub struct Line {
    bytes: [u8; 160],
    used: usize,
}

impl Line {
    pub const fn new() -> Self {
        Self { bytes: [0; 160], used: 0 }
    }

    /// Adds a newline and sends it; the clock goes on, so that time spent here is no stall.
    pub fn send(mut self, clock: &mut Clock) {
        self.used = self.used.min(self.bytes.len() - 1);
        self.bytes[self.used] = b'\n';
        for burst in self.bytes[..=self.used].chunks(BURST) {
            wait_until_ready();
            for &byte in burst {
                output(DATA, byte);
                clock.tick();
            }
        }
    }
}

impl fmt::Write for Line {
    /// What does not fit is cut off.
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = &mut self.bytes[self.used..];
        let count = text.len().min(room.len());
        room[..count].copy_from_slice(&text.as_bytes()[..count]);
        self.used += count;
        Ok(())
    }
}

/// Switches the port's queues on.
pub fn init() {
    output(FIFO_CONTROL, FIFO_ENABLED_AND_CLEARED);
}

fn wait_until_ready() {
    for _ in 0..READY_POLLS_MAX {
        if input(LINE_STATUS) & SENDER_EMPTY != 0 {
            return;
        }
    }
}

fn output(port: u16, byte: u8) {
    // SAFETY: the I/O bitmap opens the ports of COM1 to ring 3, and no other is used; sending
    // touches no memory.
    unsafe { asm!("out dx, al", in("dx") port, in("al") byte, options(nomem, nostack)) }
}

fn input(port: u16) -> u8 {
    let byte;
    // SAFETY: as in `output`.
    unsafe { asm!("in al, dx", in("dx") port, out("al") byte, options(nomem, nostack)) }
    byte
}
