//! The process: arguments, socket, and when it ends.
//!
//! It ends when told to shut down, when an incoming migration came to nothing,
//! when its VM has gone to another host, and on SIGINT or SIGTERM. It does not
//! end with the agent that started it: SIGHUP is ignored, a closed standard
//! error is no error, and a restarted agent finds it by its socket.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use ballast_model::{Refusal, RefusalCode, VmId};
use ballast_proto::v1::vmm_service_server::VmmServiceServer;
use ballast_service::logging::{self, LogFormat};
use ballast_service::{program, signal};
use clap::Parser;
use rustix::fs::Mode;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;

use crate::api::Api;
use crate::cpu::CpuModel;
use crate::cpu::report::HostCpu;
use crate::devices::console::log::LogFiles;
use crate::jail::{self, JailArgs};
use crate::kvm;
use crate::panic;
use crate::snapshot;
use crate::unrun::UnrunMark;
use crate::vm::Vm;

const PROGRAM: &str = "ballast-vmm";
/// How long answers may take to be delivered once the process is to end.
const GRACE: Duration = Duration::from_secs(1);

/// Runs one virtual machine on /dev/kvm.
#[derive(Debug, Parser)]
#[command(name = PROGRAM, version)]
struct Args {
    /// Unix socket to serve ballast.v1.VmmService on.
    #[arg(long, required_unless_present_any = ["cpu_model", "cpu_report", "cpu_compare", "describe_snapshot"])]
    socket: Option<PathBuf>,
    /// Name of the VM.
    #[arg(long, required_unless_present_any = ["cpu_model", "cpu_report", "cpu_compare", "describe_snapshot"])]
    vm: Option<VmId>,
    /// Print what must match for a VM to move to this host, and end.
    #[arg(long)]
    cpu_model: bool,
    /// Print this host's CPU as JSON: its features, and which baselines it can give, and end.
    #[arg(long)]
    cpu_report: bool,
    /// Print, baseline by baseline, whether VMs can move here from the host whose --cpu-report this is, and end.
    #[arg(long, value_name = "FILE")]
    cpu_compare: Option<PathBuf>,
    /// Print which VM a snapshot file is of, as JSON, and end.
    #[arg(long, value_name = "FILE")]
    describe_snapshot: Option<PathBuf>,
    #[command(flatten)]
    jail: JailArgs,
    /// Write the console's output to this file, too, and keep as much again in the same with .1
    #[arg(long, value_name = "FILE")]
    console_log: Option<PathBuf>,
    /// Where the paths of disks begin that are not shared between hosts
    #[arg(long, value_name = "DIR", default_value = "/")]
    disk_root: PathBuf,
    /// How log lines look.
    #[arg(long, value_enum, default_value_t)]
    log_format: LogFormat,
}

/// See [`crate::main`].
pub(crate) fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    program::run(PROGRAM, "see ballast-vmm --help", args, |args: Args| {
        logging::init(args.log_format);
        panic::install_hook();
        run(args)
    })
}

fn run(args: Args) -> Result<(), Refusal> {
    if let Some(path) = args.describe_snapshot {
        println!("{}", snapshot::describe(&path)?);
        return Ok(());
    }
    let kvm = kvm::open()?;
    if args.cpu_model {
        println!("{}", CpuModel::of_host(kvm)?);
        return Ok(());
    }
    if args.cpu_report || args.cpu_compare.is_some() {
        return report_cpu(&HostCpu::of(&CpuModel::of_host(kvm)?), args.cpu_compare.as_deref());
    }
    let (Some(socket), Some(vm)) = (args.socket, args.vm) else {
        return Err(Refusal::new(
            RefusalCode::InvalidArgument,
            "a socket and a VM are needed",
            "give --socket and --vm",
        ));
    };
    ignore_hangups();
    ballast_service::holdpoint::arm();
    let log = args.console_log.as_deref().map(LogFiles::open).transpose()?;
    crate::memory::userfault::open();
    let own = socket.parent().filter(|dir| !dir.as_os_str().is_empty());
    jail::enter(&args.jail, own.unwrap_or(Path::new(".")))?;
    let runtime = program::runtime(program::Threads::One)?;
    let outcome = runtime.block_on(serve(&socket, vm, args.disk_root, log));
    // Work that blocks (a migration's source that waits) ends with the process.
    runtime.shutdown_background();
    outcome
}

