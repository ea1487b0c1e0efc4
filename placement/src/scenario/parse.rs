//! From text to a [`Scenario`], line by line.

use std::time::Duration;

use ballast_model::pool::{Claims, Pool};
use ballast_model::snapshot::{Mobility, MoveInFlight, PlacedVm};
use ballast_model::vm::Automation;
use ballast_model::{
    Bytes, ClusterSnapshot, Host, HostId, HostState, Millicores, Ratio, Refusal, RefusalCode,
    Resources, Revision, Telemetry, Timestamp,
};

use super::words::{Words, cpu, memory};
use super::{Question, SCENARIO_BYTES_MAX, Scenario, rules};
use crate::PlanOptions;

/// Reads a scenario.
///
/// # Errors
/// `InvalidArgument` naming the line and what is wrong there.
pub fn parse(text: &str) -> Result<Scenario, Refusal> {
    if text.len() > SCENARIO_BYTES_MAX {
        return Err(invalid(format!("a scenario of {} bytes is too long", text.len())));
    }
    let mut reader = Reader::new();
    let mut offset = 0;
    for (n, line) in text.split_inclusive('\n').enumerate() {
        if line.trim_end() == "expect" {
            break;
        }
        offset += line.len();
        reader.line(line).map_err(|what| invalid(format!("line {}: {what}", n + 1)))?;
    }
    let mut scenario = reader.scenario;
    if scenario.questions.is_empty() {
        scenario.questions.push(Question::Plan { explain: false, drain: None });
    }
    scenario.source = text[..offset].to_owned();
    scenario.expected =
        text[offset..].split_once('\n').map_or_else(String::new, |(_, rest)| rest.to_owned());
    scenario.snapshot.validate()?;
    scenario.options.validate()?;
    Ok(scenario)
}

fn invalid(reason: String) -> Refusal {
    let remedy = "correct that line; docs/scenarios.md describes the language";
    Refusal::new(RefusalCode::InvalidArgument, reason, remedy)
}

struct Reader {
    scenario: Scenario,
    /// The host that a line beginning with `+` puts VMs on.
    host: Option<HostId>,
}

impl Reader {
    fn new() -> Self {
        let scenario = Scenario {
            title: String::new(),
            snapshot: ClusterSnapshot::empty(Revision(1), Timestamp(0)),
            options: PlanOptions::default(),
            questions: Vec::new(),
            expected: String::new(),
            source: String::new(),
        };
        Self { scenario, host: None }
    }

    fn line(&mut self, line: &str) -> Result<(), String> {
        let line = line.trim();
        if let Some(comment) = line.strip_prefix('#') {
            if self.scenario.title.is_empty() {
                comment.trim().clone_into(&mut self.scenario.title);
            }
            return Ok(());
        }
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match word {
            "" => Ok(()),
            "host" => self.host(rest),
            "+" => {
                let host = self.host.clone().ok_or("no host stands above")?;
                self.vms(&host, rest)
            }
            "rule" => {
                let rule = rules::rule(rest)?;
                rule.validate().map_err(|refusal| refusal.reason)?;
                match self.scenario.snapshot.rules.insert(rule.id.clone(), rule) {
                    Some(rule) => Err(format!("rule {} stands there twice", rule.id)),
                    None => Ok(()),
                }
            }
            "pool" => self.pool(&mut Words::of(rest)),
            "policy" => self.policy(&mut Words::of(rest)),
            "moving" => self.moving(&mut Words::of(rest)),
            "option" => self.option(&mut Words::of(rest)),
            "ask" => {
                self.scenario.questions.push(Question::parse(rest)?);
                Ok(())
            }
            "what-if" => self.what_if(rest),
            other => Err(format!("'{other}' begins no line of a scenario")),
        }
    }

