//! `ballast demo`: a cluster on this machine, overloaded, levelled, drained, and gone again.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`load`] | what the VMs do |
//! | [`scenario`] | the story |
//! | [`watch`] | looks at the cluster and listens to the guests |
//! | [`view`] | a live picture or plain lines |
//! | [`summary`] | the figures, and what is expected of them |
//!
//! The processes are [`crate::cluster`]'s.

mod load;
mod scenario;
mod summary;
mod view;
mod watch;

use std::os::unix::process::CommandExt;
use std::time::Instant;

use ballast_model::{Refusal, RefusalCode};
use tokio::signal::unix::{SignalKind, signal};

use crate::args::{DemoArgs, DemoDriver, DemoStore};
use crate::cluster::{Cluster, ClusterOptions, DriverKind, StoreKind, guard};
use crate::output;
use load::Load;
use scenario::Setting;
use summary::Figures;
use view::View;

/// Hosts of the demo.
const HOSTS: usize = 4;

/// Runs the demo.
///
/// # Errors
/// What went wrong, missed expectations included, after everything was cleaned up.
pub(crate) async fn run(args: DemoArgs) -> Result<(), Refusal> {
    if args.keep && args.store == DemoStore::Etcd {
        return Err(Refusal::new(
            RefusalCode::InvalidArgument,
            "the demo's etcd ends with the demo, so its cluster cannot be kept",
            "leave out --keep, or use --store embedded",
        ));
    }
    let mut view = View::new(args.json);
    let interrupted = interruption()?;
    tokio::pin!(interrupted);
    let begun = Instant::now();
    let driver = choose_driver(args.driver, &mut view)?;
    view.phase("starting a cluster on this machine");
    let mut load = load::unequal(args.vms, "/".as_ref())?;
    let options = options(&args, driver, &load)?;
    let cluster = tokio::select! {
        started = Cluster::start(options) => started?,
        refusal = &mut interrupted => return Err(refusal),
    };
    for vm in &mut load.vms {
        vm.kernel = cluster.kernel();
    }
    let result = tokio::select! {
        figures = Box::pin(story(&cluster, &mut view, &args, driver, &load, begun)) => figures,
        refusal = &mut interrupted => Err(refusal),
    };
    let interrupted = matches!(&result, Err(refusal) if refusal.code == RefusalCode::Cancelled);
    let ended = if args.keep && !interrupted {
        keep(cluster, &mut view);
        Ok(())
    } else {
        view.phase("ending the cluster");
        tokio::select! {
            stopped = cluster.stop() => stopped,
            // Asked twice: what is dropped here is ended the hard way.
            refusal = interruption()? => Err(refusal),
        }
    };
    drop(view);
    let figures = result?;
    if args.json {
        output::print(&format!("{}\n", output::json_line(&figures)?))?;
    }
    ended?;
    figures.check()
}

async fn story(
    cluster: &Cluster,
    view: &mut View,
    args: &DemoArgs,
    driver: DriverKind,
    load: &Load,
    begun: Instant,
) -> Result<Figures, Refusal> {
    let setting = Setting {
        driver: driver.name(),
        store: store(args.store).name(),
        load,
        first_host: cluster.host(0)?.to_string(),
        has_guests: driver == DriverKind::Kvm,
        begun,
    };
    scenario::introduce(view, &setting, cluster.host_count());
    scenario::run(cluster.client().await?, view, &setting).await
}

fn options(args: &DemoArgs, driver: DriverKind, load: &Load) -> Result<ClusterOptions, Refusal> {
    let program = std::env::current_exe().map_err(|error| {
        Refusal::new(
            RefusalCode::HostFailure,
            format!("cannot find this program's own file: {error}"),
            "check that /proc is mounted",
        )
    })?;
    Ok(ClusterOptions {
        program,
        hosts: HOSTS,
        capacity: load.capacity,
        driver,
        store: store(args.store),
        controller_config: quick_controller(),
        log_level: "info".to_owned(),
        env: Vec::new(),
    })
}

/// A controller that looks often and lets VMs rest briefly: the demo has minutes, not days.
fn quick_controller() -> toml::Table {
    toml::toml! {
        [telemetry]
        report_interval_ms = 500
        window_ms = 10000
        [balance]
        interval_ms = 1000
        cooldown_ms = 20000
        // Slow enough to be watched.
        [migration]
        bandwidth_bytes_per_sec = 40000000
    }
}

const fn store(choice: DemoStore) -> StoreKind {
    match choice {
        DemoStore::Embedded => StoreKind::Embedded,
        DemoStore::Etcd => StoreKind::Etcd,
    }
}

/// The driver asked for; `auto` takes KVM where it is usable and says so where it is not.
fn choose_driver(choice: DemoDriver, view: &mut View) -> Result<DriverKind, Refusal> {
    match (choice, kvm_usable()) {
        (DemoDriver::Sim, _) => Ok(DriverKind::Sim),
        (DemoDriver::Kvm | DemoDriver::Auto, Ok(())) => Ok(DriverKind::Kvm),
        (DemoDriver::Kvm, Err(why)) => Err(Refusal::new(
            RefusalCode::HostFailure,
            format!("VMs cannot be run on this machine: {why}"),
            "load the kvm module and give yourself access to /dev/kvm, or use --driver sim",
        )),
        (DemoDriver::Auto, Err(why)) => {
            view.line(&format!("VMs are only simulated: {why}"));
            Ok(DriverKind::Sim)
        }
    }
}

/// Asks the VMM itself, which opens `/dev/kvm` to answer; its one error line says why not.
fn kvm_usable() -> Result<(), String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let asked = std::process::Command::new(program)
        .arg0("ballast-vmm")
        .arg("--cpu-model")
        .stdin(std::process::Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    if asked.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&asked.stderr);
    let words = words.trim().trim_start_matches("ballast-vmm: ");
    Err(words.split(';').next().unwrap_or(words).to_owned())
}

/// Resolves with a refusal on SIGINT, SIGTERM or SIGHUP.
fn interruption() -> Result<impl Future<Output = Refusal>, Refusal> {
    let install = |kind| {
        signal(kind).map_err(|error| {
            Refusal::new(
                RefusalCode::HostFailure,
                format!("cannot install a signal handler: {error}"),
                "check the limits of this process",
            )
        })
    };
    let mut interrupt = install(SignalKind::interrupt())?;
    let mut terminate = install(SignalKind::terminate())?;
    let mut hangup = install(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
        Refusal::new(RefusalCode::Cancelled, "the demo was interrupted", "run it again")
    })
}

fn keep(cluster: Cluster, view: &mut View) {
    let url = cluster.url().to_owned();
    let dir = cluster.keep();
    view.verbatim(&format!(
        "\nThe cluster goes on; its files are in {dir}.\n\
         use it:  export BALLAST_CONTROLLER={url}; ballast host ls\n\
         end it:  {dir}/bin/{guard} {dir} </dev/null\n",
        dir = dir.display(),
        guard = guard::PROGRAM,
    ));
}
