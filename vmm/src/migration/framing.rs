//! The frames of a migration stream, encoded and decoded without IO.
//!
//! A frame is a header of eight bytes – kind (u16), zero (u16), length of the
//! body (u32) – and a body of at most [`BODY_BYTES_MAX`]. A `Pages` or `Runs` frame
//! is followed by the pages themselves, 4 KiB each, in its order.
//! Numbers are little-endian. A frame of a kind that is not known, too long, or
//! with bytes left over is refused. See the module above for the sequence.

use std::time::Duration;

use ballast_model::{MigrationId, Refusal, RefusalCode, VmId};

use super::storage::{self, DATA_BYTES_MAX, ZERO_BYTES_MAX};
use crate::codec::{Decoder, Encoder, Malformed};
use crate::memory::PAGE_BYTES;

/// The versions this build speaks, lowest and highest.
///
/// Version 1 has one connection and names pages one by one. Version 2 has as many as both want,
/// names runs of pages, says beforehand where memory is, and takes disks along (see `storage`).
/// Version 3 has checksums where nothing is encrypted (see `integrity`), compressed pages where
/// the link is thin (see `packing`), and post-copy (see `postcopy`). Version 4 has compressed pieces of disks.
pub(crate) const VERSIONS: (u16, u16) = (1, 4);
/// The longest body, in bytes.
pub(crate) const BODY_BYTES_MAX: usize = 1 << 20;
/// The length of a frame's header, in bytes.
pub(crate) const HEADER_BYTES: usize = 8;
/// The most pages in one frame: 1 MiB of them.
pub(crate) const PAGES_MAX: usize = 256;
/// The most pages in one frame of runs: 1 MiB of them. So many are looked at and sent while
/// they are still in the CPU's cache.
pub(crate) const RUN_PAGES_MAX: u64 = 256;
/// The most connections of one migration.
pub(crate) const STREAMS_MAX: u16 = 128;
/// The most runs of zero pages in one frame.
pub(crate) const RUNS_MAX: usize = 4096;
/// The most page hashes in one frame.
pub(crate) const HASHES_MAX: usize = 16_384;
/// The most state bytes in one frame.
pub(crate) const STATE_CHUNK_BYTES: usize = 256 << 10;
/// The most words of 64 pages in one frame of missing pages: 4 GiB of them.
pub(crate) const MISSING_WORDS_MAX: usize = 16_384;
/// The longest reason or remedy, in bytes.
const TEXT_BYTES_MAX: usize = 4096;

/// The length of a Hello, in bytes. It has no header: it comes first, and never changes.
pub(crate) const HELLO_BYTES: usize = 8 + 2 + 2 + 16 + TOKEN_BYTES + 1 + 63;
/// The length of a token, in bytes.
pub(crate) const TOKEN_BYTES: usize = 32;
const MAGIC: [u8; 8] = *b"BLSTMIGR";

const MAGIC_JOIN: [u8; 8] = *b"BLSTJOIN";
const MAGIC_BACK: [u8; 8] = *b"BLSTBACK";

/// What a source says first that comes back after its connection broke: as long as a Hello.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Back {
    /// That it may, out of the last [`Frame::PostCopy`].
    pub(crate) key: [u8; TOKEN_BYTES],
}

impl Back {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut to = Encoder::default();
        to.raw(&MAGIC_BACK).raw(&self.key);
        let mut bytes = to.finish();
        bytes.resize(HELLO_BYTES, 0);
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; HELLO_BYTES]) -> Result<Self, Malformed> {
        const WHAT: &str = "the greeting of one that comes back";
        let mut from = Decoder::new(bytes);
        if from.array::<8>(WHAT)? != MAGIC_BACK {
            return Err(Malformed(WHAT));
        }
        let back = Self { key: from.array(WHAT)? };
        let padding = from.array::<{ HELLO_BYTES - 8 - TOKEN_BYTES }>(WHAT)?;
        if padding.iter().any(|&byte| byte != 0) { Err(Malformed(WHAT)) } else { Ok(back) }
    }
}

/// What another connection of a migration says first: as long as a Hello.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Join {
    /// Which connection it is: 1, 2, …
    pub(crate) stream: u16,
    /// That it may, out of [`Frame::AcceptStreams`].
    pub(crate) key: [u8; TOKEN_BYTES],
}

