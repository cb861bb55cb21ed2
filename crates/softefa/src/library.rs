//! The device library: `libibverbs.so.1`, which is also `libefa.so.1`, built from the crate `softefa-verbs` and carried in this one.

use std::io;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::{fmt, fs};

/// The library, as a file has to hold it. Aligned as a mapped file is, so that it can be read as an ELF file in place.
pub static DEVICE: &[u8] = &ALIGNED.0;

#[repr(C, align(16))]
struct Aligned<T: ?Sized>(T);

static ALIGNED: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/libibverbs.so.1")));

/// Its name, which programs were linked with.
pub const FILE: &str = "libibverbs.so.1";

/// The name of EFA's own library: a link to [`FILE`], so that the loader maps the two as one.
pub const EFA_LINK: &str = "libefa.so.1";

/// Why the library could not be put somewhere.
#[derive(Debug)]
#[non_exhaustive]
pub struct InstallError {
    /// What was tried.
    pub action: &'static str,
    /// On which file.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

impl fmt::Display for InstallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {} {}: {}", self.action, self.path.display(), self.source)
    }
}

impl std::error::Error for InstallError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// Writes the library and the link into `dir`, which is made if need be; returns the library's path. What is there under these names is
/// replaced, without disturbing a process that has it mapped.
///
/// # Errors
/// [`InstallError`] from the file system.
pub fn install(dir: &Path) -> Result<PathBuf, InstallError> {
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |source| InstallError { action, path, source }
    };
    fs::create_dir_all(dir).map_err(failed("make directory", dir))?;
    let library = dir.join(FILE);
    let fresh = dir.join(format!(".{FILE}.{}", std::process::id()));
    write_new(&fresh).map_err(failed("write", &fresh))?;
    // A rename: a library that is mapped must not be written into.
    fs::rename(&fresh, &library).map_err(failed("replace", &library))?;
    let link = dir.join(EFA_LINK);
    match fs::remove_file(&link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &link)(error)),
        _ => {}
    }
    symlink(FILE, &link).map_err(failed("link", &link))?;
    Ok(library)
}

fn write_new(path: &Path) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(path)?;
    io::Write::write_all(&mut file, DEVICE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_can_be_installed_over_itself() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("lib");
        for _ in 0..2 {
            assert_eq!(install(&at).unwrap(), at.join(FILE));
            assert_eq!(fs::read(at.join(EFA_LINK)).unwrap(), DEVICE);
        }
        assert_eq!(fs::read_dir(&at).unwrap().count(), 2, "nothing else is left");
    }

    #[test]
    fn a_place_that_cannot_be_written_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let error = install(&file.join("lib")).unwrap_err();
        assert!(error.to_string().contains("file/lib"), "{error}");
    }
}