/// Prints what this host's CPU is, or how VMs fare that move to it from another host.
fn report_cpu(here: &HostCpu, source: Option<&Path>) -> Result<(), Refusal> {
    let Some(source) = source else {
        let text = serde_json::to_string_pretty(here).map_err(|error| {
            Refusal::new(RefusalCode::Internal, format!("the report: {error}"), "report a defect")
        })?;
        println!("{text}");
        return Ok(());
    };
    let text = std::fs::read(source).map_err(|error| {
        Refusal::new(
            RefusalCode::InvalidArgument,
            format!("cannot read {}: {error}", source.display()),
            "give the file that ballast-vmm --cpu-report printed on the other host",
        )
    })?;
    print!("{}", HostCpu::parse(&text)?.compare(here));
    Ok(())
}

/// And files that may not grow: whoever writes to them is told.
fn ignore_hangups() {
    for signal in [libc::SIGHUP, libc::SIGPIPE, libc::SIGXFSZ] {
        // SAFETY: no handler is installed, only the signal ignored.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

async fn serve(
    socket: &Path,
    id: VmId,
    disk_root: PathBuf,
    log: Option<LogFiles>,
) -> Result<(), Refusal> {
    let quit = signal::shutdown_token().map_err(|error| {
        Refusal::new(
            RefusalCode::HostFailure,
            format!("cannot handle signals: {error}"),
            "report a defect",
        )
    })?;
    let listener = bind(socket)?;
    tracing::info!(vm = %id, socket = %socket.display(), "ready");
    let vm = Vm::new(id, UnrunMark::beside(socket), disk_root, quit.clone(), log);
    let vm = Arc::new(vm);
    let served = tonic::transport::Server::builder()
        .add_service(VmmServiceServer::new(Api::new(Arc::clone(&vm))))
        .serve_with_incoming_shutdown(
            UnixListenerStream::new(listener),
            quit.clone().cancelled_owned(),
        );
    let outcome = tokio::select! {
        served = served => served.map_err(|error| Refusal::new(
            RefusalCode::HostFailure,
            format!("cannot serve on {}: {error}", socket.display()),
            "report a defect",
        )),
        // A client that keeps its connection open must not keep the process.
        () = grace_over(&quit) => Ok(()),
    };
    // Another process may have the path by now; only our own socket answers nobody.
    remove_stale(socket);
    vm.shutdown();
    outcome
}

async fn grace_over(quit: &CancellationToken) {
    quit.cancelled().await;
    tokio::time::sleep(GRACE).await;
}

/// Binds the socket for this user alone. A socket that a dead process left is replaced.
fn bind(socket: &Path) -> Result<UnixListener, Refusal> {
    // Nothing else runs yet that would create a file.
    let before = rustix::process::umask(Mode::RWXG | Mode::RWXO);
    let mut bound = UnixListener::bind(socket);
    if bound.as_ref().is_err_and(|error| error.kind() == ErrorKind::AddrInUse)
        && remove_stale(socket)
    {
        bound = UnixListener::bind(socket);
    }
    rustix::process::umask(before);
    bound.map_err(|error| {
        let remedy = match error.kind() {
            ErrorKind::AddrInUse => {
                "end the process that serves there, or give another path with --socket"
            }
            ErrorKind::NotFound => "create its directory first",
            _ => "give a path in a directory that can be written to, at most 107 bytes long",
        };
        let code = if error.kind() == ErrorKind::AddrInUse {
            RefusalCode::AlreadyExists
        } else {
            RefusalCode::HostFailure
        };
        Refusal::new(code, format!("cannot listen on {}: {error}", socket.display()), remedy)
    })
}

/// Removes a socket that nobody serves; whether it did.
fn remove_stale(socket: &Path) -> bool {
    let refused = StdUnixStream::connect(socket)
        .is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused);
    refused && std::fs::remove_file(socket).is_ok()
}
