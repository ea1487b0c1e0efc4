//! `ballast vm console`: what a VM's serial port says, and typing at it.
//!
//! Attached, two loops run side by side: one prints what comes, one sends what
//! is typed. Each request goes to whichever host has the VM at the time, so an
//! attached terminal stays attached while the VM migrates.

use std::io::{IsTerminal, Read};
use std::time::{Duration, Instant};

use ballast_model::{Refusal, RefusalCode, VmId};
use ballast_proto::v1;
use tokio::sync::mpsc;

use super::Context;
use crate::output;

/// How long the VM's host waits for output before it says that there is none.
const WAIT_MS: u32 = 1000;
/// The most sent at a time, in bytes.
const WRITE_BYTES_MAX: usize = 4096;
/// How long a host that does not answer, or a VM between two hosts, is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_millis(250);
/// After the end of piped input: the VM has said all it will when it is quiet for so long.
const QUIET: Duration = Duration::from_millis(1500);
/// Ctrl-].
const ESCAPE: u8 = 0x1d;

/// Prints from `offset` on, to the end or for ever.
pub(super) async fn print(
    context: &Context,
    vm: &VmId,
    follow: bool,
    offset: u64,
) -> Result<(), Refusal> {
    let mut reader = Reader { context, vm, offset };
    while reader.print(if follow { WAIT_MS } else { 0 }).await? || follow {}
    Ok(())
}

/// Prints from `offset`, or from now, on, and sends what is typed or piped in.
pub(super) async fn attach(
    context: &Context,
    vm: &VmId,
    offset: Option<u64>,
) -> Result<(), Refusal> {
    let mut reader = Reader { context, vm, offset: 0 };
    reader.offset = match offset {
        Some(offset) => offset,
        None => reader.read(u64::MAX, 0).await?.offset,
    };
    let terminal = Terminal::enter(vm)?;
    let (send, mut typed) = mpsc::channel(16);
    // Not a task: nothing can interrupt it while it waits for a key.
    std::thread::spawn(move || read_input(&send));
    let mut writer = Writer { context, vm, keys: terminal.is_raw().then(Keys::default) };
    let detached = tokio::select! {
        ended = reader.follow() => return ended,
        done = writer.send(&mut typed) => done?,
    };
    while !detached && reader.print(u32::try_from(QUIET.as_millis()).unwrap_or(WAIT_MS)).await? {}
    drop(terminal);
    if detached {
        eprintln!();
    }
    Ok(())
}

/// Input in the order it comes, until it ends or nobody wants it any more.
fn read_input(send: &mpsc::Sender<Vec<u8>>) {
    let mut stdin = std::io::stdin().lock();
    let mut bytes = [0; WRITE_BYTES_MAX];
    while let Ok(count @ 1..) = stdin.read(&mut bytes) {
        if send.blocking_send(bytes[..count].to_vec()).is_err() {
            return;
        }
    }
}

/// Whether the VM may be had a moment later: its host is slow, or it is between two.
fn may_pass(refusal: &Refusal) -> bool {
    use RefusalCode as Code;
    matches!(refusal.code, Code::Unavailable | Code::Timeout | Code::WrongState | Code::Conflict)
}

struct Reader<'a> {
    context: &'a Context,
    vm: &'a VmId,
    offset: u64,
}

impl Reader<'_> {
    async fn read(&self, offset: u64, wait_ms: u32) -> Result<v1::ReadConsoleResponse, Refusal> {
        let request = v1::ReadConsoleRequest { vm: self.vm.to_string(), offset, wait_ms };
        self.context.client.read_console(request).await
    }

    /// Prints what there is, waiting for it a while; whether there was anything.
    async fn print(&mut self, wait_ms: u32) -> Result<bool, Refusal> {
        let piece = self.read(self.offset, wait_ms).await?;
        if piece.offset > self.offset {
            eprintln!("ballast: bytes {} to {} are no longer kept", self.offset, piece.offset);
        }
        self.offset = piece.offset.saturating_add(piece.data.len() as u64);
        output::print_bytes(&piece.data)?;
        Ok(!piece.data.is_empty())
    }

    /// Prints until the VM is gone.
    async fn follow(&mut self) -> Result<(), Refusal> {
        let mut good = Instant::now();
        loop {
            match self.print(WAIT_MS).await {
                Ok(_) => good = Instant::now(),
                Err(refusal) if may_pass(&refusal) && good.elapsed() < PATIENCE => {
                    tokio::time::sleep(RETRY).await;
                }
                Err(refusal) => return Err(refusal),
            }
        }
    }
}