    fn host(&mut self, text: &str) -> Result<(), String> {
        let (head, vms) = text.split_once(" :").unwrap_or((text, ""));
        let mut words = Words::of(head);
        let id: HostId = words.parse("a name")?;
        let capacity = Resources::new(cpu(words.word("CPU")?)?, memory(words.word("memory")?)?);
        let mut host = Host::new(id.clone(), capacity);
        host.link = ballast_model::BytesPerSec(125_000_000);
        while let Some(word) = words.peek() {
            words.word("an attribute")?;
            host_attribute(&mut host, word)?;
        }
        if self.scenario.snapshot.hosts.insert(id.clone(), host).is_some() {
            return Err(format!("host {id} stands there twice"));
        }
        self.vms(&id, vms)?;
        self.host = Some(id);
        Ok(())
    }

    fn vms(&mut self, host: &HostId, text: &str) -> Result<(), String> {
        for part in text.split(',').filter(|part| !part.trim().is_empty()) {
            let mut words = Words::of(part);
            let id = words.parse("a VM's name")?;
            let (demand, size) = demand_and_size(words.word("the VM's CPU")?, cpu)?;
            let (resident, memory) = demand_and_size(words.word("the VM's memory")?, memory)?;
            // A VM may use at most what it has; one whose size is not said has two cores or what it uses.
            let cpu_size = size.unwrap_or_else(|| demand.max(Millicores::cores(2)));
            let size = Resources::new(cpu_size, memory.unwrap_or(resident));
            let mut vm = PlacedVm::new(id, host.clone(), size);
            vm.demand = Resources::new(demand, resident);
            while let Some(word) = words.peek() {
                words.word("an attribute")?;
                vm_attribute(&mut vm, word)?;
            }
            if let Some(twice) = self.scenario.snapshot.vms.insert(vm.id.clone(), vm) {
                return Err(format!("VM {} stands there twice", twice.id));
            }
        }
        Ok(())
    }

    fn pool(&mut self, words: &mut Words<'_>) -> Result<(), String> {
        let id: ballast_model::PoolId = words.parse("a name")?;
        let parent = if words.take("in") { Some(words.parse("a pool")?) } else { None };
        let mut claims = Claims::default();
        while let Some(word) = words.peek() {
            words.word("a claim")?;
            claim(&mut claims, word)?;
        }
        let pool = Pool { id: id.clone(), parent, claims };
        match self.scenario.snapshot.pools.insert(id, pool) {
            Some(pool) => Err(format!("pool {} stands there twice", pool.id)),
            None => Ok(()),
        }
    }

    fn policy(&mut self, words: &mut Words<'_>) -> Result<(), String> {
        let policy = &mut self.scenario.snapshot.policy;
        match words.word("a policy")? {
            "failures" => policy.failures_tolerated = words.parse("a count")?,
            "memory-overcommit" => policy.memory_overcommit = ratio(words)?,
            "cpu-overcommit" => policy.cpu_overcommit = Some(ratio(words)?),
            "balance" => {
                policy.balance.cpu = words.parse("a weight of CPU")?;
                policy.balance.memory = words.parse("a weight of memory")?;
            }
            other => return Err(format!("'{other}' is no policy")),
        }
        words.end()
    }

    fn moving(&mut self, words: &mut Words<'_>) -> Result<(), String> {
        let flights = &mut self.scenario.snapshot.migrations;
        let vm = words.parse("a VM")?;
        let from = words.parse("a host")?;
        words.expect("->")?;
        let to = words.parse("a host")?;
        let id = format!("00000000-0000-7000-8000-{:012}", flights.len());
        let id = id.parse().map_err(|error| format!("{error}"))?;
        flights.push(MoveInFlight { id, vm, from, to });
        words.end()
    }

