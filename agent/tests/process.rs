//! The program from outside: what it refuses to start with, and how it ends.
#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests fail as tests do

mod common;

use std::path::Path;
use std::process::{Command, Output};

use common::*;
use rustix::process::{Pid, Signal, kill_process};

fn agent(dir: &Path, text: &str) -> Command {
    let file = dir.join("agent.toml");
    std::fs::write(&file, text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ballast-agent"));
    command.arg("--config").arg(file);
    command
}

/// Nobody listens there.
fn nobody() -> std::net::SocketAddr {
    "127.0.0.1:1".parse().unwrap()
}

fn check_refused(output: &Output, code: i32, expected: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{text}");
    let line = text.lines().last().unwrap();
    assert!(line.starts_with("ballast-agent: ") && line.contains(expected), "{text}");
}

#[test]
fn what_cannot_work_is_one_line_with_a_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let good = config_text("a", dir.path(), nobody(), "sim");
    let run = |text: &str| agent(dir.path(), text).output().unwrap();
    check_refused(&run(&format!("colour = 1\n{good}")), 2, "unknown field `colour`");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let text = good.replacen("127.0.0.1:0", &address, 1);
    check_refused(&run(&text), 1, "configure another port");
    let text = good.replace(&format!("{}/a\"", dir.path().display()), "/proc/version/a\"");
    check_refused(&run(&text), 1, "give the agent a directory");
    if Path::new("/dev/kvm").exists() {
        let text = config_text("a", dir.path(), nobody(), "kvm").replace("examples/vmm", "no/vmm");
        check_refused(&run(&text), 1, "vmm.binary");
    }
    let missing = Command::new(env!("CARGO_BIN_EXE_ballast-agent"))
        .args(["--config", "/nonexistent.toml"])
        .output()
        .unwrap();
    check_refused(&missing, 3, "/nonexistent.toml");
}

#[tokio::test]
async fn a_second_agent_is_refused_and_the_first_ends_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let stub = Stub::start(Mood::Grant).await;
    let text = config_text("a", dir.path(), stub.address, "sim");
    let mut first = agent(dir.path(), &text).spawn().unwrap();
    stub.until(|heard| !heard.registrations.is_empty()).await;
    let host = stub.heard.borrow().registrations[0].host.clone().unwrap();
    let mut client = connect(host.endpoint.parse().unwrap()).await;
    create(&mut client, spec("web-1", "/none", "duty=5"), 5).await;
    let second = agent(dir.path(), &text).output().unwrap();
    check_refused(&second, 4, "in use by another agent");
    let pid = Pid::from_raw(i32::try_from(first.id()).unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    let ended = tokio::task::spawn_blocking(move || first.wait().unwrap()).await.unwrap();
    assert!(ended.success());
    assert!(dir.path().join("a/vms/web-1/vm.json").exists());
}
