//! Both distributions as an installation would leave them, in `target/python/site`, from what cargo has built and from the sources.
//!
//! Files are replaced by renaming and only where they differ, so that programs which run from the site are not disturbed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{bindings, lock, told, under_target};

pub(crate) const IMPORT_DEADLINE: Duration = Duration::from_secs(60);
/// The names under which the distribution kvrail-nixl installs one tree.
const NIXL_NAMES: &[&str] = &["nixl", "nixl_cu12", "nixl_cu13"];

enum Content {
    Of(PathBuf),
    Text(String),
}

type Files = BTreeMap<PathBuf, Content>;

/// Brings `target/python/site` up to date; the directory for `PYTHONPATH`.
pub(crate) fn stage() -> Result<PathBuf, String> {
    let site = under_target().join("site");
    let _turn = lock("site")?;
    let mut files = Files::new();
    kvrail(&mut files)?;
    kvrail_nixl(&mut files)?;
    fs::create_dir_all(&site).map_err(|error| told(&site, &error))?;
    for (path, content) in &files {
        place(&site.join(path), content)?;
    }
    remove_others(&site, Path::new(""), &files)?;
    Ok(site)
}

/// Where cargo has put the native module: beside the test.
pub(crate) fn native_module() -> Result<PathBuf, String> {
    let test = std::env::current_exe().map_err(|error| error.to_string())?;
    let module = test.with_file_name("lib_kvrail.so");
    if module.is_file() {
        return Ok(module);
    }
    Err(format!("{} is not there: cargo builds it for this test", module.display()))
}

fn kvrail(files: &mut Files) -> Result<(), String> {
    let mut ours = Files::new();
    sources(&bindings().join("python/python/kvrail"), Path::new("kvrail"), &mut ours)?;
    ours.insert("kvrail/_kvrail.abi3.so".into(), Content::Of(native_module()?));
    describe("kvrail", env!("CARGO_PKG_VERSION"), &["kvrail"], ours, files);
    Ok(())
}

fn kvrail_nixl(files: &mut Files) -> Result<(), String> {
    let project = bindings().join("python-nixl");
    let mut ours = Files::new();
    sources(&project.join("src/kvrail_nixl"), Path::new("kvrail_nixl"), &mut ours)?;
    for name in NIXL_NAMES {
        sources(&project.join("src/nixl"), Path::new(name), &mut ours)?;
    }
    let project = project.join("pyproject.toml");
    let text = fs::read_to_string(&project).map_err(|error| told(&project, &error))?;
    let version = text.lines().find_map(|line| line.strip_prefix("version = \"")?.strip_suffix('"'));
    let version = version.ok_or_else(|| format!("{} names no version", project.display()))?;
    let packages: Vec<&str> = ["kvrail_nixl"].iter().chain(NIXL_NAMES).copied().collect();
    describe("kvrail_nixl", version, &packages, ours, files);
    Ok(())
}

/// The files of a source tree that belong into an installation.
fn sources(from: &Path, to: &Path, files: &mut Files) -> Result<(), String> {
    for entry in fs::read_dir(from).map_err(|error| told(from, &error))? {
        let entry = entry.map_err(|error| told(from, &error))?;
        let (source, name) = (entry.path(), entry.file_name());
        if source.is_dir() {
            if name != "__pycache__" {
                sources(&source, &to.join(name), files)?;
            }
        } else if source.extension().is_none_or(|extension| extension != "so" && extension != "pyc") {
            files.insert(to.join(name), Content::Of(source));
        }
    }
    Ok(())
}

/// Adds a distribution's files, and what `importlib.metadata` reads of it.
fn describe(project: &str, version: &str, packages: &[&str], ours: Files, files: &mut Files) {
    let directory = PathBuf::from(format!("{project}-{version}.dist-info"));
    let name = project.replace('_', "-");
    let texts = [
        ("METADATA", format!("Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n")),
        ("WHEEL", "Wheel-Version: 1.0\nGenerator: cargo test\nRoot-Is-Purelib: false\n".to_owned()),
        ("INSTALLER", "cargo test\n".to_owned()),
        ("top_level.txt", packages.iter().map(|package| format!("{package}\n")).collect()),
    ];
    let mut record: String = ours.keys().map(|path| format!("{},,\n", path.display())).collect();
    for (file, text) in texts {
        let path = directory.join(file);
        record += &format!("{},,\n", path.display());
        files.insert(path, Content::Text(text));
    }
    files.insert(directory.join("RECORD"), Content::Text(record));
    files.extend(ours);
}

fn place(path: &Path, content: &Content) -> Result<(), String> {
    let wanted = match content {
        Content::Of(source) => fs::read(source).map_err(|error| told(source, &error))?,
        Content::Text(text) => text.clone().into_bytes(),
    };
    if fs::read(path).is_ok_and(|is| is == wanted) {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(|error| told(parent, &error))?;
    }
    let made = path.with_extension("part");
    fs::write(&made, wanted).and_then(|()| fs::rename(&made, path)).map_err(|error| told(path, &error))
}

/// Removes what the sources no longer have. Python's caches stay: it does not look at those of missing sources.
fn remove_others(site: &Path, below: &Path, files: &Files) -> Result<(), String> {
    let directory = site.join(below);
    for entry in fs::read_dir(&directory).map_err(|error| told(&directory, &error))? {
        let entry = entry.map_err(|error| told(&directory, &error))?;
        let (path, relative) = (entry.path(), below.join(entry.file_name()));
        if path.is_dir() {
            let wanted = files.keys().any(|file| file.starts_with(&relative));
            match (wanted, entry.file_name() == "__pycache__") {
                (true, _) => remove_others(site, &relative, files)?,
                (false, true) => {}
                (false, false) => fs::remove_dir_all(&path).map_err(|error| told(&path, &error))?,
            }
        } else if !files.contains_key(&relative) {
            fs::remove_file(&path).map_err(|error| told(&path, &error))?;
        }
    }
    Ok(())
}
