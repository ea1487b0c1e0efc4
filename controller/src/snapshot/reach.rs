//! What hosts offer and VMs need, in the words that the planner compares.
//!
//! To the words that operators give come those of CPUs, so that no plan moves a
//! VM to a CPU that its guest cannot go on with:
//!
//! | a VM with | needs | so that |
//! | --- | --- | --- |
//! | baseline `host` | `cpu-model:…` of its host, to move | its guest sees the very CPU it knows |
//! | another baseline | `cpu:BASELINE` | the host can give it |
//! | another baseline | `cpu-vendor:…` of its host, to move | the maker is the same, for makers differ in more than features |
//!
//! Whether a guest really sees the same is for the VMMs to say, which compare
//! tables of CPUID when a migration begins; the agent of the destination
//! compares models. This only keeps plans from what they would refuse.

use std::collections::BTreeSet;

use ballast_model::{CpuBaseline, VmSpec};

use crate::state::HostRecord;

/// Everything a host offers. One that does not tell its baselines (an older agent, `sim`) is taken to have all.
pub(super) fn offers(host: &HostRecord) -> BTreeSet<String> {
    let told = &host.cpu_baselines;
    let gives = |baseline: &CpuBaseline| told.is_empty() || told.contains(baseline);
    let mut offers = host.offers.clone();
    offers.extend(CpuBaseline::ALL.into_iter().filter(gives).filter_map(baseline));
    offers.extend(model(host));
    offers.extend(vendor(host));
    offers
}

/// What a VM needs wherever it runs.
pub(super) fn needs(spec: &VmSpec) -> BTreeSet<String> {
    let mut needs = spec.needs.clone();
    needs.extend(baseline(spec.cpu));
    needs
}

/// What a VM that runs on `host` needs besides to move elsewhere.
pub(super) fn needs_to_move(spec: &VmSpec, host: &HostRecord) -> BTreeSet<String> {
    let cpu = match spec.cpu {
        CpuBaseline::Host => model(host),
        CpuBaseline::X86_64V2 | CpuBaseline::X86_64V3 | CpuBaseline::X86_64V4 => vendor(host),
    };
    cpu.into_iter().collect()
}

/// Every host has the baseline `host`: nobody needs to ask for it.
fn baseline(baseline: CpuBaseline) -> Option<String> {
    (baseline != CpuBaseline::Host).then(|| format!("cpu:{baseline}"))
}

fn model(host: &HostRecord) -> Option<String> {
    (!host.cpu_model.is_empty()).then(|| format!("cpu-model:{}", host.cpu_model))
}

/// The first part of `vendor-family-model-hash`.
fn vendor(host: &HostRecord) -> Option<String> {
    let vendor = host.cpu_model.split('-').next().filter(|vendor| !vendor.is_empty())?;
    Some(format!("cpu-vendor:{vendor}"))
}

#[cfg(test)]
mod tests {
    use ballast_model::{Bytes, BytesPerSec, HostState, ReasonTrail, Resources};

    use super::*;

    const MODEL: &str = "AuthenticAMD-25-1-91f3c0";

    fn host(cpu_model: &str, offers: &[&str], cpu_baselines: &[CpuBaseline]) -> HostRecord {
        HostRecord {
            id: "h1".parse().unwrap(),
            endpoint: "127.0.0.1:9".to_owned(),
            driver: 0,
            capacity: Resources::default(),
            link: BytesPerSec::ZERO,
            labels: std::collections::BTreeMap::new(),
            version: String::new(),
            cpu_model: cpu_model.to_owned(),
            offers: offers.iter().map(|word| (*word).to_owned()).collect(),
            cpu_baselines: cpu_baselines.to_vec(),
            numa: Vec::new(),
            state: HostState::Active,
            drain: ReasonTrail::default(),
            drain_goal: None,
        }
    }

    fn spec(cpu: CpuBaseline) -> VmSpec {
        let needs = ["storage:san-1".to_owned()].into();
        VmSpec { cpu, needs, ..VmSpec::new("a".parse().unwrap(), 1, Bytes::mib(64), "/boot/guest") }
    }

    fn check(words: BTreeSet<String>, expected: &[&str]) {
        assert_eq!(words.iter().map(String::as_str).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_host_offers_what_its_owner_says_and_its_cpu() {
        let told = [CpuBaseline::Host, CpuBaseline::X86_64V2];
        check(
            offers(&host(MODEL, &["storage:san-1"], &told)),
            &[
                "cpu-model:AuthenticAMD-25-1-91f3c0",
                "cpu-vendor:AuthenticAMD",
                "cpu:x86-64-v2",
                "storage:san-1",
            ],
        );
    }

    #[test]
    fn a_host_that_tells_no_baselines_is_taken_to_have_all() {
        check(offers(&host("", &[], &[])), &["cpu:x86-64-v2", "cpu:x86-64-v3", "cpu:x86-64-v4"]);
    }

    #[test]
    fn a_guest_that_knows_all_of_its_cpu_moves_to_the_same() {
        let spec = spec(CpuBaseline::Host);
        check(needs(&spec), &["storage:san-1"]);
        let to_move = needs_to_move(&spec, &host(MODEL, &[], &[]));
        check(to_move, &["cpu-model:AuthenticAMD-25-1-91f3c0"]);
        check(needs_to_move(&spec, &host("", &[], &[])), &[]);
    }

    #[test]
    fn a_guest_with_a_baseline_moves_to_the_same_maker() {
        let spec = spec(CpuBaseline::X86_64V3);
        check(needs(&spec), &["cpu:x86-64-v3", "storage:san-1"]);
        check(needs_to_move(&spec, &host(MODEL, &[], &[])), &["cpu-vendor:AuthenticAMD"]);
    }
}
