//! One table between refusals and gRPC statuses.

use std::collections::HashMap;

use ballast_model::{Refusal, RefusalCode};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// The `domain` of the `ErrorInfo` that every status of ours carries.
pub const DOMAIN: &str = "ballast";
const REMEDY: &str = "remedy";

/// The gRPC code of each refusal.
pub const fn grpc_code(code: RefusalCode) -> Code {
    match code {
        RefusalCode::InvalidArgument => Code::InvalidArgument,
        RefusalCode::NotFound => Code::NotFound,
        RefusalCode::AlreadyExists => Code::AlreadyExists,
        RefusalCode::CapacityExceeded | RefusalCode::RateLimited => Code::ResourceExhausted,
        RefusalCode::RuleViolation
        | RefusalCode::WrongState
        | RefusalCode::Incompatible
        | RefusalCode::StaleEpoch => Code::FailedPrecondition,
        RefusalCode::Conflict => Code::Aborted,
        RefusalCode::Unsupported => Code::Unimplemented,
        RefusalCode::Unavailable => Code::Unavailable,
        RefusalCode::Timeout => Code::DeadlineExceeded,
        RefusalCode::Cancelled => Code::Cancelled,
        RefusalCode::HostFailure | RefusalCode::Internal => Code::Internal,
    }
}

/// The status that carries `refusal`: reason as the message, code and remedy in the details.
pub fn to_status(refusal: &Refusal) -> Status {
    let metadata = HashMap::from([(REMEDY.to_owned(), refusal.remedy.clone())]);
    let details = ErrorDetails::with_error_info(refusal.code.name(), DOMAIN, metadata);
    Status::with_error_details(grpc_code(refusal.code), refusal.reason.clone(), details)
}

/// The refusal that a status carries; statuses of other origin (a broken
/// connection, a proxy) become the nearest refusal about `peer`, e.g. `controller at 127.0.0.1:7070`.
pub fn from_status(status: &Status, peer: &str) -> Refusal {
    if let Some(info) = status.get_details_error_info().filter(|info| info.domain == DOMAIN)
        && let Some(code) = RefusalCode::from_name(&info.reason)
    {
        let remedy = info.metadata.get(REMEDY).cloned().unwrap_or_default();
        return Refusal::new(code, status.message(), remedy);
    }
    let (code, remedy) = match status.code() {
        Code::Unavailable | Code::Unknown => {
            (RefusalCode::Unavailable, "check that it runs and can be reached, then try again")
        }
        Code::DeadlineExceeded => {
            (RefusalCode::Timeout, "check its load and the network, then try again")
        }
        Code::Cancelled => (RefusalCode::Cancelled, "try again"),
        Code::Unimplemented => (RefusalCode::Unsupported, "bring both sides to the same version"),
        _ => (RefusalCode::Internal, "look into its log, and report a defect"),
    };
    let message =
        if status.message().is_empty() { status.code().description() } else { status.message() };
    Refusal::new(code, format!("{peer} failed: {message}"), remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_survives_the_wire() {
        for code in RefusalCode::ALL {
            let refusal = Refusal::new(code, "no room on host a", "add a host");
            let status = to_status(&refusal);
            assert_ne!(status.code(), Code::Ok);
            assert_eq!(from_status(&status, "controller"), refusal);
        }
    }

    #[test]
    fn a_foreign_status_names_the_peer() {
        let refusal = from_status(&Status::unavailable("connection refused"), "agent of host a");
        assert_eq!(refusal.code, RefusalCode::Unavailable);
        assert!(
            refusal.to_string().contains("agent of host a failed: connection refused"),
            "{refusal}"
        );
    }
}