struct Writer<'a> {
    context: &'a Context,
    vm: &'a VmId,
    /// At a terminal.
    keys: Option<Keys>,
}

impl Writer<'_> {
    /// Sends what comes; true when the operator detached, false when the input has ended.
    async fn send(&mut self, typed: &mut mpsc::Receiver<Vec<u8>>) -> Result<bool, Refusal> {
        while let Some(bytes) = typed.recv().await {
            let (bytes, detach) = match &mut self.keys {
                Some(keys) => keys.take(&bytes),
                None => (bytes, false),
            };
            for piece in bytes.chunks(WRITE_BYTES_MAX) {
                self.send_piece(piece).await?;
            }
            if detach {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A guest that does not read makes the operator wait, as a slow line does.
    async fn send_piece(&self, mut rest: &[u8]) -> Result<(), Refusal> {
        let mut good = Instant::now();
        while !rest.is_empty() {
            let request = v1::WriteConsoleRequest { vm: self.vm.to_string(), data: rest.to_vec() };
            match self.context.client.write_console(request).await {
                Ok(answer) => {
                    let accepted = usize::try_from(answer.accepted).unwrap_or(usize::MAX);
                    rest = rest.get(accepted..).unwrap_or_default();
                    good = Instant::now();
                }
                Err(refusal) if may_pass(&refusal) && good.elapsed() < PATIENCE => {
                    tokio::time::sleep(RETRY).await;
                }
                Err(refusal) => return Err(refusal),
            }
        }
        Ok(())
    }
}

/// The keys that are for this program: Ctrl-] and then a dot, or ~ and then a
/// dot at the beginning of a line. Ctrl-] twice, or ~ twice, is that key itself.
#[derive(Debug, Default)]
struct Keys {
    /// A key that may be the first of two.
    held: Option<u8>,
    /// Something has been typed since the last end of a line.
    within_line: bool,
}

impl Keys {
    /// What of the keys is the guest's, and whether the operator detaches.
    fn take(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut guests = Vec::with_capacity(typed.len());
        for &key in typed {
            match self.held.take() {
                Some(_) if key == b'.' => return (guests, true),
                Some(held) if key == held => guests.push(key),
                Some(held) => guests.extend([held, key]),
                None if key == ESCAPE || (key == b'~' && !self.within_line) => {
                    self.held = Some(key);
                    continue;
                }
                None => guests.push(key),
            }
            self.within_line = !matches!(key, b'\r' | b'\n');
        }
        (guests, false)
    }
}

/// The operator's terminal, handing over every key as it is; as it was before
/// when dropped. Nothing when the input is no terminal.
struct Terminal {
    raw: bool,
}

impl Terminal {
    fn enter(vm: &VmId) -> Result<Self, Refusal> {
        let raw = std::io::stdin().is_terminal();
        if raw {
            eprintln!("attached to {vm}; Ctrl-] and then a dot detaches");
            crossterm::terminal::enable_raw_mode().map_err(|error| {
                Refusal::new(
                    RefusalCode::HostFailure,
                    format!("the terminal cannot hand over single keys: {error}"),
                    "use another terminal, or pipe the input in",
                )
            })?;
        }
        Ok(Self { raw })
    }

    fn is_raw(&self) -> bool {
        self.raw
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if self.raw {
            // Nothing can be done about a terminal that is gone.
            let _ = crossterm::terminal::disable_raw_mode();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(typed: &[&[u8]], expected: &[u8], detached: bool) {
        let mut keys = Keys::default();
        let mut guests = Vec::new();
        let mut ends = false;
        for piece in typed {
            let (bytes, detach) = keys.take(piece);
            guests.extend(bytes);
            ends |= detach;
        }
        assert_eq!((guests.as_slice(), ends), (expected, detached), "{typed:?}");
    }

    #[test]
    fn two_keys_detach_and_all_others_are_the_guests() {
        check(&[b"ls\r"], b"ls\r", false);
        check(&[b"ls\x1d."], b"ls", true);
        check(&[b"a\x1d", b"."], b"a", true);
        check(&[b"\x1d\x1d."], b"\x1d.", false);
        check(&[b"\x1dx"], b"\x1dx", false);
        check(&[b"~."], b"", true);
        check(&[b"ls\r", b"~", b"."], b"ls\r", true);
        check(&[b"cd ~.\r"], b"cd ~.\r", false);
        check(&[b"~~.\r"], b"~.\r", false);
    }
}
