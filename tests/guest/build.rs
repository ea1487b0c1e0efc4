//! Builds the bare-metal program in `bare/`, a package of its own: the host's
//! own target, no standard library, a linker script.
//!
//! It is always optimised and never inherits flags meant for host programs
//! (sanitizers, target CPUs): what it does per second must not depend on them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, error, fs};

/// As in `bare/.cargo/config.toml`.
const TARGET: &str = "x86_64-unknown-linux-gnu";
const PROGRAM: &str = "ballast-guest";

fn main() -> Result<(), Box<dyn error::Error>> {
    let bare = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("bare");
    println!("cargo::rerun-if-changed={}", bare.display());
    println!("cargo::rerun-if-env-changed=RUSTC_LINKER");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let target = out.join("bare");
    compile(&bare, &target)?;
    fs::copy(target.join(TARGET).join("release").join(PROGRAM), out.join(PROGRAM))?;
    Ok(())
}

fn compile(bare: &Path, target: &Path) -> Result<(), Box<dyn error::Error>> {
    let mut cargo = Command::new(env::var("CARGO")?);
    // From its own directory, so that its own .cargo/config.toml counts.
    cargo.current_dir(bare).args(["build", "--release", "--locked", "--quiet", "--target-dir"]);
    cargo.arg(target);
    for (key, _) in env::vars_os() {
        let name = key.to_string_lossy();
        let ours = name.starts_with("CARGO_")
            && !["CARGO_HOME", "CARGO_NET_OFFLINE", "CARGO_BUILD_JOBS"].contains(&&*name);
        if ours || name.contains("RUSTFLAGS") || name.starts_with("RUSTC") {
            cargo.env_remove(key);
        }
    }
    if let Ok(linker) = env::var("RUSTC_LINKER") {
        cargo.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER", linker);
    }
    let status = cargo.status()?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("the probe guest does not build ({status}): {cargo:?}").into())
    }
}
