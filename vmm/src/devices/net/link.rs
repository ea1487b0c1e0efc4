//! Network interfaces of the host, by name: netdevice(7) and the bridge's ioctl.
//!
//! Everything goes through one socket, which also says in whose network
//! namespace the names are looked up: the one of the thread that opened it.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use ballast_model::MacAddress;
use ballast_model::hardware::INTERFACE_BYTES_MAX;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, socket_with};

/// Adds an interface to a bridge (linux/sockios.h).
const SIOCBRADDIF: libc::c_ulong = 0x89a2;
const IFF_UP: libc::c_short = 1;

/// The host's interfaces.
#[derive(Debug)]
pub(super) struct Links {
    socket: OwnedFd,
    netlink: OwnedFd,
}

impl Links {
    pub(super) fn open() -> io::Result<Self> {
        let cloexec = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, cloexec, None)?;
        let netlink = socket_with(AddressFamily::NETLINK, SocketType::RAW, cloexec, None)?;
        Ok(Self { socket, netlink })
    }

    /// The number of an interface; none when there is no such interface.
    pub(super) fn index(&self, name: &str) -> io::Result<Option<libc::c_int>> {
        let mut request = request(name)?;
        match self.call(libc::SIOCGIFINDEX, &mut request) {
            // SAFETY: the kernel filled in the number.
            Ok(()) => Ok(Some(unsafe { request.ifr_ifru.ifru_ifindex })),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The longest packet of an interface, in bytes, without its Ethernet header.
    pub(super) fn mtu(&self, name: &str) -> io::Result<libc::c_int> {
        let mut request = request(name)?;
        self.call(libc::SIOCGIFMTU, &mut request)?;
        // SAFETY: the kernel filled it in.
        Ok(unsafe { request.ifr_ifru.ifru_mtu })
    }

    pub(super) fn set_mtu(&self, name: &str, mtu: libc::c_int) -> io::Result<()> {
        let mut request = request(name)?;
        request.ifr_ifru.ifru_mtu = mtu;
        self.call(libc::SIOCSIFMTU, &mut request)
    }

    pub(super) fn set_mac(&self, name: &str, mac: MacAddress) -> io::Result<()> {
        let mut address = libc::sockaddr { sa_family: libc::ARPHRD_ETHER, sa_data: [0; 14] };
        for (to, from) in address.sa_data.iter_mut().zip(mac.0) {
            *to = from.cast_signed();
        }
        let mut request = request(name)?;
        request.ifr_ifru.ifru_hwaddr = address;
        self.call(libc::SIOCSIFHWADDR, &mut request)
    }

    pub(super) fn is_up(&self, name: &str) -> io::Result<bool> {
        Ok(self.flags(name)? & IFF_UP != 0)
    }

    pub(super) fn bring_up(&self, name: &str) -> io::Result<()> {
        let flags = self.flags(name)?;
        let mut request = request(name)?;
        request.ifr_ifru.ifru_flags = flags | IFF_UP;
        self.call(libc::SIOCSIFFLAGS, &mut request)
    }

    fn flags(&self, name: &str) -> io::Result<libc::c_short> {
        let mut request = request(name)?;
        self.call(libc::SIOCGIFFLAGS, &mut request)?;
        // SAFETY: the kernel filled them in.
        Ok(unsafe { request.ifr_ifru.ifru_flags })
    }

    /// Makes an interface a port of a bridge.
    pub(super) fn join(&self, bridge: &str, port: libc::c_int) -> io::Result<()> {
        let mut request = request(bridge)?;
        request.ifr_ifru.ifru_ifindex = port;
        self.call(SIOCBRADDIF, &mut request)
    }

    /// Leaves an interface without an IPv6 address of its own: what the host would
    /// say with it only the guest behind it would hear (rtnetlink(7), as
    /// `ip link set addrgenmode none` does).
    pub(super) fn without_address(&self, index: libc::c_int) -> io::Result<()> {
        const ADDR_GEN_MODE: u16 = 8;
        const MODE_NONE: u8 = 1;
        const NESTED: u16 = 1 << 15;
        let mode = attribute(ADDR_GEN_MODE, &[MODE_NONE]);
        let family = attribute(NESTED | 10, &mode); // AF_INET6
        let payload = attribute(NESTED | libc::IFLA_AF_SPEC, &family);
        let length = u32::try_from(32 + payload.len()).unwrap_or_default();
        let flags = u16::try_from(libc::NLM_F_REQUEST | libc::NLM_F_ACK).unwrap_or_default();
        let mut message = Vec::new();
        message.extend(length.to_ne_bytes());
        message.extend(libc::RTM_NEWLINK.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend([0; 8]); // sequence, port
        message.extend([0; 4]); // struct ifinfomsg: no family, no type
        message.extend(index.to_ne_bytes());
        message.extend([0; 8]); // flags, none of them changed
        message.extend(payload);
        rustix::net::send(&self.netlink, &message, SendFlags::empty())?;
        let mut answer = [0; 256];
        let (count, _) = rustix::net::recv(&self.netlink, &mut answer, RecvFlags::empty())?;
        // struct nlmsghdr, then the negative error number of struct nlmsgerr.
        match answer.get(16..20).filter(|_| count >= 20).map(<[u8; 4]>::try_from) {
            Some(Ok([0, 0, 0, 0])) => Ok(()),
            Some(Ok(error)) => Err(io::Error::from_raw_os_error(-i32::from_ne_bytes(error))),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    fn call(&self, number: libc::c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
        // SAFETY: every call above takes a `struct ifreq`, which lives until it returns.
        let result = unsafe { libc::ioctl(self.socket.as_raw_fd(), number, request) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// One attribute of a netlink message, padded.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = 4 + value.len();
    let mut bytes = Vec::with_capacity(length.next_multiple_of(4));
    bytes.extend(u16::try_from(length).unwrap_or_default().to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(length.next_multiple_of(4), 0);
    bytes
}

/// A request about the interface `name`, everything else zero.
pub(super) fn request(name: &str) -> io::Result<libc::ifreq> {
    if name.is_empty() || name.len() > INTERFACE_BYTES_MAX || name.as_bytes().contains(&0) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    // SAFETY: a C structure of numbers and a pointer, for which zeroes are good.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    Ok(request)
}
