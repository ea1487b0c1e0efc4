//! Frames and pages over one TCP connection, blocking.
//!
//! Pages go from guest memory to the socket and from the socket to guest memory
//! without a copy in between. Every read and write has a timeout.

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use super::Trouble;
use super::framing::{Frame, HEADER_BYTES};
use crate::codec::Malformed;
use crate::memory::{Memory, PAGE_BYTES};

/// How long one read or write may wait for the peer.
pub(crate) const IO_TIMEOUT: Duration = Duration::from_secs(30);

/// One end of a migration's connection.
#[derive(Debug)]
pub(crate) struct Stream {
    tcp: TcpStream,
    /// Bytes sent or received so far.
    pub(crate) bytes: u64,
}

fn io_trouble(what: &'static str) -> impl Fn(std::io::Error) -> Trouble {
    move |error| Trouble::Io { what, error }
}

impl Stream {
    pub(crate) fn new(tcp: TcpStream) -> Result<Self, Trouble> {
        let setup = || {
            tcp.set_nonblocking(false)?;
            // A round ends with a small frame that the peer waits for.
            tcp.set_nodelay(true)?;
            tcp.set_write_timeout(Some(IO_TIMEOUT))?;
            tcp.set_read_timeout(Some(IO_TIMEOUT))
        };
        setup().map_err(io_trouble("setting up the connection"))?;
        Ok(Self { tcp, bytes: 0 })
    }

    /// Sends bytes that are no frame: a greeting.
    pub(crate) fn send_raw(&mut self, bytes: &[u8]) -> Result<(), Trouble> {
        self.tcp.write_all(bytes).map_err(io_trouble("sending"))?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Sends a frame that no pages follow.
    pub(crate) fn send(&mut self, frame: &Frame) -> Result<(), Trouble> {
        self.send_raw(&frame.encode())
    }

    /// Sends these pages, as they are in guest memory now.
    pub(crate) fn send_pages(&mut self, memory: &Memory, pages: &[u64]) -> Result<(), Trouble> {
        let head = Frame::Pages(pages.to_vec()).encode();
        let mut slices = vec![IoSlice::new(&head)];
        for (start, bytes) in host_runs(memory, pages)? {
            // SAFETY: `host_runs` yields mapped guest memory. The guest may write to it while
            // the kernel reads: then it is in the dirty log and sent again. The slice is only
            // handed to the kernel.
            slices.push(IoSlice::new(unsafe { std::slice::from_raw_parts(start, bytes) }));
        }
        let mut rest = slices.as_mut_slice();
        while !rest.is_empty() {
            match self.tcp.write_vectored(rest) {
                Ok(0) => return Err(closed("sending pages")),
                Ok(count) => {
                    self.bytes += count as u64;
                    IoSlice::advance_slices(&mut rest, count);
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(io_trouble("sending pages")(error)),
            }
        }
        Ok(())
    }

    /// Receives the contents of these pages into guest memory.
    pub(crate) fn receive_pages(&mut self, memory: &Memory, pages: &[u64]) -> Result<(), Trouble> {
        let mut slices = Vec::new();
        for (start, bytes) in host_runs(memory, pages)? {
            // SAFETY: `host_runs` yields mapped guest memory; the machine it belongs to has not
            // run, and only this thread fills it. The slice is only handed to the kernel.
            slices.push(IoSliceMut::new(unsafe { std::slice::from_raw_parts_mut(start, bytes) }));
        }
        let mut rest = slices.as_mut_slice();
        while !rest.is_empty() {
            match self.tcp.read_vectored(rest) {
                Ok(0) => return Err(closed("receiving pages")),
                Ok(count) => {
                    self.bytes += count as u64;
                    IoSliceMut::advance_slices(&mut rest, count);
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(io_trouble("receiving pages")(error)),
            }
        }
        Ok(())
    }

    /// Receives the next frame; a Failed of the peer is trouble.
    pub(crate) fn receive(&mut self) -> Result<Frame, Trouble> {
        let mut header = [0; HEADER_BYTES];
        self.tcp.read_exact(&mut header).map_err(io_trouble("waiting for a frame"))?;
        let (kind, length) = Frame::decode_header(&header)?;
        let mut body = vec![0; length];
        self.tcp.read_exact(&mut body).map_err(io_trouble("receiving a frame"))?;
        self.bytes += (HEADER_BYTES + length) as u64;
        match Frame::decode(kind, &body)? {
            Frame::Failed(refusal) => Err(Trouble::PeerFailed(refusal)),
            frame => Ok(frame),
        }
    }

    /// Receives the next frame, which must come within `time`.
    pub(crate) fn receive_within(&mut self, time: Duration) -> Result<Frame, Trouble> {
        let set = |time| self.tcp.set_read_timeout(Some(time));
        set(time).map_err(io_trouble("setting up the connection"))?;
        let frame = self.receive();
        let set = |time| self.tcp.set_read_timeout(Some(time));
        set(IO_TIMEOUT).map_err(io_trouble("setting up the connection"))?;
        frame
    }

    /// Whether the peer has said something, or is gone. Does not wait.
    pub(crate) fn peer_spoke(&self) -> bool {
        let mut byte = 0u8;
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        // SAFETY: the descriptor is open; the kernel writes at most the one byte given.
        unsafe { libc::recv(self.tcp.as_raw_fd(), (&raw mut byte).cast(), 1, flags) >= 0 }
    }

    /// When a write failed: the Failed frame the peer may have sent before it
    /// closed, which says more than a broken connection.
    pub(crate) fn last_word(&mut self, trouble: Trouble) -> Trouble {
        if !matches!(trouble, Trouble::Io { .. }) || !self.peer_spoke() {
            return trouble;
        }
        match self.receive() {
            Err(failed @ Trouble::PeerFailed(_)) => failed,
            _ => trouble,
        }
    }

    /// Ends a connection whose peer may still be sending: closing right away
    /// would throw away what was sent to it last.
    pub(crate) fn finish_sending(mut self, patience: Duration) {
        let end = Instant::now() + patience;
        let _ = self.tcp.shutdown(std::net::Shutdown::Write);
        let mut sink = vec![0; 64 << 10];
        while let Some(left) = end.checked_duration_since(Instant::now()).filter(|t| !t.is_zero()) {
            let waiting = self.tcp.set_read_timeout(Some(left)).is_ok();
            if !waiting || !matches!(self.tcp.read(&mut sink), Ok(1..)) {
                return;
            }
        }
    }
}

fn closed(what: &'static str) -> Trouble {
    Trouble::Io { what, error: std::io::ErrorKind::UnexpectedEof.into() }
}

/// Where these pages are mapped, neighbours joined.
fn host_runs(memory: &Memory, pages: &[u64]) -> Result<Vec<(*mut u8, usize)>, Malformed> {
    let mut runs: Vec<(*mut u8, usize)> = Vec::new();
    for &page in pages {
        let host = memory.page(page).ok_or(Malformed("the number of a page"))?.as_ptr();
        match runs.last_mut() {
            Some((start, bytes)) if start.wrapping_add(*bytes) == host => *bytes += PAGE_BYTES,
            _ => runs.push((host, PAGE_BYTES)),
        }
    }
    Ok(runs)
}
