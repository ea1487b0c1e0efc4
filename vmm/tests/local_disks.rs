//! A guest moves with its disk: between hosts that share none, while it writes.

// Helpers of tests may unwrap like tests.
#![allow(clippy::unwrap_used)]

#[path = "support/process.rs"]
mod process;

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use ballast_guest::{LogReport, Params};
use ballast_model::RefusalCode;
use ballast_proto::v1::{self, MigrationState, MigrationVerdict, VmState};
use process::{Lab, VM, Vmm, check_refused, command, have_kvm};

const RECORD_BYTES: u32 = 4096;
const LOG_BYTES: u64 = 32 << 20;
const DISK_BYTES: u64 = 256 << 20;
/// The guest's disks: its log, and one that it leaves alone.
const DISKS: [&str; 2] = ["log.img", "data.img"];
/// What is on the second one, with holes between.
const ISLANDS: [(u64, u8); 4] = [(64 << 20, 1), (100 << 20, 2), (101 << 20, 3), (255 << 20, 4)];
const ISLAND_BYTES: usize = 1 << 20;

/// A host: what is beneath it is nobody else's.
struct Host(PathBuf);

impl Host {
    fn new(lab: &Lab, name: &str) -> Self {
        let root = lab.path(name);
        std::fs::create_dir(&root).unwrap();
        Self(root)
    }

    /// A VMM that finds local disks beneath this host.
    async fn vmm(&self, lab: &Lab, name: &str) -> Vmm {
        let socket = lab.path(name);
        let child = command(&socket).arg("--disk-root").arg(&self.0).spawn().unwrap();
        Vmm::adopt(child, &socket).await
    }

    fn disks(&self) -> [PathBuf; 2] {
        DISKS.map(|name| self.0.join(name))
    }

    fn arriving(&self) -> [PathBuf; 2] {
        DISKS.map(|name| self.0.join(format!("{name}.{VM}.arriving")))
    }

    /// What an agent does before disks arrive.
    fn expect_disks(&self) {
        self.arriving().iter().for_each(|path| drop(File::create_new(path).unwrap()));
    }

    /// What an agent does when they came to nothing.
    fn forget_disks(&self) {
        self.arriving().iter().for_each(|path| std::fs::remove_file(path).unwrap());
    }

    /// What an agent does when the VM runs here.
    fn keep_disks(&self) {
        for (from, to) in self.arriving().iter().zip(self.disks()) {
            std::fs::rename(from, to).unwrap();
        }
    }

    /// What an agent does when the VM has been seen to run elsewhere.
    fn remove_disks(&self) {
        self.disks().iter().for_each(|path| std::fs::remove_file(path).unwrap());
    }
}

fn params() -> Params {
    Params {
        heartbeat_ms: 20,
        log_per_sec: 200,
        log_bytes: RECORD_BYTES,
        working_set_mib: 8,
        dirty_mib_per_sec: 8,
        ..Params::default()
    }
}

fn spec(lab: &Lab) -> v1::VmSpec {
    let disk =
        |name| v1::Disk { path: format!("/{name}"), readonly: false, local: true, limit: None };
    v1::VmSpec { disks: DISKS.map(disk).to_vec(), ..lab.spec(48, &params()) }
}

/// A guest that keeps its log on one disk and has another, both sparse.
async fn begin(lab: &Lab, host: &Host) -> Vmm {
    let [log, disk] = host.disks().map(|path| File::create_new(path).unwrap());
    log.set_len(LOG_BYTES).unwrap();
    disk.set_len(DISK_BYTES).unwrap();
    for (at, byte) in ISLANDS {
        disk.write_all_at(&vec![byte; ISLAND_BYTES], at).unwrap();
    }
    disk.sync_all().unwrap();
    let mut vmm = host.vmm(lab, "source").await;
    vmm.boot(spec(lab)).await.unwrap();
    records(&mut vmm, 32).await;
    vmm
}

