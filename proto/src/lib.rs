//! The gRPC services of Ballast (`ballast/v1`).
//!
//! [`v1`] is generated from `proto/ballast/v1`. [`error`] is the one table
//! between a [`ballast_model::Refusal`] and a gRPC status, in both directions.
//! [`convert`] turns messages into model values, checking all that the wire may
//! have got wrong, and back. [`limits`] and [`socket`] are what two programs agree
//! on beside messages.

pub mod convert;
pub mod error;
pub mod limits;
pub mod socket;

/// Messages, clients and servers, generated.
#[allow(missing_docs, unreachable_pub, unused_qualifications)]
#[allow(clippy::all, clippy::pedantic, clippy::large_futures)]
pub mod v1 {
    tonic::include_proto!("ballast.v1");
}
