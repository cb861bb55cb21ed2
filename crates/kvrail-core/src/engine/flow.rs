//! The flow of a transfer: admitted, moving, concluded, announced, finished.

use super::*;
use crate::wire::control::{Outcome, RailCount, Slot};
use transfer::Round;

/// Ops of a failed route that move to another route together.
const REROUTE_OPS: u32 = 16;

impl<H: Hazards> Engine<H> {
    /// Starts the counted transfers of a peer that wait for a slot, oldest first.
    pub(super) fn admit(&mut self, id: PeerId) {
        while let Some(peer) = self.peers.get_mut(id.slot, id.generation)
            && peer.state == PeerState::Ready
            && !peer.slots.is_empty()
            && let Some(token) = peer.waiting.pop_front()
        {
            self.start(token);
        }
    }

    /// Starts whatever waited for a peer's greeting and needs no more than that.
    pub(super) fn admit_all(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(id.slot, id.generation) else { return };
        for token in core::mem::take(&mut peer.waiting) {
            self.start(token);
        }
    }

    /// Starts a transfer to a peer that is ready, or has it wait for a slot. Stale tokens are ignored.
    pub(super) fn start(&mut self, token: Token) {
        let Some(transfer) = self.transfers.get(token.slot, token.generation) else { return };
        let evidence = self.evidence_of(transfer.direction);
        let id = transfer.plan.peer;
        let Some(transfer) = self.transfers.get_mut(token.slot, token.generation) else { return };
        let Some(peer) = self.peers.get_mut(id.slot, id.generation) else { return };
        if evidence == Evidence::Counted {
            let Some(slot) = peer.slots.pop() else { return peer.waiting.push_back(token) };
            let posted = alloc::vec![0; peer.remote_rails];
            transfer.round = Some(Round { slot, posted, failed_rails: 0 });
        }
        transfer.phase = Phase::Moving;
        self.redistribute(token);
    }

    /// Moves a transfer's work off routes that are down, and queues it on the rails that have work.
    pub(super) fn redistribute(&mut self, token: Token) {
        let Some(transfer) = self.transfers.get_mut(token.slot, token.generation) else { return };
        let id = transfer.plan.peer;
        let Some(peer) = self.peers.get_mut(id.slot, id.generation) else { return };
        let down = |route: u16| !peer.routes[usize::from(route)].is_up();
        if transfer.work.iter().any(|w| down(w.route)) {
            let up: Vec<u16> = (0..peer.routes.len() as u16).filter(|&r| !down(r)).collect();
            if !up.is_empty() {
                let (stay, moved): (Vec<_>, Vec<_>) = transfer.work.iter().partition(|w| !down(w.route));
                transfer.work = stay;
                for work in moved {
                    let pieces = (work.end - work.next).div_ceil(REROUTE_OPS).min(up.len() as u32);
                    let ops = work.end - work.next;
                    for piece in 0..pieces {
                        let first =
                            work.next + (u64::from(ops) * u64::from(piece) / u64::from(pieces)) as u32;
                        let end =
                            work.next + (u64::from(ops) * u64::from(piece + 1) / u64::from(pieces)) as u32;
                        peer.rotate = (peer.rotate + 1) % peer.routes.len();
                        transfer.add_work(up[(peer.rotate + piece as usize) % up.len()], first, end);
                    }
                }
            }
        }
        if transfer.phase != Phase::Moving {
            return;
        }
        for work in &transfer.work {
            let route = &peer.routes[usize::from(work.route)];
            let rail = route.route.local.index();
            if route.is_up() && transfer.queued_on >> rail & 1 == 0 {
                transfer.queued_on |= 1 << rail;
                self.rails[rail].ready.push_back(token);
            }
        }
    }

    /// Begins a bad end: nothing more is posted; the transfer concludes when it is quiet.
    pub(super) fn end(&mut self, now: Time, token: Token, error: TransferError) {
        let Some(transfer) = self.transfers.get_mut(token.slot, token.generation) else { return };
        if transfer.ending.is_none() {
            transfer.ending = Some(error);
            transfer.drain_by = now + self.caps.stall_timeout;
            self.timer = self.timer.min(transfer.drain_by);
        }
        transfer.work.clear();
        self.conclude_if_quiet(now, token);
    }

