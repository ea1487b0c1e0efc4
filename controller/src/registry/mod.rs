//! What hosts say: registrations and load reports.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`load`] | the windows of [`crate::telemetry`], shared |
//! | [`register`] | a host's arrival: its record, and its VMs against the owner records |

pub mod load;
pub mod register;

pub use self::load::{HostView, Live, VmView};