impl Join {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut to = Encoder::default();
        to.raw(&MAGIC_JOIN).u16(self.stream).raw(&self.key);
        let mut bytes = to.finish();
        bytes.resize(HELLO_BYTES, 0);
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; HELLO_BYTES]) -> Result<Self, Malformed> {
        const WHAT: &str = "the greeting of another connection";
        let mut from = Decoder::new(bytes);
        if from.array::<8>(WHAT)? != MAGIC_JOIN {
            return Err(Malformed(WHAT));
        }
        let join = Self { stream: from.u16(WHAT)?, key: from.array(WHAT)? };
        if from.array::<{ HELLO_BYTES - 8 - 2 - TOKEN_BYTES }>(WHAT)?.iter().any(|&byte| byte != 0)
        {
            return Err(Malformed(WHAT));
        }
        Ok(join)
    }
}

/// The first thing a source says.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Hello {
    /// Lowest and highest version it speaks.
    pub(crate) versions: (u16, u16),
    /// Which migration.
    pub(crate) migration: MigrationId,
    /// That it may.
    pub(crate) token: [u8; TOKEN_BYTES],
    /// Which VM.
    pub(crate) vm: VmId,
}

impl std::fmt::Debug for Hello {
    /// Without the token: it is a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hello")
            .field("versions", &self.versions)
            .field("migration", &self.migration)
            .field("vm", &self.vm)
            .finish_non_exhaustive()
    }
}

impl Hello {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut to = Encoder::default();
        to.raw(&MAGIC).u16(self.versions.0).u16(self.versions.1);
        to.raw(self.migration.as_uuid().as_bytes()).raw(&self.token);
        let name = self.vm.as_str().as_bytes();
        // A VM's name has at most 63 bytes.
        let length = u8::try_from(name.len()).unwrap_or(u8::MAX);
        to.raw(&[length]).raw(name).raw(&[0; 63][name.len()..]);
        to.finish()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        const WHAT: &str = "the greeting";
        let mut from = Decoder::new(bytes);
        if from.array::<8>(WHAT)? != MAGIC {
            return Err(Malformed(WHAT));
        }
        let versions = (from.u16(WHAT)?, from.u16(WHAT)?);
        let migration = uuid_of(from.array(WHAT)?);
        let token = from.array(WHAT)?;
        let [length] = from.array(WHAT)?;
        let name: [u8; 63] = from.array(WHAT)?;
        from.finish(WHAT)?;
        let name = name.get(..usize::from(length)).ok_or(Malformed(WHAT))?;
        let vm = std::str::from_utf8(name).ok().and_then(|name| name.parse().ok());
        Ok(Self { versions, migration, token, vm: vm.ok_or(Malformed(WHAT))? })
    }
}

fn uuid_of(bytes: [u8; 16]) -> MigrationId {
    MigrationId::new(uuid::Uuid::from_bytes(bytes))
}

