//! Where libfabrics lie, in the order in which they are preferred.

use std::env;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::error::Error;
use super::inspect::{Inspection, inspect};

/// Environment variable: the libfabric to use, a file or its directory.
pub const LIBFABRIC_VARIABLE: &str = "SOFTEFA_LIBFABRIC";

/// Name under which programs load it.
pub(super) const SONAME: &str = "libfabric.so.1";
/// Where the mpich wheel puts it, below the environment's prefix.
const WHEEL: &str = "lib/mpich";
/// Where AWS's installer puts it.
const AMAZON: [&str; 2] = ["/opt/amazon/efa/lib", "/opt/amazon/efa/lib64"];
/// Prints where wheels put their data: of the active environment, and of `pip install --user`.
const PREFIXES: &str = "import sys, site; print(sys.prefix); print(site.getuserbase())";
/// Longest wait for a program that is asked something.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Longest answer, bytes.
const ANSWER_BYTES_MAX: u64 = 4 << 20;

/// Who led to a libfabric.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Origin {
    /// The option `--libfabric`.
    Option,
    /// The variable [`LIBFABRIC_VARIABLE`].
    Variable,
    /// The wheel `mpich` in the active Python environment.
    Wheel,
    /// `LD_LIBRARY_PATH`.
    SearchPath,
    /// The loader's cache, or its default directories.
    Loader,
    /// AWS's EFA installer.
    Amazon,
}

impl Origin {
    /// In words.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Option => "--libfabric",
            Self::Variable => LIBFABRIC_VARIABLE,
            Self::Wheel => "mpich wheel",
            Self::SearchPath => "LD_LIBRARY_PATH",
            Self::Loader => "loader",
            Self::Amazon => "/opt/amazon/efa",
        }
    }

    /// Whether a command's loader finds it without being told.
    pub(super) const fn is_found_by_loader(self) -> bool {
        matches!(self, Self::SearchPath | Self::Loader)
    }
}

/// A libfabric that is there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// The library.
    pub library: PathBuf,
    /// Who led to it.
    pub origin: Origin,
}

/// All libfabrics, the preferred first; only the named one when one is named.
///
/// # Errors
/// When the named one is not there, or there is none at all.
pub fn candidates(named: Option<&Path>) -> Result<Vec<Candidate>, Error> {
    if let Some(path) = named {
        return at(path, Origin::Option).map(|found| vec![found]);
    }
    if let Some(path) = env::var_os(LIBFABRIC_VARIABLE).filter(|v| !v.is_empty()) {
        return at(Path::new(&path), Origin::Variable).map(|found| vec![found]);
    }
    let mut found: Vec<Candidate> = Vec::new();
    let mut add = |directory: &Path, origin| {
        let library = directory.join(SONAME);
        let same = |other: &Candidate| other.library.canonicalize().ok() == library.canonicalize().ok();
        if library.is_file() && !found.iter().any(same) {
            found.push(Candidate { library, origin });
        }
    };
    for prefix in python_prefixes() {
        add(&prefix.join(WHEEL), Origin::Wheel);
    }
    for directory in env::split_paths(&env::var_os("LD_LIBRARY_PATH").unwrap_or_default()) {
        add(&directory, Origin::SearchPath);
    }
    for directory in loader_directories() {
        add(&directory, Origin::Loader);
    }
    for directory in AMAZON {
        add(Path::new(directory), Origin::Amazon);
    }
    if found.is_empty() { Err(Error::NotFound { looked: looked() }) } else { Ok(found) }
}

/// The first libfabric that can be used.
///
/// # Errors
/// [`candidates`]', or why the preferred one cannot be used.
pub fn find(named: Option<&Path>) -> Result<Inspection, Error> {
    let mut first = None;
    for candidate in candidates(named)? {
        match inspect(&candidate) {
            Ok(inspection) => return Ok(inspection),
            Err(error) => first = first.or(Some(error)),
        }
    }
    Err(first.unwrap_or(Error::NotFound { looked: looked() }))
}

fn looked() -> Vec<String> {
    let places =
        ["the active Python environment (wheel mpich)", "LD_LIBRARY_PATH", "the loader's directories"];
    places.into_iter().chain(AMAZON).map(String::from).collect()
}

/// The library that a path names: itself, or the one in the directory.
fn at(path: &Path, origin: Origin) -> Result<Candidate, Error> {
    let library = if path.is_dir() { path.join(SONAME) } else { path.to_path_buf() };
    // Absolute, because commands may run elsewhere; not resolved, because neighbours are found beside the name.
    let library = std::path::absolute(&library).unwrap_or(library);
    if library.is_file() {
        Ok(Candidate { library, origin })
    } else {
        Err(Error::NotThere { path: path.into(), named_by: origin.name() })
    }
}

/// Prefixes below which wheels put their data.
fn python_prefixes() -> Vec<PathBuf> {
    if let Some(active) = env::var_os("VIRTUAL_ENV").filter(|v| !v.is_empty()).map(PathBuf::from) {
        // What is active is what commands run: another Python's wheel would be a surprise.
        return vec![active];
    }
    let text = answer(Command::new("python3").args(["-c", PREFIXES])).unwrap_or_default();
    text.lines().map(PathBuf::from).filter(|p| p.is_absolute()).collect()
}

/// Directories in which the loader finds a libfabric for this machine.
fn loader_directories() -> Vec<PathBuf> {
    let machine = if cfg!(target_arch = "aarch64") { "AArch64" } else { "x86-64" };
    let ask = |program| answer(Command::new(program).arg("-p"));
    let cache = ask("/sbin/ldconfig").or_else(|| ask("ldconfig")).unwrap_or_default();
    let line = |line: &str| {
        let (name, path) = line.trim().split_once(" => ")?;
        let right = name.starts_with(SONAME) && name.contains(machine);
        right.then(|| Path::new(path).parent().map(Path::to_path_buf))?
    };
    let mut directories: Vec<PathBuf> = cache.lines().filter_map(line).collect();
    let triple = if cfg!(target_arch = "aarch64") { "aarch64-linux-gnu" } else { "x86_64-linux-gnu" };
    directories.extend(
        [format!("/usr/lib/{triple}"), "/usr/lib64".into(), "/usr/local/lib".into()].map(PathBuf::from),
    );
    directories
}

/// What a program prints, if it answers in time with success.
fn answer(command: &mut Command) -> Option<String> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().ok()?;
    let pipe = child.stdout.take()?;
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        pipe.take(ANSWER_BYTES_MAX).read_to_string(&mut text).map(|_| text)
    });
    let deadline = Instant::now() + ANSWER_MAX;
    let mut pause = Duration::from_micros(200);
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return reader.join().ok()?.ok().filter(|_| status.success()),
            Ok(None) if Instant::now() < deadline => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(5));
            }
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_place_without_libfabric_is_an_error_that_says_who_named_it() {
        let empty = tempfile::tempdir().unwrap();
        let error = candidates(Some(empty.path())).unwrap_err();
        assert!(error.to_string().contains("named by --libfabric"), "{error}");
        std::fs::write(empty.path().join(SONAME), b"no library").unwrap();
        assert_eq!(candidates(Some(empty.path())).unwrap()[0].library, empty.path().join(SONAME));
        assert!(matches!(find(Some(empty.path())), Err(Error::Unreadable { .. })));
    }

    #[test]
    fn a_program_that_does_not_exist_has_no_answer() {
        assert_eq!(answer(&mut Command::new("/no/such/program")), None);
        assert_eq!(answer(Command::new("echo").arg("yes")).as_deref(), Some("yes\n"));
    }
}
