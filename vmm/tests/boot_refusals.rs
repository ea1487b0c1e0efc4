//! What `boot::load` says to files that are no kernels.

#![allow(clippy::unwrap_used)] // helpers of tests

use std::path::Path;

use ballast_guest::IMAGE;
use ballast_model::{Refusal, RefusalCode};
use ballast_vmm::{GuestRam, boot};
use proptest::prelude::*;
use vm_memory::GuestAddress;

/// Offsets in an ELF file, and in the program headers that follow its header.
const MACHINE: usize = 18;
const PROGRAM_HEADERS: usize = 32;
const PROGRAM_HEADER_COUNT: usize = 56;
const FIRST_SEGMENT: usize = 64;
const SEGMENT_OFFSET: usize = FIRST_SEGMENT + 8;
const SEGMENT_ADDRESS: usize = FIRST_SEGMENT + 24;
const SEGMENT_FILE_BYTES: usize = FIRST_SEGMENT + 32;
const SEGMENT_MEMORY_BYTES: usize = FIRST_SEGMENT + 40;

fn memory(mib: usize) -> GuestRam {
    GuestRam::from_ranges(&[(GuestAddress(0), mib << 20)]).unwrap()
}

fn order<'a>(kernel: &'a Path, initrd: Option<&'a Path>, cmdline: &'a str) -> boot::Order<'a> {
    boot::Order { kernel, initrd, cmdline, vcpus: 1, tsc_khz: 2_600_000, devices: &[] }
}

fn load(image: &[u8], mib: usize, cmdline: &str) -> Result<boot::BootState, Refusal> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), image).unwrap();
    boot::load(&memory(mib), &order(file.path(), None, cmdline))
}

fn check_refused(image: &[u8], code: RefusalCode, expected: &str) {
    let refusal = load(image, 16, "").unwrap_err();
    assert_eq!(refusal.code, code, "{refusal}");
    assert!(refusal.to_string().contains(expected), "{refusal}");
}

fn changed(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut image = IMAGE.to_vec();
    image[at..at + bytes.len()].copy_from_slice(bytes);
    image
}

#[test]
fn the_probe_guest_is_loaded() {
    let state = load(IMAGE, 16, "duty=5").unwrap();
    assert!((0x10_0000..0x20_0000).contains(&state.regs().rip));
    let sregs = state.sregs(Default::default());
    assert_eq!((sregs.cs.dpl, sregs.ss.dpl), (3, 3));
    assert!(sregs.cr3.is_multiple_of(4096));
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let check = |path: &str, code: RefusalCode| {
        let refusal = boot::load(&memory(1), &order(Path::new(path), None, "")).unwrap_err();
        assert_eq!(refusal.code, code, "{refusal}");
        assert!(refusal.reason.contains(path), "{refusal}");
    };
    check("/nonexistent/kernel", RefusalCode::NotFound);
    check("/", RefusalCode::InvalidArgument);
    check("/dev/null", RefusalCode::InvalidArgument);
}

#[test]
fn files_that_are_no_kernels_are_refused() {
    use RefusalCode::InvalidArgument;
    let maximum = u64::MAX.to_le_bytes();
    check_refused(b"", InvalidArgument, "neither a bzImage nor a 64-bit little-endian ELF file");
    check_refused(
        &[0x7f; 4096],
        InvalidArgument,
        "neither a bzImage nor a 64-bit little-endian ELF file",
    );
    check_refused(
        &changed(4, &[1]),
        InvalidArgument,
        "neither a bzImage nor a 64-bit little-endian ELF file",
    );
    check_refused(&changed(MACHINE, &[3, 0]), InvalidArgument, "not a program for x86-64");
    check_refused(&IMAGE[..100], InvalidArgument, "program header table is malformed");
    check_refused(&IMAGE[..IMAGE.len() / 8], InvalidArgument, "segment is malformed or cut short");
    for (at, bytes) in [(PROGRAM_HEADERS, &maximum[..]), (PROGRAM_HEADER_COUNT, &[255, 255])] {
        check_refused(&changed(at, bytes), InvalidArgument, "program header table is malformed");
    }
    check_refused(&changed(SEGMENT_OFFSET, &maximum), InvalidArgument, "segment is malformed");
    check_refused(&changed(SEGMENT_FILE_BYTES, &maximum), InvalidArgument, "malformed");
    check_refused(&changed(PROGRAM_HEADER_COUNT, &[0, 0]), InvalidArgument, "nothing in it");
}

#[test]
fn segments_stay_inside_guest_memory() {
    use RefusalCode::CapacityExceeded;
    let maximum = u64::MAX.to_le_bytes();
    for address in [0u64, 0x6000, 0xf_ffff, 16 << 20, (16 << 20) - 1, u64::MAX] {
        let image = changed(SEGMENT_ADDRESS, &address.to_le_bytes());
        check_refused(&image, CapacityExceeded, "below 1 MiB or outside guest memory");
    }
    check_refused(&changed(SEGMENT_MEMORY_BYTES, &maximum), CapacityExceeded, "outside guest");
    let refusal = load(IMAGE, 1, "").unwrap_err();
    assert_eq!(refusal.code, CapacityExceeded);
    assert!(refusal.remedy.contains("more memory"), "{refusal}");
}

#[test]
fn a_kernel_that_does_not_say_how_to_enter_it_is_unsupported() {
    let note = IMAGE.windows(8).position(|window| window == b"Ballast\0").unwrap();
    let xen = IMAGE.windows(4).position(|window| window == b"Xen\0").unwrap();
    let mut nameless = changed(note, b"Xallast\0");
    nameless[xen] = b'Z';
    check_refused(&nameless, RefusalCode::Unsupported, "no ELF note of owner Xen");
    check_refused(&nameless, RefusalCode::Unsupported, "CONFIG_PVH");
    let later = changed(note + 8, &2u64.to_le_bytes());
    check_refused(&later, RefusalCode::Unsupported, "note this version cannot read");
    let short = changed(note - 8, &8u32.to_le_bytes());
    assert!(load(&short, 16, "").is_err());
}

#[test]
fn a_command_line_has_a_bound() {
    assert!(load(IMAGE, 16, &"x".repeat(2048)).is_ok());
    for cmdline in ["x".repeat(2200), "a\0b".to_owned()] {
        let refusal = load(IMAGE, 16, &cmdline).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::InvalidArgument);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever the headers and notes say: an answer, no panic, no endless work.
    #[test]
    fn damaged_headers_are_survived(
        spots in prop::collection::vec((0..FIRST_SEGMENT + 4 * 56, any::<u8>()), 1..8),
        cut in proptest::option::of(0..IMAGE.len()),
    ) {
        let mut image = IMAGE.to_vec();
        for (at, byte) in spots {
            image[at] = byte;
        }
        image.truncate(cut.unwrap_or(IMAGE.len()));
        if let Err(refusal) = load(&image, 4, "") {
            prop_assert!(!refusal.remedy.is_empty());
        }
    }

    #[test]
    fn damaged_notes_are_survived(
        offset in 0..200usize,
        bytes in prop::collection::vec(any::<u8>(), 1..40),
    ) {
        let notes = IMAGE.windows(4).position(|window| window == b"Xen\0").unwrap() - 12;
        let end = (notes + offset + bytes.len()).min(IMAGE.len());
        let image = changed(notes + offset, &bytes[..end - notes - offset]);
        if let Err(refusal) = load(&image, 4, "") {
            prop_assert!(!refusal.remedy.is_empty());
        }
    }
}
