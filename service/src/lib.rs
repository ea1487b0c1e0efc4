//! What every daemon of Ballast shares.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`config`] | reads a TOML file into a typed value; unknown keys are errors |
//! | [`logging`] | tracing to standard error, text or JSON |
//! | [`exit`] | one error line and one exit code per kind of refusal |
//! | [`net`] | binding a listener, with errors that name the remedy |
//! | [`http`] | `/metrics`, `/livez`, `/readyz` |
//! | [`holdpoint`] | where a test stops a process; nothing in release builds |
//! | [`program`] | the outermost part of a program: arguments in, exit code out |
//! | [`signal`] | ends the process in order on SIGINT and SIGTERM |

pub mod config;
pub mod exit;
pub mod holdpoint;
pub mod http;
pub mod logging;
pub mod net;
pub mod program;
pub mod signal;
