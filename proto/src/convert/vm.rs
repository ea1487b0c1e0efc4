//! VM specifications and what they are made of.

use std::collections::BTreeMap;

use ballast_model::vm::{Automation, MigrationPolicy};
use ballast_model::{Bytes, Millicores, Refusal, Resources, VmSpec};

use super::field::{invalid, optional_path, path, required, required_enum, text, vm_id};
use super::hardware::{cpu_baseline, disk, memory_backing, network};
use crate::v1;

/// The most labels a VM or host may have.
pub const LABELS_MAX: usize = 64;
/// The longest label name or value, in bytes.
pub const LABEL_BYTES_MAX: usize = 255;

/// Labels, checked for their number and length.
///
/// # Errors
/// `InvalidArgument` naming the field.
pub fn labels(
    map: std::collections::HashMap<String, String>,
    field: &str,
) -> Result<BTreeMap<String, String>, Refusal> {
    if map.len() > LABELS_MAX {
        return Err(invalid(
            field,
            format!("holds {} labels", map.len()),
            format!("use at most {LABELS_MAX}"),
        ));
    }
    let fits = |text: &str| text.len() <= LABEL_BYTES_MAX && !text.contains('\0');
    if !map.iter().all(|(name, value)| !name.is_empty() && fits(name) && fits(value)) {
        return Err(invalid(
            field,
            "holds a label that is empty, too long or has a NUL byte",
            format!("use names and values of at most {LABEL_BYTES_MAX} bytes of text"),
        ));
    }
    Ok(map.into_iter().collect())
}

impl From<Resources> for v1::Resources {
    fn from(resources: Resources) -> Self {
        Self { cpu_millicores: resources.cpu.get(), memory_bytes: resources.memory.get() }
    }
}

impl From<v1::Resources> for Resources {
    /// Every value is a valid amount.
    fn from(message: v1::Resources) -> Self {
        Self::new(Millicores(message.cpu_millicores), Bytes(message.memory_bytes))
    }
}

impl From<MigrationPolicy> for v1::MigrationPolicy {
    fn from(policy: MigrationPolicy) -> Self {
        let MigrationPolicy { downtime_limit_ms, verify, post_copy } = policy;
        Self { downtime_limit_ms, verify, post_copy }
    }
}

impl From<v1::MigrationPolicy> for MigrationPolicy {
    /// The range of the downtime limit is checked with the VM it belongs to, by [`VmSpec::validate`].
    fn from(message: v1::MigrationPolicy) -> Self {
        let v1::MigrationPolicy { downtime_limit_ms, verify, post_copy } = message;
        Self { downtime_limit_ms, verify, post_copy }
    }
}

impl From<Automation> for v1::Automation {
    fn from(level: Automation) -> Self {
        match level {
            Automation::Full => Self::Full,
            Automation::Partial => Self::Partial,
            Automation::Manual => Self::Manual,
        }
    }
}

/// What the balancer may do.
///
/// # Errors
/// `InvalidArgument` naming the field, when it is not said or not known.
pub fn automation(value: i32, field: &str) -> Result<Automation, Refusal> {
    Ok(match required_enum(value, field)? {
        v1::Automation::Full => Automation::Full,
        v1::Automation::Partial => Automation::Partial,
        v1::Automation::Manual | v1::Automation::Unspecified => Automation::Manual,
    })
}

impl From<&VmSpec> for v1::VmSpec {
    /// A path that is not UTF-8 loses what is not; [`VmSpec`]s that came through a file or the wire never have one.
    fn from(spec: &VmSpec) -> Self {
        Self {
            id: spec.id.to_string(),
            vcpus: spec.vcpus,
            memory_bytes: spec.memory.get(),
            kernel: text(&spec.kernel),
            cmdline: spec.cmdline.clone(),
            labels: spec.labels.clone().into_iter().collect(),
            automation: v1::Automation::from(spec.automation).into(),
            migration: Some(spec.migration.into()),
            initrd: spec.initrd.as_deref().map(text).unwrap_or_default(),
            cpu: v1::CpuBaseline::from(spec.cpu).into(),
            memory_backing: Some(spec.memory_backing.into()),
            disks: spec.disks.iter().map(Into::into).collect(),
            networks: spec.networks.iter().map(Into::into).collect(),
            needs: spec.needs.iter().cloned().collect(),
            one_numa_node: spec.one_numa_node,
        }
    }
}

impl TryFrom<v1::VmSpec> for VmSpec {
    type Error = Refusal;

