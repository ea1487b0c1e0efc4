//! The ACPI tables a Linux guest finds its hardware in.
//!
//! ```text
//!   RSDP ──▶ XSDT ──▶ FADT ──▶ DSDT   COM1, pvpanic, virtio devices, _S5_
//!                └──▶ MADT            local APIC per vCPU, IOAPIC
//! ```
//!
//! Hardware-reduced ACPI (ACPI 6.5, section 4.1): no SCI, no PM timer, no
//! fixed events; sleep and reset are registers of a byte ([`crate::power`]). A
//! guest learns of its devices here alone, so nothing needs to be said on the
//! command line. Interrupts of virtio devices are edges, active high.

use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, Path, ResourceTemplate, Scope,
};
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, aml};
use ballast_model::{Refusal, RefusalCode};

use super::MmioDevice;
use super::low::{self, ACPI, RESET_VECTOR};
use crate::memory::GuestRam;
use crate::power;

const OEM_ID: [u8; 6] = *b"BALLST";
const OEM_TABLE_ID: [u8; 8] = *b"BALLAST ";
const OEM_REVISION: u32 = 1;
const DSDT_REVISION: u8 = 2;
const MADT_REVISION: u8 = 5;
const HEADER_BYTES: u32 = 36;

const LOCAL_APIC: u32 = 0xfee0_0000;
const IO_APIC: u32 = 0xfec0_0000;
const COM1: (u16, u32) = (0x3f8, 4);
/// IAPC_BOOT_ARCH (table 5.11): no VGA to probe, no CMOS clock. The bits for
/// legacy devices and an 8042 stay clear: there are none.
const BOOT_ARCH: u16 = 1 << 2 | 1 << 5;
/// The pvpanic device, as QEMU has it and Linux's `pvpanic-mmio` knows it.
const PVPANIC_HID: &str = "QEMU0001";
/// The virtio-mmio device of the specification's appendix and of Linux's `virtio_mmio`.
const VIRTIO_MMIO_HID: &str = "LNRO0005";
const ALIGN: usize = 64;

/// Writes the tables and answers with the address of the RSDP.
pub(super) fn write(memory: &GuestRam, vcpus: u32, devices: &[MmioDevice]) -> Result<u64, Refusal> {
    let image = tables(vcpus, devices)?;
    if ACPI + image.len() as u64 > RESET_VECTOR {
        return Err(Refusal::new(
            RefusalCode::CapacityExceeded,
            format!("the ACPI tables take {} bytes", image.len()),
            "give the VM fewer vCPUs or devices",
        ));
    }
    low::write(memory, &image, ACPI)?;
    Ok(ACPI)
}

/// All tables as they stand from [`ACPI`] on.
fn tables(vcpus: u32, devices: &[MmioDevice]) -> Result<Vec<u8>, Refusal> {
    // The RSDP comes first and is written last: it points to the others.
    let mut image = vec![0; ALIGN];
    let mut add = |table: &[u8]| {
        let address = ACPI + image.len() as u64;
        image.extend_from_slice(table);
        image.resize(image.len().next_multiple_of(ALIGN), 0);
        address
    };
    let dsdt = add(dsdt(devices)?.as_slice());
    let fadt = add(&bytes(&fadt(dsdt)));
    let madt = add(madt(vcpus)?.as_slice());
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = add(&bytes(&xsdt));
    let rsdp = bytes(&Rsdp::new(OEM_ID, xsdt));
    image[..rsdp.len()].copy_from_slice(&rsdp);
    Ok(image)
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn sdt(signature: [u8; 4], revision: u8) -> Sdt {
    Sdt::new(signature, HEADER_BYTES, revision, OEM_ID, OEM_TABLE_ID, OEM_REVISION)
}

fn fadt(dsdt: u64) -> impl Aml {
    let register =
        |port: u16| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(port));
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless)
        .flag(Flags::HwReducedAcpi);
    fadt.iapc_boot_arch = BOOT_ARCH.into();
    fadt.reset_reg = register(power::RESET_PORT);
    fadt.reset_value = power::RESET_VALUE;
    fadt.sleep_control_reg = register(power::SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = register(power::SLEEP_STATUS_PORT);
    fadt.finalize()
}

/// Not the `MADT` of the crate: it leaves length and checksum as they are when a structure is added.
fn madt(vcpus: u32) -> Result<Sdt, Refusal> {
    let mut madt = sdt(*b"APIC", MADT_REVISION);
    madt.append_slice(&LOCAL_APIC.to_le_bytes());
    madt.append_slice(&0u32.to_le_bytes()); // flags: no 8259 to be masked
    for vcpu in 0..vcpus {
        let id = u8::try_from(vcpu).ok().filter(|&id| id < u8::MAX).ok_or_else(|| {
            Refusal::new(
                RefusalCode::InvalidArgument,
                format!("{vcpus} vCPUs are more than there are local APICs"),
                "give the VM fewer vCPUs",
            )
        })?;
        madt.append_slice(&bytes(&ProcessorLocalApic::new(id, id, EnabledStatus::Enabled)));
    }
    madt.append_slice(&bytes(&IoApic::new(0, IO_APIC, 0)));
    Ok(madt)
}

