//! One measurement in `ballast-vmm`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ballast_proto::v1;
use ballast_proto::v1::network::Attach;

use crate::case::{Case, GUEST_MIB, PATIENCE};
use crate::host::{Host, MAC, TAP};
use crate::process::{Lab, Vmm, command};

/// In the unit of the case.
pub(crate) async fn measure(case: &'static Case, host: &Host) -> f64 {
    host.settle();
    let lab = Lab::new();
    let socket = lab.path("vmm.sock");
    let mut command = command(&socket);
    command.arg("--allow-write").arg(host.disk());
    let child = host.network.within(|| command.env("RUST_LOG", "warn").spawn()).unwrap().unwrap();
    let mut vmm = Vmm::adopt(child, &socket).await;
    let path = host.disk().to_str().unwrap().to_owned();
    let disks = vec![v1::Disk { path, readonly: false, local: false, limit: None }];
    let attach = Some(Attach::Tap(TAP.to_owned()));
    let networks = vec![v1::Network { attach, mac: MAC.to_owned(), limit: None }];
    vmm.boot(v1::VmSpec { disks, networks, ..lab.spec(GUEST_MIB, &case.params()) }).await.unwrap();
    vmm.until(|report| report.measuring || case.rate(report).is_some()).await;

    let stop = AtomicBool::new(false);
    // The thread at the other end ends with the VMM at the latest; this one only waits meanwhile.
    let runtime = tokio::runtime::Handle::current();
    std::thread::scope(|scope| {
        host.load(scope, case, &stop);
        let result = tokio::task::block_in_place(|| runtime.block_on(rate(&mut vmm, case)));
        stop.store(true, Ordering::Relaxed);
        drop(vmm);
        result
    })
}

async fn rate(vmm: &mut Vmm, case: &Case) -> f64 {
    let end = Instant::now() + PATIENCE;
    loop {
        // Rarely: to ask costs the VMM time.
        tokio::time::sleep(Duration::from_millis(100)).await;
        vmm.read_console().await;
        if let Some(rate) = case.rate(vmm.console.report()) {
            return rate;
        }
        assert!(Instant::now() < end, "{}: {:?}", case.name, vmm.console.report());
    }
}
