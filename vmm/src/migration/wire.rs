//! The bytes of one connection: plain, or TLS in between. Blocking.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use rustls::{ClientConfig, Connection};

use super::tls;

/// The most that a reader waits for before it is woken.
const LOW_WATER_MAX: usize = 256 << 10;
/// The most pieces of memory filled by one call (`UIO_MAXIOV`).
const PIECES_MAX: usize = 1024;

/// Read at a time of what is encrypted. The TLS library would read 4 KiB.
const AHEAD_BYTES: usize = 256 << 10;

/// What may lie unsent in this host's queue before a page that somebody waits for.
const UNSENT_MAX: libc::c_int = 128 << 10;

/// What a wait for the peer came to; neither when the time was over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Heard {
    /// It has said something, or is gone.
    pub(crate) peer: bool,
    /// There is room to send.
    pub(crate) room: bool,
}

/// To wait until a descriptor can be read.
pub(super) fn readable(fd: RawFd) -> libc::pollfd {
    libc::pollfd { fd, events: libc::POLLIN, revents: 0 }
}

/// Waits for any of them. A signal counts as the end of the time.
pub(super) fn poll(fds: &mut [libc::pollfd], time: Duration) -> io::Result<()> {
    // Not less than asked for: whoever waits for a moment shall not spin up to it.
    let millis = time.as_micros().div_ceil(1000);
    let millis = libc::c_int::try_from(millis).unwrap_or(libc::c_int::MAX);
    let count = libc::nfds_t::try_from(fds.len()).unwrap_or(0);
    // SAFETY: the kernel writes to the entries given, as many as there are.
    if unsafe { libc::poll(fds.as_mut_ptr(), count, millis) } >= 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) }
}

/// One end of a connection.
#[derive(Debug)]
pub(crate) struct Wire {
    pub(super) tcp: TcpStream,
    /// Bytes that must have come before a reader is woken.
    low_water: usize,
    tls: Option<Box<Encryption>>,
}

#[derive(Debug)]
struct Encryption {
    connection: Connection,
    ahead: Ahead,
}

/// What has been read of a connection and not been decrypted.
#[derive(Debug)]
struct Ahead {
    buffer: Box<[u8]>,
    /// Where in the buffer, and how much.
    unread: (usize, usize),
}

impl Ahead {
    /// The same connection, read in large pieces.
    fn of<'a, R>(&'a mut self, from: &'a mut R) -> ReadAhead<'a, R> {
        ReadAhead { ahead: self, from }
    }
}

struct ReadAhead<'a, R> {
    ahead: &'a mut Ahead,
    from: &'a mut R,
}

impl<R: Read> Read for ReadAhead<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let Ahead { buffer, unread } = &mut *self.ahead;
        if unread.1 == 0 {
            *unread = (0, self.from.read(buffer)?);
        }
        let count = into.len().min(unread.1);
        into[..count].copy_from_slice(&buffer[unread.0..][..count]);
        *unread = (unread.0 + count, unread.1 - count);
        Ok(count)
    }
}

impl Wire {
    /// A connection that is not encrypted, or whose handshake has been made.
    pub(crate) fn new(tcp: TcpStream, tls: Option<Connection>) -> Self {
        let tls = tls.map(|connection| {
            let ahead = Ahead { buffer: vec![0; AHEAD_BYTES].into(), unread: (0, 0) };
            Box::new(Encryption { connection, ahead })
        });
        Self { tcp, low_water: 1, tls }
    }

    /// A source's connection, encrypted when there is a configuration for it.
    pub(crate) fn of_source(
        mut tcp: TcpStream,
        tls: Option<&Arc<ClientConfig>>,
    ) -> io::Result<Self> {
        let tls = tls.map(|config| tls::connect(Arc::clone(config), &mut tcp)).transpose()?;
        Ok(Self::new(tcp, tls))
    }

    /// Whether what goes over it is encrypted, and so authenticated.
    pub(crate) fn is_encrypted(&self) -> bool {
        self.tls.is_some()
    }

    /// From now on a reader is woken when so much has come (`SO_RCVLOWAT`), which must be on its
    /// way: on a slow link a wake-up for every packet costs more than copying it.
    fn wake_at(&mut self, bytes: usize) {
        if self.low_water == bytes {
            return;
        }
        let value = libc::c_int::try_from(bytes).unwrap_or(1);
        // SAFETY: the descriptor is open; the kernel reads one int.
        let set = unsafe {
            libc::setsockopt(
                self.tcp.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVLOWAT,
                (&raw const value).cast(),
                libc::socklen_t::try_from(size_of_val(&value)).unwrap_or(0),
            )
        };
        if set == 0 {
            self.low_water = bytes;
        }
    }

