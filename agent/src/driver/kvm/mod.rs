//! One `ballast-vmm` process per VM, on `/dev/kvm`.
//!
//! The process is started in a session of its own and outlives the agent. It
//! is told what to run over its Unix socket, and found again by what was
//! recorded of it: number and start time, so that another process with the
//! same number is never taken for it.

use std::ffi::OsStr;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ballast_model::{CpuBaseline, Refusal, RefusalCode, VmId, VmSpec};
use ballast_proto::v1;
use tracing::{info, warn};

use self::confine::Cgroup;
use self::cpu::HostCpu;
use self::machine::KvmMachine;
use self::process::Process;
use super::{Driver, Machine, ProcessId, SnapshotHead};
use crate::config::VmmConfig;
use crate::vm::dir::VmDir;

mod client;
mod confine;
mod cpu;
mod machine;
mod process;

/// The program's name.
const VMM: &str = "ballast-vmm";
/// `KVM_GET_API_VERSION` (linux/kvm.h), and the only answer it ever had.
const KVM_GET_API_VERSION: libc::c_ulong = 0xAE00;
const KVM_API_VERSION: libc::c_int = 12;
/// How long a process may take to answer on its socket after it was started.
const START_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a process that does not answer may take to end before it counts as one that runs.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// The driver of real VMs.
#[derive(Debug)]
pub struct KvmDriver {
    vmm: PathBuf,
    config: VmmConfig,
    cpu: HostCpu,
}

impl KvmDriver {
    /// A driver that starts the program configured, or the `ballast-vmm` beside this program.
    ///
    /// # Errors
    /// `HostFailure` when KVM or the program cannot be used.
    pub async fn new(config: VmmConfig) -> Result<Self, Refusal> {
        check_kvm()?;
        let vmm = find_vmm(config.binary.as_deref())?;
        let cpu = HostCpu::ask(&vmm).await?;
        for dir in &config.snapshot_dirs {
            // A VMM may write to what is there when it starts. It may not be ours to make.
            if let Err(error) = confine::make_snapshot_dir(&config, dir) {
                warn!(dir = %dir.display(), %error, "snapshots cannot be written there");
            }
        }
        Ok(Self { vmm, config, cpu })
    }

    /// The machine of a process that an earlier agent started.
    async fn take_over(
        &self,
        vm: &VmId,
        dir: &VmDir,
        process: Process,
    ) -> Result<KvmMachine, Refusal> {
        let client = client::connect(&dir.socket(), START_TIMEOUT).await?;
        KvmMachine::start(vm.clone(), dir.clone(), process, client, self.config.clone()).await
    }
}

#[async_trait]
impl Driver for KvmDriver {
    fn kind(&self) -> v1::DriverKind {
        v1::DriverKind::Kvm
    }

    fn cpu_model(&self) -> String {
        self.cpu.model.clone()
    }

    fn cpu_baselines(&self) -> Vec<CpuBaseline> {
        self.cpu.baselines.clone()
    }

    async fn describe_snapshot(&self, path: &Path) -> Result<SnapshotHead, Refusal> {
        let said = ask(&self.vmm, &[OsStr::new("--describe-snapshot"), path.as_os_str()]).await;
        let said = said.map_err(|why| {
            Refusal::new(
                RefusalCode::InvalidArgument,
                format!("{} cannot be restored: {why}", path.display()),
                "give the path of a snapshot on this host",
            )
        })?;
        serde_json::from_str(&said).map_err(|error| {
            Refusal::new(
                RefusalCode::Internal,
                format!("{} says of {}: {error}", self.vmm.display(), path.display()),
                "check that vmm.binary is ballast-vmm, of the agent's own version",
            )
        })
    }

    async fn spawn(
        &self,
        spec: &VmSpec,
        restore_from: Option<&Path>,
        dir: &VmDir,
    ) -> Result<Arc<dyn Machine>, Refusal> {
        let vm = &spec.id;
        let process = Process::spawn(&self.vmm, &self.config, spec, restore_from, dir)?;
        let cgroup = Cgroup::of(&self.config, vm);
        if let Some(refusal) = cgroup.as_ref().and_then(|c| c.admit(spec, process.id().pid).err()) {
            process.kill();
            return Err(refusal);
        }
        let socket = dir.socket();
        let connected = tokio::select! {
            connected = client::connect(&socket, START_TIMEOUT) => connected,
            () = process.ended() => Err(ended_at_once(vm, dir)),
        };
        match connected {
            Ok(client) => {
                let config = self.config.clone();
                Ok(Arc::new(
                    KvmMachine::start(vm.clone(), dir.clone(), process, client, config).await?,
                ))
            }
            Err(refusal) => {
                process.kill();
                Err(refusal)
            }
        }
    }

