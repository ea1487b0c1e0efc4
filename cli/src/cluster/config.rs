//! The daemons' configuration files. `deploy/config` explains every key.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use ballast_model::{Refusal, RefusalCode, Resources};
use toml::{Table, Value};

/// The directory of snapshots, in the cluster's.
pub(super) const SNAPSHOTS: &str = "snapshots";

/// How VMs are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DriverKind {
    /// Real VMs on `/dev/kvm`.
    Kvm,
    /// A model of VMs.
    Sim,
}

impl DriverKind {
    /// The name in configuration files and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Sim => "sim",
        }
    }
}

/// Where the controller keeps its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreKind {
    /// A file in the cluster's directory.
    Embedded,
    /// An etcd started for the cluster.
    Etcd,
}

impl StoreKind {
    /// The name in configuration files and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Embedded => "embedded",
            Self::Etcd => "etcd",
        }
    }
}

/// The addresses of one agent.
pub(super) struct AgentPlaces<'a> {
    pub(super) host: &'a str,
    pub(super) grpc: SocketAddr,
    pub(super) http: SocketAddr,
    pub(super) controller: &'a str,
}

/// Writes the controller's file; `overrides` go over everything.
pub(super) fn controller(
    dir: &Path,
    grpc: SocketAddr,
    http: SocketAddr,
    etcd: Option<&str>,
    overrides: &Table,
) -> Result<PathBuf, Refusal> {
    let store = match etcd {
        Some(endpoint) => Table::from_iter([
            text("kind", StoreKind::Etcd.name()),
            ("endpoints".to_owned(), Value::Array(vec![endpoint.into()])),
        ]),
        None => Table::from_iter([
            text("kind", StoreKind::Embedded.name()),
            text("path", &dir.join("state/controller.redb").to_string_lossy()),
        ]),
    };
    let mut config = Table::from_iter([
        text("listen", &grpc.to_string()),
        text("http_listen", &http.to_string()),
        ("store".to_owned(), Value::Table(store)),
    ]);
    merge(&mut config, overrides);
    write(dir, "controller", &config)
}

/// Writes an agent's file.
pub(super) fn agent(
    dir: &Path,
    places: &AgentPlaces<'_>,
    driver: DriverKind,
    capacity: Resources,
) -> Result<PathBuf, Refusal> {
    let path = |part: &str| dir.join(part).to_string_lossy().into_owned();
    let capacity = Table::from_iter([
        text("cpu", &capacity.cpu.to_string()),
        text("memory", &format!("{}B", capacity.memory.get())),
    ]);
    let vmm = Table::from_iter([
        text("binary", &path("bin/ballast-vmm")),
        ("snapshot_dirs".to_owned(), Value::Array(vec![path(SNAPSHOTS).into()])),
        text("disk_root", &disk_root(dir, places.host).to_string_lossy()),
    ]);
    let config = Table::from_iter([
        text("host", places.host),
        text("listen", &places.grpc.to_string()),
        text("http_listen", &places.http.to_string()),
        text("controller", places.controller),
        text("state_dir", &path(&format!("state/{}", places.host))),
        text("driver", driver.name()),
        text("migration_address", &places.grpc.ip().to_string()),
        ("capacity".to_owned(), Value::Table(capacity)),
        ("vmm".to_owned(), Value::Table(vmm)),
    ]);
    let disks = disk_root(dir, places.host);
    std::fs::create_dir_all(&disks).map_err(|error| cannot_write(&disks, &error))?;
    write(dir, places.host, &config)
}

/// Where the local disks of a host are, in the cluster's directory: what is two hosts is two
/// directories.
pub(super) fn disk_root(dir: &Path, host: &str) -> PathBuf {
    dir.join("disks").join(host)
}

fn text(key: &str, value: &str) -> (String, Value) {
    (key.to_owned(), value.into())
}

/// Tables are merged key by key, everything else is replaced.
fn merge(base: &mut Table, over: &Table) {
    for (key, value) in over {
        match (base.get_mut(key), value) {
            (Some(Value::Table(base)), Value::Table(over)) => merge(base, over),
            _ => _ = base.insert(key.clone(), value.clone()),
        }
    }
}

fn write(dir: &Path, name: &str, config: &Table) -> Result<PathBuf, Refusal> {
    let path = dir.join("config").join(format!("{name}.toml"));
    std::fs::write(&path, config.to_string()).map_err(|error| cannot_write(&path, &error))?;
    Ok(path)
}

fn cannot_write(path: &Path, error: &std::io::Error) -> Refusal {
    Refusal::new(
        RefusalCode::HostFailure,
        format!("cannot write {}: {error}", path.display()),
        "check that TMPDIR is writable and has room",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overrides_reach_into_tables() {
        let mut base: Table = "a = 1\n[store]\nkind = 'x'\npath = 'p'".parse().unwrap();
        merge(&mut base, &"b = 2\n[store]\nkind = 'y'\n[more]\nc = 3".parse().unwrap());
        let expected: Table =
            "a = 1\nb = 2\n[store]\nkind = 'y'\npath = 'p'\n[more]\nc = 3".parse().unwrap();
        assert_eq!(base, expected);
    }
}
