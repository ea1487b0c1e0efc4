//! Ethernet frames, without any protocol above.

use smoltcp::phy::{Device, RxToken, TxToken};
use smoltcp::time::Instant;

use super::{Done, Load};
use crate::params::Bench;
use crate::timeline::Nanos;
use crate::virtio::mmio::Window;
use crate::virtio::net::Net;

/// Frames before the next look at the clock.
const BATCH: usize = 16;
/// For experiments within a network (IEEE 802): nobody answers.
const KIND: [u8; 2] = [0x88, 0xb5];
const NOW: Instant = Instant::ZERO;

/// A network card under load.
pub struct Frames {
    card: Net,
    bytes: usize,
    done: Done,
}

pub fn start(task: &Bench, window: Window) -> Result<Frames, &'static str> {
    let card = Net::start(window)?;
    Ok(Frames { card, bytes: task.bytes as usize, done: Done::default() })
}

/// Sends as much as goes.
pub struct Sending<'a>(pub &'a mut Frames);
/// Takes everything that comes.
pub struct Receiving<'a>(pub &'a mut Frames);

impl Load for Sending<'_> {
    fn step(&mut self, _: Nanos) -> Result<Done, &'static str> {
        let Frames { card, bytes, done } = &mut *self.0;
        let mac = card.mac();
        for _ in 0..BATCH {
            let Some(token) = card.transmit(NOW) else { break };
            token.consume(*bytes, |frame| {
                frame[..6].fill(0xff);
                frame[6..12].copy_from_slice(&mac);
                frame[12..14].copy_from_slice(&KIND);
            });
            done.operations += 1;
            done.bytes += *bytes as u64;
        }
        card.kick();
        while card.receive(NOW).is_some_and(|(frame, _)| frame.consume(|_| true)) {}
        Ok(*done)
    }
}

impl Load for Receiving<'_> {
    fn step(&mut self, _: Nanos) -> Result<Done, &'static str> {
        let Frames { card, done, .. } = &mut *self.0;
        for _ in 0..BATCH {
            let Some((frame, _)) = card.receive(NOW) else { break };
            done.bytes += frame.consume(|frame| frame.len() as u64);
            done.operations += 1;
        }
        card.kick();
        Ok(*done)
    }
}
