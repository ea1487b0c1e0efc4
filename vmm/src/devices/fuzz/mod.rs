//! Fuzzing of everything a hostile guest or a damaged state reaches.
//!
//! | target | what it feeds |
//! | --- | --- |
//! | `block` | rings, descriptors and requests of any content to a disk ([`block`]) |
//! | `net` | the same to a network device's three queues |
//! | `transport` | any sequence of register accesses, pauses and moves ([`transport`]) |
//! | `state` | saved states of a machine, its devices, a transport, of any content |
//! | `migration` | greetings, proposals and frames of any content to either end of a migration |
//!
//! A target is a function of some bytes that must return. `make fuzz` runs
//! [`engine::campaign`] on each with the coverage of this crate as its guide
//! (LLVM's counters, see [`coverage`]), for FUZZ_MINUTES minutes each. What
//! reached something new is kept, made small, in `vmm/fuzz/corpus`; all of that,
//! and some thousand inputs around it, is run by the ordinary tests.

mod block;
mod coverage;
mod engine;
mod transport;

use std::path::PathBuf;
use std::time::Duration;

use ballast_model::Bytes;
use ballast_model::hardware::MemoryBacking;

use super::DevicesState;
use super::virtio::state::TransportState;
use crate::codec::{Decoder, Encoder};
use crate::memory::{Layout, Memory};
use crate::migration::framing::{Frame, HEADER_BYTES, HELLO_BYTES, Hello, Join};
use crate::migration::integrity::{self, SUM_BYTES};
use crate::migration::negotiation::Proposal;
use crate::migration::packing::{Packer, Unpacker};
use crate::migration::verify::hash_page;
use crate::state::MachineState;
use engine::{Bound, Target};

const TARGETS: [Target; 5] = [
    Target { name: "block", run: block::fuzz_block },
    Target { name: "net", run: super::net::fuzz_net },
    Target { name: "transport", run: transport::fuzz_transport },
    Target { name: "state", run: fuzz_state },
    Target { name: "migration", run: fuzz_migration },
];
/// What an ordinary test spends on one target beside the corpus, in inputs.
const AROUND_CORPUS: u64 = 1000;

/// The first byte says what the rest is the state of: no input has to guess a header.
fn fuzz_state(data: &[u8]) {
    let (first, rest) = data.split_first().unwrap_or((&0, &[]));
    match first % 4 {
        0 => {
            if let Ok(state) = MachineState::decode(&[b"BLSM", rest].concat()) {
                // A state of an older version is written as one of the newest.
                assert_eq!(MachineState::decode(&state.encode()), Ok(state));
            }
        }
        1 => {
            if let Ok(state) = TransportState::decode(&mut Decoder::new(rest)) {
                let mut again = Encoder::default();
                state.encode(&mut again);
                let bytes = again.finish();
                assert_eq!(TransportState::decode(&mut Decoder::new(&bytes)), Ok(state));
            }
        }
        version => {
            let version = u16::from(version) - 1;
            if let Ok(state) = DevicesState::decode(&mut Decoder::new(rest), version) {
                let mut again = Encoder::default();
                state.encode(&mut again);
                let bytes = again.finish();
                assert_eq!(DevicesState::decode(&mut Decoder::new(&bytes), 2), Ok(state));
            }
        }
    }
}

/// The first byte says what the rest is: a frame of that kind, or what comes before frames.
fn fuzz_migration(data: &[u8]) {
    let (first, rest) = data.split_first().unwrap_or((&0, &[]));
    match *first {
        254 => {
            if let Ok(hello) = Hello::decode(rest) {
                assert_eq!(Hello::decode(&hello.encode()), Ok(hello));
            }
        }
        253 => {
            let join = <&[u8; HELLO_BYTES]>::try_from(rest).ok().map(Join::decode);
            if let Some(Ok(join)) = join {
                assert_eq!(join.encode(), rest);
            }
        }
        249 => {
            // Compressed pages: what is taken is what the same pages would be compressed from.
            let layout = Layout::of_size(Bytes::mib(1));
            let memory = Memory::map(layout, MemoryBacking::default()).unwrap();
            let (count, packed) = rest.split_first().unwrap_or((&0, &[]));
            let runs = [(3, u64::from(*count) % 8)];
            if Unpacker::default().unpack(packed, &memory, &runs).is_ok() {
                let again = Memory::map(memory.layout().clone(), MemoryBacking::default()).unwrap();
                if let Some(packed) = Packer::default().pack(&memory, &runs) {
                    Unpacker::default().unpack(packed, &again, &runs).unwrap();
                    assert_eq!(hash_page(&again, 3), hash_page(&memory, 3));
                }
            }
        }
        250 => {
            let _ = integrity::open(rest, "noise");
            let sealed = integrity::seal(rest);
            let (header, body) = sealed.split_at(HEADER_BYTES.min(rest.len()) + SUM_BYTES);
            let opened = [header, body].map(|part| integrity::open(part, "a part").unwrap());
            assert_eq!(opened.concat(), rest);
        }
        version @ 251..=252 => {
            let version = u16::from(version) - 250;
            if let Ok(proposal) = Proposal::decode(rest, version) {
                let again = Proposal::decode(&proposal.encode(version), version);
                assert_eq!(again, Ok(proposal));
            }
        }
        kind => {
            if let Ok(frame) = Frame::decode(kind.into(), rest) {
                let (header, body) = (frame.encode(), rest.len());
                let (kind, _) = Frame::decode_header(&header[..HEADER_BYTES]).unwrap();
                assert_eq!(
                    Frame::decode(kind, &frame.encode()[HEADER_BYTES..]),
                    Ok(frame),
                    "{body}"
                );
            }
        }
    }
}

fn corpus_dir(target: &Target) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target.name)
}

fn target(name: &str) -> Target {
    TARGETS.into_iter().find(|target| target.name == name).unwrap()
}

fn check(name: &str) {
    let target = target(name);
    let corpus = engine::read_corpus(&corpus_dir(&target));
    corpus.iter().for_each(|input| (target.run)(input));
    engine::campaign(&target, &corpus, &Bound::Inputs(AROUND_CORPUS), 1);
}

#[test]
fn disks_survive_the_corpus() {
    check("block");
}

#[test]
fn networks_survive_the_corpus() {
    check("net");
}

#[test]
fn transports_survive_the_corpus() {
    check("transport");
}

#[test]
fn saved_states_survive_the_corpus() {
    check("state");
}

#[test]
fn both_ends_of_a_migration_survive_the_corpus() {
    check("migration");
}

/// What `make fuzz` runs.
#[test]
#[ignore = "minutes: run it with 'make fuzz'"]
fn campaign() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let minutes = number("FUZZ_MINUTES").unwrap_or(1);
    let seed = number("FUZZ_SEED").unwrap_or_else(rand::random);
    let only = std::env::var("FUZZ_TARGET").unwrap_or_default();
    for target in TARGETS.into_iter().filter(|target| only.is_empty() || target.name == only) {
        let dir = corpus_dir(&target);
        let corpus = engine::read_corpus(&dir);
        let bound = Bound::Time(Duration::from_secs(60 * minutes));
        let found = engine::campaign(&target, &corpus, &bound, seed);
        engine::write_corpus(&dir, &found);
    }
}
