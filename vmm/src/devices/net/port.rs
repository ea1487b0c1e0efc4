//! Where a VM's network device is plugged in: which tap, whose, and when it is held.
//!
//! * **A tap of the operator's** has one place. While the VM migrates between
//!   two processes of one host, both want it: so it is given up when the guest
//!   stops ([`Port::release`]) and taken when the guest's device state is there
//!   or when it goes on ([`Port::connect`]). An incoming VM may find it busy
//!   until its source stops.
//! * **A tap made here** for a bridge is this process's own from the start to
//!   the end. The tap of a stopped guest is silent: nothing but the guest sends
//!   through it.
//!
//! Either way the destination's tap takes the guest's address over in every
//! bridge when the device announces it, and not before.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ballast_model::hardware::Attach;
use ballast_model::{MacAddress, NetworkSpec, Refusal, RefusalCode, VmId};

use super::link::Links;
use super::tap::{OpenError, Tap, Unattached};

/// How the name of a tap made here begins.
const NAME_PREFIX: &str = "blst";
/// How many names are tried. Two processes with one VM, source and destination
/// of a migration within the host, need two.
const NAMES_MAX: u8 = 8;
/// How many descriptors are kept for taps to come: one for the next start, and
/// some for interfaces that somebody removes meanwhile.
const STOCK: usize = 3;

/// The place of one network device.
#[derive(Debug)]
pub(super) struct Port {
    vm: VmId,
    index: u8,
    mac: MacAddress,
    attach: Attach,
    held: Mutex<Held>,
}