    /// Concludes the transfer, or its round, if nothing of it is in flight or to be posted.
    pub(super) fn conclude_if_quiet(&mut self, now: Time, token: Token) {
        let Some(transfer) = self.transfers.get_mut(token.slot, token.generation) else { return };
        if transfer.in_flight > 0 {
            return;
        }
        if !transfer.work.is_empty() {
            // Failed writes hold the credit that the rest needs until their round is closed: close it early.
            let peer = self.peers.get(transfer.plan.peer.slot, transfer.plan.peer.generation);
            let starved =
                peer.is_none_or(|peer| peer.credit.left() == 0) || transfer.phase == Phase::Lingering;
            if !starved || transfer.round.as_ref().is_none_or(|round| round.failed_rails == 0) {
                return;
            }
        }
        match transfer.phase {
            Phase::Confirming | Phase::Announcing => return,
            Phase::Waiting if transfer.ending.is_none() => return,
            Phase::Waiting | Phase::Moving | Phase::Lingering => {}
        }
        let mut quiet_at = transfer.linger_until;
        let lost =
            self.peers.get(transfer.plan.peer.slot, transfer.plan.peer.generation).is_none_or(Peer::is_lost);
        if transfer.round.as_ref().is_some_and(|round| lost || round.failed_rails != 0) {
            // No count will come, or it proves nothing, also not for the ops that completed on that rail.
            quiet_at = quiet_at.max(transfer.visible_by);
        }
        if now < quiet_at && !self.hazards.skip_fence() {
            transfer.phase = Phase::Lingering;
            self.timer = self.timer.min(quiet_at);
            return;
        }
        let id = transfer.plan.peer;
        let Some(peer) = self.peers.get_mut(id.slot, id.generation) else { return };
        let Some(round) = transfer.round.take() else { return self.announce(token) };
        if peer.is_lost() {
            return self.finish(now, token);
        }
        let trusted =
            self.hazards.trust_local_completion() && transfer.ending.is_none() && round.failed_rails == 0;
        if trusted || round.posted.iter().all(|&n| n == 0) {
            peer.slots.push(round.slot);
            return self.announce(token);
        }
        let outcome = match (&transfer.ending, round.failed_rails) {
            (Some(_), _) => Outcome::Failed,
            (None, 0) => Outcome::Done,
            (None, _) => Outcome::Again,
        };
        let rails = round.posted.iter().enumerate().filter(|(_, posted)| **posted > 0);
        let rails = rails.map(|(rail, &posted)| RailCount {
            rail: crate::id::RemoteRail(rail as u16),
            posted,
            exact: round.failed_rails >> rail & 1 == 0,
        });
        let close = Body::Close {
            transfer: transfer.id,
            slot: round.slot,
            outcome,
            rails: rails.collect(),
            notification: if outcome == Outcome::Again { None } else { transfer.notification.take() },
        };
        peer.channel.push(close.encode());
        transfer.phase = Phase::Confirming;
        transfer.round = Some(round);
        // A transfer that drained beyond its deadline does not wait for the target's word.
        self.timer = self.timer.min(transfer.deadline.max(now));
        self.confirming.insert(transfer.id.0 & self.hazards.id_mask(), token);
        self.mark_dirty(id);
    }

    /// Ends transfers whose plan names regions that the peer has replaced since: another op of theirs would go to
    /// the next tenant's memory (KR-9, KR-11).
    pub(super) fn end_stale(&mut self, now: Time, id: PeerId) {
        self.each_transfer_of(id, |engine, token| {
            let Some(transfer) = engine.transfers.get_mut(token.slot, token.generation) else { return };
            let Some(peer) = engine.peers.get(id.slot, id.generation) else { return };
            let Some(region) = transfer.plan.remote.stale(&peer.regions) else { return };
            let error = TransferError::StaleRemoteRegion(region);
            match transfer.phase {
                Phase::Waiting | Phase::Moving | Phase::Lingering => engine.end(now, token, error),
                // Another round would follow.
                Phase::Confirming if transfer.round.as_ref().is_some_and(|r| r.failed_rails != 0) => {
                    transfer.ending.get_or_insert(error);
                }
                Phase::Confirming | Phase::Announcing => {}
            }
        });
    }

    /// Ends a transfer whose confirmation will not come, not before its bytes can land no more (KR-7).
    pub(super) fn unconfirmed(&mut self, now: Time, token: Token, error: TransferError) {
        let Some(transfer) = self.transfers.get_mut(token.slot, token.generation) else { return };
        transfer.ending.get_or_insert(error);
        transfer.round = None;
        transfer.work.clear();
        transfer.linger_until = transfer.linger_until.max(transfer.visible_by);
        transfer.phase = Phase::Lingering;
        self.conclude_if_quiet(now, token);
    }

    /// The target says that everything announced is visible, and grants the slot anew.
    pub(super) fn confirmed(&mut self, id: PeerId, transfer: TransferId, slot: Slot, overshoot: bool) {
        let Some(peer) = self.peers.get_mut(id.slot, id.generation) else { return };
        peer.slots.push(slot);
        if let Some(token) = self.confirming.remove(&(transfer.0 & self.hazards.id_mask()))
            && let Some(transfer) = self.transfers.get_mut(token.slot, token.generation)
            && let Some(round) = transfer.round.take()
        {
            if overshoot && transfer.ending.is_none() {
                transfer.ending = Some(TransferError::Overshoot);
            }
            if round.failed_rails != 0 && transfer.ending.is_none() {
                self.next_round(token, round.failed_rails);
            } else {
                self.announce(token);
            }
        }
        self.admit(id);
    }

