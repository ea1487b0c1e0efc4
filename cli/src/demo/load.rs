//! What the demo's VMs do: unequal loads that together overload one host and
//! leave a small machine room to breathe.

use ballast_guest::Params;
use ballast_model::{Bytes, Millicores, Refusal, RefusalCode, Resources, VmSpec};

/// CPU of all VMs together, in percent of one core. The VMs are as real as the machine's cores.
const DUTY_SUM_PERCENT: u32 = 84;
/// How much busier the busiest VM is than the idlest one.
const DUTY_RATIO: f64 = 7.0;
/// The share of its CPU that the first host would need for all of them.
const OVERLOAD: f64 = 1.4;
/// Rates at which VMs rewrite memory, in MiB per second, by turns.
const DIRTY_MIB_PER_SEC: [u32; 4] = [1, 4, 2, 8];

/// The VMs and the capacity of each host.
#[derive(Debug, Clone)]
pub(super) struct Load {
    pub(super) vms: Vec<VmSpec>,
    pub(super) capacity: Resources,
    /// The CPU the VMs were told to use, together.
    pub(super) cpu: Millicores,
}

/// A load of `count` VMs that run the probe guest at `kernel`.
///
/// # Errors
/// `Internal` when a VM does not fit its own memory.
pub(super) fn unequal(count: u32, kernel: &std::path::Path) -> Result<Load, Refusal> {
    let vms = (0..count).map(|index| vm(index, count, kernel)).collect::<Result<Vec<_>, _>>()?;
    let memory: Bytes = vms.iter().map(|vm| vm.memory).sum();
    let duty: u32 = (0..count).map(|index| duty_percent(index, count)).sum();
    let cpu = Millicores(u64::from(duty) * 10);
    // Room for all of them on one host, and in whole 64 MiB.
    let memory = Bytes::mib((memory.get() >> 20).div_ceil(64).saturating_mul(3).div_ceil(2) * 64);
    let capacity = Resources::new(cpu.scaled(ballast_model::Ratio::new(1.0 / OVERLOAD)), memory);
    Ok(Load { vms, capacity, cpu })
}

/// From the idlest to the busiest in equal steps, never zero.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a small positive number
fn duty_percent(index: u32, count: u32) -> u32 {
    let steps = f64::from(count.max(2) - 1);
    let weight = 1.0 + (DUTY_RATIO - 1.0) * f64::from(index) / steps;
    let sum = f64::from(count) * f64::midpoint(1.0, DUTY_RATIO);
    (weight / sum * f64::from(DUTY_SUM_PERCENT)).round().max(1.0) as u32
}

fn vm(index: u32, count: u32, kernel: &std::path::Path) -> Result<VmSpec, Refusal> {
    // 32 to 96 MiB in an order that has nothing to do with the CPU load.
    let memory_mib = 32 + index * 28 % 68;
    let name = format!("demo-{:02}", index + 1);
    let params = Params {
        name: Some(name.clone()),
        duty_percent: duty_percent(index, count),
        working_set_mib: memory_mib / 4,
        static_mib: memory_mib / 4,
        dirty_mib_per_sec: DIRTY_MIB_PER_SEC[index as usize % DIRTY_MIB_PER_SEC.len()],
        seed: u64::from(index) + 1,
        ..Params::default()
    };
    let defect = |what: String| Refusal::new(RefusalCode::Internal, what, "report a defect");
    if params.memory_mib_min() > u64::from(memory_mib) {
        return Err(defect(format!("VM {name} does not fit into {memory_mib} MiB")));
    }
    let id = name.parse().map_err(|error| defect(format!("{error}")))?;
    let memory = Bytes::mib(u64::from(memory_mib));
    Ok(VmSpec { cmdline: params.to_cmdline(), ..VmSpec::new(id, 1, memory, kernel) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_count_that_may_be_asked_for_makes_a_valid_unequal_load() {
        for count in 10..=24 {
            let load = unequal(count, "/guest".as_ref()).unwrap();
            assert_eq!(load.vms.len(), count as usize);
            load.vms.iter().for_each(|vm| vm.validate().unwrap());
            let duties: Vec<_> = (0..count).map(|index| duty_percent(index, count)).collect();
            assert!(duties[0] >= 1 && duties[count as usize - 1] >= 4 * duties[0], "{duties:?}");
            let memory: Bytes = load.vms.iter().map(|vm| vm.memory).sum();
            assert!(memory < load.capacity.memory, "all start on one host");
            assert!(load.cpu > load.capacity.cpu, "which is then overloaded");
            assert!(
                load.cpu < load.capacity.cpu.scaled(ballast_model::Ratio::new(2.4)),
                "{load:?}"
            );
        }
    }
}
