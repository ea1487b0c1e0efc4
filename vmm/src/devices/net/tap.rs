//! One end of a virtual cable: a tap interface of the host, opened.
//!
//! What is written to it arrives at the host as if sent by the guest; what the
//! host sends to the interface is read from it. Every frame has a
//! `virtio_net_hdr_v1` in front, in which guest and kernel tell each other
//! about checksums and segments still to be made.
//!
//! A tap made here is not persistent: the kernel removes it when its last
//! descriptor is closed, however the process ended.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::link::request;

/// The header in front of every frame, in bytes (virtio 1.2, 5.1.6).
pub(crate) const HEADER_BYTES: usize = 12;

const TUN: &str = "/dev/net/tun";
const MTU_DEFAULT: usize = 1500;
/// More than a tap queues (`txqueuelen`) unless told to.
const QUEUED_FRAMES_MAX: usize = 4096;

/// What the guest can take without the kernel doing it first: `TUN_F_*` bits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Offloads(pub(super) libc::c_uint);

/// An open tap.
#[derive(Debug)]
pub(super) struct Tap {
    fd: OwnedFd,
    /// The longest packet, in bytes, without its Ethernet header, as of the opening.
    mtu: usize,
}

/// Why a tap was not opened.
#[derive(Debug)]
pub(super) enum OpenError {
    /// `/dev/net/tun` could not be opened.
    NoTun(io::Error),
    /// It could, but the interface could not be attached to.
    Attach(io::Error),
    /// Attached, but without what virtio needs.
    SetUp(io::Error),
}

/// What becomes a tap when it is attached to an interface: opened while files may still be opened.
#[derive(Debug)]
pub(super) struct Unattached(File);

impl Unattached {
    pub(super) fn open() -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
        options.open(Path::new(TUN)).map(Self)
    }

    fn attach(&self, name: &str, flags: libc::c_int) -> io::Result<()> {
        let mut request = request(name)?;
        let flags = flags | libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        // The kernel takes the 16 bits as they are; IFF_TUN_EXCL is the highest of them.
        let [low, high, ..] = flags.to_le_bytes();
        request.ifr_ifru.ifru_flags = i16::from_le_bytes([low, high]);
        // SAFETY: TUNSETIFF takes a `struct ifreq`, which lives until it returns.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl Tap {
    /// Attaches one of `stock` to the tap of this name, which is there already.
    pub(super) fn attach(name: &str, stock: &mut Vec<Unattached>) -> Result<Self, OpenError> {
        match Self::take(name, 0, stock) {
            // Made with multi_queue: it is attached to in no other way.
            Err(OpenError::Attach(error)) if error.raw_os_error() == Some(libc::EINVAL) => {
                Self::take(name, libc::IFF_MULTI_QUEUE, stock)
            }
            other => other,
        }
    }

    /// Makes a tap of this name, which must not be there yet, of one of `stock`.
    pub(super) fn make(name: &str, stock: &mut Vec<Unattached>) -> Result<Self, OpenError> {
        Self::take(name, libc::IFF_TUN_EXCL, stock)
    }

    fn take(
        name: &str,
        flags: libc::c_int,
        stock: &mut Vec<Unattached>,
    ) -> Result<Self, OpenError> {
        let used_up = || OpenError::NoTun(io::Error::other("no descriptor is left for it"));
        let unattached = stock.pop().ok_or_else(used_up)?;
        if let Err(error) = unattached.attach(name, flags) {
            // Good for the next attempt.
            stock.push(unattached);
            return Err(OpenError::Attach(error));
        }
        let tap = Self { fd: unattached.0.into(), mtu: MTU_DEFAULT };
        tap.set_header_bytes()
            .and_then(|()| tap.set_offloads(Offloads::default()))
            .map_err(OpenError::SetUp)?;
        Ok(tap)
    }

    fn set_header_bytes(&self) -> io::Result<()> {
        let bytes = libc::c_int::try_from(HEADER_BYTES).unwrap_or_default();
        // SAFETY: TUNSETVNETHDRSZ reads an int, which lives until it returns.
        let result =
            unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const bytes) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Tells the kernel what the guest takes unfinished.
    pub(super) fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        let bits = libc::c_ulong::from(offloads.0);
        // SAFETY: TUNSETOFFLOAD takes its bits as they are and touches no memory.
        let result = unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::TUNSETOFFLOAD, bits) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Notes the longest packet the host will send.
    pub(super) fn with_mtu(self, mtu: usize) -> Self {
        Self { mtu, ..self }
    }

    /// The longest packet the host will send, in bytes, without its Ethernet header.
    pub(super) fn mtu(&self) -> usize {
        self.mtu
    }

    /// Forgets the frames that have arrived so far.
    pub(super) fn discard(&self) {
        // What does not fit is cut off, and the frame is gone; the headers must fit.
        let mut frame = [0; 64];
        for _ in 0..QUEUED_FRAMES_MAX {
            if rustix::io::read(&self.fd, &mut frame).is_err() {
                break;
            }
        }
    }

    /// One end of a pair of sockets that keep frames apart, as a tap does.
    #[cfg(test)]
    pub(super) fn of_socket(fd: OwnedFd) -> Self {
        Self { fd, mtu: MTU_DEFAULT }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