    /// Checks names, enums and, by [`VmSpec::validate`], every range.
    fn try_from(message: v1::VmSpec) -> Result<Self, Refusal> {
        let spec = Self {
            id: vm_id(&message.id, "spec.id")?,
            vcpus: message.vcpus,
            memory: Bytes(message.memory_bytes),
            kernel: path(message.kernel, "spec.kernel")?,
            cmdline: message.cmdline,
            labels: labels(message.labels, "spec.labels")?,
            automation: automation(message.automation, "spec.automation")?,
            migration: required(message.migration, "spec.migration")?.into(),
            initrd: optional_path(message.initrd, "spec.initrd")?,
            cpu: cpu_baseline(message.cpu, "spec.cpu")?,
            memory_backing: memory_backing(message.memory_backing)?,
            disks: message.disks.into_iter().map(disk).collect::<Result<_, _>>()?,
            networks: message.networks.into_iter().map(network).collect::<Result<_, _>>()?,
            needs: message.needs.into_iter().collect(),
            one_numa_node: message.one_numa_node,
        };
        spec.validate()?;
        Ok(spec)
    }
}

#[cfg(test)]
mod tests {
    use ballast_model::RefusalCode;
    use proptest::prelude::*;

    use super::*;

    fn any_spec() -> impl Strategy<Value = VmSpec> {
        let automation =
            prop::sample::select(vec![Automation::Full, Automation::Partial, Automation::Manual]);
        (
            "[a-z0-9][a-z0-9._-]{0,62}",
            1u32..=64,
            256u64..=1 << 30,
            "/[a-zäö/._-]{0,40}",
            "[ -~]{0,200}",
            prop::collection::btree_map("[a-z]{1,8}", "[ -~]{0,20}", 0..4),
            automation,
            (1u32..=600_000, any::<bool>(), any::<bool>()),
            (prop::collection::btree_set("[!-+.-~]{1,64}", 0..4), any::<bool>()),
        )
            .prop_map(
                |(id, vcpus, pages, kernel, cmdline, labels, automation, policy, place)| VmSpec {
                    cmdline,
                    labels,
                    automation,
                    migration: MigrationPolicy {
                        downtime_limit_ms: policy.0,
                        verify: policy.1,
                        post_copy: policy.2,
                    },
                    needs: place.0,
                    one_numa_node: place.1,
                    ..VmSpec::new(id.parse().unwrap(), vcpus, Bytes(pages * 4096), kernel)
                },
            )
    }

    proptest! {
        #[test]
        fn specs_survive_the_wire(spec in any_spec()) {
            prop_assert_eq!(VmSpec::try_from(v1::VmSpec::from(&spec)), Ok(spec));
        }

        #[test]
        fn resources_survive_the_wire(cpu: u64, memory: u64) {
            let resources = Resources::new(Millicores(cpu), Bytes(memory));
            prop_assert_eq!(Resources::from(v1::Resources::from(resources)), resources);
        }
    }

    fn check_refused(spoil: impl Fn(&mut v1::VmSpec), expected: &str) {
        let mut message = v1::VmSpec {
            id: "web-1".into(),
            vcpus: 1,
            memory_bytes: 64 << 20,
            kernel: "/boot/guest".into(),
            cmdline: String::new(),
            labels: [("tier".to_owned(), "web".to_owned())].into(),
            automation: v1::Automation::Full.into(),
            migration: Some(MigrationPolicy::default().into()),
            ..v1::VmSpec::default()
        };
        VmSpec::try_from(message.clone()).unwrap();
        spoil(&mut message);
        let refusal = VmSpec::try_from(message).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::InvalidArgument);
        assert!(refusal.reason.contains(expected), "{refusal}");
    }

    #[test]
    fn what_the_wire_got_wrong_is_named() {
        check_refused(|m| m.id = "../etc".into(), "field spec.id: \"../etc\"");
        check_refused(|m| m.automation = 0, "field spec.automation: is not said");
        check_refused(|m| m.automation = -3, "field spec.automation: value -3");
        check_refused(|m| m.migration = None, "field spec.migration: is missing");
        check_refused(|m| m.kernel = "/a\0b".into(), "field spec.kernel");
        check_refused(|m| m.vcpus = 65, "65 vCPUs");
        check_refused(|m| m.needs = vec!["a b".into()], "VM web-1 needs \"a b\"");
        check_refused(|m| m.memory_bytes = u64::MAX, "bytes of memory");
        check_refused(|m| m.migration.as_mut().unwrap().downtime_limit_ms = 0, "downtime limit");
        check_refused(
            |m| m.labels = (0..65).map(|n| (n.to_string(), String::new())).collect(),
            "field spec.labels: holds 65",
        );
        check_refused(
            |m| _ = m.labels.insert("a".into(), "x".repeat(LABEL_BYTES_MAX + 1)),
            "field spec.labels",
        );
    }
}
