//! Reads the challenge's text: integers separated by white space.

use std::str::FromStr;

use ballast_model::{Refusal, RefusalCode};

/// The challenge's own limits, with room to spare.
const RESOURCES_MAX: usize = 64;
const MACHINES_MAX: usize = 8_000;
const SERVICES_MAX: usize = 1_000_000;
const PROCESSES_MAX: usize = 1_000_000;
const BALANCES_MAX: usize = 1_000;
const AMOUNT_MAX: i64 = 1 << 40;

/// A machine reassignment instance.
#[derive(Debug, Clone)]
pub struct Model {
    /// Resources in order.
    pub resources: Vec<ResourceKind>,
    /// Machines in order.
    pub machines: Vec<Machine>,
    /// Machines × machines: cost of moving a process from one to another.
    pub move_costs: Vec<u32>,
    /// Services in order.
    pub services: Vec<Service>,
    /// Processes in order.
    pub processes: Vec<Process>,
    /// Balance costs.
    pub balances: Vec<Balance>,
    /// Weights of process, service and machine move costs.
    pub move_weights: [i64; 3],
}

/// One resource.
#[derive(Debug, Clone)]
pub struct ResourceKind {
    /// Whether a moved process also uses it on its old machine.
    pub transient: bool,
    /// Weight of the load cost.
    pub weight: i64,
}

/// One machine.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Its neighbourhood, from 0.
    pub neighbourhood: u32,
    /// Its location, from 0.
    pub location: u32,
    /// Capacity of each resource.
    pub capacity: Vec<i64>,
    /// Safety capacity of each resource.
    pub safety: Vec<i64>,
}

/// One service.
#[derive(Debug, Clone)]
pub struct Service {
    /// Least number of locations its processes are in.
    pub spread_min: u32,
    /// Services it depends on, each once.
    pub depends_on: Vec<u32>,
}

/// One process.
#[derive(Debug, Clone)]
pub struct Process {
    /// Its service.
    pub service: u32,
    /// Need of each resource.
    pub need: Vec<i64>,
    /// Cost of moving it.
    pub move_cost: i64,
}

/// One balance cost.
#[derive(Debug, Clone)]
pub struct Balance {
    /// The resource that is free.
    pub first: u32,
    /// The resource that should be free with it.
    pub second: u32,
    /// How much of the second for each unit of the first.
    pub target: i64,
    /// Weight of the cost.
    pub weight: i64,
}

/// Reads a model file's text.
///
/// # Errors
/// `InvalidArgument` with the line of what is malformed, out of range, missing or too much.
pub fn parse_model(text: &str) -> Result<Model, Refusal> {
    let mut t = Tokens::new(text);
    let count = t.below("number of resources", RESOURCES_MAX)?;
    let resources = (0..count)
        .map(|_| {
            Ok(ResourceKind {
                transient: t.number("transient flag", 0, 1)? == 1,
                weight: t.amount("load weight")?,
            })
        })
        .collect::<Result<Vec<_>, Refusal>>()?;
    let count = t.below("number of machines", MACHINES_MAX)?;
    let (machines, move_costs) = parse_machines(&mut t, count, resources.len())?;
    let services = parse_services(&mut t)?;
    let count = t.below("number of processes", PROCESSES_MAX)?;
    let processes = (0..count)
        .map(|_| {
            Ok(Process {
                service: t.id("service of a process", services.len())?,
                need: t.amounts("requirement", resources.len())?,
                move_cost: t.amount("process move cost")?,
            })
        })
        .collect::<Result<Vec<_>, Refusal>>()?;
    let count = t.below("number of balance costs", BALANCES_MAX)?;
    let balances = (0..count)
        .map(|_| {
            Ok(Balance {
                first: t.id("resource of a balance", resources.len())?,
                second: t.id("resource of a balance", resources.len())?,
                target: t.amount("target of a balance")?,
                weight: t.amount("weight of a balance")?,
            })
        })
        .collect::<Result<Vec<_>, Refusal>>()?;
    let move_weights = [
        t.amount("weight of process moves")?,
        t.amount("weight of service moves")?,
        t.amount("weight of machine moves")?,
    ];
    t.end()?;
    Ok(Model { resources, machines, move_costs, services, processes, balances, move_weights })
}

fn parse_machines(
    t: &mut Tokens<'_>,
    count: usize,
    resources: usize,
) -> Result<(Vec<Machine>, Vec<u32>), Refusal> {
    let mut machines = Vec::new();
    let mut move_costs = Vec::new();
    for _ in 0..count {
        machines.push(Machine {
            neighbourhood: t.id("neighbourhood", count)?,
            location: t.id("location", count)?,
            capacity: t.amounts("capacity", resources)?,
            safety: t.amounts("safety capacity", resources)?,
        });
        for _ in 0..count {
            let cost = t.number("machine move cost", 0, i64::from(u32::MAX))?;
            move_costs.push(u32::try_from(cost).unwrap_or(u32::MAX));
        }
    }
    Ok((machines, move_costs))
}

fn parse_services(t: &mut Tokens<'_>) -> Result<Vec<Service>, Refusal> {
    let count = t.below("number of services", SERVICES_MAX)?;
    (0..count)
        .map(|_| {
            let spread_min = t.id("least spread", PROCESSES_MAX)?;
            let number = t.below("number of dependencies", count)?;
            let mut depends_on = (0..number)
                .map(|_| t.id("service depended on", count))
                .collect::<Result<Vec<_>, Refusal>>()?;
            depends_on.sort_unstable();
            depends_on.dedup();
            Ok(Service { spread_min, depends_on })
        })
        .collect()
}

