//! The interrupt controllers outside the vCPUs, and the PIT.

use ballast_model::Refusal;
use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip, kvm_pit_state2,
};
use kvm_ioctls::VmFd;

use crate::codec::{Decoder, Encoder, Malformed};
use crate::kvm::failed;

const CHIPS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];
const CHIP_BYTES: usize = size_of::<kvm_irqchip>();

/// Both PICs, the IOAPIC and the PIT.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct BoardState {
    /// In the order of [`CHIPS`], as bytes: the structure is a union.
    chips: [Vec<u8>; 3],
    pit: kvm_pit_state2,
}

impl BoardState {
    pub(crate) fn save(vm: &VmFd) -> Result<Self, Refusal> {
        let read = |chip_id: u32| {
            let mut chip = kvm_irqchip { chip_id, ..Default::default() };
            vm.get_irqchip(&mut chip)
                .map_err(|error| failed("read an interrupt controller", error))?;
            Ok::<_, Refusal>(zerocopy::IntoBytes::as_bytes(&chip).to_vec())
        };
        let chips = [read(CHIPS[0])?, read(CHIPS[1])?, read(CHIPS[2])?];
        let pit = vm.get_pit2().map_err(|error| failed("read the PIT", error))?;
        Ok(Self { chips, pit })
    }

    /// PICs, IOAPIC, PIT, in this order; after the local APICs.
    pub(crate) fn load(&self, vm: &VmFd) -> Result<(), Refusal> {
        for (bytes, chip_id) in self.chips.iter().zip(CHIPS) {
            let mut chip: kvm_irqchip = zerocopy::FromBytes::read_from_bytes(bytes.as_slice())
                .unwrap_or_else(|_| kvm_irqchip::default());
            // Whatever the bytes say: three chips, each once.
            chip.chip_id = chip_id;
            vm.set_irqchip(&chip).map_err(|error| failed("set an interrupt controller", error))?;
        }
        vm.set_pit2(&self.pit).map_err(|error| failed("set the PIT", error))
    }

    /// What stays the same as long as the machine does not run.
    #[cfg(test)]
    pub(crate) fn without_time(mut self) -> Self {
        self.pit.channels.iter_mut().for_each(|channel| channel.count_load_time = 0);
        self
    }

    pub(crate) fn encode(&self, to: &mut Encoder) {
        for chip in &self.chips {
            to.bytes(chip);
        }
        to.plain(&self.pit);
    }

    pub(crate) fn decode(from: &mut Decoder<'_>) -> Result<Self, Malformed> {
        const WHAT: &str = "the state of the interrupt controllers";
        let mut chip = || {
            let bytes = from.bytes(CHIP_BYTES, WHAT)?;
            if bytes.len() == CHIP_BYTES { Ok(bytes.to_vec()) } else { Err(Malformed(WHAT)) }
        };
        let chips = [chip()?, chip()?, chip()?];
        Ok(Self { chips, pit: from.plain(WHAT)? })
    }
}