    fn option(&mut self, words: &mut Words<'_>) -> Result<(), String> {
        let options = &mut self.scenario.options;
        match words.word("an option")? {
            "no-balance" => options.causes.balance = false,
            "no-drain" => options.causes.drain = false,
            "no-rules" => {
                options.causes.rules = false;
                options.causes.preferences = false;
            }
            "no-capacity" => options.causes.capacity = false,
            "aggressiveness" => {
                let level = words.parse("a level")?;
                *options = options.aggressive(level).map_err(|refusal| refusal.reason)?;
            }
            "drain" => options.drain = words.parse("a goal")?,
            "seed" => options.seed = words.parse("a number")?,
            "steps-max" => options.steps_max = words.parse("a number")?,
            "bytes-max" => options.bytes_max = Some(memory(words.word("bytes")?)?),
            "seconds-max" => {
                options.time_max = Some(Duration::from_secs(words.parse("a number")?));
            }
            "gain-min" => options.gain_min = ratio(words)?,
            "cpu-ceiling" => options.cpu_ceiling = ratio(words)?,
            other => return Err(format!("'{other}' is no option")),
        }
        words.end()
    }

    /// The lines above are the cluster that is changed.
    fn what_if(&mut self, change: &str) -> Result<(), String> {
        let snapshot = &self.scenario.snapshot;
        let changed = crate::ask::what_if(snapshot, change, &self.scenario.options);
        self.scenario.snapshot = changed.map_err(|refusal| refusal.reason)?.snapshot;
        Ok(())
    }
}

/// `used` or `used/size`.
fn demand_and_size<Q>(
    text: &str,
    parse: impl Fn(&str) -> Result<Q, String>,
) -> Result<(Q, Option<Q>), String> {
    match text.split_once('/') {
        Some((used, size)) => Ok((parse(used)?, Some(parse(size)?))),
        None => Ok((parse(text)?, None)),
    }
}

fn ratio(words: &mut Words<'_>) -> Result<Ratio, String> {
    let value: f64 = words.parse("a share")?;
    Ratio::try_from(value).map_err(|error| error.to_string())
}

fn host_attribute(host: &mut Host, word: &str) -> Result<(), String> {
    match word.split_once('=') {
        None if word == "draining" => host.state = HostState::Draining,
        None if word == "quarantined" => host.state = HostState::Quarantined,
        None if word == "unknown" => {
            host.telemetry = Telemetry::Unknown { why: "no report for 30 s".to_owned() };
        }
        Some(("draining", goal)) => {
            host.state = HostState::Draining;
            host.drain_goal = Some(goal.parse().map_err(|error| format!("{error}"))?);
        }
        Some(("uses", amounts)) => {
            let (used, resident) = amounts.split_once('/').ok_or("write uses=0.5/1G")?;
            let overhead = Resources::new(cpu(used)?, memory(resident)?);
            host.telemetry = Telemetry::Known { overhead };
        }
        Some(("link", rate)) => host.link = rate.parse().map_err(|error| format!("{error}"))?,
        Some(("offers", list)) => {
            host.offers = list.split('+').map(str::to_owned).collect();
        }
        Some(("disk-room", size)) => host.local_disk_room = Some(memory(size)?),
        Some(("numa", list)) => {
            for node in list.split('+') {
                let (cores, size) = node.split_once('/').ok_or("write numa=4/16G+4/16G")?;
                host.numa.push(Resources::new(cpu(cores)?, memory(size)?));
            }
        }
        Some((label, value)) => drop(host.labels.insert(label.to_owned(), value.to_owned())),
        None => return Err(format!("'{word}' says nothing about a host")),
    }
    Ok(())
}

