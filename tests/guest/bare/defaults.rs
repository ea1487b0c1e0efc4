//! Defaults and bounds of the parameters: one source for the guest that reads
//! them and the library that writes them.

/// Milliseconds between two heartbeats.
pub const HEARTBEAT_MS: u32 = 200;
/// Milliseconds of a period of load.
pub const PERIOD_MS: u32 = 20;
/// MiB that are rewritten.
pub const WORKING_SET_MIB: u32 = 8;
/// MiB that are written once.
pub const STATIC_MIB: u32 = 4;
/// MiB that are never written.
pub const ZERO_MIB: u32 = 4;
/// MiB per second that are checked besides rewriting.
pub const CHECK_MIB_PER_SEC: u32 = 16;
/// TCP port of the echo service (RFC 862).
pub const ECHO_PORT: u16 = 7;
/// TCP port of the request counter.
pub const COUNT_PORT: u16 = 8;
/// Bytes of a record of the log.
pub const LOG_BYTES: u32 = 4096;
/// Records between two flushes of the log, and the most of them.
pub const LOG_FLUSH: u32 = 8;
/// Where `ballast-vmm` has the first virtio-mmio transport.
pub const VIRTIO_BASE: u64 = 0xd000_0000;
/// Bytes from one transport to the next in `ballast-vmm`.
pub const VIRTIO_STRIDE: u64 = 0x1000;

/// A heart beats at least once a minute.
pub const HEARTBEAT_MS_MAX: u32 = 60_000;
/// The longest period of load.
pub const PERIOD_MS_MAX: u32 = 1_000;
/// MiB above 4 GiB: what the page tables map.
pub const HIGH_MIB_MAX: u32 = 1 << 10;
/// Of sizes and rates in MiB. No machine has more, and it keeps sums far from overflow.
pub const MIB_MAX: u32 = 1 << 20;
/// Times a word of a page stands there in a row: as many words as a page has.
pub const REPEAT_MAX: u32 = 512;
/// Of a name.
pub const NAME_BYTES_MAX: usize = 63;
/// Records per second.
pub const LOG_RATE_MAX: u32 = 10_000;
/// Bytes of one operation of a benchmark, in 512: what the largest descriptor of a disk may have.
pub const BENCH_BYTES_MAX: u32 = 256 << 10;
/// Operations of a benchmark in flight.
pub const BENCH_DEPTH_MAX: u32 = 21;
/// Milliseconds a benchmark is measured.
pub const BENCH_MS_MAX: u32 = 60_000;
