//! The whole cluster as one value, in memory and in a file.
//!
//! The file is JSON: the serde form of [`ClusterSnapshot`], `format` first.
//! Reading checks the format, every name and quantity, and that whatever is
//! referred to exists.

mod validate;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::pool::Claims;
use crate::refusal::{Refusal, RefusalCode};
use crate::vm::Automation;
use crate::{
    Bytes, BytesPerSec, DrainGoal, Host, HostId, MigrationId, Pool, PoolId, Ratio, Resources,
    Revision, Rule, RuleId, Timestamp, VmId,
};

/// The snapshot format this build reads and writes.
pub const SNAPSHOT_FORMAT: u32 = 1;
/// The largest snapshot file that is read, in bytes.
pub const SNAPSHOT_BYTES_MAX: u64 = 256 << 20;

/// The cluster at one revision. The planner's only input.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterSnapshot {
    /// Always [`SNAPSHOT_FORMAT`].
    pub format: u32,
    /// The store revision the inventory was read at.
    pub revision: Revision,
    /// When it was taken.
    pub taken_at: Timestamp,
    /// Hosts by name.
    #[serde(with = "hosts_as_list")]
    pub hosts: BTreeMap<HostId, Host>,
    /// VMs by name.
    #[serde(with = "vms_as_list")]
    pub vms: BTreeMap<VmId, PlacedVm>,
    /// Rules by name.
    #[serde(with = "rules_as_list", default)]
    pub rules: BTreeMap<RuleId, Rule>,
    /// Migrations under way: their memory counts on both hosts.
    #[serde(default)]
    pub migrations: Vec<MoveInFlight>,
    /// Resource pools by name.
    #[serde(with = "pools_as_list", default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pools: BTreeMap<PoolId, Pool>,
    /// What the cluster as a whole must keep.
    #[serde(default, skip_serializing_if = "Policy::is_default")]
    pub policy: Policy,
}

/// What the cluster as a whole must keep.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// After the loss of any so many hosts the rest has room for every VM (N+k). 0: not asked for.
    pub failures_tolerated: u32,
    /// The memory of VMs a host admits, as a share of what it has.
    pub memory_overcommit: Ratio,
    /// The CPU size (not demand) of VMs a host admits, as a share of what it has. `None`: any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_overcommit: Option<Ratio>,
    /// What is levelled.
    pub balance: BalanceWeights,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            failures_tolerated: 0,
            memory_overcommit: Ratio::new(1.0),
            cpu_overcommit: None,
            balance: BalanceWeights::default(),
        }
    }
}

/// How much each resource counts when load is levelled, 0 to 1000 each; only their ratio matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BalanceWeights {
    /// CPU that VMs demand.
    pub cpu: u16,
    /// Memory that VMs have.
    pub memory: u16,
}

impl Default for BalanceWeights {
    /// CPU counts twice: it is what guests feel first. Memory is levelled so that every host keeps room for VMs to come.
    fn default() -> Self {
        Self { cpu: 2, memory: 1 }
    }
}

