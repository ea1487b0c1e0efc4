//! System calls, by seccomp (seccomp(2)): what is not listed ends the process.
//!
//! The process's list is what its least special threads need; no program is
//! started, nobody traced, nothing mounted. A thread of a [`ThreadKind`] is
//! left with less. Both apply: a thread can never do more than its process.

use std::collections::BTreeMap;
use std::sync::Once;

use ballast_model::Refusal;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};

use super::{Mode, refused};

/// The exit status of a process that tried what it must not: that of a shell whose child died of SIGSYS.
const EXIT_STATUS: i32 = 128 + libc::SIGSYS;

/// What a thread does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ThreadKind {
    /// Runs a vCPU: the guest's exits, and the registers of its devices.
    Vcpu,
    /// Moves a device's data: disks, taps.
    Device,
}

/// Memory, locks, signals, time, the end: what any Rust thread does.
const COMMON: &[i64] = &[
    libc::SYS_brk,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_madvise,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_prctl,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_seccomp,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
];

/// Data through what is open already.
const DATA: &[i64] = &[
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd2,
    libc::SYS_fallocate,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_fstat,
    libc::SYS_fsync,
    libc::SYS_io_uring_enter,
    libc::SYS_lseek,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_sync_file_range,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_gettime,
    libc::SYS_timerfd_settime,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Building a machine, serving, migrating: files, sockets, threads.
const PROCESS: &[i64] = &[
    libc::SYS_accept4,
    libc::SYS_access,
    libc::SYS_bind,
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_connect,
    libc::SYS_dup3,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fchmod,
    libc::SYS_fgetxattr,
    libc::SYS_flock,
    libc::SYS_fremovexattr,
    libc::SYS_fsetxattr,
    libc::SYS_fstatfs,
    libc::SYS_ftruncate,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpeername,
    libc::SYS_getrusage,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_getuid,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_ioctl,
    libc::SYS_listen,
    libc::SYS_lstat,
    libc::SYS_membarrier,
    libc::SYS_memfd_create,
    libc::SYS_mincore,
    libc::SYS_mkdir,
    libc::SYS_mlock,
    libc::SYS_newfstatat,
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_pipe2,
    libc::SYS_prlimit64,
    libc::SYS_process_madvise,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_sched_setaffinity,
    libc::SYS_set_tid_address,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_signalfd4,
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_splice,
    libc::SYS_stat,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_sysinfo,
    libc::SYS_tee,
    libc::SYS_umask,
    libc::SYS_uname,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_wait4,
];

/// A vCPU's thread: events out, interrupts in, the guest itself.
const VCPU: &[i64] = &[libc::SYS_read, libc::SYS_write, libc::SYS_writev];
/// `KVM_RUN`, `KVM_IRQ_LINE`, `KVM_SIGNAL_MSI`, `KVM_KVMCLOCK_CTRL` (linux/kvm.h).
const VCPU_IOCTLS: [u64; 4] = [0xae80, 0x4008_ae61, 0x4020_aea5, 0xaead];

/// Closes the process's list. There is one thread.
pub(super) fn restrict_process(mode: Mode) -> Result<(), Refusal> {
    report_violations();
    let lists = [COMMON, DATA, PROCESS];
    apply(lists.concat().into_iter().map(|call| (call, vec![])).collect(), mode)
}

/// Closes the list of the calling thread.
pub(super) fn restrict_thread(kind: ThreadKind, mode: Mode) -> Result<(), Refusal> {
    let mut calls: BTreeMap<i64, Vec<SeccompRule>> =
        COMMON.iter().map(|call| (*call, vec![])).collect();
    match kind {
        ThreadKind::Vcpu => {
            calls.extend(VCPU.iter().map(|call| (*call, vec![])));
            let rules = VCPU_IOCTLS.iter().map(|request| {
                let asked =
                    SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, *request)?;
                SeccompRule::new(vec![asked])
            });
            let rules = rules.collect::<Result<_, seccompiler::BackendError>>();
            let rules = rules.map_err(|error| refused("system calls of a vCPU", error))?;
            calls.insert(libc::SYS_ioctl, rules);
        }
        ThreadKind::Device => {
            calls.extend(DATA.iter().chain(&[libc::SYS_ioctl]).map(|call| (*call, vec![])));
        }
    }
    apply(calls, mode)
}

fn apply(calls: BTreeMap<i64, Vec<SeccompRule>>, mode: Mode) -> Result<(), Refusal> {
    let otherwise = match mode {
        Mode::Off => return Ok(()),
        Mode::Log => SeccompAction::Log,
        Mode::Enforce => SeccompAction::Trap,
    };
    let build = || {
        let filter =
            SeccompFilter::new(calls, otherwise, SeccompAction::Allow, TargetArch::x86_64)?;
        BpfProgram::try_from(filter)
    };
    let program = build().map_err(|error| refused("system calls", error))?;
    apply_filter(&program).map_err(|error| refused("system calls", error))
}

/// Has a forbidden call end the process with its number and thread as last words.
fn report_violations() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: all fields of a zeroed sigaction are valid; the handler only does what may be
        // done in one (signal-safety(7)).
        let installed = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = violation as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut())
        };
        if installed != 0 {
            tracing::warn!("a forbidden system call will end this process without a word");
        }
    });
}

extern "C" fn violation(
    _signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    /// `si_syscall` in siginfo_t on x86-64 (asm-generic/siginfo.h): three ints, padding, `si_call_addr` before.
    const SYSCALL_AT: usize = 24;
    let mut line = [0; 160];
    let mut length = 0;
    let mut say = |bytes: &[u8]| {
        let room = line.len() - length;
        let bytes = &bytes[..bytes.len().min(room)];
        line[length..length + bytes.len()].copy_from_slice(bytes);
        length += bytes.len();
    };
    // SAFETY: the kernel passes a valid siginfo_t of a SIGSYS; it is longer than that.
    let call = unsafe { info.cast::<u8>().add(SYSCALL_AT).cast::<libc::c_int>().read_unaligned() };
    let mut name = [0; 16];
    // SAFETY: PR_GET_NAME writes at most 16 bytes with their NUL.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    let mut digits = [0; 10];
    say(b"ballast-vmm: the jail refused system call ");
    say(decimal(call.unsigned_abs(), &mut digits));
    say(b" of thread ");
    say(name.split(|&byte| byte == 0).next().unwrap_or_default());
    say(b"; report a defect, and set jail = \"log\" in the agent's configuration until it is mended\n");
    // SAFETY: writes the line from the stack, then ends the process; both are async-signal-safe.
    unsafe {
        libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), length);
        libc::_exit(EXIT_STATUS);
    }
}

fn decimal(mut number: u32, digits: &mut [u8; 10]) -> &[u8] {
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + u8::try_from(number % 10).unwrap_or(0);
        number /= 10;
        if number == 0 || at == 0 {
            return &digits[at..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_in_a_signal_handler_as_elsewhere() {
        for number in [0, 7, 59, 435, u32::MAX] {
            assert_eq!(decimal(number, &mut [0; 10]), number.to_string().as_bytes());
        }
    }

    #[test]
    fn no_list_lets_a_thread_start_a_program() {
        for call in [libc::SYS_execve, libc::SYS_execveat, libc::SYS_ptrace, libc::SYS_mount] {
            assert!(![COMMON, DATA, PROCESS, VCPU].concat().contains(&call), "{call}");
        }
    }

    #[test]
    fn a_thread_has_nothing_that_its_process_lacks() {
        let process = [COMMON, DATA, PROCESS].concat();
        assert!(VCPU.iter().all(|call| process.contains(call)));
    }
}
