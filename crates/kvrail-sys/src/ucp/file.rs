//! What a UCP's file says, before its code is mapped: another machine's, or what is no UCP, shall not run its constructors here.

use std::path::{Path, PathBuf};

use super::error::LoadError;
use super::library::FUNCTIONS;
use crate::elf::{Elf, HOST};

/// Looks at a file: the path with links resolved.
///
/// # Errors
/// When it is no library, another machine's, no UCP, or lacks a function.
pub(super) fn inspect(path: &Path) -> Result<PathBuf, LoadError> {
    let path = path.canonicalize().unwrap_or_else(|_| path.into());
    let elf = Elf::read(&path)
        .map_err(|e| LoadError::Refused { path: path.clone(), dlerror: format!("no library: {}", e.why) })?;
    if elf.machine != HOST {
        return Err(LoadError::Machine { path, machine: elf.machine });
    }
    let has = |symbol: &str| elf.exports.iter().any(|(name, _)| name == symbol);
    if !has("ucp_init_version") {
        return Err(LoadError::NoUcp { path, soname: elf.soname });
    }
    let symbols: Vec<&'static str> = FUNCTIONS.iter().copied().filter(|symbol| !has(symbol)).collect();
    if symbols.is_empty() { Ok(path) } else { Err(LoadError::MissingSymbols { path, symbols }) }
}