/// Waits until the guest has flushed `more` records than it had.
async fn records(vmm: &mut Vmm, more: u64) -> u64 {
    let seen = vmm.console.report().durable_records;
    let report = vmm.until(|report| report.durable_records >= seen + more).await;
    assert_eq!(report.faults(), Vec::<String>::new());
    report.durable_records
}

/// The disks have everything they had and the guest wrote, and are as sparse as they were.
fn check_disks([log, disk]: [PathBuf; 2], durable: u64) {
    let log = LogReport::of(&log, RECORD_BYTES, durable).unwrap();
    assert_eq!(log.faults, Vec::<String>::new(), "{log:?}");
    assert_eq!(log.runs, 1, "{log:?}");
    assert!(log.records >= durable, "{log:?}");
    let disk = File::open(disk).unwrap();
    let meta = disk.metadata().unwrap();
    assert_eq!(meta.len(), DISK_BYTES);
    let allocated = meta.blocks() * 512;
    assert!(allocated < 8 << 20, "{allocated} of {DISK_BYTES} bytes are allocated");
    for (at, byte) in ISLANDS {
        let mut data = vec![0; ISLAND_BYTES];
        disk.read_exact_at(&mut data, at).unwrap();
        assert!(data.iter().all(|found| *found == byte), "at {at}");
    }
}

async fn listen(host: &Host, lab: &Lab, name: &str) -> (Vmm, String) {
    host.expect_disks();
    let mut vmm = host.vmm(lab, name).await;
    let address = vmm.listen(spec(lab)).await.unwrap();
    (vmm, address)
}

/// Both sides are READY; then the destination runs, and the source is gone with its disk.
async fn commit(mut source: Vmm, from: &Host, mut destination: Vmm, to: &Host, epoch: u64) -> Vmm {
    destination.watch_state(MigrationState::Ready).await;
    source.watch_state(MigrationState::Ready).await;
    source.read_console().await;
    std::mem::swap(&mut source.console, &mut destination.console);
    destination.resolve(MigrationVerdict::Commit, epoch).await.unwrap();
    to.keep_disks();
    records(&mut destination, 16).await;
    source.resolve(MigrationVerdict::Superseded, epoch).await.unwrap();
    assert!(source.ended().await.success());
    from.remove_disks();
    destination
}

#[tokio::test]
async fn a_guest_takes_its_disk_along_and_back() {
    if !have_kvm() {
        return;
    }
    let lab = Lab::new();
    let (a, b) = (Host::new(&lab, "a"), Host::new(&lab, "b"));
    let mut vmm = begin(&lab, &a).await;
    for (hop, from, to) in [(1, &a, &b), (2, &b, &a), (3, &a, &b)] {
        let (destination, address) = listen(to, &lab, &format!("hop{hop}")).await;
        // Slow enough for the guest to write while the disk is copied.
        vmm.send(&address, |send| {
            send.bandwidth_bytes_per_sec = 16 << 20;
            send.streams = if hop == 1 { 1 } else { 3 };
        })
        .await
        .unwrap();
        vmm = commit(vmm, from, destination, to, hop + 1).await;
        let progress = vmm.migration().await.progress.unwrap();
        assert!(progress.disk_bytes_sent >= 4 << 20, "{progress:?}");
        records(&mut vmm, 64).await;
    }
    let report = vmm.console.report().clone();
    assert_eq!((report.boots, report.heartbeats_lost, report.memory_errors), (1, 0, 0));
    vmm.kill();
    check_disks(b.disks(), report.durable_records);
}

