//! The words of a line and the quantities among them.

use std::str::FromStr;

use ballast_model::{Bytes, Millicores};

/// The words of one line, taken from the front; every error is in words, the caller adds the line.
pub(super) struct Words<'t> {
    rest: Vec<&'t str>,
    next: usize,
}

impl<'t> Words<'t> {
    pub(super) fn of(text: &'t str) -> Self {
        Self { rest: text.split_whitespace().collect(), next: 0 }
    }

    pub(super) fn peek(&self) -> Option<&'t str> {
        self.rest.get(self.next).copied()
    }

    pub(super) fn word(&mut self, what: &str) -> Result<&'t str, String> {
        let word = self.peek().ok_or_else(|| format!("{what} is missing"))?;
        self.next += 1;
        Ok(word)
    }

    /// Takes `word` if it comes next.
    pub(super) fn take(&mut self, word: &str) -> bool {
        let there = self.peek() == Some(word);
        self.next += usize::from(there);
        there
    }

    pub(super) fn expect(&mut self, word: &str) -> Result<(), String> {
        if self.take(word) {
            return Ok(());
        }
        Err(format!("expected '{word}', found '{}'", self.peek().unwrap_or("the end of the line")))
    }

    pub(super) fn end(&self) -> Result<(), String> {
        self.peek().map_or(Ok(()), |word| Err(format!("'{word}' is not expected here")))
    }

    pub(super) fn parse<T: FromStr<Err: std::fmt::Display>>(
        &mut self,
        what: &str,
    ) -> Result<T, String> {
        self.word(what)?.parse().map_err(|error: T::Err| error.to_string())
    }

    /// Names up to the next of `stops` or the end of the line.
    pub(super) fn names<T: FromStr<Err: std::fmt::Display>>(
        &mut self,
        stops: &[&str],
    ) -> Result<Vec<T>, String> {
        let mut names = Vec::new();
        while let Some(word) = self.peek().filter(|word| !stops.contains(word)) {
            names.push(word.parse().map_err(|error: T::Err| error.to_string())?);
            self.next += 1;
        }
        Ok(names)
    }
}

/// Cores: `2`, `0.5`, `500m`.
pub(super) fn cpu(text: &str) -> Result<Millicores, String> {
    text.parse().map_err(|_| format!("'{text}' is not an amount of CPU: write 2, 0.5 or 500m"))
}

/// Memory: `4G` and `512M` are GiB and MiB.
pub(super) fn memory(text: &str) -> Result<Bytes, String> {
    let long = if text.ends_with(['G', 'M', 'T', 'K']) { format!("{text}iB") } else { text.into() };
    long.parse().map_err(|_| format!("'{text}' is not an amount of memory: write 4G or 512M"))
}
