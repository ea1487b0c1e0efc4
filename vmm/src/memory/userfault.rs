//! Pages that come when somebody touches them: userfaultfd(2), as much of it as post-copy needs.
//!
//! The file is opened when the process starts, before the jail is closed: the
//! kernel gives one that also sees faults of system calls and of KVM only to
//! those with more powers than are left later (`vm.unprivileged_userfaultfd`).
//! It works on this process's memory and no other.
//!
//! | call | what it does |
//! | --- | --- |
//! | [`Userfault::register`] | from now on who touches a page that is not there waits |
//! | [`Userfault::faults`] | who waits, and where |
//! | [`Userfault::copy`], [`Userfault::zero`] | puts pages there, whole and at once, and wakes who waits |
//! | [`Userfault::wake`] | wakes who waits for what has come meanwhile |
//! | [`Userfault::unregister`] | back to memory like any other; all are woken |
//!
//! Structures and numbers: linux/userfaultfd.h.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::OnceLock;

use super::{HostAddress, PAGE_BYTES};

const UFFD_API: u64 = 0xaa;
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
const UFFDIO_UNREGISTER: libc::c_ulong = 0x8010_aa01;
const UFFDIO_WAKE: libc::c_ulong = 0x8010_aa02;
const UFFDIO_COPY: libc::c_ulong = 0xc028_aa03;
const UFFDIO_ZEROPAGE: libc::c_ulong = 0xc020_aa04;
/// `_IO(0xaa, 0)` on `/dev/userfaultfd`.
const USERFAULTFD_IOC_NEW: libc::c_ulong = 0xaa00;
const REGISTER_MODE_MISSING: u64 = 1;
const EVENT_PAGEFAULT: u8 = 0x12;
/// Events read at a time.
const EVENTS_MAX: usize = 64;
/// How often the kernel may ask to try again because mappings change. They do not while a VM arrives.
const TRIES_MAX: u32 = 1000;

#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Range {
    start: u64,
    len: u64,
}

#[repr(C)]
struct Register {
    range: Range,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct Copy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copy: i64,
}

#[repr(C)]
struct Zero {
    range: Range,
    mode: u64,
    zeroed: i64,
}

/// `struct uffd_msg`, of a page fault.
#[repr(C)]
#[derive(Clone, Copy)]
struct Message {
    event: u8,
    reserved: [u8; 7],
    flags: u64,
    address: u64,
    thread: u64,
}

/// A file that tells of faults in this process's memory.
#[derive(Debug)]
pub(crate) struct Userfault(File);

/// This process's, or why there is none.
static OURS: OnceLock<Result<Userfault, String>> = OnceLock::new();

/// Opens this process's, before the jail is closed. That there is none is a reason not to take VMs
/// by post-copy, and no more.
pub(crate) fn open() {
    OURS.get_or_init(|| Userfault::open().map_err(|error| error.to_string()));
}

/// This process's.
///
/// # Errors
/// Why there is none.
pub(crate) fn get() -> Result<&'static Userfault, &'static str> {
    match OURS.get() {
        Some(Ok(userfault)) => Ok(userfault),
        Some(Err(why)) => Err(why),
        None => Err("it was not opened when the process began"),
    }
}

impl Userfault {
    fn open() -> io::Result<Self> {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        // SAFETY: takes flags, gives a new descriptor or an error.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
        let fd = match RawFd::try_from(fd) {
            Ok(fd) if fd >= 0 => fd,
            _ => Self::open_device(flags, io::Error::last_os_error())?,
        };
        // SAFETY: a descriptor made just now, nobody else's.
        let ours = Self(unsafe { File::from_raw_fd(fd) });
        let mut api = Api { api: UFFD_API, features: 0, ioctls: 0 };
        ours.call(UFFDIO_API, &mut api)?;
        Ok(ours)
    }

