//! Advice beside errors: an error's `Display` carries facts, its hints say what to do.

/// Errors that can say what a person may do about them.
///
/// Print the error on one line and each hint on a line of its own:
/// ```text
/// error: cannot listen on 127.0.0.1:80: Permission denied (os error 13)
/// hint: ports below 1024 need a privilege; choose a higher one
/// ```
pub trait Hints: std::error::Error {
    /// What to do, most promising first; empty when nothing better than the facts is known.
    fn hints(&self) -> Vec<String> {
        Vec::new()
    }
}