fn vm_attribute(vm: &mut PlacedVm, word: &str) -> Result<(), String> {
    match word.split_once('=') {
        None if word == "partial" => vm.automation = Automation::Partial,
        None if word == "manual" => vm.automation = Automation::Manual,
        None if word == "one-numa" => vm.one_numa_node = true,
        None if word == "fixed" => {
            vm.mobility = Mobility::Fixed {
                reason: "it moved 40 s ago".to_owned(),
                remedy: "wait 20 s".to_owned(),
            };
        }
        Some(("dirty", rate)) => {
            vm.dirty_rate = rate.parse().map_err(|error| format!("{error}"))?
        }
        Some(("needs", list)) => vm.needs = list.split('+').map(str::to_owned).collect(),
        Some(("needs-to-move", list)) => {
            vm.needs_to_move = list.split('+').map(str::to_owned).collect();
        }
        Some(("disks", size)) => vm.local_disks = memory(size)?,
        Some(("pool", pool)) => vm.pool = Some(pool.parse().map_err(|error| format!("{error}"))?),
        Some(("moved", times)) => {
            vm.moves_recent = times.parse().map_err(|error| format!("{error}"))?;
        }
        Some(_) => claim(&mut vm.claims, word)?,
        None => return Err(format!("'{word}' says nothing about a VM")),
    }
    Ok(())
}

/// `cpu-shares=2000`, `mem-reserve=4G`, `cpu-limit=2`.
fn claim(claims: &mut Claims, word: &str) -> Result<(), String> {
    let (name, value) = word.split_once('=').ok_or("write cpu-shares=2000")?;
    let count = |value: &str| value.parse::<u32>().map_err(|error| format!("'{value}': {error}"));
    let bytes = |value: &str| -> Result<Bytes, String> { memory(value) };
    match name {
        "cpu-shares" => claims.cpu.shares = count(value)?,
        "cpu-reserve" => claims.cpu.reservation = cpu(value)?,
        "cpu-limit" => claims.cpu.limit = Some(cpu(value)?),
        "mem-shares" => claims.memory.shares = count(value)?,
        "mem-reserve" => claims.memory.reservation = bytes(value)?,
        "mem-limit" => claims.memory.limit = Some(bytes(value)?),
        other => return Err(format!("'{other}' claims nothing")),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str, words: &str) {
        let refusal = parse(text).unwrap_err();
        assert!(refusal.reason.contains(words), "{refusal}");
    }

    #[test]
    fn a_line_that_cannot_be_read_is_named() {
        refused("host a 8 16G\nhots b 8 16G\n", "line 2: 'hots' begins no line");
        refused("host a 8\n", "line 1: memory is missing");
        refused("host a 8 16X\n", "line 1: '16X' is not an amount of memory");
        refused("host a 8 16G\nhost a 8 16G\n", "line 2: host a stands there twice");
        refused("host a 8 16G shiny\n", "'shiny' says nothing about a host");
        refused("rule r a b apart\n", "expected ':'");
        refused("rule r: a b sideways\n", "what the rule demands");
        refused("rule r (loudly): a b apart\n", "'loudly' is no manner");
        refused("rule r: a b apart\n", "rule r names VM a, which does not exist");
        refused("option gain-min nonsense\n", "line 1: ");
        refused("option drain quickest\n", "use balanced, fastest or least-disturbing");
        refused("ask plan drain\n", "a goal is missing");
        refused("+ v 1 1G\n", "no host stands above");
        refused("ask\n", "line 1: a question is missing");
        refused("ask why\n", "'why' is no question");
        refused("ask restart\n", "a lost host is missing");
        refused("ask spare 1\n", "memory is missing");
        refused("ask spare 1 1G failures many\n", "line 1: ");
        refused("ask what-if\n", "a change is missing");
        refused("ask rule r: a b sideways\n", "what the rule demands");
        refused("ask consolidate max 3\n", "'max' is not expected here");
    }

    #[test]
    fn the_answer_and_what_stands_before_it_make_the_file() {
        let text = "# Two hosts.\nhost a 8 16G : v 1 1G\nhost b 8 16G\n\nexpect\nold\n";
        let scenario = parse(text).unwrap();
        assert_eq!(scenario.title, "Two hosts.");
        assert_eq!(scenario.expected, "old\n");
        assert_eq!(scenario.with_answer("old\n"), text);
        assert_eq!(scenario.questions, vec![Question::Plan { explain: false, drain: None }]);
    }
}
