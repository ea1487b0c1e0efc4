//! Pages and pieces of disks that go compressed (zstd), where the link is what limits a migration.
//!
//! A [`Packer`] makes one batch smaller, an [`Unpacker`] makes it what it was; [`Benefit`] decides, without IO and without a clock, whether it
//! pays. Each connection decides for itself, by what it measures:
//!
//! - how fast pages go as they are: a window of [`WINDOW_BYTES`] at a time. Above
//!   [`FAST`] nothing is ever tried;
//! - then, on one batch, how much smaller pages get and what CPU time that takes. Compressing and
//!   sending overlap, thanks to the socket's buffer: pages would go at the lower of the two rates.
//!   From [`WORTH_PERCENT`] of the plain rate on it is done;
//! - while it is done, how fast pages really go, on a CPU that others may use. Below
//!   [`KEEP_PERCENT`] it is left again. After [`TRUSTED_BYTES`] the plain link is measured anew: it
//!   may have become another.
//!
//! What comes compressed has exactly as many bytes as was said: no input makes the destination
//! take more memory than one batch.

use std::time::Duration;

use zstd::bulk::{Compressor, Decompressor};

use super::framing::RUN_PAGES_MAX;
use super::storage::DATA_BYTES_MAX;
use crate::codec::Malformed;
use crate::memory::{Memory, PAGE_BYTES};

/// The versions of the stream that can have compressed pages, and compressed pieces of disks.
pub(crate) const SINCE_VERSION: u16 = 3;
pub(crate) const DISKS_SINCE_VERSION: u16 = 4;
/// As fast as LZ4 on memory, and a third smaller.
const LEVEL: i32 = 1;
/// Bytes of the largest batch.
#[allow(clippy::cast_possible_truncation)] // 1 MiB
const BATCH_BYTES: usize = RUN_PAGES_MAX as usize * PAGE_BYTES;
/// What must be saved at least, as a part of the batch.
const SAVED_PART_MIN: usize = 8;

/// Compresses batches of pages.
#[derive(Default)]
pub(crate) struct Packer {
    codec: Option<Compressor<'static>>,
    /// A batch as it was when it was looked at: the guest may go on writing.
    plain: Vec<u8>,
    packed: Vec<u8>,
}

impl Packer {
    /// These pages, compressed; none when they do not get much smaller.
    pub(crate) fn pack(&mut self, memory: &Memory, runs: &[(u64, u64)]) -> Option<&[u8]> {
        let pages = runs.iter().flat_map(|&(first, count)| first..first.saturating_add(count));
        self.plain.resize(BATCH_BYTES, 0);
        let mut bytes = 0;
        for (page, into) in pages.zip(self.plain.as_chunks_mut().0) {
            memory.read_page(page, into);
            bytes += PAGE_BYTES;
        }
        compress(&mut self.codec, &self.plain[..bytes], &mut self.packed)
    }

    /// A piece of a disk, compressed; none when it does not get much smaller.
    pub(crate) fn pack_data(&mut self, data: &[u8]) -> Option<&[u8]> {
        compress(&mut self.codec, data, &mut self.packed)
    }
}

fn compress<'p>(
    codec: &mut Option<Compressor<'static>>,
    plain: &[u8],
    packed: &'p mut Vec<u8>,
) -> Option<&'p [u8]> {
    if codec.is_none() {
        *codec = Compressor::new(LEVEL).ok();
    }
    // It has no room for what would not be worth it: the compressor ends early.
    packed.resize(plain.len() - plain.len() / SAVED_PART_MIN, 0);
    let length = codec.as_mut()?.compress_to_buffer(plain, &mut packed[..]).ok()?;
    packed.get(..length)
}

impl std::fmt::Debug for Packer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packer").finish_non_exhaustive()
    }
}

/// Puts compressed pages where they belong.
#[derive(Default)]
pub(crate) struct Unpacker {
    codec: Option<Decompressor<'static>>,
    plain: Vec<u8>,
}

