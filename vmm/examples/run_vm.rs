//! Runs one VM in a `ballast-vmm` process, prints its console, and ends with the guest.
//!
//! `run_vm <ballast-vmm> <VM specification, JSON> [seconds]`
//!
//! For work on guests without controller and agent. Ends with 0 when the guest
//! switched itself off, 1 when it ended otherwise or the time is over.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode};
use std::time::{Duration, Instant};

use ballast_model::VmSpec;
use ballast_proto::v1;
use ballast_proto::v1::vmm_service_client::VmmServiceClient;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const POLL: Duration = Duration::from_millis(50);
const SECONDS_DEFAULT: u64 = 3600;

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome<ExitCode> {
    let args: Vec<String> = std::env::args().collect();
    let [_, program, spec, seconds @ ..] = args.as_slice() else {
        return Err("usage: run_vm <ballast-vmm> <specification> [seconds]".into());
    };
    let seconds = seconds.first().map_or(Ok(SECONDS_DEFAULT), |seconds| seconds.parse())?;
    let mut spec: VmSpec = serde_json::from_slice(&std::fs::read(spec)?)?;
    spec.kernel = std::fs::canonicalize(&spec.kernel)?;
    spec.validate()?;
    let dir = tempfile::tempdir()?;
    let socket = dir.path().join("socket");
    let mut command = Command::new(program);
    command.arg("--socket").arg(&socket).args(["--vm", spec.id.as_str()]);
    let process = Process(command.spawn()?);
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut client = connect(socket, end).await?;
    let began = Instant::now();
    let request = v1::BootRequest { spec: Some((&spec).into()), epoch: 1, ..Default::default() };
    client.boot(request).await?;
    eprintln!("run_vm: started in {:?}", began.elapsed());
    let detail = watch(&mut client, spec.id.as_str(), end).await?;
    eprintln!("run_vm: after {:?}: {detail}", began.elapsed());
    drop(process);
    Ok(if detail.starts_with("power-off") { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn connect(socket: PathBuf, end: Instant) -> Outcome<VmmServiceClient<Channel>> {
    while !socket.exists() {
        if Instant::now() > end {
            return Err("the process does not serve its socket".into());
        }
        tokio::time::sleep(POLL).await;
    }
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://vmm").connect_with_connector(connector).await?;
    Ok(VmmServiceClient::new(channel))
}

/// Prints the console until the guest ends; answers with the reason.
async fn watch(client: &mut VmmServiceClient<Channel>, vm: &str, end: Instant) -> Outcome<String> {
    let mut out = std::io::stdout();
    let mut offset = 0;
    loop {
        let described = client.describe(v1::DescribeRequest {}).await?.into_inner();
        let status = described.status.unwrap_or_default();
        let request = v1::ReadConsoleRequest { vm: vm.to_owned(), offset, wait_ms: 0 };
        let read = client.read_console(request).await?.into_inner();
        offset = read.offset + read.data.len() as u64;
        out.write_all(&read.data)?;
        out.flush()?;
        if !read.data.is_empty() {
            continue;
        }
        if status.state() == v1::VmState::Stopped {
            return Ok(status.detail);
        }
        if Instant::now() > end {
            return Ok("the time is over".to_owned());
        }
        tokio::time::sleep(POLL).await;
    }
}
