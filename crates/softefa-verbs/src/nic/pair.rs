//! Queue pairs.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use softefa_fabric::{Counter, NicIndex};

use super::completion::CompletionQueue;
use super::device::Device;
use super::shared::Shared;
use super::types::{Flags, INLINE_MAX, Limit, Payload, ReceiveRequest, SEGMENTS_MAX, SendRequest};

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

impl State {
    fn of(number: u8) -> State {
        match number {
            1 => State::Init,
            2 => State::Rtr,
            3 => State::Rts,
            6 => State::Err,
            _ => State::Reset,
        }
    }

    /// Whether messages from peers are taken.
    pub(super) fn receives(self) -> bool {
        matches!(self, State::Rtr | State::Rts)
    }
}

/// The value of [`QueuePair::set_rnr_retry`] that means "for ever".
const RETRY_FOR_EVER: u8 = 7;

/// A queue pair. It lives until [`QueuePair::close`].
pub struct QueuePair {
    shared: Arc<Shared>,
    nic: NicIndex,
    number: u32,
    pd: u32,
    flags: Flags,
    send_cq: Arc<CompletionQueue>,
    recv_cq: Arc<CompletionQueue>,
    send_max: u32,
    receive_max: usize,
    inline_max: u32,
    segments_max: u32,
    state: AtomicU8,
    qkey: AtomicU32,
    rnr_retry: AtomicU8,
    closed: AtomicBool,
    /// Sends whose completion has not been polled.
    outstanding: AtomicU32,
    /// Sends that the engine has not seen.
    sends: Mutex<VecDeque<SendRequest>>,
    /// It is in the list of queue pairs that the engine is to look at.
    listed: AtomicBool,
    receives: Mutex<VecDeque<ReceiveRequest>>,
}

impl QueuePair {
    /// A queue pair of `device` in protection domain `pd`, with room for so many requests.
    ///
    /// # Errors
    /// [`Limit::Beyond`] for longer queues than the device has and for completion queues of another device, [`Limit::Exhausted`] when all
    /// its queue pairs are taken, [`Limit::Gone`] after a fork.
    pub fn new(
        device: &Device,
        pd: u32,
        send_cq: &Arc<CompletionQueue>,
        recv_cq: &Arc<CompletionQueue>,
        send_queue: u32,
        receive_queue: u32,
        flags: Flags,
    ) -> Result<Arc<QueuePair>, Limit> {
        let shared = &device.shared;
        shared.check()?;
        let limits = device.limits();
        let mine = |cq: &CompletionQueue| cq.belongs_to(shared) && cq.nic() == device.index();
        let fits = send_queue <= limits.send_queue && receive_queue <= limits.receive_queue;
        if !fits || !mine(send_cq) || !mine(recv_cq) {
            device.nic().count(Counter::QpErrors, 1);
            return Err(Limit::Beyond);
        }
        let Some(number) = device.nic().open_qp(shared.core.me) else {
            device.nic().count(Counter::QpErrors, 1);
            return Err(Limit::Exhausted);
        };
        let pair = Arc::new(QueuePair {
            shared: shared.clone(),
            nic: device.index(),
            number,
            pd,
            flags,
            send_cq: send_cq.clone(),
            recv_cq: recv_cq.clone(),
            send_max: send_queue,
            receive_max: receive_queue as usize,
            inline_max: limits.inline_bytes.min(INLINE_MAX as u32),
            segments_max: limits.send_segments.min(SEGMENTS_MAX as u32),
            state: AtomicU8::new(State::Reset as u8),
            qkey: AtomicU32::new(0),
            rnr_retry: AtomicU8::new(RETRY_FOR_EVER),
            closed: AtomicBool::new(false),
            outstanding: AtomicU32::new(0),
            sends: Mutex::new(VecDeque::new()),
            listed: AtomicBool::new(false),
            receives: Mutex::new(VecDeque::new()),
        });
        shared.lock().open_pair(&pair);
        Ok(pair)
    }

    /// Its number.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Its state.
    #[must_use]
    pub fn state(&self) -> State {
        State::of(self.state.load(Ordering::Acquire))
    }

    /// Changes its state. [`State::Err`] flushes all requests, [`State::Reset`] forgets them.
    pub fn set_state(&self, state: State) {
        if self.check().is_err() {
            return;
        }
        let mut engine = self.shared.lock();
        self.state.store(state as u8, Ordering::Release);
        match state {
            State::Err => engine.flush_pair(self.nic, self.number, true),
            State::Reset => engine.flush_pair(self.nic, self.number, false),
            _ => {}
        }
    }

    /// The key that senders have to know.
    pub fn set_qkey(&self, qkey: u32) {
        self.qkey.store(qkey, Ordering::Release);
    }

