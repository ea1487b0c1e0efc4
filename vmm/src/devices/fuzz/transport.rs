//! A transport under a hostile driver, paused and moved in between.

use std::sync::{Arc, Mutex};

use ballast_model::Refusal;
use virtio_queue::{Queue, QueueState, QueueT};

use super::engine::Input;
use crate::codec::{Decoder, Encoder};
use crate::devices::virtio::mmio::Transport;
use crate::devices::virtio::slots::slot;
use crate::devices::virtio::state::TransportState;
use crate::devices::virtio::testing::{memory, read};
use crate::devices::virtio::{Activation, DeviceKind, VirtioDevice};

/// A device that holds its transport to its promises, and does nothing else.
#[derive(Debug, Default)]
struct Strict {
    running: Mutex<Option<Activation>>,
}

impl VirtioDevice for Strict {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Net
    }

    fn features(&self) -> u64 {
        1 << 3 | 1 << 40
    }

    fn queue_sizes(&self) -> &[u16] {
        &[16, 256, 1]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(u8::try_from(offset % 251).unwrap_or(0));
    }

    fn start(&self, with: Activation) -> Result<(), Refusal> {
        assert_eq!(with.features >> 32 & 1, 1, "VERSION_1");
        for (queue, &size) in with.queues.iter().zip(self.queue_sizes()) {
            assert!(queue.size() <= size);
            assert!(!queue.ready() || queue.is_valid(&with.memory), "{queue:?}");
        }
        if with.queues[2].ready() {
            with.interrupt.used(2);
        }
        assert!(self.running.lock().unwrap().replace(with).is_none(), "started twice");
        Ok(())
    }

    fn stop(&self) -> Vec<QueueState> {
        let running = self.running.lock().unwrap().take();
        running.map(|with| with.queues.iter().map(Queue::state).collect()).unwrap_or_default()
    }

    fn save(&self) -> Vec<u8> {
        b"strict".to_vec()
    }

    fn load(&self, bytes: &[u8]) -> Result<(), Refusal> {
        assert_eq!(bytes, b"strict");
        Ok(())
    }
}

/// The input is a program: which registers the driver reads and writes, and when the machine
/// pauses, goes on, or moves.
pub(super) fn fuzz_transport(data: &[u8]) {
    const REGISTERS: [u64; 22] = [
        0x14, 0x20, 0x24, 0x30, 0x38, 0x44, 0x50, 0x64, 0x70, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4,
        0xac, 0x60, 0x10, 0x34, 0xfc, 0x100, 0x40,
    ];
    let mut input = Input(data);
    let memory = memory(64 << 10);
    let build = || {
        let device = Arc::new(Strict::default());
        (Arc::clone(&device), Transport::new(device, slot(0), memory.clone()).unwrap())
    };
    let (mut device, mut transport) = build();
    while !input.is_empty() {
        let order = input.u8();
        let register = REGISTERS[usize::from(order & 0x1f) % REGISTERS.len()];
        match order >> 5 {
            0..=2 => transport.write(register, &u32::from(input.u8()).to_le_bytes()),
            3 => transport.write(register, &(u32::from(input.u16()) & !0xf).to_le_bytes()),
            4 => transport.write(register, &input.u32().to_le_bytes()),
            5 => {
                let mut data = [0; 8];
                let width = usize::from(input.u8() % 9);
                transport.read(input.u16().into(), &mut data[..width]);
                transport.write(input.u16().into(), &data[..width]);
            }
            6 if order & 1 == 0 => transport.pause(),
            6 => transport.resume(),
            _ => {
                transport.pause();
                let state = transport.save();
                let mut encoder = Encoder::default();
                state.encode(&mut encoder);
                let bytes = encoder.finish();
                let decoded = TransportState::decode(&mut Decoder::new(&bytes)).unwrap();
                assert_eq!(decoded, state);
                (device, transport) = build();
                transport.load(&decoded).unwrap();
                assert_eq!(transport.save(), state);
                transport.resume();
            }
        }
    }
    transport.resume();
    let runs = device.running.lock().unwrap().is_some();
    let status = read(&transport, 0x70);
    assert_eq!(runs, status & 0x44 == 4, "it works when its driver was told so: {status:#x}");
    assert!(status & 4 == 0 || status & 8 != 0, "no DRIVER_OK without FEATURES_OK: {status:#x}");
    transport.write(0x70, &[0; 4]);
    assert_eq!(read(&transport, 0x70), 0);
    assert!(device.running.lock().unwrap().is_none());
}
