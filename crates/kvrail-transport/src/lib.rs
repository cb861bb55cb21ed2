//! Real fabrics: each implements [`kvrail_core::transport::Transport`] and can be waited for.

#[cfg(target_os = "linux")]
pub mod memory;
#[cfg(target_os = "linux")]
pub mod ofi;
pub mod raw;
#[cfg(target_os = "linux")]
pub mod shm;
pub mod silence;
pub mod tcp;
mod wait;

use std::os::fd::RawFd;

use kvrail_core::transport::Transport;

pub use wait::wait_handle;

/// A transport that a thread can sleep on: no busy core when idle.
pub trait Fabric: Transport + Send {
    /// A descriptor that polls readable when [`Transport::poll`] has something to do and [`Fabric::arm`] was called.
    fn wait_fd(&self) -> RawFd;

    /// Asks for a wake-up through [`Fabric::wait_fd`] on the next arrival. Returns false when something is pending
    /// already: poll again instead of sleeping. The wake-up holds until the next [`Transport::poll`].
    fn arm(&mut self) -> bool;

    /// What it runs on, beyond its rails: for people and reports.
    fn facts(&self) -> Facts {
        Facts::Plain
    }
}

/// What a fabric runs on.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Facts {
    /// Nothing but the operating system.
    Plain,
    /// A provider of libfabric.
    #[cfg(target_os = "linux")]
    Ofi(Box<ofi::Facts>),
}