impl Policy {
    /// Whether it asks for nothing beyond what every host keeps.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A VM, where it is, and what it needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlacedVm {
    /// The VM's name.
    pub id: VmId,
    /// The host that owns it.
    pub host: HostId,
    /// The CPU it can use at most and the memory it has; the memory is what a host must have room for.
    pub size: Resources,
    /// What it would use if nothing held it back.
    pub demand: Resources,
    /// How fast it dirties memory.
    #[serde(rename = "dirty_bytes_per_sec", default)]
    pub dirty_rate: BytesPerSec,
    /// What its local disks take: it goes along, and the target must have room for it.
    #[serde(rename = "local_disk_bytes", default, skip_serializing_if = "no_bytes")]
    pub local_disks: Bytes,
    /// What the balancer may do with it.
    #[serde(default)]
    pub automation: Automation,
    /// Whether it can move at all.
    #[serde(default)]
    pub mobility: Mobility,
    /// What it must find on a host: every word of these among the host's
    /// [`offers`](crate::Host::offers), e.g. `storage:san-1`, `network:dmz`, `cpu:x86-64-v3`.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub needs: BTreeSet<String>,
    /// What it must find besides on a host that it moves to while it runs, e.g. the CPU that its guest knows. Where it
    /// starts anew, after the loss of its host or by hand, it does without.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub needs_to_move: BTreeSet<String>,
    /// It must fit one NUMA node of a host whose nodes are known.
    #[serde(default, skip_serializing_if = "is_false")]
    pub one_numa_node: bool,
    /// The pool it is in; none: the cluster itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolId>,
    /// What it may claim in its pool.
    #[serde(default, skip_serializing_if = "Claims::is_default")]
    pub claims: Claims,
    /// How often it moved lately, as in the last hour. Each makes the next move for balance dearer.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub moves_recent: u32,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // the signature serde asks for
pub(crate) const fn is_false(flag: &bool) -> bool {
    !*flag
}

fn no_bytes(bytes: &Bytes) -> bool {
    *bytes == Bytes::ZERO
}

#[allow(clippy::trivially_copy_pass_by_ref)] // the signature serde asks for
const fn is_zero(count: &u32) -> bool {
    *count == 0
}

impl PlacedVm {
    /// A VM that uses all it may, and about which nothing else is said.
    pub fn new(id: VmId, host: HostId, size: Resources) -> Self {
        Self {
            id,
            host,
            size,
            demand: size,
            dirty_rate: BytesPerSec::ZERO,
            local_disks: Bytes::ZERO,
            automation: Automation::default(),
            mobility: Mobility::default(),
            needs: BTreeSet::new(),
            needs_to_move: BTreeSet::new(),
            one_numa_node: false,
            pool: None,
            claims: Claims::default(),
            moves_recent: 0,
        }
    }
}

/// Whether a VM can move at all: one value for every workflow.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "status", deny_unknown_fields)]
pub enum Mobility {
    /// It can.
    #[default]
    Movable,
    /// It cannot for now.
    Fixed {
        /// Why, e.g. a cooldown after a move or missing samples.
        reason: String,
        /// What would change that.
        remedy: String,
    },
}

/// A migration that has begun and not ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoveInFlight {
    /// The migration.
    pub id: MigrationId,
    /// The VM that moves.
    pub vm: VmId,
    /// From this host,
    pub from: HostId,
    /// to this one.
    pub to: HostId,
}

impl ClusterSnapshot {
    /// A cluster without anything in it.
    pub fn empty(revision: Revision, taken_at: Timestamp) -> Self {
        Self {
            format: SNAPSHOT_FORMAT,
            revision,
            taken_at,
            hosts: BTreeMap::new(),
            vms: BTreeMap::new(),
            rules: BTreeMap::new(),
            migrations: Vec::new(),
            pools: BTreeMap::new(),
            policy: Policy::default(),
        }
    }

    /// Puts a VM on another host, as after a move that ended well. Its local disks take room there; what they took where
    /// it was is free only once that host says so. Nothing happens to a VM that is not in the snapshot.
    pub fn relocate(&mut self, vm: &VmId, to: &HostId) {
        let Some(vm) = self.vms.get_mut(vm) else { return };
        if let Some(host) = self.hosts.get_mut(to).filter(|_| vm.host != *to)
            && let Some(room) = &mut host.local_disk_room
        {
            *room = room.saturating_sub(vm.local_disks);
        }
        vm.host = to.clone();
    }

    /// Lets every host be emptied with this goal, whatever its own is.
    pub fn set_drain_goal(&mut self, goal: DrainGoal) {
        self.hosts.values_mut().for_each(|host| host.drain_goal = Some(goal));
    }

