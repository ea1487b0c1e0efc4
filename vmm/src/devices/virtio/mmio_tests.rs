//! The transport driven as a guest would drive it.

use super::super::DeviceKind;
use super::super::slots::slot;
use super::super::testing::{Ring, drive, memory, notify, read, set_up_queue, write};
use super::*;
use crate::codec::{Decoder, Encoder};

/// A device that does nothing but say what happened to it, and moves its queue on by one a stop.
#[derive(Debug, Default)]
struct Probe {
    running: Mutex<Option<Activation>>,
    starts: Mutex<u32>,
    fails: bool,
    note: Mutex<Vec<u8>>,
}

impl VirtioDevice for Probe {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Rng
    }

    fn features(&self) -> u64 {
        1 << 5
    }

    fn queue_sizes(&self) -> &[u16] {
        &[16, 8]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        for (place, byte) in (offset..).zip(data) {
            *byte = u8::try_from(place).unwrap_or(0);
        }
    }

    fn start(&self, context: Activation) -> Result<(), Refusal> {
        if self.fails {
            return Err(Refusal::new(RefusalCode::HostFailure, "no thread", "try again"));
        }
        assert!(self.running.lock().unwrap().replace(context).is_none(), "started twice");
        *self.starts.lock().unwrap() += 1;
        Ok(())
    }

    fn stop(&self) -> Vec<QueueState> {
        let Some(mut running) = self.running.lock().unwrap().take() else { return vec![] };
        let first = &mut running.queues[0];
        first.set_next_avail(first.next_avail() + 1);
        running.queues.iter().map(Queue::state).collect()
    }

    fn save(&self) -> Vec<u8> {
        self.note.lock().unwrap().clone()
    }

    fn load(&self, bytes: &[u8]) -> Result<(), Refusal> {
        *self.note.lock().unwrap() = bytes.to_vec();
        Ok(())
    }
}

fn transport() -> (Arc<Probe>, Transport, GuestRam) {
    let (device, memory) = (Arc::new(Probe::default()), memory(0x10000));
    let transport = Transport::new(Arc::clone(&device) as _, slot(0), memory.clone()).unwrap();
    (device, transport, memory)
}

fn runs(device: &Probe) -> bool {
    device.running.lock().unwrap().is_some()
}

#[test]
fn the_registers_say_what_the_device_is() {
    let (_, transport, _) = transport();
    assert_eq!(read(&transport, 0), 0x7472_6976);
    assert_eq!((read(&transport, 4), read(&transport, 8)), (2, 4));
    assert_eq!(read(&transport, 0x10), 1 << 5 | 1 << 28 | 1 << 29);
    write(&transport, 0x14, 1);
    assert_eq!(read(&transport, 0x10), 1, "VERSION_1");
    write(&transport, 0x14, 2);
    assert_eq!(read(&transport, 0x10), 0);
    let sizes = [0, 1, 2].map(|queue| {
        write(&transport, 0x30, queue);
        read(&transport, 0x34)
    });
    assert_eq!(sizes, [16, 8, 0]);
    assert_eq!(read(&transport, 0xb0), u32::MAX, "no shared memory");
}

#[test]
fn the_configuration_is_read_in_any_width_and_registers_in_theirs() {
    let (_, transport, _) = transport();
    let mut wide = [0; 8];
    transport.read(0x100, &mut wide);
    assert_eq!(wide, [0, 1, 2, 3, 4, 5, 6, 7]);
    let mut byte = [0];
    transport.read(0x103, &mut byte);
    assert_eq!(byte, [3]);
    let mut narrow = [9; 2];
    transport.read(0, &mut narrow);
    assert_eq!(narrow, [0; 2]);
    transport.write(0x70, &[1]);
    assert_eq!(read(&transport, 0x70), 0, "a narrow write changes nothing");
}

