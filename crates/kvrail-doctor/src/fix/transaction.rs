//! Makes changes, all or none of them.
//!
//! What is replaced is kept as a second name of the same file, and what is new is put in its place by a rename: there is no
//! moment at which a path has neither the old nor the new content, and what comes back is the very file that was there, with its
//! times, owner and attributes.

use std::path::PathBuf;

use rustix::fs::symlinkat;
use rustix::io::Errno;
use serde::Serialize;

use super::change::{Change, State, To, digest};
use super::folder::{Folder, Like, names};
use super::journal::{self, DONE, Entry, Journal, NEW};
use super::place::{Held, LOCK_PATIENCE, Place};
use super::undo::{changed, recover_held, restore_forced};
use super::{FixError, Remedy};

/// Beginning of the names under which what is new is prepared, beside what it replaces.
pub(super) const STAGED: &str = ".kvrail-fix-";

/// What is called before each step; a test stops the run there as a crash would.
pub type Hook<'a> = &'a mut dyn FnMut(&'static str) -> Result<(), FixError>;

/// How a run ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Applied {
    /// Everything was already as it is to be.
    Nothing,
    /// Changed, and proven.
    Changed(Journal),
}

/// What changes would do now: those that are still to be made, each with what is there and what would be.
///
/// # Errors
/// When a path leads out of the place, or something else than a file or a link is there.
pub fn preview(place: &Place, changes: &[Change]) -> Result<Vec<Entry>, FixError> {
    let root = Folder::root(place.root())?;
    let mut entries = Vec::new();
    for (index, change) in changes.iter().enumerate() {
        let (folder, name) = reach(place, &root, &change.path)?;
        let unwritable = |why: Errno| unwritable(place, &change.path, why);
        let before = match &folder {
            Some(folder) => State::of(folder, name).map_err(unwritable)?,
            None => State::Absent,
        };
        if before == State::Other {
            return Err(FixError::Strange { path: place.root().join(&change.path) });
        }
        let after = after(&change.to, &before);
        if !before.is_like(&after) {
            entries.push(Entry {
                path: change.path.clone(),
                before,
                after,
                why: change.why.clone(),
                derived: change.derived,
                staged: format!("{STAGED}{}-{index}", std::process::id()),
            });
        }
    }
    Ok(entries)
}

/// Makes changes: all of them, proven, or none.
///
/// # Errors
/// Why nothing was changed.
pub fn apply(
    place: &Place,
    run: &str,
    remedies: &[Remedy],
    changes: &[Change],
    prove: &mut dyn FnMut() -> Result<(), String>,
    hook: Hook<'_>,
) -> Result<Applied, FixError> {
    // A place on which nothing is to be done is not even locked: it may be read-only.
    if place.opened()?.is_none() && preview(place, changes)?.is_empty() {
        return Ok(Applied::Nothing);
    }
    let held = place.locked(LOCK_PATIENCE)?;
    recover_held(place, &held, false)?;
    let entries = preview(place, changes)?;
    if entries.is_empty() {
        return Ok(Applied::Nothing);
    }
    let root = Folder::root(place.root())?;
    let mut journal = Journal::new(run.into(), remedies);
    journal.entries = entries;
    let mut folders = Vec::new();
    for entry in &journal.entries {
        let (folder, _) = reach(place, &root, &entry.path)?;
        let folder = folder.ok_or_else(|| unwritable(place, &entry.path, Errno::NOENT))?;
        folder.is_writable().map_err(|why| unwritable(place, &entry.path, why))?;
        let parent = parent(&entry.path).to_owned();
        if !journal.folders.iter().any(|(path, _)| *path == parent) {
            let changed = folder.changed().map_err(|why| unwritable(place, &entry.path, why))?;
            journal.folders.push((parent, changed));
        }
        folders.push(folder);
    }
    hook("begin")?;
    let new = format!("{run}{NEW}");
    let prepared = prepare(place, &held, &journal, changes, &folders, &new, hook);
    if let Err(error) = prepared {
        if error != FixError::Stopped {
            discard(&held, &new, &folders, &journal);
            set_changed(&root, &journal);
        }
        return Err(error);
    }
    // From here on the run is known, and a crash is undone by whoever comes next.
    held.store
        .rename(&new, &held.store, run)
        .and_then(|()| held.store.sync())
        .map_err(|why| FixError::Journal { path: place.store().join(run), why: why.to_string() })?;
    let made = replace(place, &journal, &folders, hook).and_then(|()| {
        hook("prove")?;
        prove().map_err(|why| FixError::Unproven { why })?;
        hook("done")?;
        let directory = held.store.below(&[run]).map_err(|why| failed(place, "", why))?;
        directory.write(DONE, b"", None).and_then(|()| directory.sync()).map_err(|why| failed(place, "", why))
    });
    match made {
        Ok(()) => Ok(Applied::Changed(journal)),
        Err(FixError::Stopped) => Err(FixError::Stopped),
        Err(error) => {
            restore_forced(place, &held, &journal)?;
            Err(error)
        }
    }
}