    /// Reads and validates a snapshot file.
    ///
    /// # Errors
    /// `NotFound`, `HostFailure` or `InvalidArgument`, each naming the file and, for malformed content, the place.
    pub fn read_file(path: &Path) -> Result<Self, Refusal> {
        let shown = path.display();
        let unreadable = |error: &std::io::Error| {
            let code = match error.kind() {
                std::io::ErrorKind::NotFound => RefusalCode::NotFound,
                _ => RefusalCode::HostFailure,
            };
            Refusal::new(
                code,
                format!("cannot read snapshot {shown}: {error}"),
                "check the path, or write one with 'ballast plan show --save'",
            )
        };
        let file = File::open(path).map_err(|e| unreadable(&e))?;
        let size = file.metadata().map_err(|e| unreadable(&e))?.len();
        if size > SNAPSHOT_BYTES_MAX {
            return Err(Refusal::new(
                RefusalCode::InvalidArgument,
                format!(
                    "snapshot {shown} is {size} bytes long, over the limit of {SNAPSHOT_BYTES_MAX}"
                ),
                "check that this is a snapshot file",
            ));
        }
        let mut text = String::new();
        BufReader::new(file).read_to_string(&mut text).map_err(|e| unreadable(&e))?;
        Self::from_json(&text).map_err(|mut refusal| {
            refusal.reason = format!("snapshot {shown}: {}", refusal.reason);
            refusal
        })
    }

    /// Writes the snapshot to `path` through a temporary file, so that a crash leaves the old file or the new one.
    ///
    /// # Errors
    /// `HostFailure` naming the file.
    pub fn write_file(&self, path: &Path) -> Result<(), Refusal> {
        let write = || -> std::io::Result<()> {
            let mut partial = path.as_os_str().to_owned();
            partial.push(".partial");
            let mut file = File::create(&partial)?;
            serde_json::to_writer_pretty(&mut file, self)?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            std::fs::rename(&partial, path)
        };
        write().map_err(|error| {
            Refusal::new(
                RefusalCode::HostFailure,
                format!("cannot write snapshot {}: {error}", path.display()),
                "check that the directory exists, is writable and has room",
            )
        })
    }

    /// Parses and validates a snapshot.
    ///
    /// # Errors
    /// `InvalidArgument` naming line and column, or what does not fit together.
    pub fn from_json(text: &str) -> Result<Self, Refusal> {
        let snapshot: Self = serde_json::from_str(text).map_err(|error| {
            Refusal::new(
                RefusalCode::InvalidArgument,
                format!("not a valid snapshot: {error}"),
                "correct that place; docs/snapshot.md describes the format",
            )
        })?;
        snapshot.validate()?;
        Ok(snapshot)
    }
}