#[test]
fn a_driver_gets_its_device_going_and_takes_it_back() {
    let (device, transport, memory) = transport();
    let ring = Ring::new(&memory, 0x1000, 8);
    drive(&transport, 0, &[&ring]);
    {
        let running = device.running.lock().unwrap();
        let with = running.as_ref().unwrap();
        assert_eq!(with.features, 1 << 5 | 1 << 28 | 1 << 29 | 1 << 32);
        assert_eq!(with.queues.iter().map(Queue::ready).collect::<Vec<_>>(), [true, false]);
        assert_eq!((with.queues[0].size(), with.queues[0].desc_table()), (8, 0x1000));
        assert!(with.queues[0].event_idx_enabled());
        assert_eq!(with.kicks[0].read().unwrap(), 1, "it looks once without being told");
        notify(&transport, 0);
        notify(&transport, 99);
        assert_eq!(with.kicks[0].read().unwrap(), 1);
    }
    write(&transport, 0x70, 0);
    assert!(!runs(&device));
    assert_eq!(read(&transport, 0x70), 0);
    write(&transport, 0x30, 0);
    assert_eq!(read(&transport, 0x44), 0, "no queue is ready after a reset");
    drive(&transport, 1 << 29, &[&ring]);
    assert_eq!(*device.starts.lock().unwrap(), 2);
    assert!(!device.running.lock().unwrap().as_ref().unwrap().queues[0].event_idx_enabled());
}

#[test]
fn features_not_offered_and_old_drivers_are_refused() {
    for (low, high) in [(0, 0), (1 << 6, 1), (0, 2)] {
        let (device, transport, _) = transport();
        write(&transport, 0x70, 3);
        write(&transport, 0x24, 0);
        write(&transport, 0x20, low);
        write(&transport, 0x24, 1);
        write(&transport, 0x20, high);
        write(&transport, 0x70, 11);
        assert_eq!(read(&transport, 0x70), 3, "{low:#x} {high:#x}");
        write(&transport, 0x70, 15);
        assert!(!runs(&device), "{low:#x} {high:#x}");
    }
}

#[test]
fn queues_out_of_bounds_are_not_taken() {
    let (_, transport, memory) = transport();
    drive(&transport, 0, &[]);
    let check = |base, size| {
        write(&transport, 0x70, 0);
        drive_to_features(&transport);
        set_up_queue(&transport, 0, &Ring::new(&memory, base, size));
        read(&transport, 0x44) == 1
    };
    assert!(check(0x1000, 16));
    assert!(!check(0x1000, 32), "larger than offered");
    assert!(!check(0x1000, 0), "empty");
    assert!(!check(0x1000, 6), "not a power of two");
    assert!(!check(0x1008, 16), "not aligned");
    assert!(!check(0, 16), "nowhere");
    assert!(!check(0x10000 - 256, 16), "rings beyond the end of memory");
    assert!(!check(u64::MAX - 15, 16), "at the end of everything");
}

fn drive_to_features(transport: &Transport) {
    write(transport, 0x70, 3);
    write(transport, 0x24, 1);
    write(transport, 0x20, 1);
    write(transport, 0x70, 11);
}

#[test]
fn a_queue_stays_where_it_is_while_the_device_works() {
    let (_, transport, memory) = transport();
    drive(&transport, 0, &[&Ring::new(&memory, 0x1000, 8)]);
    write(&transport, 0x30, 0);
    write(&transport, 0x80, 0x4000);
    write(&transport, 0x44, 0);
    assert_eq!(read(&transport, 0x44), 1);
    assert_eq!(transport.save().queues[0].desc_table, 0x1000);
}

#[test]
fn interrupts_stay_until_acknowledged_and_are_given_again() {
    let (_, transport, memory) = transport();
    drive(&transport, 0, &[&Ring::new(&memory, 0x1000, 8)]);
    let interrupt = transport.interrupt.clone();
    interrupt.used(0);
    interrupt.config();
    assert_eq!(read(&transport, 0x60), 3);
    assert_eq!(interrupt.irqfd().read().unwrap(), 2);
    assert_eq!(read(&transport, 0xfc), 1);
    write(&transport, 0x64, 1);
    assert_eq!(read(&transport, 0x60), 2);
    transport.pause();
    transport.resume();
    assert_eq!(interrupt.irqfd().read().unwrap(), 1, "one was on its way");
    write(&transport, 0x64, 2);
    transport.pause();
    transport.resume();
    assert!(interrupt.irqfd().read().is_err(), "nothing was");
}