/// Prepares what is new beside what it replaces, and keeps what will be replaced.
fn prepare(
    place: &Place,
    held: &Held,
    journal: &Journal,
    changes: &[Change],
    folders: &[Folder],
    new: &str,
    hook: Hook<'_>,
) -> Result<(), FixError> {
    let wrong = |why: Errno| FixError::Unwritable { path: place.store(), why: why.to_string() };
    let directory = held.store.made(new).map_err(wrong)?;
    directory.write(journal::NAME, &journal.to_json(), None).map_err(wrong)?;
    held.store.sync().map_err(wrong)?;
    for (index, (entry, folder)) in journal.entries.iter().zip(folders).enumerate() {
        let unwritable = |why: Errno| unwritable(place, &entry.path, why);
        hook("stage")?;
        let to = changes.iter().find(|change| change.path == entry.path).map(|change| &change.to);
        match to {
            Some(To::Link(target)) => {
                symlinkat(target.as_str(), folder, entry.staged.as_str()).map_err(unwritable)?
            }
            Some(To::File(content)) => {
                folder.write(&entry.staged, content, like(&entry.before).as_ref()).map_err(unwritable)?;
            }
            Some(To::Absent) | None => {}
        }
        if entry.before != State::Absent {
            hook("keep")?;
            let (_, name) = names(place.root(), &entry.path)?;
            folder.keep(name, &directory, &index.to_string()).map_err(unwritable)?;
        }
    }
    directory.sync().map_err(wrong)
}

/// Puts what is new in place.
fn replace(place: &Place, journal: &Journal, folders: &[Folder], hook: Hook<'_>) -> Result<(), FixError> {
    for (entry, folder) in journal.entries.iter().zip(folders) {
        let failed = |why: Errno| failed(place, &entry.path, why);
        hook("change")?;
        let (_, name) = names(place.root(), &entry.path)?;
        let found = State::of(folder, name).map_err(failed)?;
        if !found.is_like(&entry.before) {
            return Err(changed(place, entry, &found, &entry.before));
        }
        match entry.after {
            State::Absent => folder.remove(name).map_err(failed)?,
            _ => folder.rename(&entry.staged, folder, name).map_err(failed)?,
        }
    }
    for (entry, folder) in journal.entries.iter().zip(folders) {
        folder.sync().map_err(|why| failed(place, &entry.path, why))?;
    }
    Ok(())
}

fn discard(held: &Held, new: &str, folders: &[Folder], journal: &Journal) {
    for (entry, folder) in journal.entries.iter().zip(folders) {
        let _ = folder.remove(&entry.staged);
    }
    clear(held, new);
}

/// Lets the directories look as if nothing had ever been prepared in them.
pub(super) fn set_changed(root: &Folder, journal: &Journal) {
    for (path, changed) in &journal.folders {
        let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).collect();
        if let Ok(folder) = root.below(&names) {
            folder.set_changed(*changed);
        }
    }
}

pub(super) fn clear(held: &Held, name: &str) {
    if let Ok(directory) = held.store.below(&[name]) {
        for kept in directory.names().unwrap_or_default() {
            let _ = directory.remove(&kept);
        }
    }
    let _ = rustix::fs::unlinkat(&held.store, name, rustix::fs::AtFlags::REMOVEDIR);
}

/// The directory of a path, where it exists, and the name in it.
pub(super) fn reach<'a>(
    place: &Place,
    root: &Folder,
    path: &'a str,
) -> Result<(Option<Folder>, &'a str), FixError> {
    let (above, name) = names(place.root(), path)?;
    match root.below(&above) {
        Ok(folder) => Ok((Some(folder), name)),
        Err(Errno::NOENT) => Ok((None, name)),
        Err(Errno::LOOP | Errno::NOTDIR) => {
            Err(FixError::Outside { path: place.root().join(path), root: place.root().into() })
        }
        Err(why) => Err(unwritable(place, path, why)),
    }
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

fn after(to: &To, before: &State) -> State {
    match to {
        To::Absent => State::Absent,
        To::Link(target) => State::Link { target: target.clone() },
        To::File(content) => {
            let (mode, uid, gid) = match before {
                State::File { mode, uid, gid, .. } => (*mode, *uid, *gid),
                _ => {
                    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
                    (0o644, uid.as_raw(), gid.as_raw())
                }
            };
            State::File { sha256: digest(content), bytes: content.len() as u64, mode, uid, gid }
        }
    }
}

fn like(before: &State) -> Option<Like> {
    let State::File { mode, uid, gid, .. } = before else { return None };
    let (uid, gid) = (rustix::fs::Uid::from_raw(*uid), rustix::fs::Gid::from_raw(*gid));
    Some(Like { mode: *mode, uid: Some(uid), gid: Some(gid), times: None })
}

pub(super) fn at(place: &Place, path: &str) -> PathBuf {
    if path.is_empty() { place.store() } else { place.root().join(path) }
}

fn unwritable(place: &Place, path: &str, why: Errno) -> FixError {
    FixError::Unwritable { path: at(place, path), why: why.to_string() }
}

fn failed(place: &Place, path: &str, why: Errno) -> FixError {
    FixError::Failed { path: at(place, path), why: why.to_string() }
}
