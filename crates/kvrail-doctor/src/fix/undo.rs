//! Takes runs back: those that the user names, those that were interrupted, those that did not prove themselves.

use rustix::io::Errno;
use serde::Serialize;

use super::FixError;
use super::change::State;
use super::folder::Folder;
use super::journal::{self, DONE, Entry, Journal, NEW, OLD, UNDOING};
use super::place::{Held, LOCK_PATIENCE, Place};
use super::transaction::{Hook, STAGED, at, clear, reach, set_changed};

/// What becomes of a path that somebody else has changed since.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Foreign {
    /// Nothing at all is put back.
    Refuse,
    /// It stays as it is.
    Leave,
    /// What was there before the run is put back all the same.
    Replace,
}

impl Foreign {
    fn forced(force: bool) -> Self {
        if force { Self::Replace } else { Self::Refuse }
    }
}

/// A run that is in the journals of a place.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Run {
    /// What it changed.
    pub journal: Journal,
    /// Whether it was interrupted: the next run takes it back.
    pub interrupted: bool,
}

/// Takes a run back.
///
/// # Errors
/// When there is no such run, or when something that it changed was changed since and `force` is not set.
pub fn undo(place: &Place, run: Option<&str>, force: bool, hook: Hook<'_>) -> Result<Journal, FixError> {
    let nothing = |what: String| FixError::NoRun { what };
    if place.opened()?.is_none() {
        return Err(nothing(format!("kvrail fix has changed nothing below {}", place.root().display())));
    }
    let held = place.locked(LOCK_PATIENCE)?;
    recover_held(place, &held, force)?;
    let mut all = runs_in(place, &held.store)?;
    let index = match run {
        Some(run) => all.iter().position(|had| had.journal.run == run),
        None => all.len().checked_sub(1),
    };
    let later = index.map(|index| all.split_off(index + 1)).unwrap_or_default();
    let chosen = index.and_then(|_| all.pop());
    let chosen = chosen.ok_or_else(|| {
        nothing(match run {
            Some(run) => format!("there is no run {run} in {}", place.store().display()),
            None => format!("there is no run in {}", place.store().display()),
        })
    })?;
    let journal = chosen.journal;
    let later = later.into_iter().find(|later| {
        let paths = || later.journal.entries.iter().filter(|entry| !entry.derived);
        paths().any(|entry| journal.entries.iter().any(|mine| mine.path == entry.path))
    });
    if let Some(later) = later.filter(|_| !force) {
        return Err(FixError::Later { run: journal.run, later: later.journal.run });
    }
    restore(place, &held, &journal, Foreign::forced(force), hook)?;
    Ok(journal)
}

/// Takes back what an interrupted run left. Nothing where there is none.
///
/// # Errors
/// When something that it changed was changed since and `force` is not set.
pub fn recover(place: &Place, force: bool) -> Result<Vec<String>, FixError> {
    if place.opened()?.is_none() {
        return Ok(Vec::new());
    }
    let held = place.locked(LOCK_PATIENCE)?;
    recover_held(place, &held, force)
}

/// The runs of a place, oldest first.
///
/// # Errors
/// When a journal cannot be read.
pub fn runs(place: &Place) -> Result<Vec<Run>, FixError> {
    let Some(store) = place.opened()? else { return Ok(Vec::new()) };
    runs_in(place, &store)
}

fn runs_in(place: &Place, store: &Folder) -> Result<Vec<Run>, FixError> {
    let mut runs = Vec::new();
    for name in listed(place, store)? {
        if journal::is_run(&name) && !name.ends_with(NEW) && !name.ends_with(OLD) {
            let directory = store.below(&[&name]).map_err(|why| wrong_journal(place, &name, why))?;
            let journal = Journal::read(place, &directory, &name)?;
            runs.push(Run { journal, interrupted: !directory.has(DONE) || directory.has(UNDOING) });
        }
    }
    Ok(runs)
}

fn listed(place: &Place, store: &Folder) -> Result<Vec<String>, FixError> {
    store.names().map_err(|why| wrong_journal(place, "", why))
}