    /// Waits until `bytes` have come, or as many as there is room for, or the peer is gone.
    ///
    /// Polling, and not in a read: a blocked read counts what it has taken already towards the
    /// mark, the kernel that wakes it does not, and the last bytes of a round would lie there.
    fn wait_for(&mut self, bytes: usize) -> io::Result<()> {
        self.wake_at(bytes);
        let patience = self
            .tcp
            .read_timeout()?
            .map_or(-1, |time| libc::c_int::try_from(time.as_millis()).unwrap_or(libc::c_int::MAX));
        let mut fd = libc::pollfd { fd: self.tcp.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: the descriptor is open; the kernel writes to the one entry given.
        match unsafe { libc::poll(&raw mut fd, 1, patience) } {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            1.. => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Fills as much of the slices as has come already. Does not wait.
    fn take_what_came(&self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        // SAFETY: all of its fields are integers and pointers, which may be null.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        // An IoSliceMut has the layout of an iovec.
        message.msg_iov = slices.as_mut_ptr().cast();
        message.msg_iovlen = slices.len().min(PIECES_MAX);
        // SAFETY: the descriptor is open; the kernel writes to memory that `slices` borrows.
        let count =
            unsafe { libc::recvmsg(self.tcp.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
        usize::try_from(count).map_err(|_| io::Error::last_os_error())
    }

    /// Whether something has come that was not read, or the peer is gone. Does not wait.
    pub(crate) fn has_spoken(&mut self) -> bool {
        if let Some(tls) = &mut self.tls {
            let held = tls.connection.process_new_packets().ok();
            let held = held.is_some_and(|held| held.plaintext_bytes_to_read() > 0);
            if held || tls.ahead.unread.1 > 0 {
                return true;
            }
        }
        let mut byte = 0u8;
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        // SAFETY: the descriptor is open; the kernel writes at most the one byte given.
        unsafe { libc::recv(self.tcp.as_raw_fd(), (&raw mut byte).cast(), 1, flags) >= 0 }
    }

    /// Waits until the peer has said something or is gone, or, with `room`, until a write would
    /// find little unsent before it, or until one of `others` can be read. No longer than `time`.
    pub(crate) fn wait(
        &mut self,
        room: bool,
        others: &[RawFd],
        time: Duration,
    ) -> io::Result<Heard> {
        self.wake_at(1);
        let spoken = self.has_spoken();
        let events = if room { libc::POLLIN | libc::POLLOUT } else { libc::POLLIN };
        let mut fds = vec![libc::pollfd { fd: self.tcp.as_raw_fd(), events, revents: 0 }];
        fds.extend(others.iter().map(|&fd| readable(fd)));
        poll(&mut fds, if spoken { Duration::ZERO } else { time })?;
        let revents = fds.first().map_or(0, |own| own.revents);
        let own = spoken || revents & !libc::POLLOUT != 0;
        Ok(Heard { peer: own, room: revents & libc::POLLOUT != 0 })
    }

    /// See [`Stream::make_prompt`](super::stream::Stream::make_prompt).
    pub(crate) fn make_prompt(&self, patience: Duration) -> io::Result<()> {
        let millis = libc::c_int::try_from(patience.as_millis()).unwrap_or(libc::c_int::MAX);
        self.set_tcp(libc::TCP_NOTSENT_LOWAT, UNSENT_MAX)?;
        self.set_tcp(libc::TCP_USER_TIMEOUT, millis)
    }

    fn set_tcp(&self, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
        let length = libc::socklen_t::try_from(size_of_val(&value)).unwrap_or(0);
        let value = (&raw const value).cast();
        // SAFETY: the descriptor is open; the kernel reads one int.
        let set = unsafe {
            libc::setsockopt(self.tcp.as_raw_fd(), libc::IPPROTO_TCP, option, value, length)
        };
        if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Writes all of the slices.
    pub(crate) fn write_all_vectored(&mut self, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        let Some(tls) = &mut self.tls else {
            while !slices.is_empty() {
                match self.tcp.write_vectored(slices) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(count) => IoSlice::advance_slices(&mut slices, count),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            return Ok(());
        };
        for mut rest in slices.iter().map(|slice| &**slice) {
            while !rest.is_empty() {
                // It takes in as much as its buffer has room for.
                let taken = tls.connection.writer().write(rest)?;
                rest = &rest[taken..];
                if taken == 0 || !rest.is_empty() {
                    write_out(&mut tls.connection, &mut self.tcp)?;
                }
            }
        }
        write_out(&mut tls.connection, &mut self.tcp)
    }

    /// Fills all of the slices.
    pub(crate) fn read_exact_vectored(
        &mut self,
        mut slices: &mut [IoSliceMut<'_>],
    ) -> io::Result<()> {
        if self.tls.is_some() {
            return slices.iter_mut().try_for_each(|slice| self.read_exact(slice));
        }
        let mut rest: usize = slices.iter().map(|slice| slice.len()).sum();
        while !slices.is_empty() {
            let outcome = match self.take_what_came(slices) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    IoSliceMut::advance_slices(&mut slices, count);
                    rest -= count;
                    Ok(())
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait_for(rest.min(LOW_WATER_MAX))
                }
                Err(error) => Err(error),
            };
            match outcome {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => other?,
            }
        }
        Ok(())
    }
}

impl Read for Wire {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.wake_at(1);
        match &mut self.tls {
            Some(tls) => {
                let mut from = tls.ahead.of(&mut self.tcp);
                Decrypted { tls: &mut tls.connection, from: &mut from }.read(into)
            }
            None => self.tcp.read(into),
        }
    }
}

/// What comes out of a connection's encryption.
pub(super) struct Decrypted<'a, R> {
    pub(super) tls: &'a mut Connection,
    pub(super) from: &'a mut R,
}

impl<R: Read> Read for Decrypted<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.tls.reader().read(into) {
                // Nothing decrypted is left.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
            if self.tls.read_tls(self.from)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.tls.process_new_packets().map_err(io::Error::other)?;
        }
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all_vectored(&mut [IoSlice::new(bytes)])?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_out(tls: &mut Connection, tcp: &mut TcpStream) -> io::Result<()> {
    while tls.wants_write() {
        match tls.write_tls(tcp) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::mpsc;

    use super::*;

    fn pair() -> (Wire, Wire) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let from = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (Wire::new(from, None), Wire::new(listener.accept().unwrap().0, None))
    }

    /// Bytes that have come and nobody has read.
    fn unread(tcp: &TcpStream) -> libc::c_int {
        let mut count = 0;
        // SAFETY: the descriptor is open; the kernel writes one int.
        assert_eq!(unsafe { libc::ioctl(tcp.as_raw_fd(), libc::FIONREAD, &raw mut count) }, 0);
        count
    }

    /// What comes in two parts, each less than a reader is woken for, is read when all is there.
    #[test]
    fn the_last_bytes_of_a_round_wake_their_reader() {
        const ALL: usize = LOW_WATER_MAX + 1000;
        const FIRST: usize = 50_000;
        let (mut to, mut from) = pair();
        let watched = from.tcp.try_clone().unwrap();
        let await_unread = |bytes: usize| {
            while unread(&watched) != libc::c_int::try_from(bytes).unwrap() {
                std::thread::yield_now();
            }
        };
        let bytes: Vec<u8> = (0..251).cycle().take(ALL).collect();
        to.write_all(&bytes[..FIRST]).unwrap();
        await_unread(FIRST);
        let (done, read) = mpsc::channel();
        std::thread::spawn(move || {
            let (mut one, mut two) = (vec![0; 1000], vec![0; ALL - 1000]);
            let mut slices = [IoSliceMut::new(&mut one), IoSliceMut::new(&mut two)];
            from.read_exact_vectored(&mut slices).unwrap();
            one.extend(two);
            done.send(one).unwrap();
        });
        await_unread(0);
        to.write_all(&bytes[FIRST..]).unwrap();
        let all = read.recv_timeout(Duration::from_secs(60)).expect("its reader sleeps on");
        assert_eq!(all, bytes);
    }

    #[test]
    fn a_peer_that_is_gone_or_silent_keeps_no_reader() {
        let (to, mut from) = pair();
        let mut piece = [0; 100];
        from.tcp.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
        let mut read = || from.read_exact_vectored(&mut [IoSliceMut::new(&mut piece)]);
        assert_eq!(read().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(to);
        assert_eq!(read().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
