//! A VM: what its owner asked for, and who may run it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::hardware::{self, CpuBaseline, DiskSpec, MemoryBacking, NetworkSpec, PageSize};
use crate::offer::{self, NEEDS_MAX};
use crate::snapshot::is_false;
use crate::{Bytes, Epoch, HostId, Millicores, Refusal, RefusalCode, Resources, VmId};

/// The most vCPUs a VM may have.
pub const VCPUS_MAX: u32 = 64;
/// The least memory a VM may have.
pub const MEMORY_MIN: Bytes = Bytes::mib(1);
/// The most memory a VM may have.
pub const MEMORY_MAX: Bytes = Bytes::gib(4096);
/// The longest kernel command line, in bytes (Linux's COMMAND_LINE_SIZE on x86).
pub const CMDLINE_BYTES_MAX: usize = 2048;

/// What a VM's owner asked for. Where it runs is status and stands in [`Owner`], never here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmSpec {
    /// The VM's name.
    pub id: VmId,
    /// Virtual CPUs, 1 to [`VCPUS_MAX`].
    pub vcpus: u32,
    /// Guest memory, a multiple of 4 KiB between [`MEMORY_MIN`] and [`MEMORY_MAX`].
    #[serde(rename = "memory_bytes")]
    pub memory: Bytes,
    /// The kernel image, an absolute path that every host resolves to the same file. The `sim` driver ignores it.
    pub kernel: PathBuf,
    /// The kernel command line.
    #[serde(default)]
    pub cmdline: String,
    /// The initial RAM disk, an absolute path as for the kernel.
    #[serde(default)]
    pub initrd: Option<PathBuf>,
    /// The CPU features it sees.
    #[serde(default)]
    pub cpu: CpuBaseline,
    /// The pages behind its memory.
    #[serde(default)]
    pub memory_backing: MemoryBacking,
    /// Its disks, in the order the guest finds them.
    #[serde(default)]
    pub disks: Vec<DiskSpec>,
    /// Its network devices, in the order the guest finds them.
    #[serde(default)]
    pub networks: Vec<NetworkSpec>,
    /// Free-form labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What the balancer may do with it.
    #[serde(default)]
    pub automation: Automation,
    /// How it wants to be migrated.
    #[serde(default)]
    pub migration: MigrationPolicy,
    /// What it must find on a host: every word of these among what the host offers, e.g. `storage:san-1`.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub needs: BTreeSet<String>,
    /// It must fit one NUMA node of a host whose nodes are known.
    #[serde(default, skip_serializing_if = "is_false")]
    pub one_numa_node: bool,
}

/// What the balancer may do with a VM on its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Automation {
    /// Move it for balance and for maintenance.
    #[default]
    Full,
    /// Move it for maintenance only; recommend moves for balance.
    Partial,
    /// Move it only when an operator says so.
    Manual,
}

/// How a VM wants to be migrated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MigrationPolicy {
    /// The longest switchover to plan for, in milliseconds.
    pub downtime_limit_ms: u32,
    /// Hash every page on both sides before the destination may run it; with post-copy those that
    /// come later as they come.
    pub verify: bool,
    /// When it writes faster than the link carries, let it run on the destination before all of
    /// its memory is there, rather than give up. If either host or its VM process dies in between,
    /// the VM is lost.
    pub post_copy: bool,
}

impl Default for MigrationPolicy {
    fn default() -> Self {
        Self { downtime_limit_ms: 300, verify: false, post_copy: false }
    }
}

impl MigrationPolicy {
    /// [`downtime_limit_ms`](Self::downtime_limit_ms) as a duration.
    pub const fn downtime_limit(&self) -> Duration {
        Duration::from_millis(self.downtime_limit_ms as u64)
    }
}

impl VmSpec {
    /// A VM with everything else as it is when its owner says nothing.
    pub fn new(id: VmId, vcpus: u32, memory: Bytes, kernel: impl Into<PathBuf>) -> Self {
        Self {
            id,
            vcpus,
            memory,
            kernel: kernel.into(),
            cmdline: String::new(),
            initrd: None,
            cpu: CpuBaseline::default(),
            memory_backing: MemoryBacking::default(),
            disks: Vec::new(),
            networks: Vec::new(),
            labels: BTreeMap::new(),
            automation: Automation::default(),
            migration: MigrationPolicy::default(),
            needs: BTreeSet::new(),
            one_numa_node: false,
        }
    }

    /// CPU it can use at most and the memory it has.
    pub fn size(&self) -> Resources {
        Resources::new(Millicores::cores(u64::from(self.vcpus)), self.memory)
    }