pub(super) fn recover_held(place: &Place, held: &Held, force: bool) -> Result<Vec<String>, FixError> {
    let mut recovered = Vec::new();
    for name in listed(place, &held.store)? {
        if !journal::is_run(&name) {
            continue;
        }
        if name.ends_with(NEW) {
            if let Ok(directory) = held.store.below(&[&name])
                && let Ok(journal) = Journal::read(place, &directory, &name)
            {
                unstage(place, &journal)?;
                set_changed(&Folder::root(place.root())?, &journal);
            }
            clear(held, &name);
        } else if name.ends_with(OLD) {
            clear(held, &name);
        } else {
            let directory = held.store.below(&[&name]).map_err(|why| wrong_journal(place, &name, why))?;
            if !directory.has(DONE) || directory.has(UNDOING) {
                let journal = Journal::read(place, &directory, &name)?;
                restore(place, held, &journal, Foreign::forced(force), &mut |_| Ok(()))?;
                recovered.push(name);
            }
        }
    }
    Ok(recovered)
}

/// Takes a run back that this process has just made.
pub(super) fn restore_forced(place: &Place, held: &Held, journal: &Journal) -> Result<(), FixError> {
    restore(place, held, journal, Foreign::Leave, &mut |_| Ok(()))
}

/// Puts back what a run replaced; each path may have been put back already.
fn restore(
    place: &Place,
    held: &Held,
    journal: &Journal,
    foreign: Foreign,
    hook: Hook<'_>,
) -> Result<(), FixError> {
    let run = journal.run.as_str();
    let directory = held.store.below(&[run]).map_err(|why| wrong_journal(place, run, why))?;
    let root = Folder::root(place.root())?;
    // First whether all of it can be put back: half of an undo helps nobody.
    let mut todo = Vec::new();
    for (index, entry) in journal.entries.iter().enumerate().rev() {
        let (folder, name) = reach(place, &root, &entry.path)?;
        let Some(folder) = folder else {
            if entry.before == State::Absent || foreign != Foreign::Refuse {
                continue;
            }
            return Err(changed(place, entry, &State::Absent, &entry.after));
        };
        let found = State::of(&folder, name).map_err(|why| half(place, &entry.path, why))?;
        if found.is_like(&entry.before) {
            continue;
        }
        if found == State::Other || !found.is_like(&entry.after) && !entry.derived {
            match foreign {
                Foreign::Replace if found != State::Other => {}
                Foreign::Leave => continue,
                Foreign::Refuse | Foreign::Replace => {
                    return Err(changed(place, entry, &found, &entry.after));
                }
            }
        }
        folder.is_writable().map_err(|why| half(place, &entry.path, why))?;
        todo.push((index, entry, folder, name));
    }
    hook("undo")?;
    if !directory.has(UNDOING) {
        directory
            .write(UNDOING, b"", None)
            .and_then(|()| directory.sync())
            .map_err(|why| wrong_journal(place, run, why))?;
    }
    for (index, entry, folder, name) in &todo {
        let half = |why: Errno| half(place, &entry.path, why);
        hook("put back")?;
        if entry.before == State::Absent {
            folder.remove(name).map_err(half)?;
        } else {
            let kept = index.to_string();
            folder.remove(&entry.staged).map_err(half)?;
            directory.keep(&kept, folder, &entry.staged).map_err(half)?;
            hook("rename back")?;
            folder.rename(&entry.staged, folder, name).map_err(half)?;
        }
        folder.sync().map_err(half)?;
    }
    if let Some(installed) = &journal.installed {
        let took = installed.take_back(&crate::host::Live::new());
        took.map_err(|why| FixError::HalfUndone { path: installed.python.as_str().into(), why })?;
    }
    unstage(place, journal)?;
    set_changed(&root, journal);
    hook("forget")?;
    let old = format!("{run}{OLD}");
    held.store
        .rename(run, &held.store, &old)
        .and_then(|()| held.store.sync())
        .map_err(|why| wrong_journal(place, run, why))?;
    hook("clear")?;
    clear(held, &old);
    Ok(())
}

/// Removes what was prepared and never put in place.
fn unstage(place: &Place, journal: &Journal) -> Result<(), FixError> {
    let root = Folder::root(place.root())?;
    for entry in &journal.entries {
        if let (Some(folder), _) = reach(place, &root, &entry.path)?
            && entry.staged.starts_with(STAGED)
            && !entry.staged.contains('/')
        {
            folder.remove(&entry.staged).map_err(|why| half(place, &entry.path, why))?;
        }
    }
    Ok(())
}

fn half(place: &Place, path: &str, why: Errno) -> FixError {
    FixError::HalfUndone { path: at(place, path), why: why.to_string() }
}

pub(super) fn changed(place: &Place, entry: &Entry, found: &State, left: &State) -> FixError {
    FixError::Changed { path: at(place, &entry.path), found: found.to_string(), left: left.to_string() }
}

fn wrong_journal(place: &Place, run: &str, why: Errno) -> FixError {
    FixError::Journal { path: place.store().join(run), why: why.to_string() }
}
