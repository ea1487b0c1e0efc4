//! Which version is spoken, how many connections there are, and whether the two hosts fit.

use ballast_model::{Refusal, RefusalCode};

use super::Trouble;
use super::framing::{Frame, Hello, STREAMS_MAX, TOKEN_BYTES, VERSIONS};
use super::postcopy::door::Door;
use super::storage::{self, DiskTerms};
use super::stream::Stream;
use crate::codec::{Decoder, Encoder, Malformed};
use crate::cpu::CpuModel;
use crate::machine::Machine;
use crate::memory::{Layout, userfault};

/// TSC frequencies closer than this are one: what a crystal may be off by
/// (Linux uses 250 ppm for tsc_tolerance_ppm).
const TSC_TOLERANCE_PPM: u64 = 250;

/// What the source proposes, beyond who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Proposal {
    pub(crate) layout: Layout,
    pub(crate) vcpus: u32,
    pub(crate) cpu: CpuModel,
    pub(crate) tsc_khz: u32,
    /// Whether hashes of all pages will be sent.
    pub(crate) verify: bool,
    /// From version 2 on: connections it would like; 1 before.
    pub(crate) streams: u16,
    /// From version 2 on: disks that go along; none before.
    pub(crate) disks: Vec<DiskTerms>,
    /// From version 3 on: whether the guest may run before all of its memory is there.
    pub(crate) post_copy: bool,
}

/// What both agreed to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    pub(crate) version: u16,
    pub(crate) verify: bool,
    /// Connections, this one included.
    pub(crate) streams: u16,
    /// What the others show.
    pub(crate) key: [u8; TOKEN_BYTES],
    /// Whether the guest may run before all of its memory is there, and what the source then
    /// shows when it comes back.
    pub(crate) post_copy: Option<[u8; TOKEN_BYTES]>,
}

impl Proposal {
    /// What this machine would propose, or accept.
    pub(crate) fn of(machine: &Machine, verify: bool, streams: u16) -> Self {
        Self {
            layout: machine.memory.layout().clone(),
            vcpus: u32::try_from(machine.vcpus.count()).unwrap_or(u32::MAX),
            cpu: machine.traits.cpu.clone(),
            tsc_khz: machine.traits.tsc_khz,
            verify,
            streams,
            disks: DiskTerms::of(&machine.devices),
            post_copy: false,
        }
    }

    pub(crate) fn encode(&self, version: u16) -> Vec<u8> {
        let mut to = Encoder::default();
        self.layout.encode(&mut to);
        to.u32(self.vcpus);
        self.cpu.encode(&mut to);
        to.u32(self.tsc_khz).u16(self.verify.into());
        if version >= 2 {
            to.u16(self.streams);
            DiskTerms::encode_all(&self.disks, &mut to);
        }
        if version >= 3 {
            to.u16(self.post_copy.into());
        }
        to.finish()
    }

    pub(crate) fn decode(bytes: &[u8], version: u16) -> Result<Self, Malformed> {
        const WHAT: &str = "the proposal";
        let mut from = Decoder::new(bytes);
        let proposal = Self {
            layout: Layout::decode(&mut from)?,
            vcpus: from.u32(WHAT)?,
            cpu: CpuModel::decode(&mut from)?,
            tsc_khz: from.u32(WHAT)?,
            verify: from.u16(WHAT)? == 1,
            streams: if version >= 2 { from.u16(WHAT)? } else { 1 },
            disks: if version >= 2 { DiskTerms::decode_all(&mut from)? } else { Vec::new() },
            post_copy: version >= 3 && from.u16(WHAT)? == 1,
        };
        from.finish(WHAT)?;
        Ok(proposal)
    }

