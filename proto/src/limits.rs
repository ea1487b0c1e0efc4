//! How long calls may take, where both ends of a call must agree.

use std::time::Duration;

use ballast_model::{Bytes, BytesPerSec};

/// The slowest disk a snapshot is waited for on.
const FILE_RATE_MIN: BytesPerSec = BytesPerSec(16 << 20);

/// The longest time for a VM's memory to get to a file or from it. While the
/// guest runs, a page may be written more than once.
pub fn snapshot_time_max(memory: Bytes) -> Duration {
    memory.time_at(FILE_RATE_MIN).unwrap_or_default() * 2
}