    async fn adopt(
        &self,
        vm: &VmId,
        dir: &VmDir,
        process: Option<ProcessId>,
    ) -> Result<Option<Arc<dyn Machine>>, Refusal> {
        let Some(id) = process else {
            // Started, but the agent ended before it wrote down which process it is.
            if let Some(stray) = Process::find(&dir.socket()) {
                info!(%vm, "ending a process that never got a guest");
                stray.kill();
                stray.ended().await;
            }
            return Ok(None);
        };
        let Some((process, watched)) = Process::open(id)?.zip(Process::open(id)?) else {
            warn!(%vm, pid = id.pid, "the VM's process is gone");
            return Ok(None);
        };
        let refusal = tokio::select! {
            taken = self.take_over(vm, dir, process) => match taken {
                Ok(machine) => return Ok(Some(Arc::new(machine))),
                Err(refusal) => Some(refusal),
            },
            () = watched.ended() => None,
        };
        // One that is being killed closes its socket before it has ended.
        match (refusal, tokio::time::timeout(END_TIMEOUT, watched.ended()).await) {
            (Some(refusal), Err(_)) => Err(refusal),
            _ => {
                warn!(%vm, pid = id.pid, "the VM's process has ended while it was looked for");
                Ok(None)
            }
        }
    }
}

fn ended_at_once(vm: &VmId, dir: &VmDir) -> Refusal {
    Refusal::new(
        RefusalCode::HostFailure,
        format!("the {VMM} process of VM {vm} ended at once: {}", process::last_words(dir)),
        "correct what it names",
    )
}

fn check_kvm() -> Result<(), Refusal> {
    let unusable = |why: String| {
        Refusal::new(
            RefusalCode::HostFailure,
            format!("/dev/kvm cannot be used: {why}"),
            "enable virtualisation and give the agent access to /dev/kvm, or set driver = \"sim\"",
        )
    };
    let kvm = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
    let kvm = kvm.map_err(|error| unusable(error.to_string()))?;
    // SAFETY: the request takes no argument and touches no memory of ours.
    let version = unsafe { libc::ioctl(kvm.as_raw_fd(), KVM_GET_API_VERSION, 0) };
    if version == KVM_API_VERSION {
        Ok(())
    } else {
        Err(unusable(format!("its API version is {version}, not {KVM_API_VERSION}")))
    }
}

/// What the VMM prints when called with `args`; else in words why it does not.
async fn ask(vmm: &Path, args: &[&OsStr]) -> Result<String, String> {
    let mut command = tokio::process::Command::new(vmm);
    command.args(args).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(START_TIMEOUT, command.output())
        .await
        .map_err(|_| format!("no answer in {START_TIMEOUT:?}"))?
        .map_err(|error| error.to_string())?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{:.500}", words.trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn find_vmm(configured: Option<&Path>) -> Result<PathBuf, Refusal> {
    use std::os::unix::fs::PermissionsExt;
    let path = match configured {
        Some(path) => path.to_owned(),
        None => {
            let own = std::env::current_exe().unwrap_or_default();
            // Called under a link to a binary that is every daemon, the link's neighbour is meant.
            let called = std::env::args_os().next().map(PathBuf::from).unwrap_or_default();
            [called.with_file_name(VMM), own.with_file_name(VMM)]
                .into_iter()
                .find(|path| path.is_absolute() && path.exists())
                .unwrap_or_else(|| own.with_file_name(VMM))
        }
    };
    let usable = std::fs::metadata(&path)
        .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0);
    if path.is_absolute() && usable {
        return Ok(path);
    }
    Err(Refusal::new(
        RefusalCode::HostFailure,
        format!("{} is not a program", path.display()),
        format!("install {VMM} there, or set vmm.binary to its absolute path"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_vmm_is_named() {
        let refusal = find_vmm(Some(Path::new("/nonexistent/ballast-vmm"))).unwrap_err();
        assert!(refusal.to_string().contains("/nonexistent/ballast-vmm"), "{refusal}");
        assert!(refusal.remedy.contains("vmm.binary"), "{refusal}");
        assert!(find_vmm(Some(Path::new("/proc/version"))).is_err());
        assert!(find_vmm(Some(Path::new("/bin/sh"))).is_ok());
    }
}
