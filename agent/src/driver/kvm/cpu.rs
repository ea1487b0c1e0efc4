//! The CPU of VMs on this host, as the VMM sees it.

use std::ffi::OsStr;
use std::path::Path;

use ballast_model::{CpuBaseline, Refusal, RefusalCode};
use serde::Deserialize;

/// The longest CPU model that is taken from a VMM.
const MODEL_BYTES_MAX: usize = 256;

/// What VMs get of this host's CPU.
#[derive(Debug)]
pub(super) struct HostCpu {
    /// Equal on two hosts when their VMs of baseline `host` see the same CPU.
    pub(super) model: String,
    /// Those that the host can give.
    pub(super) baselines: Vec<CpuBaseline>,
}

impl HostCpu {
    /// Asks the program `vmm`.
    ///
    /// # Errors
    /// `HostFailure` when it does not answer, or not as a VMM of this version does.
    pub(super) async fn ask(vmm: &Path) -> Result<Self, Refusal> {
        let said = super::ask(vmm, &[OsStr::new("--cpu-report")]).await;
        said.and_then(|report| Self::parse(&report)).map_err(|why| {
            Refusal::new(
                RefusalCode::HostFailure,
                format!("{} --cpu-report failed: {why}", vmm.display()),
                "check that vmm.binary is ballast-vmm, of the agent's own version",
            )
        })
    }

    /// A report, or in words what is the matter with it.
    fn parse(report: &str) -> Result<Self, String> {
        let report: Report = serde_json::from_str(report).map_err(|error| error.to_string())?;
        if report.model.is_empty() || report.model.len() > MODEL_BYTES_MAX {
            return Err(format!("its model is {} bytes long", report.model.len()));
        }
        let given = report.baselines.iter().filter(|baseline| baseline.missing.is_empty());
        let baselines = given.filter_map(|baseline| baseline.name.parse().ok()).collect();
        Ok(Self { model: report.model, baselines })
    }
}

/// What the VMM prints, as far as it matters here.
#[derive(Debug, Deserialize)]
struct Report {
    model: String,
    baselines: Vec<Baseline>,
}

#[derive(Debug, Deserialize)]
struct Baseline {
    name: String,
    /// Features that the host lacks for it.
    missing: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(model: &str) -> String {
        format!(
            r#"{{"model": "{model}", "brand": "a CPU", "features": [], "table": [], "baselines": [
                {{"name": "host", "missing": []}}, {{"name": "x86-64-v2", "missing": []}},
                {{"name": "x86-64-v3", "missing": ["avx2"]}}, {{"name": "x86-64-v9", "missing": []}}]}}"#
        )
    }

    #[test]
    fn a_baseline_is_given_when_nothing_is_missing_for_it() {
        let cpu = HostCpu::parse(&report("AuthenticAMD-25-1-91f3c0")).unwrap();
        assert_eq!(cpu.model, "AuthenticAMD-25-1-91f3c0");
        assert_eq!(cpu.baselines, [CpuBaseline::Host, CpuBaseline::X86_64V2]);
    }

    #[test]
    fn what_is_no_report_is_refused() {
        let (empty, long) = (report(""), report(&"x".repeat(MODEL_BYTES_MAX + 1)));
        for (text, expected) in [
            ("AuthenticAMD-25-1-91f3c0", "expected value"),
            ("{}", "missing field `model`"),
            (empty.as_str(), "0 bytes long"),
            (long.as_str(), "257 bytes long"),
        ] {
            let why = HostCpu::parse(text).unwrap_err();
            assert!(why.contains(expected), "{why}");
        }
    }
}
