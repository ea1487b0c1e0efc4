//! COM1: a 16550A whose output goes to the console ring.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ballast_model::{Refusal, RefusalCode};
use kvm_ioctls::VmFd;
use vm_superio::serial::NoEvents;
use vm_superio::{Serial, SerialState, Trigger};

use super::console::{Console, Output, Source};
use crate::codec::{Decoder, Encoder, Malformed};

const PORT: u16 = 0x3f8;
const PORTS: u16 = 8;
const INTERRUPT: u32 = 4;
/// The depth of a 16550A's queue, in bytes; the emulation allows itself 64.
const IN_BUFFER_BYTES_MAX: usize = 64;

/// The register a port of COM1 stands for.
pub(crate) fn register(port: u16) -> Option<u8> {
    let register = port.checked_sub(PORT).filter(|&register| register < PORTS)?;
    u8::try_from(register).ok()
}

/// The serial port and its console.
#[derive(Debug)]
pub(crate) struct Com1 {
    port: Mutex<Serial<Line, NoEvents, Sink>>,
    output: Arc<Output>,
    vm: Arc<VmFd>,
}

/// What of it a migration carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Com1State {
    port: SerialState,
    console: Console,
}

/// The interrupt line. The port only ever pulses it, and does so before the
/// guest's instruction ends: nothing is on its way when the vCPUs are paused.
#[derive(Debug)]
struct Line(Arc<VmFd>);

impl Trigger for Line {
    type E = kvm_ioctls::Error;

    fn trigger(&self) -> Result<(), Self::E> {
        self.0.set_irq_line(INTERRUPT, true)?;
        self.0.set_irq_line(INTERRUPT, false)
    }
}

#[derive(Debug)]
struct Sink(Arc<Output>);

impl io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.append(Source::Com1, bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Com1 {
    /// A port whose output goes to `output`.
    pub(crate) fn new(vm: &Arc<VmFd>, output: &Arc<Output>) -> Self {
        let port = Serial::new(Line(Arc::clone(vm)), Sink(Arc::clone(output)));
        Self { port: Mutex::new(port), output: Arc::clone(output), vm: Arc::clone(vm) }
    }

    /// The port is one byte wide: a longer access is a string instruction.
    pub(crate) fn read(&self, register: u8, data: &mut [u8]) {
        let mut port = lock(&self.port);
        data.fill_with(|| port.read(register));
    }

    /// As [`read`](Self::read).
    pub(crate) fn write(&self, register: u8, data: &[u8]) {
        let mut port = lock(&self.port);
        for &byte in data {
            if let Err(error) = port.write(register, byte) {
                tracing::debug!(?error, register, "the serial port did not take a byte");
            }
        }
    }

    /// Puts bytes into the port's queue, as if they came down the line; how many
    /// there was room for. The guest makes room by reading.
    pub(crate) fn input(&self, bytes: &[u8]) -> usize {
        let mut port = lock(&self.port);
        let room = bytes.len().min(port.fifo_capacity());
        if room == 0 {
            return 0;
        }
        match port.enqueue_raw_bytes(&bytes[..room]) {
            Ok(taken) => taken,
            // They are in the queue: the guest finds them when it looks.
            Err(error) => {
                tracing::debug!(?error, "the serial port could not interrupt");
                room
            }
        }
    }

    pub(crate) fn save(&self) -> Com1State {
        Com1State { port: lock(&self.port).state(), console: self.output.save() }
    }

    pub(crate) fn load(&self, state: &Com1State) -> Result<(), Refusal> {
        self.output.load(&state.console);
        let output = Sink(Arc::clone(&self.output));
        let line = Line(Arc::clone(&self.vm));
        let port = Serial::from_state(&state.port, line, NoEvents, output).map_err(|error| {
            Refusal::new(
                RefusalCode::InvalidArgument,
                format!("the saved state of the serial port cannot be loaded: {error:?}"),
                "bring source and destination to the same version",
            )
        })?;
        *lock(&self.port) = port;
        Ok(())
    }
}

impl Com1State {
    pub(crate) fn encode(&self, to: &mut Encoder) {
        let port = &self.port;
        to.raw(&[
            port.baud_divisor_low,
            port.baud_divisor_high,
            port.interrupt_enable,
            port.interrupt_identification,
            port.line_control,
            port.line_status,
            port.modem_control,
            port.modem_status,
            port.scratch,
        ]);
        to.bytes(&port.in_buffer);
        self.console.encode(to);
    }

    pub(crate) fn decode(from: &mut Decoder<'_>) -> Result<Self, Malformed> {
        const WHAT: &str = "the serial port's state";
        let registers: [u8; 9] = from.array(WHAT)?;
        let port = SerialState {
            baud_divisor_low: registers[0],
            baud_divisor_high: registers[1],
            interrupt_enable: registers[2],
            interrupt_identification: registers[3],
            line_control: registers[4],
            line_status: registers[5],
            modem_control: registers[6],
            modem_status: registers[7],
            scratch: registers[8],
            in_buffer: from.bytes(IN_BUFFER_BYTES_MAX, WHAT)?.to_vec(),
        };
        Ok(Self { port, console: Console::decode(from)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_waits_for_the_guest_to_read_and_goes_along() {
        let Ok(kvm) = kvm_ioctls::Kvm::new() else {
            eprintln!("SKIPPED: needs /dev/kvm");
            return;
        };
        let vm = Arc::new(kvm.create_vm().unwrap());
        vm.create_irq_chip().unwrap();
        let com1 = Com1::new(&vm, &Arc::default());
        let typed: Vec<u8> = (0..100).collect();
        assert_eq!(com1.input(&typed), 64, "what its queue holds");
        assert_eq!(com1.input(&typed[64..]), 0);
        let mut read = [0; 10];
        com1.read(0, &mut read);
        assert_eq!(read, typed[..10]);
        assert_eq!(com1.input(&typed[64..]), 10);
        let moved = Com1::new(&vm, &Arc::default());
        moved.load(&com1.save()).unwrap();
        let mut read = [0; 64];
        moved.read(0, &mut read);
        assert_eq!(read, typed[10..74]);
    }

    #[test]
    fn ports_map_to_registers() {
        assert_eq!(register(0x3f7), None);
        assert_eq!(register(0x3f8), Some(0));
        assert_eq!(register(0x3ff), Some(7));
        assert_eq!(register(0x400), None);
    }
}
