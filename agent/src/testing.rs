//! Values for unit tests.

use ballast_model::{Bytes, VmSpec};

pub(crate) fn spec(id: &str, cmdline: &str) -> VmSpec {
    let spec = VmSpec::new(id.parse().unwrap(), 1, Bytes::mib(64), "/nonexistent");
    VmSpec { cmdline: cmdline.into(), ..spec }
}
