//! Frames and pages over one connection, blocking.
//!
//! Pages go from guest memory to the socket and from the socket to guest memory
//! without a copy in between, unless it is encrypted. Every read and write has a timeout.
//! What is not encrypted carries checksums: see [`integrity`](super::integrity).

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use super::Trouble;
use super::framing::{Frame, HEADER_BYTES};
use super::integrity::{self, PageSums, SUM_BYTES};
use super::packing::Unpacker;
pub(super) use super::wire::Heard;
use super::wire::Wire;
use crate::codec::Malformed;
use crate::memory::Memory;

/// How long one read or write may wait for the peer.
pub(crate) const IO_TIMEOUT: Duration = Duration::from_secs(30);

/// One end of a migration's connection.
#[derive(Debug)]
pub(crate) struct Stream {
    wire: Wire,
    /// Bytes sent or received so far, before encryption.
    pub(crate) bytes: u64,
    /// What was received last that went nowhere else.
    data: Vec<u8>,
    /// Whether everything carries checksums.
    checked: bool,
    sums: PageSums,
    unpacker: Unpacker,
}

fn io_trouble(what: &'static str) -> impl Fn(std::io::Error) -> Trouble {
    move |error| Trouble::Io { what, error }
}

impl Stream {
    pub(crate) fn new(wire: Wire) -> Result<Self, Trouble> {
        let setup = || {
            let tcp = &wire.tcp;
            tcp.set_nonblocking(false)?;
            // A round ends with a small frame that the peer waits for.
            tcp.set_nodelay(true)?;
            tcp.set_write_timeout(Some(IO_TIMEOUT))?;
            tcp.set_read_timeout(Some(IO_TIMEOUT))
        };
        setup().map_err(io_trouble("setting up the connection"))?;
        Ok(Self {
            wire,
            bytes: 0,
            data: Vec::new(),
            checked: false,
            sums: PageSums::default(),
            unpacker: Unpacker::default(),
        })
    }

    /// From now on this version is spoken.
    pub(crate) fn speak(&mut self, version: u16) {
        self.checked = version >= integrity::SINCE_VERSION && !self.wire.is_encrypted();
    }

    /// From now on a read waits for as long as the connection is there: somebody else watches
    /// over it and shuts it down.
    pub(crate) fn wait_long(&self) -> Result<(), Trouble> {
        self.wire.tcp.set_read_timeout(None).map_err(io_trouble("setting up the connection"))
    }

    /// Another hold of the connection, to shut it down by.
    pub(crate) fn handle(&self) -> Result<Handle, Trouble> {
        self.wire.tcp.try_clone().map(Handle).map_err(io_trouble("setting up the connection"))
    }

    /// Ends the connection for both sides, whoever else has a hold of it.
    pub(crate) fn shut_down(&self) {
        let _ = self.wire.tcp.shutdown(Shutdown::Both); // the peer may have done so before
    }

    /// The round-trip time, as the kernel has it (`TCP_INFO`).
    pub(crate) fn round_trip(&self) -> Option<Duration> {
        // SAFETY: all of its fields are integers.
        let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
        let mut length = libc::socklen_t::try_from(size_of_val(&info)).ok()?;
        // SAFETY: the descriptor is open; the kernel writes at most `length` bytes to `info`.
        let answer = unsafe {
            libc::getsockopt(
                self.wire.tcp.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                (&raw mut info).cast(),
                &raw mut length,
            )
        };
        (answer == 0 && info.tcpi_rtt > 0).then(|| Duration::from_micros(info.tcpi_rtt.into()))
    }

