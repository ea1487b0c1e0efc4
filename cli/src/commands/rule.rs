//! `ballast rule`.

use ballast_model::rule::{Hold, Strength};
use ballast_model::{Refusal, RefusalCode, Rule, RuleKind};
use ballast_proto::v1;

use super::Context;
use crate::args::{RuleCommand, RuleHold, RuleKindName, RuleSetArgs, RuleStrength};
use crate::output::{self, Align, Table, view};

pub(super) async fn run(context: &Context, command: RuleCommand) -> Result<(), Refusal> {
    match command {
        RuleCommand::Ls => {
            let rules = context.client.list_rules(v1::ListRulesRequest {}).await?.rules;
            print(context, &view::rules(rules)?)
        }
        RuleCommand::Set(args) => set(context, checked(args)?).await,
        RuleCommand::Rm { rule } => {
            let actor = context.actor.because("removed by hand");
            let request = v1::DeleteRuleRequest { rule: rule.to_string(), actor };
            context.client.delete_rule(request).await?;
            if context.json {
                output::print_json(&serde_json::json!({ "removed": [rule] }))
            } else {
                output::print(&format!("rule {rule} is removed\n"))
            }
        }
    }
}

/// The request, its rule checked as the controller will check it.
///
/// # Errors
/// `InvalidArgument` naming what does not fit.
pub(super) fn checked(args: RuleSetArgs) -> Result<v1::SetRuleRequest, Refusal> {
    refuse_strays(&args)?;
    let force = args.force;
    let strength = match (args.strength, args.weight) {
        (RuleStrength::Must, None) => Strength::Must,
        (RuleStrength::Should, weight) => Strength::Should { weight: weight.unwrap_or(1) },
        (RuleStrength::Must, Some(_)) => {
            return Err(Refusal::new(
                RefusalCode::InvalidArgument,
                format!("rule {} must hold and has a weight", args.rule),
                "leave --weight out, or use --strength should",
            ));
        }
    };
    let hold = args.hold.map(|hold| match hold {
        RuleHold::Discrete => Hold::Discrete,
        RuleHold::Continuous => Hold::Continuous,
    });
    let id = args.rule.clone();
    let kind = kind(args);
    let hold = hold.unwrap_or_else(|| kind.hold_default());
    let rule = Rule { strength, hold, ..Rule::must(id, kind) };
    // There and back: the same checks that the controller will make.
    let rule = v1::Rule::from(&Rule::try_from(v1::Rule::from(&rule))?);
    Ok(v1::SetRuleRequest { rule: Some(rule), actor: None, force })
}

fn kind(args: RuleSetArgs) -> RuleKind {
    let vms = args.vms.into_iter().collect();
    let hosts = args.hosts.into_iter().collect();
    let domain = args.domain.unwrap_or_default();
    match args.kind {
        RuleKindName::AntiAffinity => {
            RuleKind::AntiAffinity { vms, per_host_max: args.at_most.unwrap_or(1) }
        }
        RuleKindName::Affinity => RuleKind::Affinity { vms, domain },
        RuleKindName::VmHost => RuleKind::VmHost { vms, hosts },
        RuleKindName::VmNotHost => RuleKind::VmNotHost { vms, hosts },
        RuleKindName::Spread => RuleKind::Spread {
            vms,
            domain,
            domains_min: args.domains_min,
            per_domain_max: args.at_most,
        },
        RuleKindName::Near => {
            RuleKind::Near { vms, needs: args.needs.into_iter().collect(), domain }
        }
        RuleKindName::HostCap => {
            RuleKind::HostCap { vms, hosts, hosts_max: args.hosts_max.unwrap_or_default() }
        }
        RuleKindName::Among => {
            RuleKind::Among { vms, groups: args.group.into_iter().map(|group| group.0).collect() }
        }
    }
}

/// Refuses an option that means nothing to this kind of rule.
fn refuse_strays(args: &RuleSetArgs) -> Result<(), Refusal> {
    use RuleKindName::{Affinity, Among, AntiAffinity, HostCap, Near, Spread, VmHost, VmNotHost};
    let options: [(&str, bool, &[RuleKindName]); 7] = [
        ("--hosts", !args.hosts.is_empty(), &[VmHost, VmNotHost, HostCap]),
        ("--at-most", args.at_most.is_some(), &[AntiAffinity, Spread]),
        ("--domains-min", args.domains_min.is_some(), &[Spread]),
        ("--domain", args.domain.is_some(), &[Affinity, Spread, Near]),
        ("--needs", !args.needs.is_empty(), &[Near]),
        ("--hosts-max", args.hosts_max.is_some(), &[HostCap]),
        ("--group", !args.group.is_empty(), &[Among]),
    ];
    let stray = options.into_iter().find(|(_, given, kinds)| *given && !kinds.contains(&args.kind));
    match stray {
        None => Ok(()),
        Some((option, ..)) => Err(Refusal::new(
            RefusalCode::InvalidArgument,
            format!("{option} means nothing to rule {} of this kind", args.rule),
            format!("leave {option} out, or choose another --kind; see 'ballast rule set --help'"),
        )),
    }
}

pub(super) async fn set(context: &Context, request: v1::SetRuleRequest) -> Result<(), Refusal> {
    let actor = context.actor.because("set by hand");
    let written = context.client.set_rule(v1::SetRuleRequest { actor, ..request }).await?;
    let rule = Rule::try_from(written)?;
    if context.json {
        return output::print_json(&rule);
    }
    print(context, &[rule])
}

fn print(context: &Context, rules: &[Rule]) -> Result<(), Refusal> {
    if context.json {
        return output::print_json(&rules);
    }
    let mut table = Table::new(&[
        ("RULE", Align::Left),
        ("KIND", Align::Left),
        ("STRENGTH", Align::Left),
        ("HOLD", Align::Left),
        ("REVISION", Align::Right),
        ("VMS", Align::Left),
        ("DEMAND", Align::Left),
    ]);
    for rule in rules {
        let (strength, hold) = match rule.strength {
            Strength::Must => ("must".to_owned(), rule.hold.name()),
            Strength::Should { weight } => (format!("should {weight}"), "-"),
        };
        table.row([
            rule.id.to_string(),
            rule.kind.name().replace('_', "-"),
            strength,
            hold.to_owned(),
            rule.revision.0.to_string(),
            joined(rule.kind.vms()),
            rule.kind.demand(),
        ]);
    }
    output::print(&table.render("no rules"))
}

fn joined<T: ToString>(names: &std::collections::BTreeSet<T>) -> String {
    names.iter().map(T::to_string).collect::<Vec<_>>().join(",")
}
