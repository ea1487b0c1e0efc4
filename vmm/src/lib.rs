//! One process per VM: machine, devices, state and the pre-copy engine.
//!
//! | module | what it owns |
//! | --- | --- |
//! | [`process`] | the process: arguments, socket, when it ends |
//! | [`jail`] | what the process may still do |
//! | [`panic`] | what a defect in this program comes to |
//! | [`api`] | the gRPC service: messages in, values out |
//! | [`vm`] | the one VM of this process: what it is and what it may do next |
//! | [`machine`] | the hardware: KVM's VM, memory slots, vCPUs, devices |
//! | [`vcpu`] | vCPU threads: running, pausing, ending |
//! | [`memory`] | guest memory and pages by number |
//! | [`power`] | how a guest ends by itself |
//! | [`devices`] | what the guest finds at its ports |
//! | [`cpu`] | the CPU the guest sees, and how two of them differ |
//! | [`kvm`] | what `kvm-ioctls` lacks |
//! | [`state`] | saving and loading everything but memory |
//! | [`migration`] | from one process to another while the guest runs |
//! | [`snapshot`] | the VM in a file, and back |
//! | [`sample`] | the VM's load |
//! | [`unrun`] | the proof that an incoming VM never ran here |
//! | [`boot`] | from a kernel image to the first instruction |
//! | [`codec`] | bytes and values |
//!
//! Dependencies run downwards in this table, but for `boot` and `codec`, which
//! stand beside. Everything that blocks runs on threads of its own; the gRPC
//! service is one thread that only waits.

mod api;
pub mod boot;
mod codec;
mod cpu;
mod devices;
mod jail;
mod kvm;
mod machine;
mod memory;
mod migration;
mod panic;
mod power;
mod process;
mod sample;
mod snapshot;
mod state;
mod unrun;
mod vcpu;
mod vm;

pub use memory::GuestRam;

use std::ffi::OsString;
use std::process::ExitCode;

/// The program `ballast-vmm`, callable from another binary.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    process::main(args)
}
