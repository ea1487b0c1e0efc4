//! The daemons' last words when a test fails.

use std::path::{Path, PathBuf};

/// How many lines of each log are shown.
const LINES: usize = 60;

/// Prints the ends of all logs of a cluster when dropped by a panic.
#[derive(Debug)]
pub(crate) struct ShownOnPanic(PathBuf);

impl ShownOnPanic {
    /// For the cluster in `dir`.
    pub(crate) fn of(dir: &Path) -> Self {
        Self(dir.to_owned())
    }
}

impl Drop for ShownOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for path in logs_in(&self.0, 5) {
                show(&path);
            }
        }
    }
}

/// Every `*.log` at most `depth` folders down.
fn logs_in(dir: &Path, depth: u32) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut found = Vec::new();
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        if path.is_dir() && depth > 0 {
            found.extend(logs_in(&path, depth - 1));
        } else if path.extension().is_some_and(|extension| extension == "log") {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn show(path: &Path) {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    eprintln!("==> {}", path.display());
    for line in &lines[lines.len().saturating_sub(LINES)..] {
        eprintln!("{line}");
    }
}
