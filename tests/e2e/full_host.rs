//! The directory in which an agent keeps what it must know is full.

use ballast_cli::cluster::StoreKind;
use ballast_guest::Params;
use ballast_proto::v1;
use ballast_tests::hold::{HoldFile, is_stopped};
use ballast_tests::small::Small;
use ballast_tests::{Guest, TestCluster, eventually, kvm_or_skip, signal_process};

use crate::PROGRAM;

/// Enough for a VM's record, log and console.
const BYTES: u64 = 1 << 20;
const FILLER: &str = "somebody else's";

fn params() -> Params {
    Params { heartbeat_ms: 20, ..Params::default() }
}

/// A VM does not come to such a host, is not lost on its way there, and leaves it.
#[tokio::test]
async fn a_host_that_cannot_write_anything_down_costs_no_vm() {
    if !kvm_or_skip("a full state_dir") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let hold = HoldFile::new(dir.path());
    let mut test = TestCluster::start_with(PROGRAM, StoreKind::Embedded, hold.env()).await;
    test.cluster.kill_agent(1).await.unwrap();
    let small = Small::on(&test.cluster.dir().join("state").join("host-2"), BYTES);
    test.cluster.restart_agent(1).await.unwrap();
    let mut guest = Guest::create(&test, "web-1", "host-1", &params()).await;

    // Full from the start: nothing comes here, and it is said why and what to do.
    small.fill(FILLER);
    let refused = test.ended(&test.migrate("web-1", "host-2").await).await;
    assert_eq!(refused.phase, "failed", "{refused:?}");
    assert!(refused.why.contains("No space left on device"), "{}", refused.why);
    guest.goes_on(&test).await;
    let spec = test.record("web-1").await.spec.unwrap();
    let request = v1::CreateVmRequest {
        spec: Some(v1::VmSpec { id: "web-2".to_owned(), ..spec }),
        host: "host-2".to_owned(),
        actor: TestCluster::actor("there is no room"),
    };
    let refused = test.client.create_vm(request).await.unwrap_err();
    assert!(refused.reason.contains("No space left on device"), "{refused}");
    assert!(refused.remedy.contains("make room"), "{refused}");

    // Full when the VM is its own and nothing of it has run: it goes back.
    small.clear(FILLER);
    hold.arm("web-1", "controller.commit");
    let id = test.migrate("web-1", "host-2").await;
    let controller = test.cluster.controller_pid().unwrap();
    eventually("the controller is held before it writes the commit", async || {
        is_stopped(controller).then_some(())
    })
    .await;
    hold.clear();
    small.fill(FILLER);
    signal_process(controller, rustix::process::Signal::CONT);
    let failed = test.ended(&id).await;
    assert_eq!(failed.phase, "failed", "{failed:?}");
    assert!(failed.why.contains("No space left on device"), "{}", failed.why);
    assert_eq!(test.runs_once("web-1").await, "host-1");
    guest.goes_on(&test).await;

    // Full while it runs here: it goes on, also when its agent comes again, and it can leave.
    small.clear(FILLER);
    let moved = test.ended(&test.migrate("web-1", "host-2").await).await;
    assert_eq!(moved.phase, "completed", "{moved:?}");
    small.fill(FILLER);
    guest.goes_on(&test).await;
    test.cluster.kill_agent(1).await.unwrap();
    test.cluster.restart_agent(1).await.unwrap();
    let moved = test.ended(&test.migrate("web-1", "host-1").await).await;
    assert_eq!(moved.phase, "completed", "{moved:?}");
    assert_eq!(test.runs_once("web-1").await, "host-1");
    let report = guest.goes_on(&test).await;
    assert_eq!((report.boots, report.memory_errors), (1, 0));
    drop(small);
    test.stop().await;
}