/// A disk of text over a thin link: it takes half of the bytes.
#[tokio::test]
async fn a_disk_goes_compressed_where_the_link_is_the_limit() {
    const TEXT_BYTES: usize = 24 << 20;
    if !have_kvm() {
        return;
    }
    let mut word = 1u64;
    let letters = std::iter::repeat_with(|| {
        word = word.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        b"etaoin shrdlu\n"[usize::try_from(word >> 60).unwrap() % 14]
    });
    let text: Vec<u8> = letters.take(TEXT_BYTES).collect();
    for allowed in [true, false] {
        let lab = Lab::new();
        let (a, b) = (Host::new(&lab, "a"), Host::new(&lab, "b"));
        let [log, data] = a.disks().map(|path| File::create_new(path).unwrap());
        log.set_len(LOG_BYTES).unwrap();
        data.set_len(DISK_BYTES).unwrap();
        data.write_all_at(&text, 0).unwrap();
        let calm = Params { working_set_mib: 1, dirty_mib_per_sec: 1, ..params() };
        let spec = v1::VmSpec { cmdline: calm.to_cmdline(), ..spec(&lab) };
        let mut source = a.vmm(&lab, "source").await;
        source.boot(spec.clone()).await.unwrap();
        records(&mut source, 32).await;
        b.expect_disks();
        let mut destination = b.vmm(&lab, "destination").await;
        let address = destination.listen(spec).await.unwrap();
        let change = |send: &mut v1::SendMigrationRequest| {
            send.bandwidth_bytes_per_sec = 16 << 20;
            send.streams = 1;
            send.never_compress = !allowed;
        };
        source.send(&address, change).await.unwrap();
        destination.watch_state(MigrationState::Ready).await;
        let sent = source.watch_state(MigrationState::Ready).await.progress.unwrap();
        eprintln!("{allowed}: {sent:?}");
        assert!(sent.disk_bytes_sent >= TEXT_BYTES as u64, "{sent:?}");
        let saved = if allowed { 8 << 20..24 << 20 } else { 0..1 };
        assert!(saved.contains(&sent.bytes_saved), "{sent:?}");
        let mut destination = commit(source, &a, destination, &b, 2).await;
        let report = destination.beats(10).await;
        assert_eq!((report.heartbeats_lost, report.memory_errors), (0, 0));
        let mut arrived = vec![0; TEXT_BYTES];
        File::open(&b.disks()[1]).unwrap().read_exact_at(&mut arrived, 0).unwrap();
        assert!(arrived == text, "the text is another one");
    }
}

/// A file system of its own and of this size, until it is dropped.
struct Mount(PathBuf);

