//! Completion queues.

use std::sync::Arc;

use super::device::Device;
use super::event::Channel;
use super::types::{Completion, Limit};

/// Where completions of several queue pairs are collected.
pub struct CompletionQueue {}

impl CompletionQueue {
    /// A queue of `capacity` entries on `device`. An event on `channel` carries `token`.
    ///
    /// # Errors
    /// [`Limit::Beyond`] when the device has no queues of this size.
    pub fn new(
        device: &Device,
        capacity: u32,
        channel: Option<Arc<Channel>>,
        token: usize,
    ) -> Result<Arc<CompletionQueue>, Limit> {
        let _ = (device, capacity, channel, token);
        Err(Limit::Gone)
    }

    /// The oldest completion. When there is none, the calling thread moves packets for a while and looks again.
    #[must_use]
    pub fn poll(&self) -> Option<Completion> {
        None
    }

    /// The next completion gives an event on the channel.
    pub fn arm(&self) {}

    /// Ends the queue: what is in it is lost.
    pub fn close(&self) {}
}