    /// Sends bytes that are no frame: a greeting.
    pub(crate) fn send_raw(&mut self, bytes: &[u8]) -> Result<(), Trouble> {
        self.wire.write_all(bytes).map_err(io_trouble("sending"))?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Sends a frame that no pages follow.
    pub(crate) fn send(&mut self, frame: &Frame) -> Result<(), Trouble> {
        self.send_raw(&self.encode(frame))
    }

    fn encode(&self, frame: &Frame) -> Vec<u8> {
        let bytes = frame.encode();
        if self.checked { integrity::seal(&bytes) } else { bytes }
    }

    /// What a checksum takes here.
    fn sum_bytes(&self) -> usize {
        if self.checked { SUM_BYTES } else { 0 }
    }

    /// Sends a frame and the pages that follow it, as they are in guest memory now: runs of
    /// first page and count.
    pub(crate) fn send_pages(
        &mut self,
        frame: &Frame,
        memory: &Memory,
        runs: &[(u64, u64)],
    ) -> Result<(), Trouble> {
        let head = self.encode(frame);
        let sums = if self.checked { self.sums.of(memory, runs) } else { &[] };
        let mut slices = Vec::with_capacity(runs.len() + 2);
        slices.push(IoSlice::new(&head));
        for &(first, count) in runs {
            let (start, bytes) = memory.run(first, count).ok_or(Malformed("a run of pages"))?;
            // SAFETY: `run` yields mapped guest memory. The guest may write to it while it
            // is read: then it is in the dirty log and sent again. The slice is only handed to
            // the kernel, or copied once and encrypted from there.
            slices.push(IoSlice::new(unsafe { std::slice::from_raw_parts(start.as_ptr(), bytes) }));
        }
        slices.push(IoSlice::new(sums));
        let bytes: usize = slices.iter().map(|slice| slice.len()).sum();
        self.wire.write_all_vectored(&mut slices).map_err(io_trouble("sending pages"))?;
        self.bytes += bytes as u64;
        Ok(())
    }

    /// Sends a frame and the data that follows it.
    pub(crate) fn send_data(&mut self, frame: &Frame, data: &[u8]) -> Result<(), Trouble> {
        let head = self.encode(frame);
        let sum = integrity::sum(data).to_le_bytes();
        let sum = &sum[..self.sum_bytes()];
        let mut slices = [IoSlice::new(&head), IoSlice::new(data), IoSlice::new(sum)];
        self.wire.write_all_vectored(&mut slices).map_err(io_trouble("sending data"))?;
        self.bytes += (head.len() + data.len() + sum.len()) as u64;
        Ok(())
    }

    /// Receives so many bytes that follow a frame; whoever asks has checked how many.
    pub(crate) fn receive_data(&mut self, bytes: usize) -> Result<&[u8], Trouble> {
        let whole = bytes + self.sum_bytes();
        self.data.resize(whole, 0);
        self.wire.read_exact(&mut self.data).map_err(io_trouble("receiving data"))?;
        self.bytes += whole as u64;
        if self.checked { integrity::open(&self.data, "data") } else { Ok(&self.data) }
    }

    /// Receives compressed pages into guest memory.
    pub(crate) fn receive_packed(
        &mut self,
        memory: &Memory,
        runs: &[(u64, u64)],
        bytes: u32,
    ) -> Result<(), Trouble> {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        self.receive_data(bytes)?;
        Ok(self.unpacker.unpack(&self.data[..bytes], memory, runs)?)
    }

    /// Receives so many compressed bytes, which are `bytes` bytes of a disk.
    pub(crate) fn receive_packed_data(
        &mut self,
        packed: u32,
        bytes: u32,
    ) -> Result<&[u8], Trouble> {
        let packed = usize::try_from(packed).unwrap_or(usize::MAX);
        self.receive_data(packed)?;
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        Ok(self.unpacker.unpack_data(&self.data[..packed], bytes)?)
    }

    /// Receives the contents of these runs of pages into guest memory. Answers with the pages
    /// that differ from what their checksums say: see [`integrity`].
    pub(crate) fn receive_pages(
        &mut self,
        memory: &Memory,
        runs: &[(u64, u64)],
    ) -> Result<Vec<u64>, Trouble> {
        let mut slices = Vec::with_capacity(runs.len() + 1);
        for &(first, count) in runs {
            let (start, bytes) = memory.run(first, count).ok_or(Malformed("a run of pages"))?;
            // SAFETY: `run` yields mapped guest memory; the machine it belongs to has not run,
            // and only connections of its one source fill it. A source that sends a page twice
            // at a time gets a mix of both. The slice is only written to.
            let slice = unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), bytes) };
            slices.push(IoSliceMut::new(slice));
        }
        if self.checked {
            slices.push(IoSliceMut::new(self.sums.room_for(runs)));
        }
        let bytes: usize = slices.iter().map(|slice| slice.len()).sum();
        self.wire.read_exact_vectored(&mut slices).map_err(io_trouble("receiving pages"))?;
        self.bytes += bytes as u64;
        Ok(if self.checked { self.sums.differing(memory, runs) } else { Vec::new() })
    }

    /// Receives the next frame; a Failed of the peer is trouble.
    pub(crate) fn receive(&mut self) -> Result<Frame, Trouble> {
        let mut head = [0; HEADER_BYTES + SUM_BYTES];
        let head = &mut head[..HEADER_BYTES + self.sum_bytes()];
        self.wire.read_exact(head).map_err(io_trouble("waiting for a frame"))?;
        let header = if self.checked { integrity::open(head, "a frame's header")? } else { &*head };
        let (kind, length) = Frame::decode_header(header)?;
        let mut body = vec![0; length + self.sum_bytes()];
        self.wire.read_exact(&mut body).map_err(io_trouble("receiving a frame"))?;
        self.bytes += (head.len() + body.len()) as u64;
        let body = if self.checked { integrity::open(&body, "a frame")? } else { &body };
        match Frame::decode(kind, body)? {
            Frame::Failed(refusal) => Err(Trouble::PeerFailed(refusal)),
            frame => Ok(frame),
        }
    }

    /// Receives the next frame, which must come within `time`.
    pub(crate) fn receive_within(&mut self, time: Duration) -> Result<Frame, Trouble> {
        let set = |time| self.wire.tcp.set_read_timeout(Some(time));
        set(time).map_err(io_trouble("setting up the connection"))?;
        let frame = self.receive();
        let set = |time| self.wire.tcp.set_read_timeout(Some(time));
        set(IO_TIMEOUT).map_err(io_trouble("setting up the connection"))?;
        frame
    }

    /// Whether the peer has said something, or is gone. Does not wait.
    pub(crate) fn peer_spoke(&mut self) -> bool {
        self.wire.has_spoken()
    }

    /// Waits until the peer has said something, or, when asked to, until there is room to send
    /// without a queue; no longer than `time`. Neither when `others` have something first.
    pub(super) fn await_peer(
        &mut self,
        room: bool,
        others: &[RawFd],
        time: Duration,
    ) -> Result<Heard, Trouble> {
        self.wire.wait(room, others, time).map_err(io_trouble("waiting for the peer"))
    }

    /// Makes the connection fit for pages that somebody waits for: little lies in queues here, and
    /// what the peer does not acknowledge for `patience` is the end of it.
    pub(super) fn make_prompt(&self, patience: Duration) -> Result<(), Trouble> {
        self.wire.make_prompt(patience).map_err(io_trouble("setting up the connection"))
    }

    /// When the connections fail: the Failed frame the peer may have sent before it closed them,
    /// which says more than a broken connection. Waits for it no longer than `patience`.
    pub(crate) fn last_word(&mut self, trouble: Trouble, patience: Duration) -> Trouble {
        if !matches!(trouble, Trouble::Io { .. }) {
            return trouble;
        }
        match self.receive_within(patience) {
            Err(failed @ Trouble::PeerFailed(_)) => failed,
            _ => trouble,
        }
    }

    /// Ends a connection whose peer may still be sending: closing right away
    /// would throw away what was sent to it last.
    pub(crate) fn finish_sending(mut self, patience: Duration) {
        let end = Instant::now() + patience;
        let _ = self.wire.tcp.shutdown(Shutdown::Write);
        let mut sink = vec![0; 64 << 10];
        while let Some(left) = end.checked_duration_since(Instant::now()).filter(|t| !t.is_zero()) {
            let waiting = self.wire.tcp.set_read_timeout(Some(left)).is_ok();
            if !waiting || !matches!(self.wire.read(&mut sink), Ok(1..)) {
                return;
            }
        }
    }
}

/// A hold of a connection from elsewhere.
#[derive(Debug)]
pub(crate) struct Handle(TcpStream);

impl Handle {
    /// Ends whatever waits for the peer.
    pub(crate) fn shut_down(&self) {
        // One that is down already is what is wanted.
        let _ = self.0.shutdown(Shutdown::Both);
    }

    /// How long a write may find no room before it is trouble.
    pub(crate) fn write_patience(&self, patience: Duration) -> Result<(), Trouble> {
        self.0.set_write_timeout(Some(patience)).map_err(io_trouble("setting up the connection"))
    }

    /// Ends whatever waits to hear from the peer; it can still be told something.
    pub(crate) fn stop_reading(&self) {
        let _ = self.0.shutdown(Shutdown::Read);
    }
}
