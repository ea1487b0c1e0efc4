//! `ballast rule`.

use ballast_model::rule::Strength;
use ballast_model::{Refusal, RefusalCode, Revision, Rule, RuleKind};
use ballast_proto::v1;

use super::Context;
use crate::args::{RuleCommand, RuleKindName, RuleSetArgs, RuleStrength};
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

/// The rule, checked as the controller will check it.
///
/// # Errors
/// `InvalidArgument` naming what does not fit.
pub(super) fn checked(args: RuleSetArgs) -> Result<v1::Rule, Refusal> {
    if args.kind == RuleKindName::AntiAffinity && !args.hosts.is_empty() {
        return Err(Refusal::new(
            RefusalCode::InvalidArgument,
            format!("anti-affinity rule {} names hosts", args.rule),
            "leave --hosts out, or use --kind vm-host",
        ));
    }
    let vms = args.vms.into_iter().collect();
    let kind = match args.kind {
        RuleKindName::AntiAffinity => RuleKind::AntiAffinity { vms },
        RuleKindName::VmHost => RuleKind::VmHost {
            vms,
            hosts: args.hosts.into_iter().collect(),
            strength: match args.strength {
                RuleStrength::Must => Strength::Must,
                RuleStrength::Should => Strength::Should,
            },
        },
    };
    let rule = Rule { id: args.rule, revision: Revision(0), kind };
    // There and back: the same checks that the controller will make.
    Ok(v1::Rule::from(&Rule::try_from(v1::Rule::from(&rule))?))
}

pub(super) async fn set(context: &Context, rule: v1::Rule) -> Result<(), Refusal> {
    let actor = context.actor.because("set by hand");
    let request = v1::SetRuleRequest { rule: Some(rule), actor };
    let written = context.client.set_rule(request).await?;
    if context.json {
        return output::print_json(&Rule::try_from(written)?);
    }
    print(context, &[Rule::try_from(written)?])
}

fn print(context: &Context, rules: &[Rule]) -> Result<(), Refusal> {
    if context.json {
        return output::print_json(&rules);
    }
    let mut table = Table::new(&[
        ("RULE", Align::Left),
        ("KIND", Align::Left),
        ("STRENGTH", Align::Left),
        ("REVISION", Align::Right),
        ("VMS", Align::Left),
        ("HOSTS", Align::Left),
    ]);
    for rule in rules {
        let (kind, strength, vms, hosts) = match &rule.kind {
            RuleKind::AntiAffinity { vms } => {
                ("anti-affinity", Strength::Must, vms, "-".to_owned())
            }
            RuleKind::VmHost { vms, hosts, strength } => ("vm-host", *strength, vms, joined(hosts)),
        };
        let strength = match strength {
            Strength::Must => "must",
            Strength::Should => "should",
        };
        table.row([
            rule.id.to_string(),
            kind.to_owned(),
            strength.to_owned(),
            rule.revision.0.to_string(),
            joined(vms),
            hosts,
        ]);
    }
    output::print(&table.render("no rules"))
}

fn joined<T: ToString>(names: &std::collections::BTreeSet<T>) -> String {
    names.iter().map(T::to_string).collect::<Vec<_>>().join(",")
}
