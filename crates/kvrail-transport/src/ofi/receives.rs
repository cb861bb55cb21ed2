//! Receives of an endpoint: posted, and posted again when they have ended.

use std::ffi::c_void;

use kvrail_sys::libfabric::abi::{FI_ADDR_UNSPEC, FI_COMPLETION, FI_MORE, fi_msg};
use kvrail_sys::libfabric::{Endpoint, outcome};

use super::context::Contexts;

/// A fixed number of receives. Their contexts outlive the endpoint: it is dropped first.
pub(super) struct Receives {
    contexts: Contexts<()>,
    /// Those that are not posted.
    unposted: Vec<u32>,
    /// All but the last one that is posted at once carry `FI_MORE`.
    more: bool,
}

impl Receives {
    /// `count` of them, none posted.
    pub(super) fn new(count: usize, more: bool) -> Self {
        let mut contexts = Contexts::new(count);
        let unposted = std::iter::from_fn(|| contexts.take(()).ok()).collect();
        Self { contexts, unposted, more }
    }

    /// Bytes of memory for `count` of them, beside what they receive into.
    pub(super) const fn bytes(count: usize) -> usize {
        Contexts::<()>::bytes(count)
    }

    /// Which one a context stands for.
    #[inline]
    pub(super) fn index_of(&self, context: *mut c_void) -> Option<u32> {
        self.contexts.index_of(context)
    }

    /// One has ended: it is posted again by [`Receives::post`].
    #[inline]
    pub(super) fn ended(&mut self, index: u32) {
        // A completion that comes twice for one receive must not post it twice: both would fill one buffer.
        if self.contexts.release(index).is_some()
            && let Ok(again) = self.contexts.take(())
        {
            debug_assert_eq!(again, index, "contexts are handed out last in, first out");
            self.unposted.push(again);
        }
    }

    /// Posts those that are not posted, from anybody. What the provider does not take stays for the next call.
    ///
    /// # Safety
    /// `place` gives memory that is registered under `desc` and outlives the endpoint; each receive's own until its completion
    /// came back, or such that nobody reads it.
    #[inline]
    pub(super) unsafe fn post(
        &mut self,
        endpoint: &Endpoint,
        mut desc: *mut c_void,
        place: impl Fn(u32) -> libc::iovec,
    ) {
        while let Some(&index) = self.unposted.last() {
            let iov = place(index);
            let message = fi_msg {
                msg_iov: &iov,
                desc: &mut desc,
                iov_count: 1,
                addr: FI_ADDR_UNSPEC,
                context: self.contexts.context(index),
                data: 0,
            };
            let more = if self.more && self.unposted.len() > 1 { FI_MORE } else { 0 };
            // SAFETY: the context belongs to this receive alone until its completion came back, and outlives the endpoint; the
            // memory is the caller's promise.
            let result = unsafe { endpoint.receive_message(&message, FI_COMPLETION | more) };
            if outcome(result).is_err() {
                // Taken up again at the next poll; a queue that stays full has receives posted.
                break;
            }
            self.unposted.pop();
        }
    }
}