impl Unpacker {
    /// Decompresses exactly these pages into guest memory.
    ///
    /// # Errors
    /// When they are no such pages, or not so many. Nothing has been written then.
    pub(crate) fn unpack(
        &mut self,
        packed: &[u8],
        memory: &Memory,
        runs: &[(u64, u64)],
    ) -> Result<(), Malformed> {
        let mut bytes = 0;
        for &(first, count) in runs {
            bytes += memory.run(first, count).ok_or(Malformed("a run of pages"))?.1;
        }
        let plain = self.unpack_data(packed, bytes)?;
        let pages = runs.iter().flat_map(|&(first, count)| first..first + count);
        for (page, content) in pages.zip(plain.as_chunks().0) {
            memory.write_page(page, content);
        }
        Ok(())
    }

    /// Decompresses exactly so many bytes.
    ///
    /// # Errors
    /// When they are others, or not so many, or more than one batch.
    pub(crate) fn unpack_data(&mut self, packed: &[u8], bytes: usize) -> Result<&[u8], Malformed> {
        const WHAT: &str = "what comes compressed";
        if bytes > BATCH_BYTES {
            return Err(Malformed(WHAT));
        }
        if self.codec.is_none() {
            self.codec = Decompressor::new().ok();
        }
        let codec = self.codec.as_mut().ok_or(Malformed(WHAT))?;
        self.plain.resize(BATCH_BYTES, 0);
        match codec.decompress_to_buffer(packed, &mut self.plain[..bytes]) {
            Ok(length) if length == bytes => Ok(&self.plain[..bytes]),
            _ => Err(Malformed(WHAT)),
        }
    }
}

impl std::fmt::Debug for Unpacker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unpacker").finish_non_exhaustive()
    }
}

/// Bytes after which is decided again: the socket's buffers take several MiB at any speed.
const WINDOW_BYTES: u64 = 4 << 20;
/// Bytes a second of one connection from which on nothing is tried: a CPU would be busy for
/// several seconds for every GB.
const FAST: u64 = 200_000_000;
/// Of the plain rate, in percent: what compressing must promise, and what it must then keep.
const WORTH_PERCENT: u64 = 140;
const KEEP_PERCENT: u64 = 110;
/// Bytes after which the plain link is measured again.
const TRUSTED_BYTES: u64 = 256 << 20;
/// The most windows between two trials that promise nothing.
const PAUSE_MAX: u32 = 32;

/// Whether compressing pays on one connection.
#[derive(Debug)]
pub(crate) struct Benefit {
    now: Now,
    window: Sent,
    /// What the link takes of pages as they are, in bytes a second.
    plain_rate: Option<u64>,
    /// Windows to let pass before the next trial, and how many after one that promises nothing.
    pause: u32,
    next_pause: u32,
    /// Bytes sent since the plain link was measured.
    trusted: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Now {
    AsTheyAre,
    /// One batch.
    Trial,
    Packed,
}

/// What went.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sent {
    /// Bytes of it as it is, and on the wire.
    pub(crate) plain: u64,
    pub(crate) wire: u64,
    /// The CPU time it took to compress it. One batch says little of how long it takes on a CPU
    /// that others use, too.
    pub(crate) computing: Duration,
    /// The time it took to compress it, and to send it, waits for the limit included.
    pub(crate) packing: Duration,
    pub(crate) sending: Duration,
}

impl Default for Benefit {
    fn default() -> Self {
        Self {
            now: Now::AsTheyAre,
            window: Sent::default(),
            plain_rate: None,
            pause: 0,
            next_pause: 1,
            trusted: 0,
        }
    }
}

impl Benefit {
    /// Whether the next batch is to be compressed.
    pub(crate) fn wants_packing(&self) -> bool {
        self.now != Now::AsTheyAre
    }

    /// Whether it is done because it pays.
    pub(crate) fn pays(&self) -> bool {
        self.now == Now::Packed
    }