/// What is open. What [`Port::connect`] opens was opened before by
/// [`Port::prepare`]: a device's thread may no longer open anything itself.
#[derive(Debug, Default)]
struct Held {
    tap: Option<Arc<Tap>>,
    links: Option<Links>,
    stock: Vec<Unattached>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Port {
    /// The place of network number `index` of a VM that starts here.
    ///
    /// # Errors
    /// `NotFound` for a tap or bridge that is not there, `WrongState` for a tap in
    /// use, `InvalidArgument` for an interface of another kind, `Unsupported` or
    /// `HostFailure` when the host does not let us.
    pub(super) fn open(vm: &VmId, index: u8, spec: &NetworkSpec) -> Result<Self, Refusal> {
        let port = Self::closed(vm, index, spec);
        port.prepare()?;
        port.connect()?;
        Ok(port)
    }

    /// The same for a VM that is to arrive: its source may have the tap still.
    ///
    /// # Errors
    /// As [`open`](Self::open), but for a tap in use.
    pub(super) fn expect(vm: &VmId, index: u8, spec: &NetworkSpec) -> Result<Self, Refusal> {
        let port = Self::closed(vm, index, spec);
        port.prepare()?;
        match port.connect() {
            Err(refusal) if refusal.code != RefusalCode::WrongState => Err(refusal),
            _ => Ok(port),
        }
    }

    fn closed(vm: &VmId, index: u8, spec: &NetworkSpec) -> Self {
        let (attach, mac) = (spec.attach.clone(), spec.mac);
        Self { vm: vm.clone(), index, mac, attach, held: Mutex::default() }
    }

    /// A place that is one end of a pair of sockets.
    #[cfg(test)]
    pub(super) fn of_tap(vm: &VmId, tap: Tap) -> Self {
        let (index, mac) = (0, MacAddress::derived(vm, 0));
        let attach = Attach::Bridge("test".to_owned());
        let held = Held { tap: Some(Arc::new(tap)), ..Held::default() };
        Self { vm: vm.clone(), index, mac, attach, held: Mutex::new(held) }
    }

    /// Opens what a later [`connect`](Self::connect) needs.
    ///
    /// # Errors
    /// `Unsupported` or `HostFailure` when the host has no taps for us.
    pub(super) fn prepare(&self) -> Result<(), Refusal> {
        let mut held = lock(&self.held);
        if held.links.is_none() {
            let links = Links::open().map_err(|error| failed("look at interfaces", &error))?;
            held.links = Some(links);
        }
        while held.stock.len() < STOCK {
            let unattached = Unattached::open().map_err(OpenError::NoTun);
            let name = self.attach.interface();
            held.stock.push(unattached.map_err(|error| not_opened(name, &error))?);
        }
        Ok(())
    }

    /// The tap, taken now if it is not held.
    ///
    /// # Errors
    /// See [`open`](Self::open).
    pub(super) fn connect(&self) -> Result<Arc<Tap>, Refusal> {
        let mut held = lock(&self.held);
        if let Some(tap) = &held.tap {
            return Ok(Arc::clone(tap));
        }
        let Held { links: Some(links), stock, .. } = &mut *held else {
            return Err(not_opened(
                self.attach.interface(),
                &OpenError::NoTun(io::Error::other("nothing was prepared for it")),
            ));
        };
        let tap = match &self.attach {
            Attach::Tap(name) => attach(links, name, stock),
            Attach::Bridge(name) => self.make(links, name, stock),
        };
        let tap = Arc::new(tap?);
        held.tap = Some(Arc::clone(&tap));
        Ok(tap)
    }

    /// Whether the tap is held.
    pub(super) fn is_connected(&self) -> bool {
        lock(&self.held).tap.is_some()
    }

    /// The tap, if it is held.
    pub(super) fn held(&self) -> Option<Arc<Tap>> {
        lock(&self.held).tap.clone()
    }

    /// Whether [`release`](Self::release) gives it up.
    pub(super) fn is_given_up(&self) -> bool {
        matches!(self.attach, Attach::Tap(_))
    }

    /// Gives up a tap that another process of this host may want.
    pub(super) fn release(&self) {
        if self.is_given_up() {
            lock(&self.held).tap = None;
        }
    }

    /// The interface has been removed: what is held is good for nothing.
    pub(super) fn lost(&self) {
        lock(&self.held).tap = None;
    }

    /// A new tap, joined to the bridge.
    fn make(
        &self,
        links: &Links,
        bridge: &str,
        stock: &mut Vec<Unattached>,
    ) -> Result<Tap, Refusal> {
        if links.index(bridge).map_err(|error| failed("look for the bridge", &error))?.is_none() {
            return Err(Refusal::new(
                RefusalCode::NotFound,
                format!("there is no bridge {bridge} on this host"),
                format!(
                    "make it with: ip link add {bridge} type bridge && ip link set {bridge} up"
                ),
            ));
        }
        let mut busy = None;
        for attempt in 0..NAMES_MAX {
            let name = tap_name(&self.vm, self.index, attempt);
            match Tap::make(&name, stock) {
                Ok(tap) => {
                    let mtu = self.plug(links, bridge, &name)?;
                    tracing::info!(tap = name, bridge, "network device plugged in");
                    return Ok(tap.with_mtu(mtu));
                }
                Err(OpenError::Attach(error)) if error.raw_os_error() == Some(libc::EBUSY) => {
                    busy = Some((name, OpenError::Attach(error)));
                }
                Err(error) => return Err(not_opened(&name, &error)),
            }
        }
        let refused = busy.map(|(name, error)| not_opened(&name, &error));
        Err(refused.unwrap_or_else(|| failed("name a tap", &io::ErrorKind::AlreadyExists.into())))
    }

    /// The tap's MTU. Order matters: no address of its own before it is up, and no smaller MTU in the bridge.
    fn plug(&self, links: &Links, bridge: &str, name: &str) -> Result<usize, Refusal> {
        let what = |what: &str| format!("{what} tap {name}");
        links
            .set_mac(name, host_side(self.mac))
            .map_err(|error| failed(&what("give an address to"), &error))?;
        let mtu = links.mtu(bridge).map_err(|error| failed("read the bridge's MTU", &error))?;
        links.set_mtu(name, mtu).map_err(|error| failed(&what("set the MTU of"), &error))?;
        let index = links.index(name).ok().flatten().unwrap_or_default();
        if let Err(error) = links.without_address(index) {
            tracing::debug!(tap = name, %error, "the tap has an IPv6 address of its own");
        }
        links.join(bridge, index).map_err(|error| match error.raw_os_error() {
            Some(libc::EOPNOTSUPP | libc::EINVAL) => Refusal::new(
                RefusalCode::InvalidArgument,
                format!("{bridge} is a network interface, but not a bridge"),
                "name a bridge; for a tap that is there already use tap= instead of bridge=",
            ),
            _ => failed(&format!("join tap {name} to bridge {bridge}"), &error),
        })?;
        links.bring_up(name).map_err(|error| failed(&what("bring up"), &error))?;
        Ok(usize::try_from(mtu).unwrap_or_default())
    }
}

/// Attaches to a tap of the operator's.
fn attach(links: &Links, name: &str, stock: &mut Vec<Unattached>) -> Result<Tap, Refusal> {
    // Before: attaching to a name that is not there would make a tap of that name.
    if links.index(name).map_err(|error| failed("look for the tap", &error))?.is_none() {
        return Err(Refusal::new(
            RefusalCode::NotFound,
            format!("there is no tap {name} on this host"),
            format!("make it with: ip tuntap add dev {name} mode tap && ip link set {name} up"),
        ));
    }
    let tap = Tap::attach(name, stock).map_err(|error| not_opened(name, &error))?;
    if !links.is_up(name).unwrap_or(true)
        && let Err(error) = links.bring_up(name)
    {
        return Err(Refusal::new(
            RefusalCode::HostFailure,
            format!("tap {name} is down and cannot be brought up: {error}"),
            format!("bring it up with: ip link set {name} up"),
        ));
    }
    let mtu = links.mtu(name).map_err(|error| failed("read the tap's MTU", &error))?;
    Ok(tap.with_mtu(usize::try_from(mtu).unwrap_or_default()))
}

fn not_opened(name: &str, error: &OpenError) -> Refusal {
    let rights = "run the VMM with CAP_NET_ADMIN, or give it a tap of its own user: \
                  ip tuntap add dev NAME mode tap user USER";
    let (error, what) = match error {
        OpenError::NoTun(error) => (error, "/dev/net/tun cannot be opened"),
        OpenError::Attach(error) => (error, "it cannot be attached to"),
        OpenError::SetUp(error) => (error, "it does not take the headers virtio needs"),
    };
    let (code, remedy) = match error.raw_os_error() {
        Some(libc::EBUSY) => (
            RefusalCode::WrongState,
            "it is in use: end the process that has it, or give this VM a tap of its own",
        ),
        Some(libc::EPERM | libc::EACCES) => (RefusalCode::HostFailure, rights),
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
            (RefusalCode::Unsupported, "load the tun module: modprobe tun")
        }
        Some(libc::EINVAL) => (
            RefusalCode::InvalidArgument,
            "name an interface that is a tap: ip tuntap add dev NAME mode tap",
        ),
        _ => (RefusalCode::HostFailure, "look into the host's kernel log"),
    };
    Refusal::new(code, format!("tap {name} cannot be used: {what}: {error}"), remedy)
}