    /// Whether a machine that is as `self` can go on where `here` is what there is.
    ///
    /// # Errors
    /// `Incompatible`, naming the first thing that differs.
    pub(crate) fn check(&self, here: &Self) -> Result<(), Refusal> {
        let differ =
            |what: String, remedy: &str| Err(Refusal::new(RefusalCode::Incompatible, what, remedy));
        const SAME_SPEC: &str = "give both hosts the same VM specification";
        if self.layout != here.layout {
            return differ(
                format!(
                    "guest memory is {} on the source and {} on the destination",
                    self.layout, here.layout
                ),
                SAME_SPEC,
            );
        }
        if self.vcpus != here.vcpus {
            return differ(
                format!(
                    "the VM has {} vCPUs on the source and {} on the destination",
                    self.vcpus, here.vcpus
                ),
                SAME_SPEC,
            );
        }
        if let Some(difference) = self.cpu.difference(&here.cpu) {
            return differ(
                difference,
                "move the VM to a host with the same CPU model, microcode and kernel",
            );
        }
        let apart = u64::from(self.tsc_khz.abs_diff(here.tsc_khz));
        if apart * 1_000_000 > u64::from(here.tsc_khz) * TSC_TOLERANCE_PPM {
            return differ(
                format!(
                    "the TSC runs at {} kHz on the source and {} kHz on the destination",
                    self.tsc_khz, here.tsc_khz
                ),
                "move the VM to a host with the same CPU frequency",
            );
        }
        Ok(())
    }
}

/// The highest version both speak.
fn common_version(theirs: (u16, u16)) -> Result<u16, Refusal> {
    let version = theirs.1.min(VERSIONS.1);
    if version >= theirs.0.max(VERSIONS.0) {
        return Ok(version);
    }
    Err(Refusal::new(
        RefusalCode::Incompatible,
        format!(
            "the source speaks versions {} to {} of the migration protocol, the destination {} to {}",
            theirs.0, theirs.1, VERSIONS.0, VERSIONS.1
        ),
        "bring both hosts to the same release",
    ))
}

/// Source: greets and proposes; returns when the destination accepted.
pub(crate) fn propose(
    stream: &mut Stream,
    hello: &Hello,
    proposal: &Proposal,
    machine: &Machine,
) -> Result<Terms, Trouble> {
    stream.send_raw(&hello.encode())?;
    let version = match stream.receive()? {
        Frame::Welcome { version } if (VERSIONS.0..=VERSIONS.1).contains(&version) => version,
        _ => return Err(Malformed("the answer to the greeting").into()),
    };
    stream.speak(version);
    storage::check_leaving(&machine.devices, version)?;
    let post_copy = proposal.post_copy;
    if post_copy && version < 3 {
        return Err(no_post_copy("its release is too old", "update it").into());
    }
    stream.send(&Frame::Proposal(proposal.encode(version)))?;
    let verify = proposal.verify;
    let terms = Terms { version, verify, streams: 1, key: [0; TOKEN_BYTES], post_copy: None };
    let terms = match stream.receive()? {
        Frame::Accept if version == 1 => terms,
        Frame::AcceptStreams { streams, key }
            if version >= 2 && (1..=proposal.streams).contains(&streams) =>
        {
            Terms { streams, key, ..terms }
        }
        _ => return Err(Malformed("the answer to the proposal").into()),
    };
    if !post_copy {
        return Ok(terms);
    }
    match stream.receive()? {
        Frame::PostCopy { key } => Ok(Terms { post_copy: Some(key), ..terms }),
        _ => Err(Malformed("the answer to the proposal").into()),
    }
}

/// Whether pages can come here after the guest runs.
fn check_post_copy(machine: &Machine) -> Result<(), Refusal> {
    if let Err(why) = userfault::get() {
        return Err(no_post_copy(
            format_args!("userfaultfd(2) is not to be had there: {why}"),
            "start its agent as root or set vm.unprivileged_userfaultfd = 1 there",
        ));
    }
    if machine.memory.is_pooled() {
        return Err(no_post_copy(
            "the VM's memory is made of reserved pages of 2 MiB",
            "give the VM other pages",
        ));
    }
    Ok(())
}

fn no_post_copy(why: impl std::fmt::Display, remedy: &str) -> Refusal {
    Refusal::new(
        RefusalCode::Incompatible,
        format!("the destination cannot take the VM by post-copy: {why}"),
        format!("{remedy}, choose another host, or do not allow post-copy for this VM"),
    )
}