/// Everything after Hello.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame {
    /// Destination: the version to speak.
    Welcome { version: u16 },
    /// Source: what it is, for the destination to compare; see `negotiation`.
    Proposal(Vec<u8>),
    /// Destination: it fits.
    Accept,
    /// Destination, from version 2 on: it fits, and so many connections may be made, this one
    /// included, each of the others with this key.
    AcceptStreams { streams: u16, key: [u8; TOKEN_BYTES] },
    /// Source: which blocks of 512 pages are in use, a bit for each: where pages will arrive.
    Present(Vec<u8>),
    /// Numbers of pages; their contents follow the frame.
    Pages(Vec<u64>),
    /// First page and count of runs of pages; their contents follow the frame.
    Runs(Vec<(u64, u64)>),
    /// The same, from version 3 on, with the contents compressed to so many bytes; see `packing`.
    Packed { bytes: u32, runs: Vec<(u64, u64)> },
    /// First page and count of runs of zero pages.
    Zero(Vec<(u64, u64)>),
    /// Source: the end of a pre-copy round.
    Round { number: u32 },
    /// Destination: everything before it is in memory.
    RoundDone { number: u32 },
    /// Hashes of all pages from `first` on; see `verify`.
    Hashes { first: u64, hashes: Vec<u64> },
    /// A piece of a disk, in whole grains; its contents follow the frame.
    DiskData { disk: u16, offset: u64, bytes: u32 },
    /// The same, from version 4 on, with the contents compressed to `packed` bytes; see `packing`.
    DiskPacked { disk: u16, offset: u64, bytes: u32, packed: u32 },
    /// A piece of a disk, in whole grains, that is zero.
    DiskZero { disk: u16, offset: u64, bytes: u32 },
    /// Hashes of all grains of a disk from `first` on; see `storage::compare`.
    DiskHashes { disk: u16, first: u64, hashes: Vec<u64> },
    /// A piece of the machine's state.
    State(Vec<u8>),
    /// Source: that was all. `state_hash` is the xxh3 of the whole state.
    End { state_bytes: u64, state_hash: u64 },
    /// Destination: the machine is whole and may be run.
    Ready { load: Duration },
    /// Destination: it cannot go on, and never was READY.
    Failed(Refusal),
    /// Destination, from version 3 on: post-copy is possible, and this is what the source shows
    /// when it comes back after the connection broke.
    PostCopy { key: [u8; TOKEN_BYTES] },
    /// Which pages are not there, from `first` on: a bit for each.
    Missing { first: u64, words: Vec<u64> },
    /// Destination: somebody waits for these.
    Fetch { first: u64, count: u64 },
    /// Destination: the guest runs.
    Running,
    /// Destination: all pages are there; the source is no longer needed.
    Whole,
}

/// Kinds of frame, as numbers on the wire.
mod kind {
    pub(super) const WELCOME: u16 = 1;
    pub(super) const PROPOSAL: u16 = 2;
    pub(super) const ACCEPT: u16 = 3;
    pub(super) const PAGES: u16 = 4;
    pub(super) const ZERO: u16 = 5;
    pub(super) const ROUND: u16 = 6;
    pub(super) const ROUND_DONE: u16 = 7;
    pub(super) const HASHES: u16 = 8;
    pub(super) const STATE: u16 = 9;
    pub(super) const END: u16 = 10;
    pub(super) const READY: u16 = 11;
    pub(super) const FAILED: u16 = 12;
    pub(super) const ACCEPT_STREAMS: u16 = 13;
    pub(super) const PRESENT: u16 = 14;
    pub(super) const RUNS: u16 = 15;
    pub(super) const DISK_DATA: u16 = 16;
    pub(super) const DISK_ZERO: u16 = 17;
    pub(super) const DISK_HASHES: u16 = 18;
    pub(super) const PACKED: u16 = 19;
    pub(super) const DISK_PACKED: u16 = 20;
    pub(super) const POST_COPY: u16 = 32;
    pub(super) const MISSING: u16 = 33;
    pub(super) const FETCH: u16 = 34;
    pub(super) const RUNNING: u16 = 35;
    pub(super) const WHOLE: u16 = 36;
}

