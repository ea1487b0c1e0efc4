//! The machine's NUMA nodes, as `/sys/devices/system/node` has them (Documentation/ABI/stable/sysfs-devices-node).

use std::path::Path;

use ballast_model::{Bytes, Millicores, Resources};

use super::sampler::read_text;

/// Where the kernel shows nodes.
pub const NODES: &str = "/sys/devices/system/node";
/// The most nodes and CPUs there can be (Linux's MAX_NUMNODES and NR_CPUS on x86).
const NODES_MAX: usize = 1_024;
const CPUS_MAX: u64 = 8_192;

/// What each node under `dir` has of CPUs and memory. None where there is only one node, or where what the kernel shows
/// cannot be understood.
pub fn nodes(dir: &Path) -> Vec<Resources> {
    let Ok(entries) = dir.read_dir() else { return Vec::new() };
    let number = |name: &str| name.strip_prefix("node")?.parse::<u32>().ok();
    let mut numbers: Vec<u32> =
        entries.flatten().filter_map(|entry| number(entry.file_name().to_str()?)).collect();
    if !(2..=NODES_MAX).contains(&numbers.len()) {
        return Vec::new();
    }
    numbers.sort_unstable();
    let nodes: Option<Vec<Resources>> =
        numbers.into_iter().map(|n| node(&dir.join(format!("node{n}")))).collect();
    nodes.unwrap_or_default()
}

/// What each node has of `capacity`, the part of the machine's that VMs may have: in proportion. Nodes without CPUs or
/// without memory, on which nothing can run, are left out.
pub fn parts(nodes: &[Resources], capacity: Resources) -> Vec<Resources> {
    let all: Resources = nodes.iter().copied().sum();
    let part = |own: u64, all: u64, capacity: u64| {
        let part = u128::from(own) * u128::from(capacity) / u128::from(all.max(1));
        u64::try_from(part).unwrap_or(u64::MAX)
    };
    nodes
        .iter()
        .map(|node| {
            let cpu = part(node.cpu.get(), all.cpu.get(), capacity.cpu.get());
            let memory = part(node.memory.get(), all.memory.get(), capacity.memory.get());
            Resources::new(Millicores(cpu), Bytes(memory))
        })
        .filter(|node| node.cpu > Millicores::ZERO && node.memory > Bytes::ZERO)
        .collect()
}

fn node(dir: &Path) -> Option<Resources> {
    let cpus = cpus(&read_text(&dir.join("cpulist"))?)?;
    let memory = memory(&read_text(&dir.join("meminfo"))?)?;
    Some(Resources::new(Millicores::cores(cpus), memory))
}

/// How many CPUs a list names, e.g. `0-3,8-11`.
fn cpus(list: &str) -> Option<u64> {
    let ranges = list.trim().split(',').filter(|range| !range.is_empty());
    let count = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        (first <= last && last < CPUS_MAX).then(|| last - first + 1)
    };
    let counts: Option<Vec<u64>> = ranges.map(count).collect();
    Some(counts?.into_iter().sum())
}

/// `Node 0 MemTotal:  32768 kB`.
fn memory(meminfo: &str) -> Option<Bytes> {
    let total = meminfo.lines().find_map(|line| line.split_once("MemTotal:"))?.1;
    let kib: u64 = total.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024).map(Bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory with nodes of these CPUs and so much memory in KiB, and what else is there.
    fn machine(nodes: &[(u32, &str, u64)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("online"), "0-1\n").unwrap();
        std::fs::create_dir(dir.path().join("power")).unwrap();
        for (number, cpus, kib) in nodes {
            let node = dir.path().join(format!("node{number}"));
            std::fs::create_dir(&node).unwrap();
            std::fs::write(node.join("cpulist"), format!("{cpus}\n")).unwrap();
            let meminfo =
                format!("Node {number} MemTotal:  {kib} kB\nNode {number} MemFree:  1 kB\n");
            std::fs::write(node.join("meminfo"), meminfo).unwrap();
        }
        dir
    }

    fn amounts(cores: u64, mib: u64) -> Resources {
        Resources::new(Millicores::cores(cores), Bytes::mib(mib))
    }

    fn check(shown: &[(u32, &str, u64)], expected: &[Resources]) {
        assert_eq!(nodes(machine(shown).path()), expected, "{shown:?}");
    }

    #[test]
    fn each_node_has_its_cpus_and_memory() {
        check(
            &[(10, "4-7,12-14", 16 << 10), (2, "0-3,8", 32 << 10)],
            &[amounts(5, 32), amounts(7, 16)],
        );
    }

    #[test]
    fn one_node_is_the_machine_itself() {
        check(&[(0, "0-7", 32 << 10)], &[]);
        check(&[], &[]);
        assert!(nodes(Path::new("/nonexistent")).is_empty());
    }

    #[test]
    fn nothing_runs_on_a_node_of_memory_alone() {
        let nodes = [amounts(8, 32), amounts(0, 64)];
        check(&[(0, "0-7", 32 << 10), (1, "", 64 << 10)], &nodes);
        assert_eq!(parts(&nodes, amounts(4, 48)), [amounts(4, 16)]);
    }

    #[test]
    fn what_cannot_be_understood_is_not_guessed() {
        for cpus in ["x", "3-1", "0-", "0-99999999999"] {
            check(&[(0, "0-3", 32 << 10), (1, cpus, 32 << 10)], &[]);
        }
        assert_eq!(memory("Node 0 MemTotal: 18446744073709551615 kB\n"), None);
        assert_eq!(memory("Node 0 MemFree: 5 kB\n"), None);
    }

    #[test]
    fn nodes_share_what_is_offered_of_the_machine() {
        let nodes = [amounts(4, 1024), amounts(12, 3072)];
        assert_eq!(parts(&nodes, amounts(8, 2048)), [amounts(2, 512), amounts(6, 1536)]);
        let most = Resources::new(Millicores(u64::MAX), Bytes(u64::MAX));
        assert_eq!(parts(&[most], most), [most]);
        assert!(parts(&[], most).is_empty());
    }
}
