//! VmmService over a Unix socket.

use std::io;
use std::path::Path;
use std::time::Duration;

use ballast_model::{Refusal, RefusalCode};
use ballast_proto::error::from_status;
use ballast_proto::v1::vmm_service_client::VmmServiceClient;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Response, Status};

/// How VMMs are called in refusals.
const PEER: &str = "the VM's ballast-vmm process";
/// Between two attempts to connect to a process that has just started.
const RETRY_INTERVAL: Duration = Duration::from_millis(10);

pub(super) type Client = VmmServiceClient<Channel>;

/// Connects once the socket is there, within `patience`.
pub(super) async fn connect(socket: &Path, patience: Duration) -> Result<Client, Refusal> {
    let until = Instant::now() + patience;
    loop {
        let path = socket.to_owned();
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
        });
        // The address names nobody: the connector ignores it.
        let endpoint = Endpoint::from_static("http://vmm.invalid");
        match endpoint.connect_with_connector(connector).await {
            Ok(channel) => return Ok(VmmServiceClient::new(channel)),
            Err(_) if Instant::now() < until => sleep(RETRY_INTERVAL).await,
            Err(error) => {
                return Err(Refusal::new(
                    RefusalCode::Unavailable,
                    format!("cannot connect to {}: {error}", socket.display()),
                    "look into vmm.log beside that socket",
                ));
            }
        }
    }
}

/// One call, bounded in time.
pub(super) async fn call<T>(
    limit: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Refusal> {
    match timeout(limit, call).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(from_status(&status, PEER)),
        Err(_) => Err(Refusal::new(
            RefusalCode::Timeout,
            format!("{PEER} did not answer in {limit:?}"),
            "check the load of the host and vmm.log in the VM's directory",
        )),
    }
}
