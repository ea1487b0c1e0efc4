//! `ballast vm`.

use std::path::Path;
use std::time::Duration;

use ballast_model::vm::MigrationPolicy;
use ballast_model::{Refusal, VmId, VmSpec};
use ballast_proto::convert::field::text;
use ballast_proto::v1;

use super::{Context, console, history, migration, wait};
use crate::args::{CreateArgs, VmCommand};
use crate::output::units::{bytes, cpu, or_dash, rate};
use crate::output::{self, Align, Table, fields, hardware, view};

/// How long a VM may take to a file or from it; the hosts' own bounds are in proportion to its memory.
const FILE_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

pub(super) async fn run(context: &Context, command: VmCommand) -> Result<(), Refusal> {
    match command {
        VmCommand::Create(args) => create(context, checked_create(args)?).await,
        VmCommand::Ls { host } => {
            let host = host.map(|host| host.to_string()).unwrap_or_default();
            let vms = context.client.list_vms(v1::ListVmsRequest { host }).await?.vms;
            if context.json {
                let views: Vec<_> = vms.into_iter().map(view::Vm::from).collect();
                return output::print_json(&views);
            }
            output::print(&table(vms).render("no VMs"))
        }
        VmCommand::Show { vm } => {
            let record = context.client.get_vm(v1::GetVmRequest { vm: vm.to_string() }).await?;
            show(context, record)
        }
        VmCommand::Rm { vms } => remove(context, &vms).await,
        VmCommand::Migrate { vm, to, wait } => {
            let request = v1::MigrateVmRequest {
                vm: vm.to_string(),
                to: to.map(|host| host.to_string()).unwrap_or_default(),
                actor: context.actor.because("migrated by hand"),
            };
            let id = context.client.migrate_vm(request).await?.migration;
            if wait.wait {
                wait::until_migrated(&context.client, &id, wait.wait_timeout.0).await?;
            }
            migration::show(context, &id).await
        }
        VmCommand::Snapshot { vm, to, stop } => snapshot(context, &vm, &to, stop).await,
        VmCommand::Restore { from, host } => {
            let request = v1::RestoreVmRequest {
                path: text(&from),
                host: host.to_string(),
                actor: context.actor.because("restored by hand"),
            };
            let record = context.client.patient(FILE_TIMEOUT).restore_vm(request).await?;
            show(context, record)
        }
        VmCommand::History { vm } => history::show(context, &vm).await,
        VmCommand::Console { vm, attach: true, offset, .. } => {
            console::attach(context, &vm, offset).await
        }
        VmCommand::Console { vm, follow, offset, .. } => {
            console::print(context, &vm, follow, offset.unwrap_or(0)).await
        }
    }
}

/// The request for a VM, every field in its range.
///
/// # Errors
/// `InvalidArgument` naming what is out of range.
pub(super) fn checked_create(args: CreateArgs) -> Result<v1::CreateVmRequest, Refusal> {
    let spec = VmSpec {
        initrd: args.initrd,
        cmdline: args.cmdline,
        labels: args.labels.into_iter().collect(),
        automation: args.automation.into(),
        migration: MigrationPolicy {
            downtime_limit_ms: u32::try_from(args.downtime_limit.0.as_millis()).unwrap_or(u32::MAX),
            verify: args.verify,
            post_copy: args.post_copy,
        },
        ..args.hardware.into_spec(args.vm, args.kernel)
    };
    // There and back: the same checks that the controller will make.
    let spec = VmSpec::try_from(v1::VmSpec::from(&spec))?;
    let host = args.host.map(|host| host.to_string()).unwrap_or_default();
    Ok(v1::CreateVmRequest { spec: Some((&spec).into()), host, actor: None })
}

pub(super) async fn create(
    context: &Context,
    mut request: v1::CreateVmRequest,
) -> Result<(), Refusal> {
    request.actor = context.actor.because("created by hand");
    let record = context.client.create_vm(request).await?;
    show(context, record)
}

async fn remove(context: &Context, vms: &[VmId]) -> Result<(), Refusal> {
    for vm in vms {
        let actor = context.actor.because("removed by hand");
        context.client.delete_vm(v1::DeleteVmRequest { vm: vm.to_string(), actor }).await?;
        if !context.json {
            output::print(&format!("VM {vm} is removed\n"))?;
        }
    }
    if context.json { output::print_json(&serde_json::json!({ "removed": vms })) } else { Ok(()) }
}

