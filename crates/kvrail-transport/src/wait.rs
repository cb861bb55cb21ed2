//! A fabric's wait descriptor as a value of its own, for a sleeper that does not hold the fabric.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use crate::Fabric;

/// A duplicate of [`Fabric::wait_fd`]: polls as the original does, and stays valid when the fabric is gone.
///
/// # Errors
/// The process has no descriptor left.
pub fn wait_handle(fabric: &dyn Fabric) -> io::Result<OwnedFd> {
    // SAFETY: the trait says that the descriptor is the fabric's own, and the fabric is borrowed for the whole call.
    let fd = unsafe { BorrowedFd::borrow_raw(fabric.wait_fd()) };
    fd.try_clone_to_owned()
}
