//! Queue pairs.

use std::sync::Arc;

use super::completion::CompletionQueue;
use super::device::Device;
use super::types::{Flags, Limit, ReceiveRequest, SendRequest};

/// What a queue pair may do.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// Nothing.
    Reset = 0,
    /// Take receives.
    Init = 1,
    /// Receive.
    Rtr = 2,
    /// Receive and send.
    Rts = 3,
    /// Nothing: all requests end [`super::Status::Flushed`].
    Err = 6,
}

/// A queue pair.
pub struct QueuePair {}

impl QueuePair {
    /// A queue pair of `device` in protection domain `pd`, with room for so many requests.
    ///
    /// # Errors
    /// [`Limit::Beyond`] for longer queues than the device has, [`Limit::Exhausted`] when all its queue pairs are taken.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        device: &Device,
        pd: u32,
        send_cq: &Arc<CompletionQueue>,
        recv_cq: &Arc<CompletionQueue>,
        send_queue: u32,
        receive_queue: u32,
        flags: Flags,
    ) -> Result<Arc<QueuePair>, Limit> {
        let _ = (device, pd, send_cq, recv_cq, send_queue, receive_queue, flags);
        Err(Limit::Gone)
    }

    /// Its number.
    #[must_use]
    pub fn number(&self) -> u32 {
        0
    }

    /// Its state.
    #[must_use]
    pub fn state(&self) -> State {
        State::Reset
    }

    /// Changes its state. [`State::Err`] flushes all requests, [`State::Reset`] forgets them.
    pub fn set_state(&self, state: State) {
        let _ = state;
    }

    /// The key that senders have to know.
    pub fn set_qkey(&self, qkey: u32) {
        let _ = qkey;
    }

    /// How often a message is sent again to a peer without a posted receive; 7 = for ever.
    pub fn set_rnr_retry(&self, retries: u8) {
        let _ = retries;
    }

    /// Posts sends, all or none.
    ///
    /// # Errors
    /// [`Limit::Exhausted`] when the queue has no room for all of them, [`Limit::Beyond`] when one of them can never be done or the state
    /// does not allow it, [`Limit::Gone`] after [`QueuePair::close`] or a fork.
    pub fn post_send(&self, requests: &[SendRequest]) -> Result<(), Limit> {
        let _ = requests;
        Err(Limit::Gone)
    }

    /// Posts one receive.
    ///
    /// # Errors
    /// As [`QueuePair::post_send`].
    pub fn post_receive(&self, request: &ReceiveRequest) -> Result<(), Limit> {
        let _ = request;
        Err(Limit::Gone)
    }

    /// Ends the queue pair. Of its requests nothing more is heard.
    pub fn close(&self) {}
}