impl Frame {
    /// Header and body.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut body = Encoder::default();
        let kind = self.encode_body(&mut body);
        let body = body.finish();
        let mut to = Encoder::default();
        to.u16(kind).u16(0).bytes(&body);
        to.finish()
    }

    fn encode_body(&self, to: &mut Encoder) -> u16 {
        match self {
            Self::Welcome { version } => {
                to.u16(*version);
                kind::WELCOME
            }
            Self::Proposal(bytes) => {
                to.raw(bytes);
                kind::PROPOSAL
            }
            Self::Accept => kind::ACCEPT,
            Self::AcceptStreams { streams, key } => {
                to.u16(*streams).raw(key);
                kind::ACCEPT_STREAMS
            }
            Self::Present(blocks) => {
                to.raw(blocks);
                kind::PRESENT
            }
            Self::Runs(runs) => {
                runs.iter().for_each(|&(first, count)| _ = to.u64(first).u64(count));
                kind::RUNS
            }
            Self::Packed { bytes, runs } => {
                to.u32(*bytes);
                runs.iter().for_each(|&(first, count)| _ = to.u64(first).u64(count));
                kind::PACKED
            }
            Self::Pages(pages) => {
                pages.iter().for_each(|&page| _ = to.u64(page));
                kind::PAGES
            }
            Self::Zero(runs) => {
                runs.iter().for_each(|&(first, count)| _ = to.u64(first).u64(count));
                kind::ZERO
            }
            Self::Round { number } => {
                to.u32(*number);
                kind::ROUND
            }
            Self::RoundDone { number } => {
                to.u32(*number);
                kind::ROUND_DONE
            }
            Self::Hashes { first, hashes } => {
                to.u64(*first);
                hashes.iter().for_each(|&hash| _ = to.u64(hash));
                kind::HASHES
            }
            Self::DiskData { disk, offset, bytes } => {
                to.u16(*disk).u64(*offset).u32(*bytes);
                kind::DISK_DATA
            }
            Self::DiskPacked { disk, offset, bytes, packed } => {
                to.u16(*disk).u64(*offset).u32(*bytes).u32(*packed);
                kind::DISK_PACKED
            }
            Self::DiskZero { disk, offset, bytes } => {
                to.u16(*disk).u64(*offset).u32(*bytes);
                kind::DISK_ZERO
            }
            Self::DiskHashes { disk, first, hashes } => {
                to.u16(*disk).u64(*first);
                hashes.iter().for_each(|&hash| _ = to.u64(hash));
                kind::DISK_HASHES
            }
            Self::State(bytes) => {
                to.raw(bytes);
                kind::STATE
            }
            Self::End { state_bytes, state_hash } => {
                to.u64(*state_bytes).u64(*state_hash);
                kind::END
            }
            Self::Ready { load } => {
                to.u64(u64::try_from(load.as_micros()).unwrap_or(u64::MAX));
                kind::READY
            }
            Self::Failed(refusal) => {
                to.bytes(refusal.code.name().as_bytes());
                to.bytes(cut(&refusal.reason)).bytes(cut(&refusal.remedy));
                kind::FAILED
            }
            Self::PostCopy { key } => {
                to.raw(key);
                kind::POST_COPY
            }
            Self::Missing { first, words } => {
                to.u64(*first);
                words.iter().for_each(|&word| _ = to.u64(word));
                kind::MISSING
            }
            Self::Fetch { first, count } => {
                to.u64(*first).u64(*count);
                kind::FETCH
            }
            Self::Running => kind::RUNNING,
            Self::Whole => kind::WHOLE,
        }
    }

    /// Kind and length of the body, out of a header.
    pub(crate) fn decode_header(header: &[u8]) -> Result<(u16, usize), Malformed> {
        const WHAT: &str = "the header of a frame";
        let mut from = Decoder::new(header);
        let kind = from.u16(WHAT)?;
        if from.u16(WHAT)? != 0 {
            return Err(Malformed(WHAT));
        }
        let length = from.count(BODY_BYTES_MAX, "the length of a frame")?;
        from.finish(WHAT)?;
        Ok((kind, length))
    }

    /// The frame with this kind and body.
    pub(crate) fn decode(kind: u16, body: &[u8]) -> Result<Self, Malformed> {
        const WHAT: &str = "a frame";
        let mut from = Decoder::new(body);
        let frame = match kind {
            kind::WELCOME => Self::Welcome { version: from.u16(WHAT)? },
            kind::PROPOSAL => Self::Proposal(from.raw(body.len(), WHAT)?.to_vec()),
            kind::ACCEPT => Self::Accept,
            kind::PAGES => Self::Pages(words(&mut from, body.len(), PAGES_MAX)?),
            kind::ACCEPT_STREAMS => {
                Self::AcceptStreams { streams: from.u16(WHAT)?, key: from.array(WHAT)? }
            }
            kind::PRESENT => Self::Present(from.raw(body.len(), WHAT)?.to_vec()),
            kind::ZERO => Self::Zero(runs(&mut from, body.len())?),
            kind::RUNS => {
                let runs = runs(&mut from, body.len())?;
                pages_of(&runs)?;
                Self::Runs(runs)
            }
            kind::PACKED => {
                let bytes = from.u32(WHAT)?;
                let runs = runs(&mut from, body.len() - 4)?;
                // What does not get smaller goes as it is.
                if bytes == 0 || u64::from(bytes) >= pages_of(&runs)? * PAGE_BYTES as u64 {
                    return Err(Malformed("the length of compressed pages"));
                }
                Self::Packed { bytes, runs }
            }
            kind::ROUND => Self::Round { number: from.u32(WHAT)? },
            kind::ROUND_DONE => Self::RoundDone { number: from.u32(WHAT)? },
            kind::HASHES => {
                let first = from.u64(WHAT)?;
                Self::Hashes { first, hashes: words(&mut from, body.len() - 8, HASHES_MAX)? }
            }
            kind::POST_COPY => Self::PostCopy { key: from.array(WHAT)? },
            kind::MISSING => {
                let first = from.u64(WHAT)?;
                let words = words(&mut from, body.len() - 8, MISSING_WORDS_MAX)?;
                Self::Missing { first, words }
            }
            kind::FETCH => Self::Fetch { first: from.u64(WHAT)?, count: from.u64(WHAT)? },
            kind::RUNNING => Self::Running,
            kind::WHOLE => Self::Whole,
            kind::DISK_DATA => {
                let (disk, offset) = (from.u16(WHAT)?, from.u64(WHAT)?);
                Self::DiskData { disk, offset, bytes: at_most(from.u32(WHAT)?, DATA_BYTES_MAX)? }
            }
            kind::DISK_PACKED => {
                let (disk, offset) = (from.u16(WHAT)?, from.u64(WHAT)?);
                let bytes = at_most(from.u32(WHAT)?, DATA_BYTES_MAX)?;
                let packed = from.u32(WHAT)?;
                if packed == 0 || packed >= bytes {
                    return Err(Malformed("the length of a compressed piece of a disk"));
                }
                Self::DiskPacked { disk, offset, bytes, packed }
            }
            kind::DISK_ZERO => {
                let (disk, offset) = (from.u16(WHAT)?, from.u64(WHAT)?);
                Self::DiskZero { disk, offset, bytes: at_most(from.u32(WHAT)?, ZERO_BYTES_MAX)? }
            }
            kind::DISK_HASHES => {
                let (disk, first) = (from.u16(WHAT)?, from.u64(WHAT)?);
                let hashes = words(&mut from, body.len() - 10, storage::HASHES_MAX)?;
                Self::DiskHashes { disk, first, hashes }
            }
            kind::STATE if body.len() <= STATE_CHUNK_BYTES => {
                Self::State(from.raw(body.len(), WHAT)?.to_vec())
            }
            kind::END => Self::End { state_bytes: from.u64(WHAT)?, state_hash: from.u64(WHAT)? },
            kind::READY => Self::Ready { load: Duration::from_micros(from.u64(WHAT)?) },
            kind::FAILED => {
                let code = from.text(TEXT_BYTES_MAX, WHAT)?;
                let (reason, remedy) =
                    (from.text(TEXT_BYTES_MAX, WHAT)?, from.text(TEXT_BYTES_MAX, WHAT)?);
                let code = RefusalCode::from_name(&code).unwrap_or(RefusalCode::Internal);
                Self::Failed(Refusal { code, reason, remedy })
            }
            _ => return Err(Malformed("the kind of a frame")),
        };
        from.finish(WHAT)?;
        Ok(frame)
    }
}