    /// Checks every field against its range.
    pub fn validate(&self) -> Result<(), Refusal> {
        let invalid = |reason: String, remedy: &str| {
            Err(Refusal::new(RefusalCode::InvalidArgument, reason, remedy))
        };
        let id = &self.id;
        if !(1..=VCPUS_MAX).contains(&self.vcpus) {
            return invalid(format!("VM {id} asks for {} vCPUs", self.vcpus), "use 1 to 64 vCPUs");
        }
        if self.memory < MEMORY_MIN
            || self.memory > MEMORY_MAX
            || !self.memory.get().is_multiple_of(4096)
        {
            return invalid(
                format!("VM {id} asks for {} bytes of memory", self.memory.get()),
                "use a multiple of 4 KiB between 1 MiB and 4 TiB",
            );
        }
        if !self.kernel.is_absolute() {
            return invalid(
                format!("kernel path {} of VM {id} is not absolute", self.kernel.display()),
                "give the path as every host resolves it, starting with '/'",
            );
        }
        if let Some(initrd) = self.initrd.as_ref().filter(|initrd| !initrd.is_absolute()) {
            return invalid(
                format!("initrd path {} of VM {id} is not absolute", initrd.display()),
                "give the path as every host resolves it, starting with '/'",
            );
        }
        hardware::validate_disks(id, &self.disks)?;
        hardware::validate_networks(id, &self.networks)?;
        offer::validate(&format!("VM {id} needs"), &self.needs, NEEDS_MAX)?;
        if self.cmdline.len() > CMDLINE_BYTES_MAX || self.cmdline.contains('\0') {
            return invalid(
                format!("the kernel command line of VM {id} is too long or holds a NUL byte"),
                "use at most 2048 bytes of text",
            );
        }
        if !(1..=600_000).contains(&self.migration.downtime_limit_ms) {
            return invalid(
                format!(
                    "VM {id} asks for a downtime limit of {} ms",
                    self.migration.downtime_limit_ms
                ),
                "use 1 to 600000 ms",
            );
        }
        if self.migration.post_copy && self.memory_backing.pages == PageSize::Huge {
            return invalid(
                format!("VM {id} allows post-copy and has reserved pages of 2 MiB"),
                "give it other pages, or do not allow post-copy",
            );
        }
        Ok(())
    }
}

/// Who may run a VM. Lives in the store under `vms/<id>/owner` and changes only by compare-and-swap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Owner {
    /// The VM.
    pub vm: VmId,
    /// The one host that may run it.
    pub host: HostId,
    /// Grows by one with every change of `host`.
    pub epoch: Epoch,
}

impl Owner {
    /// The record after `host` takes over.
    #[must_use]
    pub fn handed_to(&self, host: HostId) -> Self {
        Self { vm: self.vm.clone(), host, epoch: self.epoch.next() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> VmSpec {
        VmSpec::new("web-1".parse().unwrap(), 1, Bytes::mib(64), "/boot/guest")
    }

    #[test]
    fn a_plain_spec_is_valid() {
        spec().validate().unwrap();
    }

    #[test]
    fn out_of_range_fields_are_refused_with_a_remedy() {
        let cases: [fn(&mut VmSpec); 8] = [
            |s| s.vcpus = 0,
            |s| s.memory = Bytes(4097),
            |s| s.kernel = "guest".into(),
            |s| s.initrd = Some("initrd".into()),
            |s| s.cmdline = "x".repeat(CMDLINE_BYTES_MAX + 1),
            |s| s.migration.downtime_limit_ms = 0,
            |s| (s.migration.post_copy, s.memory_backing.pages) = (true, PageSize::Huge),
            |s| s.needs = ["two words".to_owned()].into(),
        ];
        for spoil in cases {
            let mut spec = spec();
            spoil(&mut spec);
            let refusal = spec.validate().unwrap_err();
            assert_eq!(refusal.code, RefusalCode::InvalidArgument);
            assert!(
                refusal.remedy.starts_with("use") || refusal.remedy.starts_with("give"),
                "{refusal}"
            );
        }
    }

    #[test]
    fn a_spec_of_an_older_version_is_read_and_a_plain_one_is_written_for_it() {
        let json = serde_json::to_value(spec()).unwrap();
        assert!(json.get("needs").is_none() && json.get("one_numa_node").is_none(), "{json}");
        assert_eq!(serde_json::from_value::<VmSpec>(json).unwrap(), spec());
    }

    #[test]
    fn a_change_of_owner_raises_the_epoch() {
        let owner = Owner { vm: spec().id, host: "a".parse().unwrap(), epoch: Epoch(7) };
        let next = owner.handed_to("b".parse().unwrap());
        assert_eq!((next.host.as_str(), next.epoch), ("b", Epoch(8)));
    }
}
