//! The endpoint of a rail that carries messages: the engine's, in fragments, and the transports' own words.
//!
//! Its address is what metadata names, and it is not replaced while the agent lives, whatever happens to ops: messages may be
//! late, lost or doubled, nobody waits for one of them to end (KR-7 is about ops), and none touches an application's memory. So
//! two agents that know each other can always say where their other endpoints are, however many of those both replace at once.
//! There are two exceptions, told by the address's epoch. A queue that is broken, or gives nothing for [`WEDGED_AFTER`]
//! while sends are in flight, has no other cure. And where libfabric has `efa` without `efa-direct`, messages go over an `efa`
//! endpoint, which numbers them for each peer: one that is lost holds back all later ones.

use std::collections::VecDeque;
use std::ffi::c_void;
use std::time::Duration;

use kvrail_core::id::{PeerId, RemoteRail};
use kvrail_core::time::Time;
use kvrail_sys::libfabric::Info;
use kvrail_sys::libfabric::abi::{FI_COMPLETION, fi_addr_t, fi_msg};

use super::book::Book;
use super::context::Contexts;
use super::endpoint::{Base, Bound, Buffers, Opening, PortError};
use super::fragment::FRAGMENT_BYTES;
use super::receives::Receives;

/// How long a queue may give nothing at all while sends are in flight. Longer than devices try, and than an engine with default
/// settings waits for a peer.
pub(super) const WEDGED_AFTER: Duration = Duration::from_secs(15);

/// What a send carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Carries {
    /// A fragment of the engine's message with that number.
    Message(u64),
    /// A word between transports, which is repeated until it is answered.
    Word,
}

/// A send in flight, or waiting to be posted.
#[derive(Clone, Copy, Debug)]
pub(super) struct SendEntry {
    pub(super) peer: PeerId,
    pub(super) remote: RemoteRail,
    /// The destination in the book.
    pub(super) to: u32,
    pub(super) carries: Carries,
    pub(super) len: u16,
    pub(super) since: Time,
}

/// How large it is, and how it is opened: the same for all rails of a transport.
#[derive(Clone, Copy, Debug)]
pub(super) struct ControlShape {
    pub(super) opening: Opening,
    /// Fragments on their way out.
    pub(super) sends: usize,
    /// Receives posted.
    pub(super) receives: usize,
    /// All but the last receive that is posted at once carry `FI_MORE`.
    pub(super) more: bool,
    /// The provider numbers messages: see the module.
    pub(super) numbered: bool,
}

impl ControlShape {
    /// Bytes of memory that it takes, beside what the provider itself allocates.
    pub(super) const fn bytes(&self) -> usize {
        (self.sends + self.receives) * FRAGMENT_BYTES
            + Contexts::<SendEntry>::bytes(self.sends)
            + Receives::bytes(self.receives)
    }
}

/// The endpoint of messages. Fields drop in this order: the endpoint first, so that nothing below it is in use any more.
pub(super) struct Control {
    pub(super) bound: Bound,
    /// Receives, then sends, [`FRAGMENT_BYTES`] each.
    buffers: Buffers,
    pub(super) sends: Contexts<SendEntry>,
    receives: Receives,
    /// Where messages go.
    pub(super) book: Book,
    /// Sends that the provider has not taken yet.
    pub(super) outbox: VecDeque<u32>,
    /// The last message that was reported as failed: its other fragments are not reported again.
    pub(super) failed_message: u64,
    /// When its queue last gave something, or had nothing to give.
    pub(super) stirred: Time,
    shape: ControlShape,
}

/// Whose a completion is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Owner {
    Send(u32),
    Receive(u32),
    Nobody,
}

impl Control {
    /// Opens one, ready to send. `key` is what the registration asks for where keys are chosen here.
    pub(super) fn open(base: &Base, info: &Info, shape: ControlShape, key: u64) -> Result<Self, PortError> {
        let bound = Bound::open(base, info, &shape.opening)?;
        let buffers = Buffers::new(&base.domain, (shape.receives + shape.sends) * FRAGMENT_BYTES, key)?;
        let mut control = Self {
            bound,
            buffers,
            sends: Contexts::new(shape.sends),
            receives: Receives::new(shape.receives, shape.more),
            book: Book::new(shape.numbered),
            outbox: VecDeque::new(),
            failed_message: u64::MAX,
            stirred: Time::ZERO,
            shape,
        };
        control.post_receives();
        Ok(control)
    }

    /// Whose completion a context stands for.
    #[inline]
    pub(super) fn owner(&self, context: *mut c_void) -> Owner {
        if let Some(index) = self.receives.index_of(context) {
            return Owner::Receive(index);
        }
        self.sends.index_of(context).map_or(Owner::Nobody, Owner::Send)
    }

    /// A receive has ended: it is posted again by [`Control::post_receives`].
    #[inline]
    pub(super) fn received(&mut self, index: u32) {
        self.receives.ended(index);
    }

    fn at(&self, buffer: usize) -> *mut c_void {
        self.buffers.memory.as_ptr().wrapping_add(buffer * FRAGMENT_BYTES).cast()
    }

    /// Posts the receives that are not posted. What the provider does not take stays for the next call.
    pub(super) fn post_receives(&mut self) {
        let base = self.at(0);
        let place = |index: u32| libc::iovec {
            iov_base: base.wrapping_byte_add(index as usize * FRAGMENT_BYTES),
            iov_len: FRAGMENT_BYTES,
        };
        // SAFETY: the buffers are registered and outlive the endpoint, which is dropped first; each receive has one of its own.
        unsafe { self.receives.post(&self.bound.endpoint, self.buffers.desc, place) };
    }

    /// Copies what came into a receive's buffer out of it.
    pub(super) fn message<'a>(&self, index: u32, len: usize, room: &'a mut [u8; FRAGMENT_BYTES]) -> &'a [u8] {
        let bytes = &mut room[..len.min(FRAGMENT_BYTES)];
        self.buffers.memory.read(index as usize * FRAGMENT_BYTES, bytes);
        bytes
    }

    /// Puts a fragment or a word into the buffer of a send that was taken.
    pub(super) fn fill(&self, index: u32, bytes: &[u8]) {
        self.buffers.memory.write((self.shape.receives + index as usize) * FRAGMENT_BYTES, bytes);
    }

    /// Posts a send whose buffer was filled. Results as of [`outcome`].
    pub(super) fn send(&self, index: u32, len: usize, to: fi_addr_t) -> isize {
        let at = self.at(self.shape.receives + index as usize);
        let iov = libc::iovec { iov_base: at, iov_len: len.min(FRAGMENT_BYTES) };
        let mut desc = self.buffers.desc;
        let context = self.sends.context(index);
        let message = fi_msg { msg_iov: &iov, desc: &mut desc, iov_count: 1, addr: to, context, data: 0 };
        // SAFETY: the send's buffer and context are its own until its completion came back, and outlive the endpoint.
        unsafe { self.bound.endpoint.send_message(&message, FI_COMPLETION) }
    }

    /// Whether sends are in flight and the queue has given nothing for too long.
    pub(super) fn is_wedged(&mut self, now: Time) -> bool {
        if self.sends.in_use() == self.outbox.len() {
            self.stirred = now;
        }
        now.since(self.stirred) >= WEDGED_AFTER
    }
}
