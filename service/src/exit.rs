//! One error line and one exit code per kind of refusal.

use std::process::ExitCode;

use ballast_model::{Refusal, RefusalCode};

/// The exit code of each kind of refusal. 0 is success; 2 is also what the
/// argument parser ends with; the table stands in docs/exit-codes.md.
pub const fn exit_code(code: RefusalCode) -> u8 {
    match code {
        RefusalCode::InvalidArgument => 2,
        RefusalCode::NotFound => 3,
        RefusalCode::AlreadyExists | RefusalCode::Conflict | RefusalCode::StaleEpoch => 4,
        RefusalCode::CapacityExceeded
        | RefusalCode::RuleViolation
        | RefusalCode::WrongState
        | RefusalCode::Incompatible
        | RefusalCode::Unsupported
        | RefusalCode::RateLimited => 5,
        RefusalCode::Unavailable | RefusalCode::Timeout => 6,
        RefusalCode::Cancelled => 7,
        RefusalCode::HostFailure | RefusalCode::Internal => 1,
    }
}

/// Prints the refusal as one line on standard error and answers with its exit code.
pub fn report(program: &str, refusal: &Refusal) -> ExitCode {
    eprintln!("{program}: {refusal}");
    ExitCode::from(exit_code(refusal.code))
}
