//! What this program needs of `/dev/kvm` beyond `kvm-ioctls`.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`ioctl`] | the calls `kvm-ioctls` does not wrap |

pub(crate) mod ioctl;

use std::sync::OnceLock;

use ballast_model::{Refusal, RefusalCode};
use kvm_ioctls::Kvm;

const DEVICE: &str = "/dev/kvm";
/// The only version of the API there has been since Linux 2.6.22.
const API_VERSION: i32 = 12;

/// Opens `/dev/kvm`, once: later it could not be opened any more (see [`crate::jail`]).
///
/// # Errors
/// `Unsupported` when the machine has none or its API is another, `HostFailure`
/// when it cannot be opened.
pub(crate) fn open() -> Result<&'static Kvm, Refusal> {
    static KVM: OnceLock<Kvm> = OnceLock::new();
    match KVM.get() {
        Some(kvm) => Ok(kvm),
        None => open_device().map(|kvm| KVM.get_or_init(|| kvm)),
    }
}

fn open_device() -> Result<Kvm, Refusal> {
    let kvm = Kvm::new().map_err(|error| match error.errno() {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => Refusal::new(
            RefusalCode::Unsupported,
            format!("this machine has no usable {DEVICE}: {error}"),
            "switch virtualisation on in the firmware and load kvm_intel or kvm_amd, or use the sim driver",
        ),
        libc::EACCES | libc::EPERM => Refusal::new(
            RefusalCode::HostFailure,
            format!("{DEVICE} cannot be opened: {error}"),
            "run it as root or add its user to the group kvm",
        ),
        _ => Refusal::new(
            RefusalCode::HostFailure,
            format!("{DEVICE} cannot be opened: {error}"),
            "check the kernel log of the host",
        ),
    })?;
    match kvm.get_api_version() {
        API_VERSION => Ok(kvm),
        other => Err(Refusal::new(
            RefusalCode::Unsupported,
            format!("{DEVICE} speaks version {other} of the KVM API, this program {API_VERSION}"),
            "use a Linux kernel with the stable KVM API",
        )),
    }
}

/// A refusal for a call that KVM did not carry out; `what` completes "KVM did not …".
pub(crate) fn failed(what: &str, error: kvm_ioctls::Error) -> Refusal {
    Refusal::new(
        RefusalCode::HostFailure,
        format!("KVM did not {what}: {error}"),
        "check the kernel log of the host",
    )
}