fn at_most(bytes: u32, max: u32) -> Result<u32, Malformed> {
    if bytes <= max { Ok(bytes) } else { Err(Malformed("the length of a piece of a disk")) }
}

/// `bytes` bytes as numbers, at most `max` of them.
fn words(from: &mut Decoder<'_>, bytes: usize, max: usize) -> Result<Vec<u64>, Malformed> {
    const WHAT: &str = "a list in a frame";
    if !bytes.is_multiple_of(8) || bytes / 8 > max {
        return Err(Malformed(WHAT));
    }
    (0..bytes / 8).map(|_| from.u64(WHAT)).collect()
}

/// `bytes` bytes as runs: first and count.
fn runs(from: &mut Decoder<'_>, bytes: usize) -> Result<Vec<(u64, u64)>, Malformed> {
    let words = words(from, bytes, 2 * RUNS_MAX)?;
    if !words.len().is_multiple_of(2) {
        return Err(Malformed("a list in a frame"));
    }
    Ok(words.chunks_exact(2).map(|run| (run[0], run[1])).collect())
}

/// How many pages runs have, at most as many as one frame may.
fn pages_of(runs: &[(u64, u64)]) -> Result<u64, Malformed> {
    let pages = runs.iter().try_fold(0, |sum: u64, run| sum.checked_add(run.1));
    pages.filter(|&pages| pages <= RUN_PAGES_MAX).ok_or(Malformed("the length of a run"))
}

