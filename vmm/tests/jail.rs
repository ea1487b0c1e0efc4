//! What a process in its jail can still do.

// Helpers of tests may unwrap like tests.
#![allow(clippy::unwrap_used)]

#[path = "support/process.rs"]
mod process;

use std::path::Path;
use std::process::Stdio;

use ballast_model::RefusalCode;
use process::{Lab, Vmm, busy, check_refused, command, have_kvm};

/// A VMM with further arguments; its socket is in a directory of its own.
async fn jailed(lab: &Lab, name: &str, args: &[&str]) -> Vmm {
    let own = lab.path(name);
    std::fs::create_dir(&own).unwrap();
    let socket = own.join("vmm.sock");
    Vmm::adopt(command(&socket).args(args).spawn().unwrap(), &socket).await
}

/// A field of `/proc/<pid>/status`.
fn status(pid: u32, task: &str, field: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{task}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {field}")).trim().to_owned()
}

/// The threads of a process whose name begins with `name`.
fn threads(pid: u32, name: &str) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let ids = tasks.map(|task| task.unwrap().file_name().into_string().unwrap());
    ids.filter(|id| status(pid, id, "Name").starts_with(name)).collect()
}

#[tokio::test]
async fn a_jailed_vmm_has_no_powers_it_does_not_need() {
    if !have_kvm() {
        return;
    }
    let lab = Lab::new();
    let mut vmm = lab.vmm("a").await;
    vmm.boot(lab.spec(32, &busy())).await.unwrap();
    vmm.beats(2).await;
    let pid = vmm.status().await.pid;
    let main = pid.to_string();
    assert_eq!(status(pid, &main, "NoNewPrivs"), "1");
    assert_eq!(status(pid, &main, "Seccomp"), "2");
    let capabilities = u64::from_str_radix(&status(pid, &main, "CapEff"), 16).unwrap();
    // CAP_SYS_ADMIN, CAP_SYS_PTRACE, CAP_SYS_MODULE, CAP_SETUID (linux/capability.h).
    for gone in [21, 19, 16, 7] {
        assert_eq!(capabilities & (1 << gone), 0, "{capabilities:#x}");
    }
    let filters = |task: &str| status(pid, task, "Seccomp_filters").parse::<u32>().unwrap();
    let vcpus = threads(pid, "vcpu");
    assert_eq!(vcpus.len(), 1);
    assert_eq!(filters(&vcpus[0]), filters(&main) + 1, "a vCPU has less than its process");
}

#[tokio::test]
async fn no_thread_is_outside_and_the_console_is_logged() {
    if !have_kvm() {
        return;
    }
    let lab = Lab::new();
    let (kernel, log) = (lab.path("guest"), lab.path("console.log"));
    let (kernel, shown) = (kernel.to_str().unwrap(), log.to_str().unwrap());
    let args = ["--allow-read", kernel, "--console-log", shown];
    let mut vmm = jailed(&lab, "a", &args).await;
    vmm.boot(lab.spec(32, &busy())).await.unwrap();
    vmm.beats(3).await;
    let pid = vmm.status().await.pid;
    assert_eq!(threads(pid, "console-log").len(), 1);
    for thread in threads(pid, "") {
        assert_eq!(status(pid, &thread, "Seccomp"), "2", "{}", status(pid, &thread, "Name"));
    }
    let end = std::time::Instant::now() + process::PATIENCE;
    while !std::fs::read_to_string(&log).unwrap().contains("H 1 ") {
        assert!(std::time::Instant::now() < end, "the console is not logged");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn only_listed_paths_can_be_opened() {
    if !have_kvm() {
        return;
    }
    let lab = Lab::new();
    let spec = || lab.spec(32, &busy());
    let mut closed = jailed(&lab, "closed", &[]).await;
    check_refused(closed.boot(spec()).await, RefusalCode::HostFailure, "ermission denied");

    let kernel = lab.path("guest");
    let files = lab.path("files");
    std::fs::create_dir(&files).unwrap();
    let (kernel, allowed) = (kernel.to_str().unwrap(), files.to_str().unwrap());
    let args = ["--allow-read", kernel, "--allow-write", allowed];
    let mut open = jailed(&lab, "open", &args).await;
    open.boot(spec()).await.unwrap();
    open.beats(2).await;
    let elsewhere = lab.path("elsewhere");
    let refused = open.save(elsewhere.to_str().unwrap(), false).await;
    check_refused(refused, RefusalCode::HostFailure, "ermission denied");
    let file = files.join("snapshot");
    open.save(file.to_str().unwrap(), false).await.unwrap();
    assert!(Path::new(&file).exists() && !elsewhere.exists());
    open.beats(2).await;
}

#[tokio::test]
async fn an_unprivileged_user_runs_a_guest() {
    use std::os::unix::fs::{PermissionsExt, chown};
    if !have_kvm() {
        return;
    }
    if !rustix::process::getuid().is_root() {
        eprintln!("SKIPPED: only root can become another user");
        return;
    }
    const NOBODY: u32 = 65_534;
    let lab = Lab::new();
    // The test's directory is its owner's alone.
    std::fs::set_permissions(lab.path(""), PermissionsExt::from_mode(0o755)).unwrap();
    let own = lab.path("own");
    std::fs::create_dir(&own).unwrap();
    chown(&own, Some(NOBODY), Some(NOBODY)).unwrap();
    let (socket, kernel) = (own.join("vmm.sock"), lab.path("guest"));
    let mut command = command(&socket);
    command.args(["--user", "65534:65534", "--allow-read"]).arg(kernel).stderr(Stdio::inherit());
    let mut vmm = Vmm::adopt(command.spawn().unwrap(), &socket).await;
    vmm.boot(lab.spec(32, &busy())).await.unwrap();
    assert_eq!(vmm.beats(5).await.faults(), Vec::<String>::new());
    let pid = vmm.status().await.pid;
    let user = status(pid, &pid.to_string(), "Uid");
    assert!(user.split_whitespace().all(|id| id == "65534"), "{user}");
}
