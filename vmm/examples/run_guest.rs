//! Runs a guest on the least machine it boots on, prints its console, and ends
//! after a number of seconds with the CPU time used. For work on guests and on
//! `boot`, and to measure what an idle guest costs; the real machine is `ballast-vmm`.
//!
//! `run_guest <kernel, or - for the probe guest> <memory MiB> <seconds> [command line]`

#[path = "../tests/support/mini.rs"]
#[allow(dead_code)]
mod mini;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ballast_vmm::boot;
use rustix::time::{ClockId, clock_gettime};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, kernel, mib, seconds, cmdline @ ..] = args.as_slice() else {
        return Err("usage: run_guest <kernel|-> <memory MiB> <seconds> [command line]".into());
    };
    let seconds = Duration::from_secs(seconds.parse()?);
    let probe = tempfile::NamedTempFile::new()?;
    std::fs::write(probe.path(), ballast_guest::IMAGE)?;
    let kernel = if kernel == "-" { probe.path().to_owned() } else { PathBuf::from(kernel) };

    let machine = mini::Mini::new(mib.parse()?)?;
    let khz = machine.vcpu().get_tsc_khz()?;
    boot(&machine, &kernel, &cmdline.join(" "), khz)?;
    let running = machine.start()?;
    let end = Instant::now() + seconds;
    let mut out = std::io::stdout();
    while let Ok(bytes) =
        running.console.recv_timeout(end.saturating_duration_since(Instant::now()))
    {
        out.write_all(&bytes)?;
        out.flush()?;
    }
    running.stop()?;
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    let millis = cpu.tv_sec * 1000 + cpu.tv_nsec / 1_000_000;
    eprintln!("{millis} ms of CPU time in {} s", seconds.as_secs());
    Ok(())
}

fn boot(
    machine: &mini::Mini,
    kernel: &Path,
    cmdline: &str,
    khz: u32,
) -> Result<(), ballast_model::Refusal> {
    let order = boot::Order { kernel, initrd: None, cmdline, vcpus: 1, tsc_khz: khz, devices: &[] };
    boot::load(machine.memory(), &order)?.apply(machine.vcpu(), 0)
}
