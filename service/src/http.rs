//! The HTTP side door: `/metrics`, `/livez`, `/readyz`.
//!
//! `/livez` answers 200 as long as the process serves. `/readyz` answers 200
//! once every named condition holds, else 503 with the ones that do not, one a line.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus::{Encoder, Registry, TextEncoder};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Named conditions, each met or with a reason why not.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<&'static str, Option<String>>>>);

impl Readiness {
    /// Starts with these conditions unmet.
    pub fn waiting_for(conditions: &[&'static str]) -> Self {
        let unmet = conditions.iter().map(|&name| (name, Some("not yet".to_owned()))).collect();
        Self(Arc::new(Mutex::new(unmet)))
    }

    /// The condition holds.
    pub fn met(&self, condition: &'static str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(condition, None);
    }

    /// The condition does not hold, and why.
    pub fn unmet(&self, condition: &'static str, why: impl Into<String>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(condition, Some(why.into()));
    }

    /// What is missing, one `condition: why` each; empty when ready.
    pub fn missing(&self) -> Vec<String> {
        let conditions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        conditions
            .iter()
            .filter_map(|(name, why)| why.as_ref().map(|why| format!("{name}: {why}")))
            .collect()
    }
}

#[derive(Clone)]
struct Shared {
    registry: Registry,
    readiness: Readiness,
}

/// Serves until `shutdown` is cancelled.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    registry: Registry,
    readiness: Readiness,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .with_state(Shared { registry, readiness });
    axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await
}

async fn metrics(State(shared): State<Shared>) -> Response {
    let encoder = TextEncoder::new();
    let mut body = Vec::new();
    match encoder.encode(&shared.registry.gather(), &mut body) {
        Ok(()) => {
            ([(header::CONTENT_TYPE, encoder.format_type().to_owned())], body).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn readyz(State(shared): State<Shared>) -> Response {
    let missing = shared.readiness.missing();
    if missing.is_empty() {
        "ok\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, missing.join("\n") + "\n").into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_names_what_is_missing() {
        let readiness = Readiness::waiting_for(&["store", "leader"]);
        readiness.met("store");
        assert_eq!(readiness.missing(), ["leader: not yet"]);
        readiness.unmet("leader", "held by controller-2");
        assert_eq!(readiness.missing(), ["leader: held by controller-2"]);
        readiness.met("leader");
        assert!(readiness.missing().is_empty());
    }
}
