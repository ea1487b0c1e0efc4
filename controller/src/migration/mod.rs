//! Migrations: the record is the state machine, a driver moves it along.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`begin`] | the opening transaction: check, audit, record, driver |
//! | [`drive`] | one task per migration: takes the step its phase asks for, until it has ended |
//! | [`phases`] | those steps: prepare, transfer, finish, undo |
//! | [`judge`] | what the records allow, as plain data |
//! | [`commit`] | what agents ask: commit, query; and the abort that excludes a commit |
//! | [`figures`] | two sides' figures merged into one |
//!
//! The picture of the phases is in `ballast_model::migration`. A driver holds
//! nothing that is not in the record except the transfer's token, and the one
//! step that needs it (start) is taken in the same breath as prepare: a driver
//! can die anywhere, and the next one goes on from the record and from what
//! both hosts say.

pub mod begin;
pub mod commit;
pub mod drive;
mod figures;
pub mod judge;
mod phases;
mod settle;

pub use self::begin::Order;

use ballast_model::Migration;
use ballast_model::migration::Progress;

use crate::controller::Controller;

/// The latest figures of a migration that has not ended: its driver's, or those of the record.
pub(crate) fn latest_progress(controller: &Controller, migration: &Migration) -> Progress {
    let heard = controller.driver(migration.id).map(|driver| driver.progress());
    heard.filter(|heard| *heard != Progress::default()).unwrap_or(migration.progress)
}
