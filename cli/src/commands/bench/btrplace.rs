//! `ballast bench btrplace`.

use std::path::Path;

use ballast_model::Refusal;

pub(super) fn run(path: &Path) -> Result<(), Refusal> {
    let _ = super::input::read(path)?;
    Ok(())
}
