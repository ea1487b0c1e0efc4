//! Values for unit tests.

use ballast_model::vm::{Automation, MigrationPolicy};
use ballast_model::{Bytes, VmSpec};

pub(crate) fn spec(id: &str, cmdline: &str) -> VmSpec {
    VmSpec {
        id: id.parse().unwrap(),
        vcpus: 1,
        memory: Bytes::mib(64),
        kernel: "/nonexistent".into(),
        cmdline: cmdline.into(),
        labels: Default::default(),
        automation: Automation::Full,
        migration: MigrationPolicy::default(),
    }
}