#[test]
fn a_broken_device_waits_for_its_reset() {
    let (device, transport, memory) = transport();
    drive(&transport, 0, &[&Ring::new(&memory, 0x1000, 8)]);
    transport.interrupt.broken("the driver is hostile");
    assert_eq!(read(&transport, 0x70), 0x4f);
    assert_eq!(read(&transport, 0x60), 2, "it is told by a change of configuration");
    transport.pause();
    transport.resume();
    assert!(!runs(&device), "it does not work again by itself");
    write(&transport, 0x70, 0);
    assert_eq!(read(&transport, 0x70), 0);
    drive(&transport, 0, &[&Ring::new(&memory, 0x1000, 8)]);
    assert!(runs(&device));
}

#[test]
fn a_device_that_cannot_start_says_so_to_its_driver() {
    let device = Arc::new(Probe { fails: true, ..Probe::default() });
    let transport = Transport::new(device, slot(0), memory(0x10000)).unwrap();
    drive_to_features(&transport);
    write(&transport, 0x70, 15);
    assert_eq!(read(&transport, 0x70), 0x4f);
}

#[test]
fn a_paused_device_goes_on_where_it_stood() {
    let (device, transport, memory) = transport();
    drive(&transport, 0, &[&Ring::new(&memory, 0x1000, 8)]);
    transport.pause();
    transport.pause();
    assert!(!runs(&device));
    transport.resume();
    transport.resume();
    let next = device.running.lock().unwrap().as_ref().unwrap().queues[0].next_avail();
    assert_eq!((next, *device.starts.lock().unwrap()), (1, 2));
}

#[test]
fn everything_goes_along_to_another_transport() {
    let (device, here, memory) = transport();
    drive(&here, 0, &[&Ring::new(&memory, 0x1000, 8), &Ring::new(&memory, 0x2000, 4)]);
    *device.note.lock().unwrap() = b"own".to_vec();
    here.interrupt.used(1);
    here.interrupt.config();
    here.pause();
    let state = here.save();
    let mut encoder = Encoder::default();
    state.encode(&mut encoder);
    let bytes = encoder.finish();
    let mut decoder = Decoder::new(&bytes);
    assert_eq!(TransportState::decode(&mut decoder), Ok(state.clone()));
    decoder.finish("the end").unwrap();

    let (other, there, _) = transport();
    there.load(&state).unwrap();
    assert_eq!(there.save(), state);
    assert!(!runs(&other), "it rests until the machine goes on");
    there.resume();
    assert!(runs(&other));
    assert_eq!(there.interrupt.irqfd().read().unwrap(), 1, "nothing acknowledged is lost");
    assert_eq!(*other.note.lock().unwrap(), b"own");
}

#[test]
fn states_no_driver_could_set_up_are_refused() {
    let (_, transport, memory) = transport();
    drive(&transport, 0, &[&Ring::new(&memory, 0x1000, 8)]);
    transport.pause();
    let good = transport.save();
    let check = |change: &dyn Fn(&mut TransportState), code| {
        let mut state = good.clone();
        change(&mut state);
        assert_eq!(transport.load(&state).unwrap_err().code, code, "{state:?}");
    };
    check(&|state| state.kind = 1, RefusalCode::Incompatible);
    check(&|state| state.queues.truncate(1), RefusalCode::Incompatible);
    check(&|state| state.driver_features |= 1 << 9, RefusalCode::Incompatible);
    check(&|state| state.queues[0].max_size = 32, RefusalCode::Incompatible);
    check(&|state| state.queues[0].size = 7, RefusalCode::InvalidArgument);
    check(&|state| state.queues[0].used_ring = 0xfffe, RefusalCode::InvalidArgument);
    check(&|state| state.queues[0].event_idx_enabled = false, RefusalCode::InvalidArgument);
    transport.load(&good).unwrap();
}

#[test]
fn cut_or_oversized_states_do_not_decode() {
    let (_, transport, _) = transport();
    let mut encoder = Encoder::default();
    transport.save().encode(&mut encoder);
    let bytes = encoder.finish();
    for end in 0..bytes.len() {
        assert!(TransportState::decode(&mut Decoder::new(&bytes[..end])).is_err(), "{end}");
    }
}