    /// Learns from a batch.
    pub(crate) fn learn(&mut self, batch: Sent) {
        let window = &mut self.window;
        window.plain += batch.plain;
        window.wire += batch.wire;
        window.computing += batch.computing;
        window.packing += batch.packing;
        window.sending += batch.sending;
        self.trusted += batch.plain;
        if self.now == Now::Trial || window.plain >= WINDOW_BYTES {
            let window = std::mem::take(window);
            self.now = match self.now {
                Now::AsTheyAre => self.after_plain(window),
                Now::Trial => self.after_trial(window),
                Now::Packed => self.after_packed(window),
            };
        }
    }

    fn after_plain(&mut self, window: Sent) -> Now {
        let rate = per_second(window.plain, window.sending);
        self.plain_rate = Some(rate);
        self.trusted = 0;
        if rate >= FAST {
            return Now::AsTheyAre;
        }
        if self.pause > 0 {
            self.pause -= 1;
            return Now::AsTheyAre;
        }
        Now::Trial
    }

    fn after_trial(&mut self, batch: Sent) -> Now {
        let plain_rate = self.plain_rate.unwrap_or(u64::MAX);
        let packing = per_second(batch.plain, batch.computing);
        let link = u128::from(plain_rate) * u128::from(batch.plain) / u128::from(batch.wire.max(1));
        let promised = packing.min(u64::try_from(link).unwrap_or(u64::MAX));
        if percent(promised, plain_rate) >= WORTH_PERCENT {
            return Now::Packed;
        }
        self.disappointed()
    }

    fn after_packed(&mut self, window: Sent) -> Now {
        let rate = per_second(window.plain, window.packing + window.sending);
        if percent(rate, self.plain_rate.unwrap_or(u64::MAX)) < KEEP_PERCENT {
            return self.disappointed();
        }
        self.next_pause = 1;
        if self.trusted < TRUSTED_BYTES { Now::Packed } else { Now::AsTheyAre }
    }

    /// Pages go as they are, for longer each time.
    fn disappointed(&mut self) -> Now {
        self.pause = self.next_pause;
        self.next_pause = (self.next_pause * 2).min(PAUSE_MAX);
        Now::AsTheyAre
    }
}

fn per_second(bytes: u64, time: Duration) -> u64 {
    let rate = u128::from(bytes) * 1_000_000_000 / time.as_nanos().max(1);
    u64::try_from(rate).unwrap_or(u64::MAX)
}

fn percent(part: u64, of: u64) -> u64 {
    u64::try_from(u128::from(part) * 100 / u128::from(of.max(1))).unwrap_or(u64::MAX)
}

/// A piece of a disk fits a batch.
const _: () = assert!(DATA_BYTES_MAX as usize <= BATCH_BYTES);

#[cfg(test)]
mod tests {
    use ballast_model::Bytes;
    use ballast_model::hardware::MemoryBacking;
    use proptest::prelude::*;

    use super::*;
    use crate::memory::Layout;

    fn memory() -> Memory {
        Memory::map(Layout::of_size(Bytes::mib(2)), MemoryBacking::default()).unwrap()
    }

    #[test]
    fn pages_come_out_as_they_went_in() {
        let (from, to) = (memory(), memory());
        let runs = [(3, 2), (100, 1)];
        for page in [3, 4, 100] {
            from.write_page(page, &[u8::try_from(page).unwrap(); PAGE_BYTES]);
        }
        let (mut packer, mut unpacker) = (Packer::default(), Unpacker::default());
        let packed = packer.pack(&from, &runs).unwrap().to_vec();
        assert!(packed.len() < 200, "{}", packed.len());
        unpacker.unpack(&packed, &to, &runs).unwrap();
        let (mut here, mut there) = ([0; PAGE_BYTES], [0; PAGE_BYTES]);
        for page in 0..512 {
            assert!(from.read_page(page, &mut here) && to.read_page(page, &mut there));
            assert!(here == there, "page {page}");
        }
        for other in [&[(3, 2)][..], &[(3, 4)], &[(3, 2), (511, 1), (512, 1)], &[(0, 257)], &[]] {
            assert!(unpacker.unpack(&packed, &to, other).is_err(), "{other:?}");
        }
    }

