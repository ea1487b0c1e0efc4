//! Builds the bare-metal program in `bare/` with the compiler that builds this
//! package: the host's own target, no standard library, a linker script.
//!
//! It is always optimised and never inherits flags meant for host programs
//! (sanitizers, target CPUs): what it does per second must not depend on them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, error, fs};

fn main() -> Result<(), Box<dyn error::Error>> {
    let bare = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("bare");
    println!("cargo::rerun-if-changed={}", bare.display());
    for entry in fs::read_dir(&bare)? {
        println!("cargo::rerun-if-changed={}", entry?.path().display());
    }
    println!("cargo::rerun-if-env-changed=RUSTC_LINKER");
    let image = PathBuf::from(env::var("OUT_DIR")?).join("ballast-guest");
    compile(&bare, &image)
}

fn compile(bare: &Path, image: &Path) -> Result<(), Box<dyn error::Error>> {
    let script = bare.join("link.ld");
    let script = script.to_str().ok_or("the path of the workspace is not UTF-8")?;
    let mut rustc = Command::new(env::var("RUSTC")?);
    rustc
        .args(["--edition", "2024", "--crate-name", "ballast_guest", "--crate-type", "bin"])
        .args(["--target", "x86_64-unknown-linux-gnu", "-Dwarnings"])
        .args(["-Copt-level=3", "-Cpanic=abort", "-Crelocation-model=static"])
        .args(["-Cforce-unwind-tables=no", "-Coverflow-checks=off", "-Cstrip=debuginfo"])
        .args(["-Clink-arg=-nostdlib", "-Clink-arg=-static", "-Clink-arg=-no-pie"])
        .args(["-Clink-arg=-Wl,--build-id=none".to_owned(), format!("-Clink-arg=-Wl,-T,{script}")])
        .arg(format!("--remap-path-prefix={}=guest", bare.display()))
        .arg("-o")
        .arg(image)
        .arg(bare.join("main.rs"));
    if let Ok(linker) = env::var("RUSTC_LINKER") {
        rustc.arg(format!("-Clinker={linker}"));
    }
    let status = rustc.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS").status()?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("the probe guest does not build ({status}): {rustc:?}").into())
    }
}