impl Mount {
    /// None, and said so loudly, where this user cannot have one.
    fn new(at: &Path, bytes: u64) -> Option<Self> {
        let size = format!("size={bytes}");
        let mount = ["-t", "tmpfs", "-o", &size, "tmpfs"];
        let mounted = Command::new("mount").args(mount).arg(at).status();
        if !mounted.is_ok_and(|status| status.success()) {
            eprintln!("SKIPPED: cannot mount a file system, be root");
            return None;
        }
        Some(Self(at.to_owned()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// A source and a destination in the middle of the disks: so slow that they stay there.
async fn in_flight(lab: &Lab, a: &Host, b: &Host) -> (Vmm, Vmm) {
    let mut source = begin(lab, a).await;
    let (destination, address) = listen(b, lab, "destination").await;
    source.send(&address, |send| send.bandwidth_bytes_per_sec = 1 << 20).await.unwrap();
    let status = source
        .watch(|status| status.progress.is_some_and(|progress| progress.disk_bytes_sent > 1 << 19))
        .await;
    let progress = status.progress.unwrap();
    assert!(progress.disk_bytes_total >= 4 << 20, "{progress:?}");
    assert!(progress.disk_bytes_remaining > 0, "{progress:?}");
    (source, destination)
}

async fn check_goes_on(source: &mut Vmm, code: RefusalCode) {
    let status = source.watch_state(MigrationState::Aborted).await;
    let why: ballast_model::Refusal = status.refusal.unwrap().into();
    assert_eq!(why.code, code, "{why}");
    assert_eq!(source.state().await, VmState::Running);
    records(source, 32).await;
}

/// The guest still moves with its disks, and nothing is missing from them.
async fn check_still_moves(lab: &Lab, mut source: Vmm, from: &Host, to: &Host) {
    let (destination, address) = listen(to, lab, "again").await;
    source.send(&address, |_| {}).await.unwrap();
    let mut vmm = commit(source, from, destination, to, 2).await;
    let durable = records(&mut vmm, 32).await;
    vmm.kill();
    check_disks(to.disks(), durable);
}

#[tokio::test]
async fn a_move_called_off_leaves_the_disks_where_they_were() {
    if !have_kvm() {
        return;
    }
    let lab = Lab::new();
    let (a, b) = (Host::new(&lab, "a"), Host::new(&lab, "b"));
    let (mut source, mut destination) = in_flight(&lab, &a, &b).await;
    source.resolve(MigrationVerdict::Abort, 0).await.unwrap();
    check_goes_on(&mut source, RefusalCode::Cancelled).await;
    destination.ended().await;
    b.forget_disks();
    check_still_moves(&lab, source, &a, &b).await;
}

#[tokio::test]
async fn a_destination_killed_amid_the_disks_is_no_loss() {
    if !have_kvm() {
        return;
    }
    let lab = Lab::new();
    let (a, b) = (Host::new(&lab, "a"), Host::new(&lab, "b"));
    let (mut source, mut destination) = in_flight(&lab, &a, &b).await;
    destination.kill();
    check_goes_on(&mut source, RefusalCode::Unavailable).await;
    b.forget_disks();
    check_still_moves(&lab, source, &a, &b).await;
}

#[tokio::test]
async fn a_source_killed_amid_the_disks_ends_the_destination_and_has_its_own() {
    if !have_kvm() {
        return;
    }
    let lab = Lab::new();
    let (a, b) = (Host::new(&lab, "a"), Host::new(&lab, "b"));
    let (mut source, mut destination) = in_flight(&lab, &a, &b).await;
    let durable = source.console.report().durable_records;
    source.kill();
    destination.ended().await;
    check_disks(a.disks(), durable);
}

/// The destination dies when only the record can tell who runs: the source goes on with its disks.
#[tokio::test]
async fn a_vm_given_back_has_its_disks() {
    if !have_kvm() {
        return;
    }
    let lab = Lab::new();
    let (a, b) = (Host::new(&lab, "a"), Host::new(&lab, "b"));
    let mut source = begin(&lab, &a).await;
    let (mut destination, address) = listen(&b, &lab, "destination").await;
    source.send(&address, |_| {}).await.unwrap();
    destination.watch_state(MigrationState::Ready).await;
    source.watch_state(MigrationState::Ready).await;
    destination.kill();
    source.resolve(MigrationVerdict::Abort, 3).await.unwrap();
    records(&mut source, 32).await;
    b.forget_disks();
    check_still_moves(&lab, source, &a, &b).await;
}

#[tokio::test]
async fn a_host_without_room_is_refused_before_the_first_piece() {
    if !have_kvm() {
        return;
    }
    let lab = Lab::new();
    let (a, b) = (Host::new(&lab, "a"), Host::new(&lab, "b"));
    let mut source = begin(&lab, &a).await;
    let Some(_mount) = Mount::new(&b.0, 2 << 20) else { return };
    let (mut destination, address) = listen(&b, &lab, "destination").await;
    let sent = source.send(&address, |_| {}).await;
    check_refused(sent, RefusalCode::CapacityExceeded, "does not fit");
    check_goes_on(&mut source, RefusalCode::CapacityExceeded).await;
    let progress = source.migration().await.progress.unwrap();
    assert_eq!((progress.bytes_sent, progress.disk_bytes_sent), (0, 0));
    destination.ended().await;
}

#[tokio::test]
async fn a_host_that_gets_full_on_the_way_is_no_loss() {
    if !have_kvm() {
        return;
    }
    let lab = Lab::new();
    let (a, b, c) = (Host::new(&lab, "a"), Host::new(&lab, "b"), Host::new(&lab, "c"));
    let Some(_mount) = Mount::new(&b.0, 8 << 20) else { return };
    let (mut source, mut destination) = in_flight(&lab, &a, &b).await;
    let mut filler = File::create(b.0.join("filler")).unwrap();
    while filler.write_all(&[1; 4096]).is_ok() {}
    check_goes_on(&mut source, RefusalCode::CapacityExceeded).await;
    destination.ended().await;
    check_still_moves(&lab, source, &a, &c).await;
}

#[tokio::test]
async fn disks_that_cannot_go_along_are_refused_with_their_remedy() {
    if !have_kvm() {
        return;
    }
    let lab = Lab::new();
    let (a, b) = (Host::new(&lab, "a"), Host::new(&lab, "b"));
    for disk in a.disks() {
        File::create(disk).unwrap().set_len(LOG_BYTES).unwrap();
    }
    let mut spec = spec(&lab);
    spec.disks[1].readonly = true;
    let mut source = a.vmm(&lab, "source").await;
    source.boot(spec.clone()).await.unwrap();
    source.beats(3).await;
    b.expect_disks();
    let mut destination = b.vmm(&lab, "destination").await;
    let address = destination.listen(spec.clone()).await.unwrap();
    let sent = source.send(&address, |_| {}).await;
    check_refused(sent, RefusalCode::Unsupported, "data.img belongs to this host and is read-only");
    assert_eq!(source.state().await, VmState::Running);
    // What is no empty file is nobody's to fill.
    std::fs::write(&b.arriving()[0], [1; 512]).unwrap();
    let mut third = b.vmm(&lab, "third").await;
    check_refused(third.listen(spec).await, RefusalCode::InvalidArgument, "is not empty");
}

/// Figures, on a machine that has nothing else to do: a full disk of 1 GiB beside one that is
/// being written to.
#[tokio::test]
#[ignore = "a measurement"]
async fn a_gibibyte_goes_along() {
    if !have_kvm() {
        return;
    }
    for verify in [false, true] {
        let lab = Lab::new();
        let (a, b) = (Host::new(&lab, "a"), Host::new(&lab, "b"));
        let [log, data] = a.disks().map(|path| File::create_new(path).unwrap());
        log.set_len(1 << 30).unwrap();
        let mut block = vec![0u8; 1 << 20];
        for at in 0..1024u64 {
            block.fill(u8::try_from(at % 255).unwrap() + 1);
            data.write_all_at(&block, at << 20).unwrap();
        }
        data.sync_all().unwrap();
        let params = Params { log_per_sec: 4000, ..params() };
        let spec = v1::VmSpec { cmdline: params.to_cmdline(), ..spec(&lab) };
        let mut source = a.vmm(&lab, "source").await;
        source.boot(spec.clone()).await.unwrap();
        let before = records(&mut source, 1000).await;
        b.expect_disks();
        let mut destination = b.vmm(&lab, "destination").await;
        let address = destination.listen(spec).await.unwrap();
        let began = std::time::Instant::now();
        source.send(&address, |send| send.verify = verify).await.unwrap();
        destination.watch_state(MigrationState::Ready).await;
        source.watch_state(MigrationState::Ready).await;
        let sent = source.migration().await.progress.unwrap();
        source.read_console().await;
        std::mem::swap(&mut source.console, &mut destination.console);
        destination.resolve(MigrationVerdict::Commit, 2).await.unwrap();
        let total = began.elapsed();
        let received = destination.migration().await.progress.unwrap();
        let after = records(&mut destination, 100).await;
        let stall = destination.console.report().stall_max;
        eprintln!(
            "verify {verify}: {total:?}; {} rounds, {} MiB of disks sent for {} MiB, at {} MiB/s; \
             {} records written meanwhile; downtime {:?} and {:?}; guest stall {stall:?}",
            sent.rounds,
            sent.disk_bytes_sent >> 20,
            sent.disk_bytes_total >> 20,
            (sent.bytes_sent >> 20) as f64 / total.as_secs_f64(),
            after - before,
            sent.downtime.unwrap(),
            received.downtime.unwrap(),
        );
    }
}
