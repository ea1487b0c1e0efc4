//! Kernel modules in the order they can be loaded in.
//!
//! A module names those it needs in its section `.modinfo`, so no index of
//! modules is needed, nor a tool in the host that reads one.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use ballast_model::Refusal;

use crate::debian::Kernel;
use crate::refuse;

/// How deep directories of modules may be nested.
const DEPTH_MAX: usize = 12;

/// The files of `names` and of all they need, each after what it needs.
///
/// A name that is not a module is built into the kernel and left out.
pub(crate) fn in_order(kernel: &Kernel, names: &[&str]) -> Result<Vec<PathBuf>, Refusal> {
    let mut known = HashMap::new();
    index(&kernel.modules().join("kernel"), 0, &mut known)?;
    let mut order = Vec::new();
    for name in names {
        add(&name.replace('-', "_"), &known, &mut order)?;
    }
    Ok(order)
}

fn index(dir: &Path, depth: usize, known: &mut HashMap<String, PathBuf>) -> Result<(), Refusal> {
    let entries = fs::read_dir(dir).map_err(|error| refuse::file("read", dir, error))?;
    for entry in entries.flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) && depth < DEPTH_MAX {
            index(&path, depth + 1, known)?;
        } else if let (Some("ko"), Some(name)) = (
            path.extension().and_then(|extension| extension.to_str()),
            path.file_stem().and_then(|stem| stem.to_str()),
        ) {
            known.insert(name.replace('-', "_"), path);
        }
    }
    Ok(())
}

fn add(
    name: &str,
    known: &HashMap<String, PathBuf>,
    order: &mut Vec<PathBuf>,
) -> Result<(), Refusal> {
    let Some(path) = known.get(name) else { return Ok(()) };
    if order.contains(path) {
        return Ok(());
    }
    let module = fs::read(path).map_err(|error| refuse::file("read", path, error))?;
    // Modules never need each other in a circle: the kernel's build refuses that.
    for need in needs(&module) {
        add(&need.replace('-', "_"), known, order)?;
    }
    order.push(path.clone());
    Ok(())
}

/// What follows `depends=` in the module's information.
fn needs(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = module[at + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let value = String::from_utf8_lossy(value);
    value.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needs_are_read_from_the_module_information() {
        assert_eq!(
            needs(b"ELF\0license=GPL\0depends=virtio,virtio-ring\0x"),
            ["virtio", "virtio-ring"]
        );
        assert_eq!(needs(b"\0depends=\0"), Vec::<String>::new());
        assert_eq!(needs(b"nothing"), Vec::<String>::new());
    }
}
