//! Binding listeners.

use std::io::ErrorKind;
use std::net::SocketAddr;

use ballast_model::{Refusal, RefusalCode};
use tokio::net::TcpListener;

/// Listens on `address` for `what` (e.g. "gRPC").
///
/// # Errors
/// `HostFailure` that names the address and what to do.
pub async fn bind(address: SocketAddr, what: &str) -> Result<TcpListener, Refusal> {
    TcpListener::bind(address).await.map_err(|error| {
        let remedy = match error.kind() {
            ErrorKind::AddrInUse => "end the program that listens there, or configure another port",
            ErrorKind::AddrNotAvailable => "configure an address that this machine has",
            ErrorKind::PermissionDenied => {
                "configure a port above 1023, or start it with the right to bind it"
            }
            _ => "check the configured address",
        };
        Refusal::new(
            RefusalCode::HostFailure,
            format!("cannot listen on {address} for {what}: {error}"),
            remedy,
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_in_use_is_named_with_its_remedy() {
        let first = bind("127.0.0.1:0".parse().unwrap(), "test").await.unwrap();
        let taken = first.local_addr().unwrap();
        let refusal = bind(taken, "gRPC").await.unwrap_err();
        assert!(refusal.to_string().contains(&taken.to_string()), "{refusal}");
        assert!(refusal.remedy.contains("another port"), "{refusal}");
    }
}
