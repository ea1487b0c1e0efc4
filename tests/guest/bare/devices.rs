//! What the guest has besides memory and time: a network and a log on a disk,
//! each only when it is asked for.
//!
//! | line | meaning |
//! | --- | --- |
//! | `N <mac> <address>/<prefix> echo=<port> count=<port>` | it is on the network |
//! | `D <capacity> next=<n> run=<n>` | the log's end was found: records it has room for, the next one |

use core::fmt::Write;

use crate::clock::Clock;
use crate::console::Line;
use crate::log::{Event, Log, Wrong};
use crate::net::Network;
use crate::params::Params;
use crate::timeline::Nanos;
use crate::virtio::mmio::Window;

/// Faults after this many are counted but no longer described.
const DESCRIBED_FAULTS_MAX: u64 = 16;

/// The devices the guest was told to use.
pub struct Devices {
    network: Option<Network>,
    log: Option<Log>,
    faults: u64,
}

impl Devices {
    /// Starts them. An error names the device and what is wrong with it.
    pub fn start(
        params: &Params<'_>,
        clock: &mut Clock,
    ) -> Result<Self, (&'static str, &'static str)> {
        let window = Window { base: params.virtio_base, stride: params.virtio_stride };
        let mut devices = Self { network: None, log: None, faults: 0 };
        if let Some((address, prefix)) = params.ip {
            let network = Network::start(params, window, clock.tick())
                .map_err(|why| ("the network card", why))?;
            let mut line = Line::new();
            let [a, b, c, d, e, f] = network.mac();
            // A line takes what fits and never fails.
            let _ = write!(
                line,
                "N {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x} {address}/{prefix} \
                 echo={} count={}",
                params.echo_port, params.count_port
            );
            line.send(clock);
            devices.network = Some(network);
        }
        if params.log_per_sec > 0 {
            devices.log = Some(Log::start(params, window).map_err(|why| ("the disk", why))?);
        }
        Ok(devices)
    }

    /// A few microseconds of what there is to do. True when there is more.
    pub fn step(&mut self, clock: &mut Clock) -> bool {
        let now = clock.tick();
        let mut more = false;
        let mut requests = 0;
        let mut twice = false;
        if let Some(network) = &mut self.network {
            more = network.step(now);
            requests = network.requests();
            twice = network.take_fault();
        }
        if twice {
            self.report(clock, |line| write!(line, "network card completed what it did not have"));
        }
        if let Some(log) = &mut self.log {
            match log.step(now, requests) {
                None => {}
                Some(Event::Ready) => {
                    let mut line = Line::new();
                    let (capacity, next, run) = (log.capacity(), log.next(), log.run());
                    let _ = write!(line, "D {capacity} next={next} run={run}");
                    line.send(clock);
                }
                Some(Event::Wrong(wrong)) => self.report(clock, |line| match wrong {
                    Wrong::Refused(status) => {
                        write!(line, "disk refused a request with status {status}")
                    }
                    Wrong::NotThere(sequence) => write!(line, "log record {sequence} is not there"),
                    Wrong::TwiceDone => write!(line, "disk completed what it did not have"),
                }),
            }
        }
        more
    }

    /// When to step again at the latest.
    pub fn wake(&self, now: Nanos) -> Nanos {
        let network = self.network.as_ref().map_or(Nanos::MAX, |network| network.wake(now));
        let log = self.log.as_ref().map_or(Nanos::MAX, |log| log.wake(now));
        network.min(log)
    }

    /// ` n<requests>` with a network, ` d<durable records>` with a log, ` f<faults>` once there
    /// are any.
    pub fn add_to_heartbeat(&self, line: &mut Line) {
        // A line takes what fits and never fails.
        if let Some(network) = &self.network {
            let _ = write!(line, " n{}", network.requests());
        }
        if let Some(log) = &self.log {
            let _ = write!(line, " d{}", log.durable());
        }
        if self.faults > 0 {
            let _ = write!(line, " f{}", self.faults);
        }
    }

    fn report(&mut self, clock: &mut Clock, what: impl FnOnce(&mut Line) -> core::fmt::Result) {
        self.faults += 1;
        if self.faults <= DESCRIBED_FAULTS_MAX {
            let mut line = Line::new();
            let _ = line.write_str("E ");
            let _ = what(&mut line);
            line.send(clock);
        }
    }
}
