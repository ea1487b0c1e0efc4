//! Observe, decide, act: the only writer of the store.
//!
//! [`controller`] has the picture of how the parts hang together.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`run`] | the program: configuration, ports, leadership, the end |
//! | [`config`] | its configuration file |
//! | [`store`], [`audit`] | revisioned keys; the audit trail on them |
//! | [`state`] | records as types; the only place that knows keys and JSON |
//! | [`journal`] | record, act, close, for the modules below |
//! | [`agents`] | hosts' agents as the controller calls them |
//! | [`telemetry`] | the gate, windows of samples, what they say of demand |
//! | [`registry`] | what hosts say: registrations and load reports |
//! | [`snapshot`] | inventory and windows as the planner's input; whether a VM can move, and what it needs |
//! | [`round`] | the balancer: plan, admit, start, recommend |
//! | [`migration`] | one persisted state machine per migration |
//! | [`vms`], [`vm_snapshots`], [`orders`] | operators' orders |
//! | [`service`] | the gRPC services |
//! | [`metrics`] | `/metrics` |

pub mod agents;
pub mod audit;
pub mod config;
pub mod controller;
pub mod journal;
pub mod metrics;
pub mod migration;
pub mod orders;
pub mod registry;
pub mod round;
pub mod run;
pub mod service;
pub mod snapshot;
pub mod state;
pub mod store;
pub mod telemetry;
pub mod vm_snapshots;
pub mod vms;

pub use run::main;

/// The wall clock.
pub(crate) fn now() -> ballast_model::Timestamp {
    std::time::SystemTime::now().into()
}