    #[test]
    fn a_piece_of_a_disk_comes_out_as_it_went_in() {
        let data: Vec<u8> = (0..65_536u32).map(|at| u8::try_from(at / 700).unwrap()).collect();
        let (mut packer, mut unpacker) = (Packer::default(), Unpacker::default());
        let packed = packer.pack_data(&data).unwrap().to_vec();
        assert!(packed.len() < 4096, "{}", packed.len());
        assert_eq!(unpacker.unpack_data(&packed, data.len()).unwrap(), data);
        for other in [0, data.len() - 1, data.len() + 1, BATCH_BYTES, BATCH_BYTES + 1] {
            assert!(unpacker.unpack_data(&packed, other).is_err(), "{other}");
        }
    }

    #[test]
    fn what_does_not_get_smaller_is_left_as_it_is() {
        let memory = memory();
        let mut word = 1u64;
        for page in 0..16 {
            let mut content = [0; PAGE_BYTES];
            for bytes in content.as_chunks_mut::<8>().0 {
                word = word.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29) ^ 77;
                *bytes = word.to_le_bytes();
            }
            memory.write_page(page, &content);
        }
        assert!(Packer::default().pack(&memory, &[(0, 16)]).is_none());
    }

    proptest! {
        #[test]
        fn hostile_bytes_fill_no_more_than_their_pages(
            noise in prop::collection::vec(any::<u8>(), 0..300), pages in 1u64..5,
        ) {
            prop_assert!(Unpacker::default().unpack(&noise, &memory(), &[(7, pages)]).is_err());
        }
    }

    #[test]
    fn what_unpacks_to_more_than_its_pages_is_refused() {
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], LEVEL).unwrap();
        assert!(bomb.len() < 10_000);
        for pages in 0..5 {
            assert!(Unpacker::default().unpack(&bomb, &memory(), &[(7, pages)]).is_err());
        }
    }

    /// A link of `link` bytes a second, pages that shrink to `size` percent at `cpu` bytes a second:
    /// the share of 256 MiB that goes compressed, in percent.
    fn share(link: u64, cpu: u64, size: u64) -> u64 {
        const BATCH: u64 = 1 << 20;
        let (mut benefit, mut packed) = (Benefit::default(), 0);
        for _ in 0..256 {
            let packs = benefit.wants_packing();
            let wire = if packs && size < 88 { BATCH * size / 100 } else { BATCH };
            let time = |rate| Duration::from_nanos(BATCH * 1_000_000_000 / rate);
            let packing = if packs { time(cpu) } else { Duration::ZERO };
            // While it compresses, the link goes on.
            let sending = (time(link) * u32::try_from(wire >> 10).unwrap() / 1024)
                .saturating_sub(packing / 2 * 2);
            let computing = packing;
            benefit.learn(Sent { plain: BATCH, wire, computing, packing, sending });
            packed += u64::from(packs && wire < BATCH);
        }
        packed * 100 / 256
    }

    #[test]
    fn it_is_done_where_the_link_is_the_limit_and_nowhere_else() {
        const MB: u64 = 1_000_000;
        assert!(share(50 * MB, 300 * MB, 40) >= 95, "400 Mbit/s");
        assert!(share(118 * MB, 300 * MB, 40) >= 95, "1 Gbit/s");
        assert_eq!(share(1_200 * MB, 300 * MB, 40), 0, "10 Gbit/s");
        assert!(share(190 * MB, 100 * MB, 40) <= 5, "the CPU is slower than the link");
        assert!(share(50 * MB, 300 * MB, 95) <= 5, "pages that do not get smaller");
        assert!(share(50 * MB, 300 * MB, 85) <= 5, "hardly");
    }
}