fn cut(text: &str) -> &[u8] {
    &text.as_bytes()[..text.floor_char_boundary(TEXT_BYTES_MAX)]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_frame() -> impl Strategy<Value = Frame> {
        let words = |max| prop::collection::vec(any::<u64>(), 0..max);
        prop_oneof![
            any::<u16>().prop_map(|version| Frame::Welcome { version }),
            prop::collection::vec(any::<u8>(), 0..2000).prop_map(Frame::Proposal),
            Just(Frame::Accept),
            words(PAGES_MAX).prop_map(Frame::Pages),
            prop::collection::vec(any::<(u64, u64)>(), 0..300).prop_map(Frame::Zero),
            any::<(u16, [u8; TOKEN_BYTES])>()
                .prop_map(|(streams, key)| Frame::AcceptStreams { streams, key }),
            prop::collection::vec(any::<u8>(), 0..300).prop_map(Frame::Present),
            prop::collection::vec((any::<u64>(), 0u64..4), 0..64).prop_map(Frame::Runs),
            (1..4096u32, prop::collection::vec((any::<u64>(), 1u64..4), 1..64))
                .prop_map(|(bytes, runs)| Frame::Packed { bytes, runs }),
            any::<u32>().prop_map(|number| Frame::Round { number }),
            any::<u32>().prop_map(|number| Frame::RoundDone { number }),
            (any::<u64>(), words(300)).prop_map(|(first, hashes)| Frame::Hashes { first, hashes }),
            any::<(u16, u64)>()
                .prop_flat_map(|(disk, offset)| (Just((disk, offset)), 0..=DATA_BYTES_MAX))
                .prop_map(|((disk, offset), bytes)| Frame::DiskData { disk, offset, bytes }),
            (any::<(u16, u64)>(), 1..DATA_BYTES_MAX).prop_map(|((disk, offset), packed)| {
                Frame::DiskPacked { disk, offset, bytes: DATA_BYTES_MAX, packed }
            }),
            any::<(u16, u64)>()
                .prop_flat_map(|(disk, offset)| (Just((disk, offset)), 0..=ZERO_BYTES_MAX))
                .prop_map(|((disk, offset), bytes)| Frame::DiskZero { disk, offset, bytes }),
            (any::<(u16, u64)>(), words(300))
                .prop_map(|((disk, first), hashes)| Frame::DiskHashes { disk, first, hashes }),
            prop::collection::vec(any::<u8>(), 0..2000).prop_map(Frame::State),
            any::<(u64, u64)>()
                .prop_map(|(state_bytes, state_hash)| Frame::End { state_bytes, state_hash }),
            any::<u32>()
                .prop_map(|micros| Frame::Ready { load: Duration::from_micros(micros.into()) }),
            (0..RefusalCode::ALL.len(), ".{0,80}", ".{0,80}").prop_map(|(code, reason, remedy)| {
                Frame::Failed(Refusal::new(RefusalCode::ALL[code], reason, remedy))
            }),
            any::<[u8; TOKEN_BYTES]>().prop_map(|key| Frame::PostCopy { key }),
            (any::<u64>(), words(300)).prop_map(|(first, words)| Frame::Missing { first, words }),
            any::<(u64, u64)>().prop_map(|(first, count)| Frame::Fetch { first, count }),
            Just(Frame::Running),
            Just(Frame::Whole),
        ]
    }

    fn decode(bytes: &[u8]) -> Result<Frame, Malformed> {
        let (header, body) = bytes.split_at_checked(HEADER_BYTES).ok_or(Malformed("header"))?;
        let (kind, length) = Frame::decode_header(header)?;
        if body.len() != length {
            return Err(Malformed("length"));
        }
        Frame::decode(kind, body)
    }

    proptest! {
        #[test]
        fn every_frame_survives_the_wire(frame in any_frame()) {
            prop_assert_eq!(decode(&frame.encode()), Ok(frame));
        }

        #[test]
        fn hostile_bytes_are_refused_or_mean_what_they_say(
            kind in 0u16..40, body in prop::collection::vec(any::<u8>(), 0..400),
        ) {
            if let Ok(frame) = Frame::decode(kind, &body) {
                let again = frame.encode();
                prop_assert_eq!(decode(&again), Ok(frame));
            }
        }

        #[test]
        fn a_flipped_or_missing_byte_never_panics(
            frame in any_frame(), at in any::<prop::sample::Index>(), flip in 1u8..,
        ) {
            let mut bytes = frame.encode();
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            let _ = decode(&bytes);
            bytes.truncate(at);
            prop_assert!(decode(&bytes).is_err());
        }

        #[test]
        fn a_hostile_greeting_never_panics(
            bytes in prop::collection::vec(any::<u8>(), HELLO_BYTES - 1..HELLO_BYTES + 2),
        ) {
            prop_assert!(Hello::decode(&bytes).is_err(), "no magic number by chance");
            if let Ok(bytes) = <&[u8; HELLO_BYTES]>::try_from(bytes.as_slice()) {
                prop_assert!(Join::decode(bytes).is_err(), "no magic number by chance");
                prop_assert!(Back::decode(bytes).is_err(), "no magic number by chance");
            }
        }
    }

    #[test]
    fn frames_are_bounded() {
        let long = |kind: u16, length: u32| {
            let mut to = Encoder::default();
            to.u16(kind).u16(0).u32(length);
            let bytes = to.finish();
            Frame::decode_header(&bytes)
        };
        assert!(long(4, 1 << 20).is_ok());
        assert!(long(4, (1 << 20) + 1).is_err());
        assert!(Frame::decode(4, &vec![0; 8 * (PAGES_MAX + 1)]).is_err());
        let of = |count: u64| Frame::decode(15, &[[0; 8], count.to_le_bytes()].concat());
        assert!(of(RUN_PAGES_MAX).is_ok());
        assert!(of(RUN_PAGES_MAX + 1).is_err() && of(u64::MAX).is_err());
        let packed = |bytes: u32, count: u64| {
            let body = [&bytes.to_le_bytes()[..], &[0; 8], &count.to_le_bytes()].concat();
            Frame::decode(19, &body)
        };
        assert!(packed(4095, 1).is_ok() && packed(1, RUN_PAGES_MAX).is_ok());
        assert!(packed(4096, 1).is_err() && packed(0, 1).is_err(), "no smaller");
        assert!(packed(1, RUN_PAGES_MAX + 1).is_err() && packed(1, 0).is_err());
        assert!(Frame::decode(99, &[]).is_err());
        assert!(Frame::decode(3, &[0]).is_err(), "bytes left over");
    }

    #[test]
    fn another_connection_says_which_it_is_and_why_it_may() {
        let join = Join { stream: 7, key: [5; TOKEN_BYTES] };
        let bytes: [u8; HELLO_BYTES] = join.encode().try_into().unwrap();
        assert!(Join::decode(&bytes).unwrap() == join);
        let mut longer = bytes;
        longer[HELLO_BYTES - 1] = 1;
        assert!(Join::decode(&longer).is_err() && Hello::decode(&bytes).is_err());
    }

    #[test]
    fn one_that_comes_back_shows_its_key() {
        let back = Back { key: [5; TOKEN_BYTES] };
        let bytes: [u8; HELLO_BYTES] = back.encode().try_into().unwrap();
        assert!(Back::decode(&bytes).unwrap() == back);
        let mut longer = bytes;
        longer[HELLO_BYTES - 1] = 1;
        assert!(Back::decode(&longer).is_err() && Join::decode(&bytes).is_err());
    }

    #[test]
    fn a_greeting_survives_the_wire_and_hides_its_token() {
        let hello = Hello {
            versions: (1, 3),
            migration: uuid_of([7; 16]),
            token: [9; TOKEN_BYTES],
            vm: "x".repeat(63).parse().unwrap(),
        };
        let bytes = hello.encode();
        assert_eq!(bytes.len(), HELLO_BYTES);
        assert_eq!(Hello::decode(&bytes), Ok(hello.clone()));
        assert!(!format!("{hello:?}").contains("token"));
    }
}