fn failed(what: &str, error: &io::Error) -> Refusal {
    let remedy = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            "run the VMM with CAP_NET_ADMIN, or plug the VM into a tap made before with tap="
        }
        _ => "look into the host's kernel log",
    };
    Refusal::new(RefusalCode::HostFailure, format!("cannot {what}: {error}"), remedy)
}

/// The host's end of the cable. The first octet is high: a bridge takes the
/// lowest address among its ports for its own, and must not change it with every VM.
fn host_side(guest: MacAddress) -> MacAddress {
    let [first, rest @ ..] = guest.0;
    let high = if first == 0xfe { 0xfa } else { 0xfe };
    let mut octets = [high; 6];
    octets[1..].copy_from_slice(&rest);
    MacAddress(octets)
}

/// The name of a tap made for a VM: what it is for is in its hash, which is
/// stable, so that whoever looks for leftovers finds the same names again.
fn tap_name(vm: &VmId, index: u8, attempt: u8) -> String {
    let name = vm.as_str().bytes().chain([0, index, attempt]);
    let hash = name.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{NAME_PREFIX}{:011x}", hash >> 20)
}

#[cfg(test)]
mod tests {
    use ballast_model::hardware::INTERFACE_BYTES_MAX;

    use super::*;

    #[test]
    fn names_fit_and_differ() {
        let vm: VmId = "a-very-long-name-for-a-virtual-machine".parse().unwrap();
        let mut names: Vec<_> = (0..4)
            .flat_map(|index| (0..NAMES_MAX).map(move |attempt| (index, attempt)))
            .map(|(index, attempt)| tap_name(&vm, index, attempt))
            .collect();
        assert!(names.iter().all(|name| name.len() == INTERFACE_BYTES_MAX), "{names:?}");
        let before = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), before);
    }

    #[test]
    fn the_hosts_end_has_another_address_than_the_guests() {
        for first in [0x02, 0xfe, 0xfa] {
            let guest = MacAddress([first, 1, 2, 3, 4, 5]);
            let host = host_side(guest);
            assert_ne!(host, guest);
            assert!(host.is_unicast());
        }
    }
}
