//! A real etcd for one cluster, on a free port.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Instant;

use ballast_model::{Refusal, RefusalCode};
use tokio::net::TcpStream;

use super::process::Process;
use super::{POLL, READY_LIMIT, free_address};

/// The name in front of its log lines and of its log file.
const NAME: &str = "etcd";

/// Starts etcd and waits until it listens; answers with its endpoint, too.
///
/// # Errors
/// `Unsupported` when there is no etcd on this machine, `HostFailure` with its last words when it ends.
pub(super) async fn start(dir: &Path) -> Result<(Process, String), Refusal> {
    let program = find()?;
    let client = free_address(Ipv4Addr::LOCALHOST)?;
    let peer = free_address(Ipv4Addr::LOCALHOST)?;
    let (client_url, peer_url) = (format!("http://{client}"), format!("http://{peer}"));
    let data = dir.join("state/etcd");
    let args = [
        ("--name", NAME.into()),
        ("--data-dir", data.into_os_string()),
        ("--listen-client-urls", client_url.clone().into()),
        ("--advertise-client-urls", client_url.clone().into()),
        ("--listen-peer-urls", peer_url.clone().into()),
        ("--initial-advertise-peer-urls", peer_url.clone().into()),
        ("--initial-cluster", format!("{NAME}={peer_url}").into()),
        ("--log-level", "warn".into()),
    ];
    let args = args.into_iter().flat_map(|(name, value)| [name.into(), value]).collect();
    let mut etcd = Process::other(dir, program, args, NAME, "");
    etcd.spawn()?;
    let deadline = Instant::now() + READY_LIMIT;
    while TcpStream::connect(client).await.is_err() {
        etcd.check_alive()?;
        if Instant::now() > deadline {
            return Err(Refusal::new(
                RefusalCode::Timeout,
                format!("etcd does not listen on {client}"),
                "look at the machine's load and disk",
            ));
        }
        tokio::time::sleep(POLL).await;
    }
    Ok((etcd, client_url))
}

fn find() -> Result<PathBuf, Refusal> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join(NAME)).find(|file| file.is_file());
    found.ok_or_else(|| {
        Refusal::new(
            RefusalCode::Unsupported,
            "there is no program etcd in PATH",
            "install it ('apt-get install etcd-server'), or use the embedded store",
        )
    })
}
