//! The gRPC services. They check and convert; what is done is in the modules of the matter.
//!
//! | module | what it serves |
//! | --- | --- |
//! | [`operators`] | `ControllerService`, for operators' tools |
//! | [`registry`] | `RegistryService`, for agents |
//! | [`answers`] | records as messages |

pub mod answers;
pub mod operators;
pub mod registry;

use ballast_model::Refusal;
use ballast_proto::error::to_status;
use tonic::{Response, Status};

use crate::controller::Controller;

/// The largest request taken, in bytes.
pub const REQUEST_BYTES_MAX: usize = 16 << 20;

/// An answer, or the refusal as a status, counted.
fn answer<T>(controller: &Controller, result: Result<T, Refusal>) -> Result<Response<T>, Status> {
    result.map(Response::new).map_err(|refusal| {
        controller.metrics.refused(&refusal);
        to_status(&refusal)
    })
}
