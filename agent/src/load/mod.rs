//! What the host and its VMs use.
//!
//! [`proc`] understands the kernel's texts; [`sampler`] reads them at an
//! interval, asks the machines, and keeps the last [`Observation`] for all who
//! want it. Only the sampler asks machines for samples, because a sample is
//! what was used since the one before. [`numa`] is what the machine is made of.

pub mod numa;
pub mod proc;
pub mod sampler;

pub use sampler::Observation;
