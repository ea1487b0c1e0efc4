//! Messages to model values, checked, and back.
//!
//! Model values become messages by `From<&T>`, which cannot fail. Messages
//! become model values by `TryFrom`, which trusts nothing: names must be names,
//! enums must be said and known, sizes must be in their range. What does not
//! hold is refused as `INVALID_ARGUMENT` with the field's name.
//!
//! | module | what it converts |
//! | --- | --- |
//! | [`field`] | single fields: names, ids, enums, messages that must be there |
//! | [`vm`] | [`VmSpec`](ballast_model::VmSpec), its policy, resources |
//! | [`hardware`] | what a VM is built of: disks, networks, CPU baselines |
//! | [`migration`] | migration records, progress, downtime |
//! | [`rule`] | placement rules |
//! | [`trail`] | reason trails and refusals |

pub mod field;
pub mod hardware;
pub mod migration;
pub mod rule;
pub mod trail;
pub mod vm;
