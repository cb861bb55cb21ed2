//! What all threads of a process share.
pub(super) struct Shared;