/// Destination: answers the greeting and the proposal. `key` is what other connections will show.
pub(crate) fn answer(
    stream: &mut Stream,
    hello: &Hello,
    machine: &Machine,
    key: [u8; TOKEN_BYTES],
    door: &Door,
) -> Result<Terms, Trouble> {
    let version = common_version(hello.versions)?;
    stream.send(&Frame::Welcome { version })?;
    stream.speak(version);
    let Frame::Proposal(bytes) = stream.receive()? else {
        return Err(Malformed("the order of frames").into());
    };
    let proposal = Proposal::decode(&bytes, version)?;
    proposal.check(&Proposal::of(machine, proposal.verify, STREAMS_MAX))?;
    if proposal.post_copy {
        check_post_copy(machine)?;
    }
    storage::landing::admit(&machine.devices, &proposal.disks)?;
    let terms = Terms {
        version,
        verify: proposal.verify,
        streams: proposal.streams.clamp(1, STREAMS_MAX),
        key,
        post_copy: proposal.post_copy.then(|| door.issue()),
    };
    stream.send(&match version {
        1 => Frame::Accept,
        _ => Frame::AcceptStreams { streams: terms.streams, key },
    })?;
    if let Some(key) = terms.post_copy {
        stream.send(&Frame::PostCopy { key })?;
    }
    Ok(terms)
}

#[cfg(test)]
mod tests {
    use ballast_model::Bytes;

    use super::*;

    fn proposal() -> Proposal {
        let mut to = Encoder::default();
        to.count(0);
        let cpu = CpuModel::decode(&mut Decoder::new(&to.finish())).unwrap();
        let layout = Layout::of_size(Bytes::mib(64));
        let disks = vec![DiskTerms { number: 1, bytes: 1 << 20, allocated: 4096 }];
        let (streams, post_copy) = (4, true);
        Proposal {
            layout,
            vcpus: 2,
            cpu,
            tsc_khz: 2_000_000,
            verify: true,
            streams,
            disks,
            post_copy,
        }
    }

    fn check_differs(change: impl Fn(&mut Proposal), expected: &str) {
        let mut other = proposal();
        change(&mut other);
        let refusal = proposal().check(&other).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::Incompatible);
        assert!(refusal.reason.contains(expected), "{refusal}");
    }

    #[test]
    fn what_differs_is_named() {
        proposal().check(&proposal()).unwrap();
        check_differs(
            |p| p.layout = Layout::of_size(Bytes::mib(65)),
            "16384 pages at 0x0 on the source and 16640 pages at 0x0",
        );
        check_differs(|p| p.vcpus = 3, "2 vCPUs on the source and 3");
        check_differs(|p| p.tsc_khz = 2_001_000, "2000000 kHz");
    }

    #[test]
    fn a_crystal_may_be_off_a_little() {
        let mut other = proposal();
        other.tsc_khz += 400;
        proposal().check(&other).unwrap();
    }

    #[test]
    fn the_highest_common_version_is_spoken() {
        assert_eq!(common_version((1, 1)).unwrap(), 1);
        assert_eq!(common_version((1, 2)).unwrap(), 2);
        assert_eq!(common_version((0, 7)).unwrap(), VERSIONS.1);
        let refusal = common_version((VERSIONS.1 + 1, VERSIONS.1 + 2)).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::Incompatible);
    }

    #[test]
    fn a_proposal_survives_the_wire_and_nothing_shorter_does() {
        let bytes = proposal().encode(3);
        assert_eq!(Proposal::decode(&bytes, 3), Ok(proposal()));
        for end in 0..bytes.len() {
            assert!(Proposal::decode(&bytes[..end], 3).is_err(), "{end}");
        }
    }

    #[test]
    fn earlier_versions_have_less() {
        let before = proposal().encode(2);
        assert_eq!(Proposal::decode(&before, 2), Ok(Proposal { post_copy: false, ..proposal() }));
        let before = proposal().encode(1);
        assert_eq!(
            Proposal::decode(&before, 1),
            Ok(Proposal { streams: 1, disks: vec![], post_copy: false, ..proposal() })
        );
        assert!(Proposal::decode(&before, 2).is_err());
    }
}