fn dsdt(devices: &[MmioDevice]) -> Result<Sdt, Refusal> {
    let mut dsdt = sdt(*b"DSDT", DSDT_REVISION);
    dsdt.append_slice(&com1());
    dsdt.append_slice(&pvpanic());
    for (number, device) in devices.iter().enumerate() {
        dsdt.append_slice(&virtio(number, *device)?);
    }
    let sleep_type = Package::new(vec![&power::SLEEP_TYPE_OFF, &aml::ZERO, &aml::ZERO, &aml::ZERO]);
    dsdt.append_slice(&bytes(&Name::new(Path::new("_S5_"), &sleep_type)));
    Ok(dsdt)
}

fn com1() -> Vec<u8> {
    let (port, gsi) = COM1;
    let ports = IO::new(port, port, 1, 8);
    let interrupt = Interrupt::new(true, true, false, false, gsi);
    let resources = ResourceTemplate::new(vec![&ports, &interrupt]);
    let id = Name::new(Path::new("_HID"), &EISAName::new("PNP0501"));
    let number = Name::new(Path::new("_UID"), &aml::ZERO);
    let resources = Name::new(Path::new("_CRS"), &resources);
    let device = Device::new(Path::new("COM1"), vec![&id, &number, &resources]);
    bytes(&Scope::new(Path::new("_SB_"), vec![&device]))
}

fn pvpanic() -> Vec<u8> {
    let port = IO::new(power::PANIC_PORT, power::PANIC_PORT, 1, 1);
    let id = Name::new(Path::new("_HID"), &PVPANIC_HID);
    let resources = ResourceTemplate::new(vec![&port]);
    let resources = Name::new(Path::new("_CRS"), &resources);
    let device = Device::new(Path::new("PEVT"), vec![&id, &resources]);
    bytes(&Scope::new(Path::new("_SB_"), vec![&device]))
}

fn virtio(number: usize, device: MmioDevice) -> Result<Vec<u8>, Refusal> {
    let defect = |what: String| Refusal::new(RefusalCode::Internal, what, "report a defect");
    let (Ok(address), Ok(size)) = (u32::try_from(device.address), u32::try_from(device.bytes))
    else {
        return Err(defect(format!("a virtio device stands at {:#x}", device.address)));
    };
    let number = u8::try_from(number).map_err(|_| defect("too many devices".to_owned()))?;
    let registers = Memory32Fixed::new(true, address, size);
    let interrupt = Interrupt::new(true, true, false, false, device.gsi);
    let resources = ResourceTemplate::new(vec![&registers, &interrupt]);
    let id = Name::new(Path::new("_HID"), &VIRTIO_MMIO_HID);
    let unique = Name::new(Path::new("_UID"), &number);
    let coherent = Name::new(Path::new("_CCA"), &aml::ONE);
    let resources = Name::new(Path::new("_CRS"), &resources);
    let name = Path::new(&format!("VR{number:02X}"));
    let device = Device::new(name, vec![&id, &unique, &coherent, &resources]);
    Ok(bytes(&Scope::new(Path::new("_SB_"), vec![&device])))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(image: &[u8], at: usize) -> usize {
        u32::from_le_bytes(image[at..at + 4].try_into().unwrap()) as usize
    }

    /// The table at this guest address, its checksum verified.
    fn table(image: &[u8], address: usize) -> &[u8] {
        let start = address - usize::try_from(ACPI).unwrap();
        let table = &image[start..start + word(image, start + 4)];
        assert_eq!(table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        table
    }

    fn build(vcpus: u32, devices: usize) -> Vec<u8> {
        let device = |n: usize| MmioDevice {
            address: 0xd000_0000 + n as u64 * 0x1000,
            bytes: 0x1000,
            gsi: 5 + u32::try_from(n).unwrap(),
        };
        tables(vcpus, &(0..devices).map(device).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn the_tables_are_found_from_the_root() {
        let image = build(3, 2);
        assert_eq!(&image[..8], b"RSD PTR ");
        let xsdt = table(&image, word(&image, 24));
        assert_eq!(&xsdt[..4], b"XSDT");
        let fadt = table(&image, word(xsdt, 36));
        assert_eq!((&fadt[..4], fadt.len()), (&b"FACP"[..], 276));
        let dsdt = table(&image, word(fadt, 140));
        assert_eq!(&dsdt[..4], b"DSDT");
        let madt = table(&image, word(xsdt, 44));
        assert_eq!((&madt[..4], madt.len()), (&b"APIC"[..], 44 + 3 * 8 + 12));
    }

    #[test]
    fn every_device_is_named() {
        let image = build(1, 16);
        let count = image.windows(8).filter(|window| *window == VIRTIO_MMIO_HID.as_bytes()).count();
        assert_eq!(count, 16);
    }

    #[test]
    fn the_most_of_everything_fits_and_more_is_refused() {
        let image = build(254, 16);
        assert!(ACPI + (image.len() as u64) < RESET_VECTOR, "{}", image.len());
        assert!(tables(300, &[]).is_err());
    }
}
