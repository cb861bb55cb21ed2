//! Why a change was not made, or was taken back.

use std::path::PathBuf;

/// Why nothing was changed, or why what was changed was taken back.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FixError {
    /// A path that leads out of the place, or over a link.
    #[error("{}: not below {} without links on the way: nothing is changed there", path.display(), root.display())]
    Outside {
        /// What was to be changed.
        path: PathBuf,
        /// Below which it has to be.
        root: PathBuf,
    },
    /// Found before the first change: it could not be made.
    #[error("{} cannot be changed: {why}; nothing was changed", path.display())]
    Unwritable {
        /// What was to be changed, or its directory.
        path: PathBuf,
        /// The system's word.
        why: String,
    },
    /// Something that is no file and no link is where one is to be.
    #[error("{} is neither a file nor a link; nothing was changed", path.display())]
    Strange {
        /// Where.
        path: PathBuf,
    },
    /// Another run is at work there.
    #[error("another kvrail fix is at work on {} and did not end within {seconds} s", root.display())]
    Locked {
        /// Where.
        root: PathBuf,
        /// How long was waited.
        seconds: u64,
    },
    /// What was changed has been changed again, by somebody else.
    #[error("{} was changed since by somebody else: it is {found}, and kvrail fix left {left}", path.display())]
    Changed {
        /// What.
        path: PathBuf,
        /// What it is.
        found: String,
        /// What it was made.
        left: String,
    },
    /// A later run changed the same paths.
    #[error("run {later} has changed since what run {run} changed; undo {later} first")]
    Later {
        /// The run that is to be undone.
        run: String,
        /// The later one.
        later: String,
    },
    /// There is no such run.
    #[error("nothing to undo: {what}")]
    NoRun {
        /// What was looked for, and where.
        what: String,
    },
    /// The journal of a run cannot be read.
    #[error("{}: {why}", path.display())]
    Journal {
        /// The journal.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// It was changed, does not work, and was changed back.
    #[error("it does not work, and everything is as it was before: {why}")]
    Unproven {
        /// What did not work.
        why: String,
    },
    /// The system refused in the middle; what had been changed was changed back.
    #[error("{}: {why}; everything is as it was before", path.display())]
    Failed {
        /// What was being done.
        path: PathBuf,
        /// The system's word.
        why: String,
    },
    /// The system refused in the middle of an undo or a recovery, which the next run continues.
    #[error("{}: {why}; run it again when that is mended: it goes on where it stopped", path.display())]
    HalfUndone {
        /// What was being restored.
        path: PathBuf,
        /// The system's word.
        why: String,
    },
    /// A test stopped it, as a crash would.
    #[error("stopped by a test")]
    Stopped,
}