    /// How often a message is sent again to a peer without a posted receive; 7 = for ever.
    pub fn set_rnr_retry(&self, retries: u8) {
        self.rnr_retry.store(retries, Ordering::Release);
    }

    /// Posts sends, all or none.
    ///
    /// # Errors
    /// [`Limit::Exhausted`] when the queue has no room for all of them, [`Limit::Beyond`] when one of them can never be done or the state
    /// does not allow it, [`Limit::Gone`] after [`QueuePair::close`] or a fork.
    pub fn post_send(&self, requests: &[SendRequest]) -> Result<(), Limit> {
        self.check()?;
        if self.state() != State::Rts || !requests.iter().all(|request| self.is_possible(request)) {
            return Err(Limit::Beyond);
        }
        let n = u32::try_from(requests.len()).map_err(|_| Limit::Exhausted)?;
        let more = |used: u32| used.checked_add(n).filter(|&used| used <= self.send_max);
        self.outstanding
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, more)
            .map_err(|_| Limit::Exhausted)?;
        self.sends().extend(requests);
        if !self.listed.swap(true, Ordering::AcqRel) {
            self.shared.core.list(self.nic, self.number);
        }
        self.shared.progress();
        Ok(())
    }

    fn is_possible(&self, request: &SendRequest) -> bool {
        match request.payload {
            Payload::Inline { len, .. } => {
                u32::from(len) <= self.inline_max && request.opcode != super::Opcode::Read
            }
            Payload::Segments { count, .. } => u32::from(count) <= self.segments_max,
        }
    }

    /// Posts one receive.
    ///
    /// # Errors
    /// As [`QueuePair::post_send`].
    pub fn post_receive(&self, request: &ReceiveRequest) -> Result<(), Limit> {
        self.check()?;
        if matches!(self.state(), State::Reset | State::Err) {
            return Err(Limit::Beyond);
        }
        let mut receives = self.receives();
        if receives.len() >= self.receive_max {
            return Err(Limit::Exhausted);
        }
        receives.push_back(*request);
        Ok(())
    }

    /// Ends the queue pair. Of its requests nothing more is heard, and when it returns, the device touches their memory no more.
    pub fn close(&self) {
        if self.shared.check().is_err() || self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        let mut engine = self.shared.lock();
        self.state.store(State::Reset as u8, Ordering::Release);
        engine.flush_pair(self.nic, self.number, false);
        engine.close_pair(self.nic, self.number);
        drop(engine);
        self.send_cq.forget(self.nic, self.number);
        self.recv_cq.forget(self.nic, self.number);
    }

    fn check(&self) -> Result<(), Limit> {
        self.shared.check()?;
        if self.closed.load(Ordering::Acquire) { Err(Limit::Gone) } else { Ok(()) }
    }

    pub(super) fn nic(&self) -> NicIndex {
        self.nic
    }

    pub(super) fn pd(&self) -> u32 {
        self.pd
    }

    pub(super) fn flags(&self) -> Flags {
        self.flags
    }

    pub(super) fn send_cq(&self) -> &CompletionQueue {
        &self.send_cq
    }

    pub(super) fn recv_cq(&self) -> &CompletionQueue {
        &self.recv_cq
    }

    pub(super) fn qkey(&self) -> u32 {
        self.qkey.load(Ordering::Acquire)
    }

    /// Whether a message that found no receive `attempts` times is sent once more.
    pub(super) fn retries(&self, attempts: u32) -> bool {
        let retries = self.rnr_retry.load(Ordering::Acquire);
        retries >= RETRY_FOR_EVER || attempts <= u32::from(retries)
    }

    /// Takes the oldest send that the engine has not seen.
    pub(super) fn take_send(&self) -> Option<SendRequest> {
        self.sends().pop_front()
    }

    /// The engine looks at it now: the next post lists it again.
    pub(super) fn unlist(&self) {
        // A swap, not a store: what was posted before a post found it listed is seen from here on.
        self.listed.swap(false, Ordering::AcqRel);
    }

    pub(super) fn free_send(&self) {
        self.outstanding.fetch_sub(1, Ordering::AcqRel);
    }

    pub(super) fn take_receive(&self) -> Option<ReceiveRequest> {
        self.receives().pop_front()
    }

    /// Puts back a receive that was taken for a message that will not come.
    pub(super) fn return_receive(&self, request: ReceiveRequest) {
        self.receives().push_front(request);
    }

    fn sends(&self) -> MutexGuard<'_, VecDeque<SendRequest>> {
        self.sends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn receives(&self) -> MutexGuard<'_, VecDeque<ReceiveRequest>> {
        self.receives.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