/// One line a VM.
pub(super) fn table(vms: Vec<v1::VmRecord>) -> Table {
    let mut table = Table::new(&[
        ("VM", Align::Left),
        ("HOST", Align::Left),
        ("STATE", Align::Left),
        ("VCPUS", Align::Right),
        ("MEMORY", Align::Right),
        ("CPU DEMAND", Align::Right),
        ("RESIDENT", Align::Right),
        ("DIRTIES", Align::Right),
        ("AUTOMATION", Align::Left),
        ("NOTE", Align::Left),
    ]);
    for vm in vms {
        let state = view::vm_state(&vm).to_owned();
        let spec = vm.spec.clone().unwrap_or_default();
        let status = vm.status.clone().unwrap_or_default();
        let load = status.load.unwrap_or_default();
        let note = match (view::under_way(&status), vm.immobile) {
            (Some(_), _) => "migrating".to_owned(),
            (None, Some(immobile)) => format!("cannot move: {}", immobile.reason),
            (None, None) => status.detail,
        };
        table.row([
            spec.id,
            or_dash(&vm.host),
            state,
            spec.vcpus.to_string(),
            bytes(spec.memory_bytes),
            cpu(vm.demand.unwrap_or_default().cpu_millicores),
            bytes(load.resident_bytes),
            rate(load.dirty_bytes_per_sec),
            view::automation(spec.automation).to_owned(),
            note,
        ]);
    }
    table
}

fn show(context: &Context, vm: v1::VmRecord) -> Result<(), Refusal> {
    if context.json {
        return output::print_json(&view::Vm::from(vm));
    }
    let state = view::vm_state(&vm).to_owned();
    let spec = vm.spec.unwrap_or_default();
    let status = vm.status.unwrap_or_default();
    let load = status.load.unwrap_or_default();
    let policy = spec.migration.unwrap_or_default();
    let migration = view::under_way(&status).unwrap_or_default();
    let immobile = vm.immobile.map(|no| format!("{}; {}", no.reason, no.remedy));
    let mut labels: Vec<_> =
        spec.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    labels.sort();
    let memory = hardware::memory_words(spec.memory_backing.unwrap_or_default());
    let disks: Vec<_> = spec.disks.iter().map(hardware::disk_words).collect();
    let networks: Vec<_> = spec.networks.iter().map(hardware::network_words).collect();
    let numa = if spec.one_numa_node { "fits one node" } else { "" };
    let verify = if policy.verify { ", page hashes compared" } else { "" };
    let post_copy = if policy.post_copy { "allowed" } else { "" };
    output::print(&fields(&[
        ("VM", spec.id),
        ("host", format!("{} (epoch {})", or_dash(&vm.host), vm.epoch)),
        ("state", state),
        ("detail", status.detail),
        ("cannot move", immobile.unwrap_or_default()),
        ("migration", migration),
        ("vCPUs", spec.vcpus.to_string()),
        ("CPU baseline", hardware::cpu_baseline(spec.cpu).to_owned()),
        ("memory", format!("{}{memory}", bytes(spec.memory_bytes))),
        ("CPU demand", cpu(vm.demand.unwrap_or_default().cpu_millicores)),
        ("resident", bytes(load.resident_bytes)),
        ("dirties", rate(load.dirty_bytes_per_sec)),
        ("kernel", spec.kernel),
        ("initrd", spec.initrd),
        ("command line", spec.cmdline),
        ("disks", disks.join("\n")),
        ("networks", networks.join("\n")),
        ("needs", spec.needs.join(", ")),
        ("NUMA", numa.to_owned()),
        ("labels", labels.join(", ")),
        ("automation", view::automation(spec.automation).to_owned()),
        ("downtime limit", format!("{} ms{verify}", policy.downtime_limit_ms)),
        ("post-copy", post_copy.to_owned()),
        ("process", if status.pid == 0 { String::new() } else { status.pid.to_string() }),
    ]))
}

async fn snapshot(context: &Context, vm: &VmId, to: &Path, stop: bool) -> Result<(), Refusal> {
    let request = v1::SnapshotVmRequest {
        vm: vm.to_string(),
        path: text(to),
        stop,
        actor: context.actor.because("saved by hand"),
    };
    let saved = context.client.patient(FILE_TIMEOUT).snapshot_vm(request).await?;
    if context.json {
        return output::print_json(&serde_json::json!({
            "vm": vm,
            "path": to,
            "host": saved.host,
            "bytes": saved.bytes,
            "paused_micros": saved.paused_micros,
            "removed": stop,
        }));
    }
    let then = if stop { "has ended and is removed" } else { "goes on" };
    output::print(&format!(
        "{vm} is in {} on host {}: {}, paused for {} ms; it {then}\n",
        to.display(),
        saved.host,
        bytes(saved.bytes),
        saved.paused_micros.div_ceil(1000)
    ))
}
