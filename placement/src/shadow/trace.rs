//! Recorded load as text: a VM a line, its name and then its CPU in percent every five minutes.

use ballast_model::{Refusal, RefusalCode};

/// The most VMs of a recording, and the most samples of each.
pub const TRACES_MAX: usize = 100_000;
/// The most samples of a VM: two weeks.
pub const SAMPLES_MAX: usize = 4_032;
/// The most one sample can be.
const PERCENT_MAX: u8 = 100;

/// What one VM asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// Its name.
    pub name: String,
    /// CPU in percent of what it has, every five minutes.
    pub samples: Vec<u8>,
}

/// Reads a recording.
///
/// # Errors
/// `InvalidArgument` with the line and what is wrong there.
pub fn parse(text: &str) -> Result<Vec<Trace>, Refusal> {
    let mut traces = Vec::new();
    for (n, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        if traces.len() == TRACES_MAX {
            return Err(wrong(n, &format!("there are more than {TRACES_MAX} VMs")));
        }
        traces.push(trace(n, line)?);
    }
    Ok(traces)
}

fn trace(n: usize, line: &str) -> Result<Trace, Refusal> {
    let (name, samples) = line.split_once(',').ok_or_else(|| {
        wrong(n, "a name and then samples are expected, with commas between them")
    })?;
    let mut found = Vec::new();
    for word in samples.split(',') {
        let sample = word.trim().parse().ok().filter(|percent| *percent <= PERCENT_MAX);
        let Some(sample) = sample else {
            return Err(wrong(n, &format!("{word:?} is not a percentage from 0 to 100")));
        };
        if found.len() == SAMPLES_MAX {
            return Err(wrong(n, &format!("there are more than {SAMPLES_MAX} samples")));
        }
        found.push(sample);
    }
    Ok(Trace { name: name.trim().to_owned(), samples: found })
}

fn wrong(line: usize, what: &str) -> Refusal {
    Refusal::new(
        RefusalCode::InvalidArgument,
        format!("line {}: {what}", line + 1),
        "write a VM a line: its name, then its CPU in percent every five minutes",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recording_is_read() {
        let traces = parse("vm-a,0,100\n\nvm-b, 7 ,8\n").unwrap();
        assert_eq!(traces[0], Trace { name: "vm-a".to_owned(), samples: vec![0, 100] });
        assert_eq!(traces[1], Trace { name: "vm-b".to_owned(), samples: vec![7, 8] });
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, expected) in [
            ("vm-a", "line 1: a name"),
            ("vm-a,1\nvm-b,101\n", "line 2: \"101\""),
            ("vm-a,1,,2\n", "line 1: \"\""),
            ("vm-a,-1\n", "line 1: \"-1\""),
        ] {
            let refusal = parse(text).unwrap_err();
            assert!(refusal.reason.starts_with(expected), "{refusal}");
        }
        let long = format!("vm-a{}", ",1".repeat(SAMPLES_MAX + 1));
        assert!(parse(&long).unwrap_err().reason.contains("more than 4032 samples"));
    }
}
