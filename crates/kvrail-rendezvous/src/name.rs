//! Names that become parts of keys: run ids and the names of values.

use std::fmt;
use std::str::FromStr;

use crate::limits::{NAME_BYTES_MAX, RUN_ID_BYTES_MAX};

/// Why a text is no name.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// No character at all.
    #[error("{what} is empty")]
    Empty {
        /// What was to be named.
        what: &'static str,
    },
    /// Too long.
    #[error("{what} has {len} bytes; at most {max} are allowed")]
    TooLong {
        /// What was to be named.
        what: &'static str,
        /// Bytes given.
        len: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// A character that keys cannot have.
    #[error("{what} \"{}\" has the character {character:?}; letters, digits and . _ - : @ + are allowed", .name.escape_debug())]
    Character {
        /// What was to be named.
        what: &'static str,
        /// As it was given.
        name: String,
        /// The first that is not allowed.
        character: char,
    },
}

fn allowed(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '.' | '_' | '-' | ':' | '@' | '+')
}

fn check(what: &'static str, name: &str, max: usize) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty { what });
    }
    if name.len() > max {
        return Err(NameError::TooLong { what, len: name.len(), max });
    }
    match name.chars().find(|&c| !allowed(c)) {
        Some(character) => Err(NameError::Character { what, name: name.into(), character }),
        None => Ok(()),
    }
}

/// Checks the name of a value, a barrier, a gathering or a broadcast.
pub(crate) fn check_name(name: &str) -> Result<(), NameError> {
    check("the name of a value", name, NAME_BYTES_MAX)
}

/// What tells one run from another in the same store: letters, digits and `. _ - : @ +`.
///
/// The same id may be used again after a run has ended or crashed.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RunId(String);

impl RunId {
    /// # Errors
    /// [`NameError`].
    pub fn new(id: impl Into<String>) -> Result<Self, NameError> {
        let id = id.into();
        check("the run id", &id, RUN_ID_BYTES_MAX)?;
        Ok(Self(id))
    }

    /// A new id of 80 random bits, `run-` and 16 characters: for the one who starts a run and tells the others.
    #[must_use]
    pub fn generate() -> Self {
        const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
        let bits = (u128::from(crate::member::random_u64()) << 64) | u128::from(crate::member::random_u64());
        let mut id = String::from("run-");
        id.extend((0..16).map(|i| char::from(ALPHABET[(bits >> (5 * i)) as usize % ALPHABET.len()])));
        Self(id)
    }

    /// What a launcher calls its job, made a run id: other characters become `-`, what is too long is cut.
    pub(crate) fn tame(text: &str) -> Option<Self> {
        let tamed: String =
            text.chars().take(RUN_ID_BYTES_MAX).map(|c| if allowed(c) { c } else { '-' }).collect();
        Self::new(tamed).ok()
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for RunId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::new(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_id_cannot_reach_beyond_its_own_prefix() {
        for id in ["", "a/b", "..\0", "a b", "é", &"x".repeat(RUN_ID_BYTES_MAX + 1)] {
            assert!(RunId::new(id).is_err(), "{id:?}");
        }
        assert_eq!(RunId::tame("prterun/host 1@2").unwrap().as_str(), "prterun-host-1@2");
    }

    #[test]
    fn generated_run_ids_are_valid_and_differ() {
        let (a, b) = (RunId::generate(), RunId::generate());
        assert_ne!(a, b);
        assert_eq!(RunId::new(a.as_str()).as_ref(), Ok(&a));
        assert_eq!(a.as_str().len(), 20);
    }
}
