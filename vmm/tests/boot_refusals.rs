//! What `boot::load` says to files that are no kernels.

#![allow(clippy::unwrap_used)] // helpers of tests

use std::path::Path;

use ballast_guest::IMAGE;
use ballast_model::{Refusal, RefusalCode};
use ballast_vmm::{GuestRam, boot};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

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
    assert!((0x10_0000..0x20_0000).contains(&state.regs(0).rip));
    let sregs = state.sregs(0, Default::default());
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
    let later = changed(note + 8, &3u64.to_le_bytes());
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

/// A bzImage of `sectors` setup sectors and `kernel` bytes behind them, that wants `init` bytes.
fn bzimage(sectors: u8, kernel: usize, init: u32) -> Vec<u8> {
    let setup = (usize::from(sectors) + 1) * 512;
    let mut image = vec![0; setup + kernel];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[sectors]);
    put(0x1f4, &u32::try_from(kernel / 16).unwrap().to_le_bytes());
    put(0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(0x202, b"HdrS");
    put(0x206, &0x020f_u16.to_le_bytes());
    put(0x211, &[1]);
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes());
    put(0x234, &[1]);
    put(0x236, &3u16.to_le_bytes());
    put(0x238, &255u32.to_le_bytes());
    put(0x258, &0x20_0000_u64.to_le_bytes());
    put(0x260, &init.to_le_bytes());
    image
}

#[test]
fn a_bzimage_is_entered_in_64_bit_mode() {
    let image = bzimage(4, 4096, 2 << 20);
    let state = load(&image, 16, "console=ttyS0").unwrap();
    assert_eq!((state.regs(0).rip, state.regs(0).rsi), (0x10_0200, 0x8000));
    let sregs = state.sregs(0, Default::default());
    assert_eq!((sregs.cs.l, sregs.cs.dpl, sregs.cs.selector), (1, 0, 0x10));
}

#[test]
fn bzimages_that_cannot_be_booted_are_refused() {
    use RefusalCode::{CapacityExceeded, InvalidArgument};
    let image = bzimage(4, 4096, 2 << 20);
    for cut in [0x203, 0x250, 3000, image.len() - 1] {
        let refusal = load(&image[..cut], 16, "").unwrap_err();
        assert_eq!(refusal.code, InvalidArgument, "{cut}: {refusal}");
    }
    check_refused(&image[..image.len() - 16], InvalidArgument, "it is cut short");
    let without = |at: usize| {
        let mut image = image.clone();
        image[at] = 0;
        image
    };
    for at in [0x207, 0x211, 0x234, 0x236] {
        check_refused(&without(at), InvalidArgument, "without a relocatable 64-bit entry");
    }
    check_refused(&bzimage(4, 4096, 32 << 20), CapacityExceeded, "to unpack itself");
    check_refused(&bzimage(4, 4096, u32::MAX), CapacityExceeded, "to unpack itself");
    let refusal = load(&image, 16, &"x".repeat(256)).unwrap_err();
    assert!(refusal.remedy.contains("255 bytes"), "{refusal}");
}

#[test]
fn initial_ram_disks_are_placed_high_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let kernel = file("kernel", &bzimage(4, 4096, 2 << 20));
    let load = |mib: usize, initrd: &Path| {
        let memory = memory(mib);
        boot::load(&memory, &order(&kernel, Some(initrd), "")).map(|_| memory)
    };
    // A plain archive: LZO is not looked into.
    let mut archive = b"\x89LZO rest of it".to_vec();
    archive.resize(1 << 20, 7);
    let initrd = file("initrd", &archive);
    let memory = load(8, &initrd).unwrap();
    let mut told = [0; 8];
    memory.read_slice(&mut told, GuestAddress(0x8218)).unwrap();
    assert_eq!(told, [0, 0, 0x70, 0, 0, 0, 0x10, 0], "7 MiB, 1 MiB long");
    let mut restart = [0; 6];
    memory.read_slice(&mut restart, GuestAddress(0xf_fff0)).unwrap();
    assert_eq!(restart, [0xba, 0xf9, 0x0c, 0xb0, 0x06, 0xee], "real mode: 6 to port 0xcf9");
    let mut there = vec![0; archive.len()];
    memory.read_slice(&mut there, GuestAddress(7 << 20)).unwrap();
    assert!(there == archive);

    let check = |mib: usize, initrd: &Path, code: RefusalCode, expected: &str| {
        let refusal = load(mib, initrd).unwrap_err();
        assert_eq!(refusal.code, code, "{refusal}");
        assert!(refusal.to_string().contains(expected), "{refusal}");
    };
    let large = file("large", &[archive.clone(), vec![7; 4 << 20]].concat());
    check(8, &large, RefusalCode::CapacityExceeded, "beside the kernel guest memory has room for");
    check(8, &file("text", b"not an archive"), RefusalCode::InvalidArgument, "is neither cpio nor");
    check(8, &file("cut", b"070701000"), RefusalCode::InvalidArgument, "cut short");
    check(8, &file("empty", b""), RefusalCode::InvalidArgument, "it is empty");
    check(8, dir.path(), RefusalCode::InvalidArgument, "is not a file");
    check(8, &dir.path().join("none"), RefusalCode::NotFound, "initrd path");
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

    #[test]
    fn damaged_bzimages_are_survived(
        spots in prop::collection::vec((0x1f1..0x290usize, any::<u8>()), 1..8),
        cut in proptest::option::of(0..6000usize),
    ) {
        let mut image = bzimage(4, 4096, 2 << 20);
        for (at, byte) in spots {
            image[at] = byte;
        }
        image.truncate(cut.unwrap_or(image.len()).min(image.len()));
        if let Err(refusal) = load(&image, 8, "root=/dev/vda") {
            prop_assert!(!refusal.remedy.is_empty());
        }
    }
}