/// Reads an assignment file's text: the machine of each process.
///
/// # Errors
/// `InvalidArgument` with the line of what is malformed, out of range, missing or too much.
pub fn parse_assignment(text: &str, model: &Model) -> Result<Vec<u32>, Refusal> {
    let mut t = Tokens::new(text);
    let machines = model
        .processes
        .iter()
        .map(|_| t.id("machine of a process", model.machines.len()))
        .collect::<Result<Vec<_>, Refusal>>()?;
    t.end()?;
    Ok(machines)
}

/// The words of a text with the lines they are in.
struct Tokens<'a> {
    rest: &'a str,
    line: usize,
}

impl<'a> Tokens<'a> {
    fn new(text: &'a str) -> Self {
        Self { rest: text, line: 1 }
    }

    fn next(&mut self) -> Option<&'a str> {
        let bytes = self.rest.as_bytes();
        let start = bytes.iter().position(|byte| !byte.is_ascii_whitespace())?;
        self.line += bytes[..start].iter().filter(|byte| **byte == b'\n').count();
        let length = bytes[start..].iter().position(u8::is_ascii_whitespace);
        let end = length.map_or(bytes.len(), |length| start + length);
        let word = &self.rest[start..end];
        self.rest = &self.rest[end..];
        Some(word)
    }

    fn number(&mut self, what: &str, least: i64, most: i64) -> Result<i64, Refusal> {
        let Some(word) = self.next() else {
            return self.refuse(&format!("the text ends where the {what} should be"));
        };
        match i64::from_str(word) {
            Ok(number) if (least..=most).contains(&number) => Ok(number),
            Ok(number) => self
                .refuse(&format!("the {what} is {number}, it must be between {least} and {most}")),
            Err(_) => {
                let word: String = word.chars().take(20).collect();
                self.refuse(&format!("the {what} is {word:?}, not an integer in range"))
            }
        }
    }

    fn below(&mut self, what: &str, most: usize) -> Result<usize, Refusal> {
        let number = self.number(what, 0, i64::try_from(most).unwrap_or(i64::MAX))?;
        Ok(usize::try_from(number).unwrap_or(most))
    }

    fn id(&mut self, what: &str, count: usize) -> Result<u32, Refusal> {
        let most = i64::try_from(count).unwrap_or(i64::MAX) - 1;
        let number = self.number(what, 0, most)?;
        Ok(u32::try_from(number).unwrap_or(u32::MAX))
    }

    fn amount(&mut self, what: &str) -> Result<i64, Refusal> {
        self.number(what, 0, AMOUNT_MAX)
    }

    fn amounts(&mut self, what: &str, count: usize) -> Result<Vec<i64>, Refusal> {
        (0..count).map(|_| self.amount(what)).collect()
    }

    fn end(&mut self) -> Result<(), Refusal> {
        match self.next() {
            None => Ok(()),
            Some(word) => {
                let word: String = word.chars().take(20).collect();
                self.refuse(&format!("{word:?} stands where the text should end"))
            }
        }
    }

    fn refuse<T>(&self, what: &str) -> Result<T, Refusal> {
        Err(Refusal::new(
            RefusalCode::InvalidArgument,
            format!("line {}: {what}", self.line),
            "correct the file, or use a file of the challenge as it is",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str =
        "1\n1 10\n2\n0 0 100 80 0 1\n0 1 100 80 1 0\n1\n1 0\n2\n0 30 5\n0 20 5\n0\n1 1 1\n";

    fn check(text: &str, expected: &str) {
        assert_eq!(parse_model(text).unwrap_err().reason, expected);
    }

    #[test]
    fn a_good_model_is_read() {
        let model = parse_model(GOOD).unwrap();
        assert_eq!((model.machines.len(), model.processes.len()), (2, 2));
        assert!(model.resources[0].transient);
        assert_eq!(model.move_costs, [0, 1, 1, 0]);
        assert_eq!(parse_assignment("0 1", &model).unwrap(), [0, 1]);
    }

    #[test]
    fn what_is_malformed_is_refused_with_its_line() {
        check("", "line 1: the text ends where the number of resources should be");
        check("1\n2 10", "line 2: the transient flag is 2, it must be between 0 and 1");
        check("1\n1 ten", "line 2: the load weight is \"ten\", not an integer in range");
        check("1\n1 -1", "line 2: the load weight is -1, it must be between 0 and 1099511627776");
        check(
            "1\n1 10\n9000000",
            "line 3: the number of machines is 9000000, it must be between 0 and 8000",
        );
        check("1\n1 10\n2\n0 2 100", "line 4: the location is 2, it must be between 0 and 1");
        check(
            &GOOD.replace("0 30 5", "1 30 5"),
            "line 9: the service of a process is 1, it must be between 0 and 0",
        );
        check(
            &GOOD.replace("0 30 5", "0 99999999999999999999 5"),
            "line 9: the requirement is \"99999999999999999999\", not an integer in range",
        );
        check(&(GOOD.to_owned() + "7"), "line 13: \"7\" stands where the text should end");
        check(
            GOOD.trim_end_matches(" 1\n"),
            "line 12: the text ends where the weight of machine moves should be",
        );
    }

    #[test]
    fn an_assignment_of_the_wrong_length_or_machine_is_refused() {
        let model = parse_model(GOOD).unwrap();
        let refused = |text| parse_assignment(text, &model).unwrap_err().reason;
        assert_eq!(refused("0"), "line 1: the text ends where the machine of a process should be");
        assert_eq!(
            refused("0\n2"),
            "line 2: the machine of a process is 2, it must be between 0 and 1"
        );
        assert_eq!(refused("0 1 1"), "line 1: \"1\" stands where the text should end");
    }
}
