//! A VM moves with a disk that belongs to its host, by the operator's command.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use ballast_cli::cluster::StoreKind;
use ballast_guest::{LogReport, Params};
use ballast_proto::v1;
use ballast_tests::hold::{HoldFile, is_stopped, vmm_of};
use ballast_tests::small::Small;
use ballast_tests::{Guest, TestCluster, eventually, kvm_or_skip, run, signal_process};

use crate::PROGRAM;

const LOG_BYTES: u64 = 64 << 20;
const DATA_BYTES: u64 = 512 << 20;
/// Data in the middle of the second disk; the rest are holes.
const ISLAND: (u64, usize) = (200 << 20, 8 << 20);

fn params() -> Params {
    Params { heartbeat_ms: 20, log_per_sec: 200, ..Params::default() }
}

fn disk(name: &str) -> v1::Disk {
    v1::Disk { path: format!("/{name}"), local: true, ..v1::Disk::default() }
}

fn pattern() -> Vec<u8> {
    (0..ISLAND.1).map(|at| u8::try_from(at % 251).unwrap_or_default() + 1).collect()
}

/// What is in a host's directory.
fn names(root: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(root).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn check_data(path: &Path) {
    let file = File::open(path).unwrap();
    let mut data = vec![0; ISLAND.1];
    file.read_exact_at(&mut data, ISLAND.0).unwrap();
    assert!(data == pattern(), "another content");
    let meta = file.metadata().unwrap();
    assert_eq!(meta.len(), DATA_BYTES);
    assert!(meta.blocks() * 512 <= 2 * ISLAND.1 as u64, "{} blocks", meta.blocks());
}

/// Somebody else fills the destination's disk meanwhile: that is said in words, the VM stays where it
/// is with its disk, and moves once there is room.
#[tokio::test]
async fn a_destination_that_gets_full_is_no_loss() {
    if !kvm_or_skip("a full destination") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let hold = HoldFile::new(dir.path());
    let test = TestCluster::start_with(PROGRAM, StoreKind::Embedded, hold.env()).await;
    let hosts: Vec<String> = test.hosts().await.into_iter().map(|host| host.host).collect();
    let roots: Vec<PathBuf> = hosts.iter().map(|host| test.cluster.disk_root(host)).collect();
    let data = File::create(roots[0].join("log.img")).unwrap();
    data.set_len(DATA_BYTES).unwrap();
    data.write_all_at(&pattern(), ISLAND.0).unwrap();
    let mut guest =
        Guest::create_with(&test, "web-1", &hosts[0], &params(), vec![disk("log.img")]).await;
    let small = Small::on(&roots[1], 64 << 20);
    // The destination has said that it has room, and nothing of the disk is there: later, all that needs room may be.
    hold.arm("web-1", "source.negotiated");
    let id = test.migrate("web-1", &hosts[1]).await;
    let state = test.cluster.dir().join("state").join(&hosts[0]);
    let held = eventually("it is held before its disk is copied", async || {
        vmm_of(&state, "web-1").filter(|pid| is_stopped(*pid))
    })
    .await;
    small.fill("somebody else's");
    hold.clear();
    signal_process(held, rustix::process::Signal::CONT);
    let refused = test.ended(&id).await;
    assert_eq!(refused.phase, "failed", "{refused:?}");
    assert!(refused.why.contains("No space left on device"), "{}", refused.why);
    assert_eq!(test.runs_once("web-1").await, hosts[0]);
    guest.goes_on(&test).await;
    assert_eq!(names(&roots[1]), ["somebody else's"], "no part of the disk");
    drop(small);
    // Until the host has reported that it has room again, it is refused.
    let moved = eventually("there is room again", async || {
        let request = v1::MigrateVmRequest {
            vm: "web-1".into(),
            to: hosts[1].clone(),
            actor: TestCluster::actor("there is room again"),
        };
        test.client.migrate_vm(request).await.ok()
    })
    .await;
    let moved = test.ended(&moved.migration).await;
    assert_eq!(moved.phase, "completed", "{moved:?}");
    let durable = guest.goes_on(&test).await.durable_records;
    let actor = TestCluster::actor("the test is over");
    let request = v1::DeleteVmRequest { vm: "web-1".into(), actor };
    test.client.delete_vm(request).await.unwrap();
    let log = LogReport::of(&roots[1].join("log.img"), params().log_bytes, durable).unwrap();
    // What lies behind the log is no fault of it.
    assert!(log.runs == 1 && log.records >= durable, "{} of {durable}", log.records);
    check_data(&roots[1].join("log.img"));
    test.stop().await;
}

#[tokio::test]
async fn a_vm_moves_with_its_local_disks_and_back() {
    if !kvm_or_skip("local disks") {
        return;
    }
    let test = TestCluster::start(PROGRAM, StoreKind::Embedded).await;
    let hosts: Vec<String> = test.hosts().await.into_iter().map(|host| host.host).collect();
    let roots: Vec<PathBuf> = hosts.iter().map(|host| test.cluster.disk_root(host)).collect();
    File::create(roots[0].join("log.img")).unwrap().set_len(LOG_BYTES).unwrap();
    let data = File::create(roots[0].join("data.img")).unwrap();
    data.set_len(DATA_BYTES).unwrap();
    data.write_all_at(&pattern(), ISLAND.0).unwrap();
    let disks = vec![disk("log.img"), disk("data.img")];
    let mut guest = Guest::create_with(&test, "web-1", &hosts[0], &params(), disks).await;

    // Something is in the way there: said before anything moves.
    std::fs::write(roots[1].join("data.img"), "somebody else's").unwrap();
    let refused = test.ended(&test.migrate("web-1", &hosts[1]).await).await;
    assert_eq!(refused.phase, "failed", "{refused:?}");
    assert!(refused.why.contains("where something is already"), "{}", refused.why);
    guest.goes_on(&test).await;
    assert_eq!(std::fs::read(roots[1].join("data.img")).unwrap(), b"somebody else's");
    std::fs::remove_file(roots[1].join("data.img")).unwrap();
    assert!(names(&roots[1]).is_empty(), "{:?}", names(&roots[1]));

    for (from, to) in [(0, 1), (1, 0)] {
        let id = test.migrate("web-1", &hosts[to]).await;
        let moved = test.ended(&id).await;
        assert_eq!(moved.phase, "completed", "{moved:?}");
        let progress = moved.progress.unwrap();
        assert!(progress.disk_bytes_total >= ISLAND.1 as u64, "{progress:?}");
        assert!(progress.disk_bytes_sent >= ISLAND.1 as u64, "{progress:?}");
        assert_eq!(progress.disk_bytes_remaining, 0);
        assert_eq!(test.runs_once("web-1").await, hosts[to]);
        guest.goes_on(&test).await;
        assert_eq!(names(&roots[to]), ["data.img", "log.img"]);
        assert!(names(&roots[from]).is_empty(), "{:?}", names(&roots[from]));
        check_data(&roots[to].join("data.img"));
        let args = ["--controller", test.cluster.url(), "migration", "show", &id];
        let shown = run(PROGRAM, &args).await;
        assert!(shown.stdout.contains("of it disks"), "{shown:?}");
    }
    let durable = guest.goes_on(&test).await.durable_records;
    let actor = TestCluster::actor("the test is over");
    let request = v1::DeleteVmRequest { vm: "web-1".into(), actor };
    test.client.delete_vm(request).await.unwrap();
    let log = LogReport::of(&roots[0].join("log.img"), params().log_bytes, durable).unwrap();
    assert_eq!((log.faults.as_slice(), log.runs), (&[][..], 1), "{log:?}");
    test.stop().await;
}
