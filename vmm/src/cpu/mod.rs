//! The CPU a guest sees.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`model`] | a CPUID table: from KVM, per vCPU, its name, its encoding |
//! | [`features`] | the names of feature bits |
//! | [`baseline`] | tables that are the same on unlike hosts |
//! | [`msr`] | the registers such a table leaves no room for |
//! | [`report`] | in words: how two tables differ, what a host can give |
//!
//! A VM moves only between tables that are equal: code that asked CPUID once
//! goes on relying on the answer. With the baseline `host` that means equal
//! hosts; with a named one, hosts of one maker that have its features.

pub(crate) mod baseline;
pub(crate) mod features;
pub(crate) mod model;
pub(crate) mod msr;
pub(crate) mod report;

pub(crate) use model::CpuModel;
