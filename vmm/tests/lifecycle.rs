//! One process: what it does from its start to its end, and what it refuses.

// Helpers of tests may unwrap like tests.
#![allow(clippy::unwrap_used)]

#[path = "support/process.rs"]
mod process;

use std::process::{Output, Stdio};
use std::time::Duration;

use ballast_guest::Params;
use ballast_model::RefusalCode;
use ballast_proto::v1::{self, VmState};
use process::{Lab, VM, Vmm, busy, check_refused, command, have_kvm};

fn quick() -> Params {
    Params { heartbeat_ms: 20, ..Params::default() }
}

#[tokio::test]
async fn a_guest_boots_beats_and_stands_still_while_paused() {
    if !have_kvm() {
        return;
    }
    let lab = Lab::new();
    let mut vmm = lab.vmm("a").await;
    assert_eq!(vmm.state().await, VmState::Created);
    vmm.boot(lab.spec(32, &quick())).await.unwrap();
    assert_eq!(vmm.state().await, VmState::Running);
    vmm.beats(5).await;

    for _ in 0..2 {
        // Twice: a pause of a paused guest changes nothing.
        vmm.client.pause(v1::PauseRequest {}).await.unwrap();
        assert_eq!(vmm.state().await, VmState::Paused);
    }
    vmm.read_console().await;
    let before = vmm.console.report().heartbeats;
    tokio::time::sleep(Duration::from_millis(200)).await;
    vmm.read_console().await;
    assert_eq!(vmm.console.report().heartbeats, before, "paused for ten heartbeats");

    vmm.client.resume(v1::ResumeRequest {}).await.unwrap();
    let report = vmm.beats(5).await;
    assert_eq!((report.boots, report.heartbeats_lost), (1, 0));
}

#[tokio::test]
async fn load_is_measured_between_two_looks() {
    if !have_kvm() {
        return;
    }
    let lab = Lab::new();
    let mut vmm = lab.vmm("a").await;
    let sample = async |vmm: &mut Vmm| {
        vmm.client.sample(v1::SampleRequest {}).await.unwrap().into_inner().load.unwrap()
    };
    assert_eq!(sample(&mut vmm).await, v1::VmLoad::default(), "no guest, no load");
    let params = Params { duty_percent: 50, dirty_mib_per_sec: 16, ..quick() };
    vmm.boot(lab.spec(32, &params)).await.unwrap();
    vmm.beats(5).await;
    let first = sample(&mut vmm).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let second = sample(&mut vmm).await;
    assert!(second.cpu_time_nanos > first.cpu_time_nanos);
    // A busy machine gives the guest less than it asks for, and never more.
    assert!((50..=750).contains(&second.cpu_millicores), "{second:?}");
    assert!((1 << 20..=32 << 20).contains(&second.resident_bytes), "{second:?}");
    assert!(second.dirty_bytes_per_sec > 1 << 20, "{second:?}");
}

#[tokio::test]
async fn a_boot_that_is_refused_leaves_nothing_half_done() {
    if !have_kvm() {
        return;
    }
    let lab = Lab::new();
    let mut vmm = lab.vmm("a").await;
    let spec = |change: fn(&mut v1::VmSpec)| {
        let mut spec = lab.spec(32, &quick());
        change(&mut spec);
        spec
    };
    let missing = vmm.boot(spec(|spec| spec.kernel = "/nonexistent/kernel".to_owned())).await;
    check_refused(missing, RefusalCode::NotFound, "/nonexistent/kernel");
    let huge = vmm.boot(spec(|spec| spec.memory_bytes = 4 << 40)).await;
    check_refused(huge, RefusalCode::CapacityExceeded, "available");
    let other = vmm.boot(spec(|spec| spec.id = "other".to_owned())).await;
    check_refused(other, RefusalCode::InvalidArgument, "other");
    let none = vmm.boot(spec(|spec| spec.vcpus = 0)).await;
    check_refused(none, RefusalCode::InvalidArgument, "0 vCPUs");
    assert_eq!(vmm.state().await, VmState::Created);

    vmm.boot(spec(|_| {})).await.unwrap();
    vmm.beats(3).await;
    check_refused(vmm.boot(spec(|_| {})).await, RefusalCode::WrongState, "machine already");
    check_refused(vmm.listen(spec(|_| {})).await, RefusalCode::WrongState, "machine already");
    vmm.beats(3).await;
}

