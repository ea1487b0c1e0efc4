//! How long calls may take, where both ends of a call must agree.

use std::time::Duration;

use ballast_model::{Bytes, BytesPerSec, VmSpec};

/// The slowest disk a snapshot is waited for on.
const FILE_RATE_MIN: BytesPerSec = BytesPerSec(16 << 20);

/// The slowest a busy host zeroes the pages of a VM that wants all of its memory at once.
const PREFAULT_RATE_MIN: BytesPerSec = BytesPerSec(128 << 20);

/// The longest time for a VM's memory to be taken before the guest starts.
pub fn prefault_time_max(spec: &VmSpec) -> Duration {
    if !spec.memory_backing.prefault {
        return Duration::ZERO;
    }
    spec.memory.time_at(PREFAULT_RATE_MIN).unwrap_or_default()
}

/// The longest time for a VM's memory to get to a file or from it. While the
/// guest runs, a page may be written more than once.
pub fn snapshot_time_max(memory: Bytes) -> Duration {
    memory.time_at(FILE_RATE_MIN).unwrap_or_default() * 2
}

#[cfg(test)]
mod tests {
    use ballast_model::hardware::MemoryBacking;

    use super::*;

    #[test]
    fn memory_that_is_taken_at_once_takes_its_time() {
        let mut spec = VmSpec::new("web".parse().unwrap(), 1, Bytes::gib(128), "/k");
        assert_eq!(prefault_time_max(&spec), Duration::ZERO);
        spec.memory_backing = MemoryBacking { prefault: true, ..MemoryBacking::default() };
        assert_eq!(prefault_time_max(&spec), Duration::from_secs(1024));
    }
}
