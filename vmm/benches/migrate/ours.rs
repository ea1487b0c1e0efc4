//! One migration by `ballast-vmm`.

use std::time::{Duration, Instant};

use ballast_proto::v1::{MigrationState, MigrationVerdict};

use crate::case::{
    Case, DOWNTIME_LIMIT_MS, Figures, Filling, PATIENCE, cpu_seconds, switchover_gap,
};
use crate::link::{DESTINATION, Link};
use crate::process::{Lab, VM, Vmm, command};

const VCPU: &str = "(vcpu";

async fn start(lab: &Lab, name: &str, at: &ballast_guest::net::Namespace) -> Vmm {
    let socket = lab.path(name);
    let mut command = command(&socket);
    // RUST_LOG=ballast_vmm::migration=debug tells of every round.
    let log = std::env::var("RUST_LOG").unwrap_or_else(|_| "warn".to_owned());
    let child = at.within(|| command.env("RUST_LOG", log).spawn()).unwrap().unwrap();
    Vmm::adopt(child, &socket).await
}

/// Boots the guest, moves it, and hears it out.
pub(crate) async fn migrate(case: &Case, link: &Link, streams: u32, tls: bool) -> Figures {
    let lab = Lab::new();
    let mut source = start(&lab, "a", &link.source).await;
    let mut destination = start(&lab, "b", &link.destination).await;
    let spec = lab.spec(case.mib, &case.params());
    source.boot(spec.clone()).await.unwrap();
    let pids = [source.status().await.pid, destination.status().await.pid];
    let mut filling = Filling::default();
    while !filling.is_done(pids[0], case) {}
    source.beats(5).await;
    let cpu = || pids.iter().map(|pid| cpu_seconds(*pid, VCPU)).sum::<f64>();

    let there = destination.listen_with(spec, &format!("{DESTINATION}:0"), tls).await.unwrap();
    let (cpu_before, began) = (cpu(), Instant::now());
    let change = |send: &mut ballast_proto::v1::SendMigrationRequest| {
        send.verify = false;
        send.downtime_limit_ms = DOWNTIME_LIMIT_MS;
        send.streams = streams;
        send.post_copy = case.post_copy;
        send.public_key.clone_from(&there.public_key);
    };
    source.send(&there.address, change).await.unwrap();
    let done = [MigrationState::Ready, MigrationState::Aborted].map(|state| state as i32);
    let ready = destination.watch(|status| done.contains(&status.state));
    match tokio::time::timeout(PATIENCE, ready).await {
        Ok(status) if status.state == done[0] => {}
        _ => return Figures::default(),
    }
    destination.resolve(MigrationVerdict::Commit, 2).await.unwrap();
    source.read_console().await;
    destination.watch_state(MigrationState::Finished).await;
    let total = began.elapsed();
    let cpu_after = cpu();

    let sent = source.migration().await.progress.unwrap();
    let said = hear(&mut destination, source.console.next_offset()).await;
    let here = destination.migration().await.progress.unwrap().downtime.unwrap();
    let there = sent.downtime.unwrap();
    source.resolve(MigrationVerdict::Superseded, 2).await.unwrap();
    let downtime = [
        there.last_pass_micros,
        there.state_save_micros,
        there.send_micros,
        here.load_micros,
        here.commit_micros,
        here.resume_micros,
    ];
    Figures {
        ended: true,
        total_ms: total.as_secs_f64() * 1e3,
        downtime_ms: downtime.iter().sum::<u64>() as f64 / 1e3,
        gap_ms: said,
        sent_bytes: sent.bytes_sent as f64,
        cpu_s_per_gb: (cpu_after - cpu_before) / case.gigabytes(),
        rounds: sent.rounds.into(),
    }
}

/// What the guest said of its switchover.
async fn hear(vmm: &mut Vmm, from: u64) -> f64 {
    let mut text = String::new();
    let mut offset = from;
    loop {
        let request =
            ballast_proto::v1::ReadConsoleRequest { vm: VM.to_owned(), offset, wait_ms: 100 };
        let output = vmm.client.read_console(request).await.unwrap().into_inner();
        offset = output.offset + output.data.len() as u64;
        text.push_str(&String::from_utf8_lossy(&output.data));
        if let Some(gap) = switchover_gap(&text) {
            return gap;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
