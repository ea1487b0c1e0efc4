//! A link that can be cut: connections to its address come out elsewhere.

// Helpers of tests may unwrap like tests.
#![allow(clippy::unwrap_used, unreachable_pub)]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// The link. Its threads end with the connections, the first one with the test.
pub struct Relay {
    address: SocketAddr,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    cut: bool,
    connections: Vec<TcpStream>,
}

impl Relay {
    pub fn to(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::<Mutex<Shared>>::default();
        let state = Arc::clone(&shared);
        std::thread::spawn(move || {
            for source in listener.incoming() {
                let source = source.unwrap();
                let mut state = state.lock().unwrap();
                // While it is cut nobody gets further than here.
                if state.cut {
                    continue;
                }
                let Ok(destination) = TcpStream::connect(to) else { continue };
                for (from, into) in [(&source, &destination), (&destination, &source)] {
                    from.set_nodelay(true).unwrap();
                    let (from, into) = (from.try_clone().unwrap(), into.try_clone().unwrap());
                    state.connections.push(from.try_clone().unwrap());
                    std::thread::spawn(move || carry(from, into));
                }
            }
        });
        Self { address, shared }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends all connections, and lets no other through.
    pub fn cut(&self) {
        let mut shared = self.shared.lock().unwrap();
        shared.cut = true;
        for connection in shared.connections.drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    /// Lets connections through again.
    pub fn mend(&self) {
        self.shared.lock().unwrap().cut = false;
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream) {
    let mut chunk = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut chunk) {
        if to.write_all(&chunk[..count]).is_err() {
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}
