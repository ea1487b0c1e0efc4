//! The guard of a cluster as a process: what it does at the end of its pipe, and what not.

// Helpers outside of test functions, too, fail by panicking.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A directory as a cluster's is, with a daemon in it that does nothing, and its guard.
struct Scene {
    dir: tempfile::TempDir,
    daemon: Child,
    guard: Child,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bin = dir.path().join("bin");
        std::fs::create_dir(&bin).unwrap();
        symlink("/bin/sleep", bin.join("ballast-agent")).unwrap();
        symlink(env!("CARGO_BIN_EXE_ballast"), bin.join("ballast-guard")).unwrap();
        let daemon = Command::new(bin.join("ballast-agent")).arg("600").spawn().unwrap();
        let guard = Command::new(bin.join("ballast-guard"))
            .arg(dir.path())
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        Self { dir, daemon, guard }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }
}

#[test]
fn when_the_owner_is_gone_everything_goes() {
    let mut scene = Scene::new();
    drop(scene.guard.stdin.take());
    assert!(scene.guard.wait().unwrap().success());
    assert!(!scene.daemon.wait().unwrap().success());
    assert!(!scene.path().exists());
}

#[test]
fn a_released_guard_does_nothing() {
    let mut scene = Scene::new();
    scene.guard.stdin.take().unwrap().write_all(b"released").unwrap();
    assert!(scene.guard.wait().unwrap().success());
    assert!(scene.daemon.try_wait().unwrap().is_none());
    assert!(scene.path().exists());
    scene.daemon.kill().unwrap();
    scene.daemon.wait().unwrap();
}