/// The probe guest, but for an entry where nothing is mapped and no way to handle the fault.
fn image_that_ends_at_once() -> Vec<u8> {
    const OWNER: &[u8] = b"Ballast\0";
    let mut image = ballast_guest::IMAGE.to_vec();
    let owner = image.windows(OWNER.len()).position(|window| window == OWNER).unwrap();
    let mut set = |word: usize, value: u64| {
        let at = owner + OWNER.len() + 8 * word;
        image[at..at + 8].copy_from_slice(&value.to_le_bytes());
    };
    set(1, 0x7fff_ffff_f000); // entry
    set(6, 0); // limit of the IDT
    image
}

#[tokio::test]
async fn a_guest_that_ends_by_itself_is_stopped_and_can_be_asked_why() {
    if !have_kvm() {
        return;
    }
    let lab = Lab::new();
    std::fs::write(lab.path("guest"), image_that_ends_at_once()).unwrap();
    let mut vmm = lab.vmm("a").await;
    let mut spec = lab.spec(32, &quick());
    spec.vcpus = 2;
    vmm.boot(spec).await.unwrap();
    let end = std::time::Instant::now() + process::PATIENCE;
    while vmm.state().await != VmState::Stopped {
        assert!(std::time::Instant::now() < end, "{:?}", vmm.status().await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let detail = vmm.status().await.detail;
    assert!(detail.contains("crash: vCPU "), "{detail}");
    let sent = vmm.send("127.0.0.1:1", |_| {}).await;
    check_refused(sent, RefusalCode::WrongState, "Stopped");
    vmm.client.resume(v1::ResumeRequest {}).await.unwrap();
    assert_eq!(vmm.state().await, VmState::Stopped, "it stays where it is");
    vmm.client.shutdown(v1::ShutdownRequest {}).await.unwrap();
    assert!(vmm.ended().await.success());
}

#[tokio::test]
async fn a_shutdown_is_answered_and_then_carried_out() {
    if !have_kvm() {
        return;
    }
    let lab = Lab::new();
    let mut vmm = lab.vmm("a").await;
    vmm.boot(lab.spec(32, &quick())).await.unwrap();
    vmm.client.shutdown(v1::ShutdownRequest {}).await.unwrap();
    assert!(vmm.ended().await.success());
    assert!(!lab.path("a").exists(), "the socket is removed");
}

#[tokio::test]
async fn a_process_outlives_its_terminal_and_the_reader_of_its_log() {
    if !have_kvm() {
        return;
    }
    let lab = Lab::new();
    let mut child = command(&lab.path("a")).stderr(Stdio::piped()).spawn().unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    drop(child.stderr.take());
    let mut vmm = Vmm::adopt(child, &lab.path("a")).await;
    // SAFETY: a signal to a child of ours that has not been waited for.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGHUP) }, 0);
    vmm.boot(lab.spec(32, &quick())).await.unwrap();
    vmm.beats(3).await;
}

fn one_line(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    text
}

#[tokio::test]
async fn a_socket_in_use_is_refused_and_a_stale_one_replaced() {
    if !have_kvm() {
        return;
    }
    let lab = Lab::new();
    let mut first = lab.vmm("a").await;
    let second = command(&lab.path("a")).output().unwrap();
    assert_eq!(second.status.code(), Some(4));
    let line = one_line(&second);
    assert!(line.contains("/a:") && line.contains("another path"), "{line}");
    assert_eq!(first.state().await, VmState::Created, "the first goes on");

    first.kill();
    assert!(lab.path("a").exists(), "left behind");
    assert_eq!(lab.vmm("a").await.state().await, VmState::Created);
}

#[test]
fn bad_arguments_are_refused() {
    let lab = Lab::new();
    let nowhere = command(&lab.path("no/such/dir")).output().unwrap();
    if have_kvm() {
        assert_eq!(nowhere.status.code(), Some(1));
        assert!(one_line(&nowhere).contains("create its directory"));
    }
    let unknown = command(&lab.path("a")).arg("--no-such").output().unwrap();
    assert_eq!(unknown.status.code(), Some(2));
}

#[test]
fn the_cpu_model_is_one_line_and_stays_the_same() {
    if !have_kvm() {
        return;
    }
    let ask = || {
        let program = env!("CARGO_BIN_EXE_ballast-vmm");
        let output = std::process::Command::new(program).arg("--cpu-model").output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    let model = ask();
    assert_eq!(model.lines().count(), 1);
    assert_eq!(model.trim().split('-').count(), 4, "{model}");
    assert_eq!(ask(), model);
}

#[tokio::test]
async fn a_console_can_be_typed_at_and_waited_for() {
    if !have_kvm() {
        return;
    }
    let lab = Lab::new();
    let mut vmm = lab.vmm("a").await;
    let typed =
        |bytes: usize| v1::WriteConsoleRequest { vm: VM.to_owned(), data: vec![b'x'; bytes] };
    let early = vmm.client.write_console(typed(1)).await.map_err(process::refusal);
    check_refused(early, RefusalCode::WrongState, "does not run here");
    vmm.boot(lab.spec(32, &busy())).await.unwrap();
    // The probe guest never reads: its port takes what its queue holds, and no more.
    let answer = vmm.client.write_console(typed(60)).await.unwrap().into_inner();
    assert_eq!(answer.accepted, 60);
    let answer = vmm.client.write_console(typed(10)).await.unwrap().into_inner();
    assert_eq!(answer.accepted, 4);
    let long = vmm.client.write_console(typed(5000)).await.map_err(process::refusal);
    check_refused(long, RefusalCode::InvalidArgument, "at most 4096");

    let read = |offset| v1::ReadConsoleRequest { vm: VM.to_owned(), offset, wait_ms: 60_000 };
    let end = vmm.client.read_console(read(u64::MAX)).await.unwrap().into_inner();
    assert!(end.offset > 0 && end.data.is_empty());
    let piece = vmm.client.read_console(read(end.offset)).await.unwrap().into_inner();
    assert_eq!(piece.offset, end.offset);
    assert!(!piece.data.is_empty(), "the next heartbeat is waited for");
}

/// What `--cpu-report` says of this host's baselines: name, and what is missing.
fn baselines() -> Vec<(String, Vec<String>)> {
    let program = env!("CARGO_BIN_EXE_ballast-vmm");
    let output = std::process::Command::new(program).arg("--cpu-report").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let words = |list: &serde_json::Value| {
        let words = list.as_array().unwrap().iter();
        words.map(|word| word.as_str().unwrap().to_owned()).collect()
    };
    let baselines = report["baselines"].as_array().unwrap().iter();
    baselines
        .map(|one| (one["name"].as_str().unwrap().to_owned(), words(&one["missing"])))
        .collect()
}

#[tokio::test]
async fn a_baseline_is_given_as_the_report_says_or_refused_by_name() {
    if !have_kvm() {
        return;
    }
    let baselines = baselines();
    assert_eq!(baselines[0], ("host".to_owned(), vec![]));
    let lab = Lab::new();
    for (name, missing) in &baselines[1..] {
        let baseline: ballast_model::hardware::CpuBaseline = name.parse().unwrap();
        let mut vmm = lab.vmm(name).await;
        let mut spec = ballast_model::VmSpec::try_from(lab.spec(32, &quick())).unwrap();
        spec.cpu = baseline;
        let outcome = vmm.boot((&spec).into()).await;
        if missing.is_empty() {
            outcome.unwrap();
            vmm.beats(3).await;
        } else {
            let refusal = outcome.unwrap_err();
            assert_eq!(refusal.code, RefusalCode::Unsupported, "{refusal}");
            assert!(missing.iter().all(|name| refusal.reason.contains(name)), "{refusal}");
            assert_eq!(vmm.state().await, VmState::Created, "nothing was started");
        }
    }
}

#[test]
fn a_host_compared_with_itself_differs_in_nothing() {
    if !have_kvm() {
        return;
    }
    let program = env!("CARGO_BIN_EXE_ballast-vmm");
    let report = std::process::Command::new(program).arg("--cpu-report").output().unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &report.stdout).unwrap();
    let compare = |file: &std::path::Path| {
        std::process::Command::new(program).arg("--cpu-compare").arg(file).output().unwrap()
    };
    let compared = String::from_utf8(compare(file.path()).stdout).unwrap();
    assert!(compared.starts_with("host: VMs can move\n"), "{compared}");
    assert_eq!(compared.lines().count(), 4);
    std::fs::write(file.path(), b"{\"model\": 1}").unwrap();
    let refused = compare(file.path());
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("no CPU report"), "{refused:?}");
}

#[tokio::test]
async fn a_guest_has_memory_on_both_sides_of_the_hole() {
    if !have_kvm() {
        return;
    }
    let lab = Lab::new();
    let mut vmm = lab.vmm("a").await;
    vmm.boot(lab.spec(5 << 10, &quick())).await.unwrap();
    assert_eq!(vmm.beats(5).await.heartbeats_lost, 0);
}

#[tokio::test]
async fn what_the_host_does_not_have_is_refused_before_anything_starts() {
    if !have_kvm() {
        return;
    }
    let lab = Lab::new();
    let mut vmm = lab.vmm("a").await;
    let mut check = async |change: &dyn Fn(&mut v1::VmSpec), code: RefusalCode, words: &str| {
        let mut spec = lab.spec(32, &quick());
        change(&mut spec);
        let refusal = vmm.boot(spec).await.unwrap_err();
        assert_eq!(refusal.code, code, "{refusal}");
        assert!(refusal.to_string().contains(words), "{refusal}");
        assert_eq!(vmm.state().await, VmState::Created);
    };
    let initrd = lab.path("initrd").to_str().unwrap().to_owned();
    check(&|spec| spec.memory_bytes = 4 << 40, RefusalCode::CapacityExceeded, "available").await;
    check(&|spec| spec.initrd.clone_from(&initrd), RefusalCode::InvalidArgument, "takes no initrd")
        .await;
    std::fs::write(lab.path("guest"), b"#!/bin/sh").unwrap();
    check(&|_| {}, RefusalCode::InvalidArgument, "neither a bzImage nor").await;
    std::fs::write(lab.path("guest"), ballast_guest::IMAGE).unwrap();
    vmm.boot(lab.spec(32, &quick())).await.unwrap();
    vmm.beats(3).await;
}

/// While a machine takes its memory, whoever asks hears how far it is.
#[tokio::test]
async fn a_machine_that_takes_its_memory_says_how_far_it_is() {
    if !have_kvm() {
        return;
    }
    let lab = Lab::new();
    let mut vmm = lab.vmm("a").await;
    let mut spec = lab.spec(2048, &quick());
    spec.memory_backing = Some(v1::MemoryBacking { pages: 0, prefault: true });
    let mut client = vmm.client.clone();
    let request = v1::BootRequest { spec: Some(spec), epoch: 1, restore_from: String::new() };
    let booting = tokio::spawn(async move { client.boot(request).await.map(|_| ()) });
    let mut said = Vec::new();
    while !booting.is_finished() {
        said.push(vmm.status().await.detail);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    booting.await.unwrap().unwrap();
    assert!(said.iter().any(|detail| detail.ends_with(" % of its memory is taken")), "{said:?}");
    vmm.beats(1).await;
}