/// Serialises a map whose values carry their key as a list; refuses a key that stands twice.
macro_rules! as_list {
    ($module:ident, $key:ty, $value:ty, $what:literal) => {
        mod $module {
            use super::*;
            use serde::{Deserializer, Serializer, de};

            pub(super) fn serialize<S: Serializer>(
                map: &BTreeMap<$key, $value>,
                s: S,
            ) -> Result<S::Ok, S::Error> {
                s.collect_seq(map.values())
            }

            pub(super) fn deserialize<'de, D: Deserializer<'de>>(
                d: D,
            ) -> Result<BTreeMap<$key, $value>, D::Error> {
                let mut map = BTreeMap::new();
                for value in Vec::<$value>::deserialize(d)? {
                    if let Some(twice) = map.insert(value.id.clone(), value) {
                        return Err(de::Error::custom(format!(
                            concat!($what, " {} stands there twice"),
                            twice.id
                        )));
                    }
                }
                Ok(map)
            }
        }
    };
}
as_list!(hosts_as_list, HostId, Host, "host");
as_list!(vms_as_list, VmId, PlacedVm, "VM");
as_list!(rules_as_list, RuleId, Rule, "rule");
as_list!(pools_as_list, PoolId, Pool, "pool");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Bytes, Millicores};

    fn small() -> ClusterSnapshot {
        let mut snapshot = ClusterSnapshot::empty(Revision(7), Timestamp(1_000));
        for name in ["a", "b"] {
            let id: HostId = name.parse().unwrap();
            let capacity = Resources::new(Millicores::cores(4), Bytes::gib(16));
            snapshot.hosts.insert(id.clone(), Host::new(id, capacity));
        }
        let id: VmId = "vm-1".parse().unwrap();
        let size = Resources::new(Millicores::cores(1), Bytes::gib(1));
        snapshot.vms.insert(id.clone(), PlacedVm::new(id, "a".parse().unwrap(), size));
        snapshot
    }

    #[test]
    fn a_file_gives_back_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("snapshot.json");
        small().write_file(&path).unwrap();
        assert_eq!(ClusterSnapshot::read_file(&path).unwrap(), small());
    }

    #[test]
    fn the_documented_example_is_valid() {
        let page = include_str!("../../docs/snapshot.md");
        let example = page.split("```json").nth(1).unwrap().split("```").next().unwrap();
        let snapshot = ClusterSnapshot::from_json(example).unwrap();
        assert_eq!((snapshot.hosts.len(), snapshot.vms.len(), snapshot.rules.len()), (2, 2, 2));
        let again = ClusterSnapshot::from_json(&serde_json::to_string(&snapshot).unwrap()).unwrap();
        assert_eq!(again, snapshot);
    }

    #[test]
    fn a_missing_file_names_itself_and_the_remedy() {
        let refusal = ClusterSnapshot::read_file(Path::new("/nonexistent/s.json")).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::NotFound);
        assert!(refusal.to_string().contains("/nonexistent/s.json"), "{refusal}");
    }

    fn check_refused(spoil: impl Fn(&mut serde_json::Value), expected: &str) {
        let mut json = serde_json::to_value(small()).unwrap();
        spoil(&mut json);
        let refusal = ClusterSnapshot::from_json(&json.to_string()).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::InvalidArgument);
        assert!(refusal.reason.contains(expected), "{refusal}");
    }

    #[test]
    fn malformed_content_is_named() {
        check_refused(|j| j["format"] = 99.into(), "format 99");
        check_refused(|j| j["vms"][0]["host"] = "z".into(), "host z, which does not exist");
        check_refused(|j| j["surprise"] = 1.into(), "unknown field `surprise`");
        let rule = |kind| serde_json::json!([{ "id": "r", "kind": kind }]);
        let near = serde_json::json!({ "type": "near", "vms": ["vm-1"], "needs": ["z"] });
        check_refused(|j| j["rules"] = rule(near.clone()), "rule r names VM z, which does not");
        let none = serde_json::json!({ "type": "affinity", "vms": [] });
        check_refused(|j| j["rules"] = rule(none.clone()), "rule r: it names no VM");
        let ring = serde_json::json!([{"id": "p", "parent": "q"}, {"id": "q", "parent": "p"}]);
        check_refused(|j| j["pools"] = ring.clone(), "pool p is nested in itself or deeper than");
        check_refused(|j| j["vms"][0]["pool"] = "z".into(), "pool z, which does not exist");
        let fixed = serde_json::json!({ "status": "fixed", "reason": "it rests", "remedy": "" });
        check_refused(
            |j| j["vms"][0]["mobility"] = fixed.clone(),
            "VM vm-1 is fixed without a reason and a remedy",
        );
        check_refused(
            |j| j["policy"] = serde_json::json!({"memory_overcommit": 0.0}),
            "overcommit",
        );
        check_refused(|j| j["hosts"][1]["id"] = "a".into(), "host a stands there twice");
        check_refused(
            |j| j["vms"][0]["size"]["memory_bytes"] = (-1).into(),
            "must not be negative",
        );
    }
}
