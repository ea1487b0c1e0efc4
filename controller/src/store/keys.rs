//! Every key Ballast writes, one function per kind.
//!
//! ```text
//! /ballast/v1/
//!   hosts/<host>          registration and operator's state of a host
//!   vms/<vm>/spec         what its owner asked for
//!   vms/<vm>/owner        who may run it: {vm, host, epoch}
//!   rules/<rule>          placement rules
//!   plans/<plan>          plans shown to operators
//!   migrations/<id>       one record per migration
//!   audit/<sequence>      audit entries, 20 digits, so that keys sort as numbers do
//!   audit/head            sequence and hash of the newest entry
//!   audit-open/<sequence> marks of the entries that are not closed yet
//!   leader                the acting controller, on a lease
//!   settings              cluster-wide settings
//! ```
//!
//! Names never hold a `/` (see `ballast_model::id`), so no key is a prefix of another's.

use ballast_model::{HostId, MigrationId, PlanId, RuleId, VmId};

/// What every key of ours starts with. The version changes with the layout.
pub const ROOT: &str = "/ballast/v1/";
/// What every host key starts with.
pub const HOSTS: &str = "/ballast/v1/hosts/";
/// What every VM key, spec and owner, starts with.
pub const VMS: &str = "/ballast/v1/vms/";
/// What every rule key starts with.
pub const RULES: &str = "/ballast/v1/rules/";
/// What every plan key starts with.
pub const PLANS: &str = "/ballast/v1/plans/";
/// What every migration key starts with.
pub const MIGRATIONS: &str = "/ballast/v1/migrations/";
/// What every audit key, the head's too, starts with.
pub const AUDIT: &str = "/ballast/v1/audit/";
/// The newest audit entry's sequence and hash. Sorts after every entry.
pub const AUDIT_HEAD: &str = "/ballast/v1/audit/head";
/// What the mark of every open audit record starts with.
pub const AUDIT_OPEN: &str = "/ballast/v1/audit-open/";
/// The acting controller.
pub const LEADER: &str = "/ballast/v1/leader";
/// Cluster-wide settings.
pub const SETTINGS: &str = "/ballast/v1/settings";

/// A host's registration.
pub fn host(id: &HostId) -> String {
    format!("{HOSTS}{id}")
}

/// A VM's spec.
pub fn vm_spec(id: &VmId) -> String {
    format!("{VMS}{id}/spec")
}

/// A VM's owner record.
pub fn vm_owner(id: &VmId) -> String {
    format!("{VMS}{id}/owner")
}

/// A placement rule.
pub fn rule(id: &RuleId) -> String {
    format!("{RULES}{id}")
}

/// A plan.
pub fn plan(id: PlanId) -> String {
    format!("{PLANS}{id}")
}

/// A migration's record.
pub fn migration(id: MigrationId) -> String {
    format!("{MIGRATIONS}{id}")
}

/// An audit entry.
pub fn audit_entry(sequence: u64) -> String {
    format!("{AUDIT}{sequence:020}")
}

/// The mark of an open audit record.
pub fn audit_open(sequence: u64) -> String {
    format!("{AUDIT_OPEN}{sequence:020}")
}

/// What a key under [`VMS`] holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VmKey {
    /// The spec.
    Spec,
    /// The owner record.
    Owner,
}

/// Which VM's what a key under [`VMS`] is; `None` for keys of another shape.
pub fn parse_vm(key: &str) -> Option<(VmId, VmKey)> {
    let (id, kind) = key.strip_prefix(VMS)?.split_once('/')?;
    let kind = match kind {
        "spec" => VmKey::Spec,
        "owner" => VmKey::Owner,
        _ => return None,
    };
    Some((id.parse().ok()?, kind))
}

/// The sequence number of an audit entry's key; `None` for keys of another shape.
pub fn parse_audit_entry(key: &str) -> Option<u64> {
    let digits = key.strip_prefix(AUDIT)?;
    (digits.len() == 20 && digits.bytes().all(|c| c.is_ascii_digit()))
        .then(|| digits.parse().ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_can_be_read_back() {
        let vm: VmId = "web-1".parse().unwrap();
        assert_eq!(parse_vm(&vm_spec(&vm)), Some((vm.clone(), VmKey::Spec)));
        assert_eq!(parse_vm(&vm_owner(&vm)), Some((vm, VmKey::Owner)));
        assert_eq!(parse_audit_entry(&audit_entry(42)), Some(42));
        assert_eq!(parse_audit_entry(AUDIT_HEAD), None);
        assert_eq!(parse_vm("/ballast/v1/vms/web-1/other"), None);
        assert_eq!(parse_vm("/ballast/v1/hosts/a"), None);
    }

    #[test]
    fn audit_keys_sort_as_numbers_and_before_the_head() {
        assert!(audit_entry(9) < audit_entry(10));
        assert!(audit_entry(u64::MAX).as_str() < AUDIT_HEAD);
        assert!(
            [HOSTS, VMS, RULES, PLANS, MIGRATIONS, AUDIT, LEADER, SETTINGS]
                .iter()
                .all(|key| key.starts_with(ROOT))
        );
    }
}