    /// By the device, which those may open whom the host's administrator lets (Linux 6.1).
    fn open_device(flags: libc::c_int, refused: io::Error) -> io::Result<RawFd> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_CLOEXEC);
        let Ok(device) = options.open("/dev/userfaultfd") else { return Err(refused) };
        // SAFETY: the device is open; the argument are the flags.
        let fd = unsafe { libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW, flags) };
        if fd >= 0 { Ok(fd) } else { Err(io::Error::last_os_error()) }
    }

    fn call<T>(&self, request: libc::c_ulong, argument: &mut T) -> io::Result<()> {
        // SAFETY: each request is used with the structure it is defined with, which the kernel
        // reads and writes. What it does to memory is for the callers to answer for.
        let done =
            unsafe { libc::ioctl(self.0.as_raw_fd(), request, std::ptr::from_mut(argument)) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// From now on who touches a page of this range that is not there waits until somebody puts
    /// it there, in user mode, in a system call and in KVM alike.
    pub(crate) fn register(&self, start: HostAddress, bytes: usize) -> io::Result<()> {
        let mode = REGISTER_MODE_MISSING;
        let mut register = Register { range: range(start, bytes), mode, ioctls: 0 };
        self.call(UFFDIO_REGISTER, &mut register)
    }

    /// Memory like any other again: what is not there is zero, and who waits goes on with that.
    pub(crate) fn unregister(&self, start: HostAddress, bytes: usize) -> io::Result<()> {
        self.call(UFFDIO_UNREGISTER, &mut range(start, bytes))
    }

    /// Wakes who waits within this range: what it waited for has come meanwhile.
    pub(crate) fn wake(&self, start: HostAddress, bytes: usize) -> io::Result<()> {
        self.call(UFFDIO_WAKE, &mut range(start, bytes))
    }

    /// Puts whole pages there, from `start` on, and wakes who waits for them.
    ///
    /// # Errors
    /// `AlreadyExists` when one of them is there; those before it have been put.
    pub(crate) fn copy(&self, start: HostAddress, data: &[u8]) -> io::Result<()> {
        let mut done = 0;
        for _ in 0..TRIES_MAX {
            let rest = &data[done..];
            let mut copy = Copy {
                dst: start.as_ptr() as u64 + done as u64,
                src: rest.as_ptr() as u64,
                len: rest.len() as u64,
                mode: 0,
                copy: 0,
            };
            let outcome = self.call(UFFDIO_COPY, &mut copy);
            match progress(outcome, copy.copy)? {
                Some(more) => done += more,
                None => return Ok(()),
            }
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// Makes these pages zero, those that are there left as they are, and wakes who waits for them.
    pub(crate) fn zero(&self, start: HostAddress, bytes: usize) -> io::Result<()> {
        let (begin, mut done) = (start.as_ptr() as u64, 0);
        let mut tries = 0;
        while done < bytes {
            let rest = Range { start: begin + done as u64, len: (bytes - done) as u64 };
            let mut zero = Zero { range: rest, mode: 0, zeroed: 0 };
            let outcome = self.call(UFFDIO_ZEROPAGE, &mut zero);
            match progress(outcome, zero.zeroed) {
                Ok(Some(more)) => done += more,
                Ok(None) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => done += PAGE_BYTES,
                Err(error) => return Err(error),
            }
            tries += 1;
            if tries > TRIES_MAX {
                return Err(io::ErrorKind::WouldBlock.into());
            }
        }
        Ok(())
    }

    /// The addresses of pages that are waited for since the last call. Does not wait.
    pub(crate) fn faults(&self, into: &mut Vec<u64>) -> io::Result<()> {
        let none = Message { event: 0, reserved: [0; 7], flags: 0, address: 0, thread: 0 };
        let mut messages = [none; EVENTS_MAX];
        // SAFETY: the descriptor is open; the kernel writes at most that many bytes of integers.
        let count = unsafe {
            libc::read(self.0.as_raw_fd(), messages.as_mut_ptr().cast(), size_of_val(&messages))
        };
        let Ok(count) = usize::try_from(count) else {
            let error = io::Error::last_os_error();
            let none =
                matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted);
            return if none { Ok(()) } else { Err(error) };
        };
        let messages = messages.iter().take(count / size_of::<Message>());
        into.extend(messages.filter(|one| one.event == EVENT_PAGEFAULT).map(|one| one.address));
        Ok(())
    }
}

impl AsRawFd for Userfault {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// What a copy came to: none when it is all done, or the bytes that were, and it is to be tried again.
fn progress(outcome: io::Result<()>, bytes: i64) -> io::Result<Option<usize>> {
    match outcome {
        Ok(()) => Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {
            // Negative: nothing was done.
            Ok(Some(usize::try_from(bytes).unwrap_or(0)))
        }
        Err(error) => Err(error),
    }
}

fn range(start: HostAddress, bytes: usize) -> Range {
    Range { start: start.as_ptr() as u64, len: bytes as u64 }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use ballast_model::Bytes;
    use ballast_model::hardware::MemoryBacking;
    use vm_memory::{Bytes as _, GuestAddress};

    use super::*;
    use crate::memory::{Layout, Memory};

    const PAGES: u64 = 512;

    /// Memory whose pages all are missing; none where the host does not let us.
    fn missing() -> Option<(Memory, Userfault)> {
        let userfault = Userfault::open().inspect_err(|error| {
            eprintln!("SKIPPED: no userfaultfd that sees system calls here: {error}");
        });
        let memory = Memory::map(Layout::of_size(Bytes::mib(2)), MemoryBacking::default()).unwrap();
        let userfault = userfault.ok()?;
        let (start, bytes) = memory.run(0, PAGES).unwrap();
        userfault.register(start, bytes).unwrap();
        Some((memory, userfault))
    }

    /// Waits for a fault; where it is.
    fn next_fault(memory: &Memory, userfault: &Userfault) -> u64 {
        let mut faults = Vec::new();
        while faults.is_empty() {
            let mut fd =
                libc::pollfd { fd: userfault.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: the descriptor is open; the kernel writes to the one entry given.
            assert!(unsafe { libc::poll(&raw mut fd, 1, 60_000) } > 0, "nobody faults");
            userfault.faults(&mut faults).unwrap();
        }
        (faults[0] - memory.page(0).unwrap().as_ptr() as u64) / PAGE_BYTES as u64
    }

    #[test]
    fn who_touches_a_missing_page_waits_for_it_and_finds_it_whole() {
        let Some((memory, userfault)) = missing() else { return };
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut copy = [0; PAGE_BYTES];
                assert!(memory.read_page(7, &mut copy));
                copy
            });
            assert_eq!(next_fault(&memory, &userfault), 7);
            userfault.copy(memory.page(6).unwrap(), &[5; 3 * PAGE_BYTES]).unwrap();
            assert_eq!(reader.join().unwrap(), [5; PAGE_BYTES]);
        });
        let again = userfault.copy(memory.page(8).unwrap(), &[6; PAGE_BYTES]).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        assert!(memory.read_page(8, &mut [0; PAGE_BYTES]), "nobody waits");
    }

    #[test]
    fn a_system_call_waits_like_everybody() {
        let Some((memory, userfault)) = missing() else { return };
        let (mut from, to) = io::pipe().unwrap();
        std::thread::scope(|scope| {
            let memory = &memory;
            scope.spawn(move || {
                let page = memory.page(3).unwrap();
                // SAFETY: a mapped page, of which the kernel reads.
                let sent = unsafe { libc::write(to.as_raw_fd(), page.as_ptr().cast(), PAGE_BYTES) };
                assert_eq!(sent, 4096);
            });
            assert_eq!(next_fault(memory, &userfault), 3);
            userfault.copy(memory.page(3).unwrap(), &[9; PAGE_BYTES]).unwrap();
        });
        let mut sent = [0; PAGE_BYTES];
        io::Read::read_exact(&mut from, &mut sent).unwrap();
        assert_eq!(sent, [9; PAGE_BYTES]);
    }

    #[test]
    fn zeroes_leave_what_is_there_and_the_end_of_it_wakes_all() {
        let Some((memory, userfault)) = missing() else { return };
        userfault.copy(memory.page(2).unwrap(), &[1; PAGE_BYTES]).unwrap();
        userfault.zero(memory.page(0).unwrap(), 4 * PAGE_BYTES).unwrap();
        assert!(memory.is_zero(0) && memory.is_zero(3) && !memory.is_zero(2));
        // Zero pages can be written to without a further word.
        memory.mmap().write_slice(b"mine", GuestAddress(0)).unwrap();
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| memory.is_zero(100));
            assert_eq!(next_fault(&memory, &userfault), 100);
            userfault.wake(memory.page(100).unwrap(), PAGE_BYTES).unwrap();
            assert_eq!(next_fault(&memory, &userfault), 100, "it is still not there");
            let (start, bytes) = memory.run(0, PAGES).unwrap();
            userfault.unregister(start, bytes).unwrap();
            assert!(reader.join().unwrap());
        });
    }

    #[test]
    fn dropped_pages_are_missing_again() {
        let Some((memory, userfault)) = missing() else { return };
        userfault.copy(memory.page(0).unwrap(), &[1; 4 * PAGE_BYTES]).unwrap();
        memory.drop_pages(1, 2).unwrap();
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| memory.is_zero(2));
            assert_eq!(next_fault(&memory, &userfault), 2);
            userfault.zero(memory.page(1).unwrap(), 2 * PAGE_BYTES).unwrap();
            assert!(reader.join().unwrap());
        });
        assert!(!memory.is_zero(0) && !memory.is_zero(3));
    }
}
