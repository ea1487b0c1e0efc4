//! Running the multi-call program to its end.

use std::process::Stdio;

use tokio::process::Command;

use crate::PATIENCE;

/// How a program ended.
#[derive(Debug)]
pub struct Finished {
    /// Its exit code.
    pub code: Option<i32>,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl Finished {
    /// Checks that it failed with `code` and said why in one line that has all of `words`.
    ///
    /// # Panics
    /// When it did not.
    pub fn check_refused(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert_eq!(self.stderr.lines().count(), 1, "one line: {self:?}");
        assert!(self.stderr.contains("; "), "a remedy: {self:?}");
        for word in words {
            assert!(self.stderr.contains(word), "{word:?}: {self:?}");
        }
    }
}

/// Runs `program` with `args` until it ends.
///
/// # Panics
/// When it does not start or not end.
pub async fn run(program: &str, args: &[&str]) -> Finished {
    run_as(program, "ballast", args).await
}

/// Runs `program` under another name, which makes it that daemon.
///
/// # Panics
/// When it does not start or not end.
pub async fn run_as(program: &str, name: &str, args: &[&str]) -> Finished {
    let child = Command::new(program)
        .arg0(name)
        .args(args)
        .env("RUST_LOG", "off")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output());
    let output = output.await.unwrap_or_else(|_| panic!("{name} {args:?} does not end")).unwrap();
    Finished {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
