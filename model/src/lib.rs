//! The words of Ballast as types.
//!
//! Everything here is a plain value: no IO (reading and writing a snapshot
//! file excepted, and kept in one function each), no clock, no async. Other
//! crates agree on these types and on nothing else.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`id`] | one type per kind of identifier |
//! | [`unit`] | quantities that carry their unit |
//! | [`time`] | wall-clock instants |
//! | [`revision`] | store revisions and ownership epochs |
//! | [`refusal`] | a "no" with its reason and its remedy |
//! | [`reason`] | the trail of who, why and when behind an operation |
//! | [`vm`], [`host`], [`rule`], [`pool`] | what a cluster is made of |
//! | [`hardware`] | what a VM is built of: CPU baseline, disks, networks |
//! | [`offer`] | what hosts offer and VMs need, as words |
//! | [`snapshot`] | the whole cluster as one value |
//! | [`plan`] | what the planner answers |
//! | [`migration`] | one VM's move: phases, progress, outcome |
//! | [`audit`] | audit entries and their hash chain |

pub mod audit;
pub mod hardware;
pub mod host;
pub mod id;
pub mod migration;
pub mod offer;
pub mod plan;
pub mod pool;
pub mod reason;
pub mod refusal;
pub mod revision;
pub mod rule;
pub mod snapshot;
pub mod time;
pub mod unit;
pub mod vm;

pub use audit::{AuditEntry, AuditHash, AuditHead};
pub use hardware::{CpuBaseline, DiskSpec, MacAddress, MemoryBacking, NetworkSpec};
pub use host::{DrainGoal, Host, HostState, Telemetry};
pub use id::{HostId, MigrationId, PlanId, PoolId, RuleId, VmId};
pub use migration::{Migration, MigrationOutcome, MigrationPhase};
pub use plan::{Plan, Planning, Step, Verdict};
pub use pool::Pool;
pub use reason::{Reason, ReasonTrail};
pub use refusal::{Refusal, RefusalCode};
pub use revision::{Epoch, Revision};
pub use rule::{Rule, RuleKind};
pub use snapshot::ClusterSnapshot;
pub use time::Timestamp;
pub use unit::{Bytes, BytesPerSec, Millicores, Ratio, Resources};
pub use vm::{Owner, VmSpec};