    /// Repeats what went to the remote rails whose count proves nothing; the rest is confirmed.
    fn next_round(&mut self, token: Token, failed_rails: u64) {
        let Some(transfer) = self.transfers.get_mut(token.slot, token.generation) else { return };
        let id = transfer.plan.peer;
        let Some(peer) = self.peers.get_mut(id.slot, id.generation) else { return };
        let remote = |route: u16| peer.routes[usize::from(route)].route.remote.index();
        let mut again = Vec::new();
        for (index, state) in transfer.ops.0.iter_mut().enumerate() {
            if state.is(OpPhase::Done) || state.is(OpPhase::Failed) {
                let repeat = failed_rails >> remote(state.route()) & 1 == 1;
                let phase = if repeat { OpPhase::Unposted } else { OpPhase::Confirmed };
                *state = transfer::OpState::new(phase, state.route());
                if repeat {
                    again.push((state.route(), index as u32));
                }
            }
        }
        // What a round that was cut short never posted is in `work` still.
        transfer.unfinished = transfer.work.iter().map(|work| work.end - work.next).sum();
        transfer.unfinished += again.len() as u32;
        transfer.retried += again.len() as u32;
        for (route, op) in again {
            transfer.add_work(route, op, op + 1);
        }
        transfer.phase = Phase::Waiting;
        peer.waiting.push_front(token);
        self.admit(id);
    }

    /// Hands the notification to the channel, then finishes.
    pub(super) fn announce(&mut self, token: Token) {
        let Some(transfer) = self.transfers.get_mut(token.slot, token.generation) else { return };
        let id = transfer.plan.peer;
        let Some(peer) = self.peers.get_mut(id.slot, id.generation) else { return };
        let now = self.now;
        if peer.is_lost() || transfer.notification.is_none() {
            return self.finish(now, token);
        }
        if !peer.channel.has_room() {
            transfer.phase = Phase::Announcing;
            peer.announcing.push_back(token);
            return;
        }
        let message = transfer.notification.take().unwrap_or_default();
        let notify = Body::Notify { transfer: transfer.id, done: transfer.ending.is_none(), message };
        peer.channel.push(notify.encode());
        self.mark_dirty(id);
        self.finish(now, token);
    }

    /// The one terminal event (KR-4).
    pub(super) fn finish(&mut self, now: Time, token: Token) {
        let Some(transfer) = self.transfers.remove(token.slot, token.generation) else { return };
        let id = transfer.plan.peer;
        if self.confirming.get(&(transfer.id.0 & self.hazards.id_mask())) == Some(&token) {
            self.confirming.remove(&(transfer.id.0 & self.hazards.id_mask()));
        }
        let result = match transfer.ending {
            Some(error) => {
                self.stats.transfers_failed += 1;
                Err(error)
            }
            None => {
                self.stats.transfers_done += 1;
                self.stats.bytes_done += transfer.plan.bytes();
                Ok(TransferReport {
                    bytes: transfer.plan.bytes(),
                    ops: transfer.plan.ops().len() as u32,
                    ops_retried: transfer.retried,
                    posted_at: transfer.posted_at,
                    first_op_at: transfer.first_op_at,
                    ended_at: now,
                })
            }
        };
        self.inbox.push_back(EngineEvent::TransferEnded { token, id: transfer.id, peer: id, result });
        if self.op_logs.len() < OP_LOGS_KEPT && transfer.ops.0.capacity() <= OP_LOG_KEPT_OPS {
            self.op_logs.push(transfer.ops);
        }
        if let Some(peer) = self.peers.get_mut(id.slot, id.generation) {
            peer.transfers -= 1;
            self.forget_if_drained(id);
        }
    }

    pub(super) fn awaited(&self, token: Token) -> Option<Awaited> {
        let transfer = self.transfers.get(token.slot, token.generation)?;
        let id = transfer.plan.peer;
        let peer = self.peers.get(id.slot, id.generation)?;
        Some(match transfer.phase {
            Phase::Waiting if peer.state == PeerState::Ready => Awaited::Credit,
            Phase::Waiting => Awaited::Greeting,
            Phase::Confirming => Awaited::Confirmation,
            Phase::Announcing => Awaited::Window,
            Phase::Moving | Phase::Lingering if transfer.in_flight > 0 => {
                Awaited::Completions { in_flight: transfer.in_flight }
            }
            Phase::Moving if peer.routes.iter().any(|r| r.is_up()) => Awaited::Credit,
            Phase::Moving | Phase::Lingering => Awaited::Route,
        })
    }
}

/// Op logs kept for reuse, and the size above which one is not kept: at most 4 MiB in all.
const OP_LOGS_KEPT: usize = 64;
const OP_LOG_KEPT_OPS: usize = 32 << 10;
