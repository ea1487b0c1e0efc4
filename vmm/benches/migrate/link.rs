//! Two hosts as network namespaces, the wire between them, and a probe of it.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Instant;

use ballast_guest::net::Namespace;

const SOURCE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// The address the destination listens on.
pub(crate) const DESTINATION: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
const PROBE_BUFFER_BYTES: usize = 1 << 20;

/// Two namespaces and a wire.
pub(crate) struct Link {
    pub(crate) source: Namespace,
    pub(crate) destination: Namespace,
}

impl Link {
    /// A wire of this many Mbit/s, or as fast as the machine copies.
    pub(crate) fn new(mbit: Option<u32>) -> std::io::Result<Self> {
        let link = Self { source: Namespace::new()?, destination: Namespace::new()? };
        let peer = link.destination.path();
        link.source.ip(&format!("link add wire type veth peer name wire netns {peer}"))?;
        for (side, address) in [(&link.source, SOURCE), (&link.destination, DESTINATION)] {
            side.ip(&format!("addr add {address}/24 dev wire"))?;
            side.ip("link set wire up")?;
            if let Some(mbit) = mbit {
                let words =
                    format!("qdisc add dev wire root tbf rate {mbit}mbit burst 256kb latency 20ms");
                let status =
                    side.within(|| Command::new("tc").args(words.split(' ')).status())??;
                assert!(status.success(), "tc {words}");
            }
        }
        Ok(link)
    }

    /// Bytes a second from memory to memory over one connection.
    pub(crate) fn probe(&self, bytes: u64) -> f64 {
        let listener = self.destination.within(|| TcpListener::bind((DESTINATION, 0))).unwrap();
        let listener = listener.unwrap();
        let address = listener.local_addr().unwrap();
        let receiver = std::thread::spawn(move || {
            let mut peer = listener.accept().unwrap().0;
            let mut buffer = vec![1; PROBE_BUFFER_BYTES];
            while peer.read(&mut buffer).unwrap() > 0 {}
            peer.write_all(b"!").unwrap();
        });
        let mut peer: TcpStream =
            self.source.within(|| TcpStream::connect(address)).unwrap().unwrap();
        let buffer = vec![2; PROBE_BUFFER_BYTES];
        let began = Instant::now();
        for _ in 0..bytes.div_ceil(PROBE_BUFFER_BYTES as u64) {
            peer.write_all(&buffer).unwrap();
        }
        peer.shutdown(std::net::Shutdown::Write).unwrap();
        peer.read_exact(&mut [0]).unwrap();
        let time = began.elapsed();
        receiver.join().unwrap();
        bytes as f64 / time.as_secs_f64()
    }
}
