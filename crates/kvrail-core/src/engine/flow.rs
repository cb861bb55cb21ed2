//! The flow of a transfer: admitted, moving, concluded, announced, finished.
//!
//! # Repeating what went to a doubtful rail
//! With counted evidence, one failed write to a remote rail makes that rail's count worthless for the round: the write may
//! have landed or not. So everything that this round sent there must be sent again, also what completed. It is sent
//! again *at once, in the same round, over the other rails*, and the round is closed as done when it is through. That is
//! sound because
//! * nothing more is sent to the doubtful rail in this round, so that each op's last posting went to a rail whose count is
//!   exact, and those counts alone prove it (KR-1, KR-2): the close says which rails are exact and which are not;
//! * what may still land of the doubtful postings are the same bytes in the same place, while the transfer owns them; the
//!   close, and with it the notification and the end, waits until they cannot land any more (the fabric's linger
//!   after each failed op, and after each completion on a doubtful rail: KR-7). Other work usually takes longer than that.
//! * credit that lost immediates hold comes back when the round is closed, as for any inexact rail (KR-8); if the repetition
//!   needs it earlier, or if only doubtful rails are left, the round is closed early (*again*), and another one goes on
//!   with what is left, trusting every rail anew.
//!
//! The *target* may lose immediates too, of writes that completed well, with an endpoint that it replaces. It does not know how many: only the
//! close says so, and a transfer that waits for their credit would never close. So where a peer's credit is used up and none comes back for
//! a while, the rounds that hold it are closed early too. If nothing was lost, that costs a message.
//!
//! So a rail's death in the middle of a transfer costs the bytes that it had moved, divided among the others, and neither a round
//! trip nor a linger unless little else was left to move.

use super::*;
use crate::wire::control::{Outcome, RailCount, Slot, Verdict};
use transfer::Round;

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
            transfer.round = Some(Round::new(slot, peer.routes.remote_rails()));
        }
        transfer.phase = Phase::Moving;
        self.redistribute(token);
    }

    /// Moves a transfer's work off routes that are down or prove nothing any more, and queues it on the rails that have
    /// work. What finds no route waits on the one it has.
    pub(super) fn redistribute(&mut self, token: Token) {
        let Some(transfer) = self.transfers.get_mut(token.slot, token.generation) else { return };
        let id = transfer.plan.peer;
        let Some(peer) = self.peers.get_mut(id.slot, id.generation) else { return };
        if !transfer.work.iter().all(|w| carries(transfer, &peer.routes, w.route)) {
            let (stay, moved): (Vec<_>, Vec<_>) =
                transfer.work.iter().partition(|w| carries(transfer, &peer.routes, w.route));
            transfer.work = stay;
            let mut found_for = None;
            for mut work in moved {
                while work.next < work.end {
                    let part = transfer.plan.part_of(work.next);
                    let piece = transfer::Work { end: work.end.min(part.end), ..work };
                    let sets = (part.local, part.remote);
                    if found_for.replace(sets) != Some(sets) {
                        let trusts = |rail| transfer.trusts(rail);
                        peer.routes.usable(&self.rates, sets, trusts, &mut self.usable);
                    }
                    spread(transfer, &mut peer.routes, piece, &self.usable);
                    if self.usable.is_empty() && !peer.routes.any_between(sets) {
                        self.timer = self.timer.min(peer.routes.seek(self.now));
                    }
                    work.next = piece.end;
                }
            }
        }
        if transfer.phase != Phase::Moving {
            return;
        }
        for work in &transfer.work {
            let rail = peer.routes[usize::from(work.route)].route.local.index();
            if carries(transfer, &peer.routes, work.route) && transfer.queued_on >> rail & 1 == 0 {
                transfer.queued_on |= 1 << rail;
                self.rails[rail].ready.push_back(token);
            }
        }
    }

    /// Whether all that is left of a transfer's round could go to doubtful rails only: it is time to close the round.
    fn is_confined(&self, transfer: &Transfer) -> bool {
        let id = transfer.plan.peer;
        let Some(peer) = self.peers.get(id.slot, id.generation) else { return false };
        let between = |w: &transfer::Work| {
            let part = transfer.plan.part_of(w.next);
            peer.routes.any_between((part.local, part.remote))
        };
        transfer.work.iter().all(|w| !carries(transfer, &peer.routes, w.route))
            && transfer.work.iter().any(between)
    }

    /// Whether a peer's credit is used up by writes that failed: none comes back before their rounds are closed.
    fn is_starved(&self, id: PeerId) -> bool {
        let Some(peer) = self.peers.get(id.slot, id.generation) else { return true };
        if peer.credit.left() > 0 {
            return false;
        }
        let rounds = (0..self.transfers.slots())
            .filter_map(|slot| self.transfers.at(slot))
            .filter(|(_, transfer)| transfer.plan.peer == id)
            .filter_map(|(_, transfer)| transfer.round.as_ref());
        peer.credit.out() <= rounds.map(|round| u64::from(round.failed)).sum()
    }

    /// Whether a peer's credit is used up and none has come back for too long: the peer may have lost immediates, and will not know
    /// how many before the rounds that hold them are closed.
    fn is_parched(&self, now: Time, id: PeerId) -> bool {
        let since = self.peers.get(id.slot, id.generation).and_then(|peer| peer.starved_since);
        since.is_some_and(|since| now.since(since) >= self.credit_patience())
    }

    /// How long no credit may come back from a peer.
    pub(super) fn credit_patience(&self) -> Duration {
        drive::CREDIT_MISSED_AFTER.min(self.caps.stall_timeout)
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
        let Some(transfer) = self.transfers.get(token.slot, token.generation) else { return };
        if transfer.in_flight > 0 {
            return;
        }
        if !transfer.work.is_empty() {
            // A round is closed before all is posted where the rest cannot go on in it: failed or lost writes hold the credit
            // that it needs until then, or doubtful rails are all that is left to carry it.
            let doubts = transfer.round.as_ref().is_some_and(|round| !round.doubtful.is_empty());
            let id = transfer.plan.peer;
            let early = doubts && (self.is_starved(id) || self.is_confined(transfer))
                || transfer.holds_credit() && self.is_parched(now, id);
            if !early && transfer.phase != Phase::Lingering {
                return;
            }
        }
        let Some(transfer) = self.transfers.get_mut(token.slot, token.generation) else { return };
        match transfer.phase {
            Phase::Confirming | Phase::Announcing => return,
            Phase::Waiting if transfer.ending.is_none() => return,
            Phase::Waiting | Phase::Moving | Phase::Lingering => {}
        }
        let mut quiet_at = transfer.linger_until;
        let lost =
            self.peers.get(transfer.plan.peer.slot, transfer.plan.peer.generation).is_none_or(Peer::is_lost);
        if let Some(round) = &transfer.round {
            // No count will come, or it proves nothing, also not for the ops that completed on such a rail.
            let unproved =
                if lost { transfer.visible_by } else { round.doubtful_done_at() + self.caps.linger };
            quiet_at = quiet_at.max(unproved);
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
            self.hazards.trust_local_completion() && transfer.ending.is_none() && round.doubtful.is_empty();
        if trusted || round.posted.iter().all(|&n| n == 0) {
            peer.slots.push(round.slot);
            return self.announce(token);
        }
        // What went to a doubtful rail was repeated on others, or is in `work`.
        let outcome = match &transfer.ending {
            Some(_) => Outcome::Failed,
            None if transfer.work.is_empty() => Outcome::Done,
            None => Outcome::Again,
        };
        let rails = round.posted.iter().enumerate().filter(|(_, posted)| **posted > 0);
        let rails = rails.map(|(rail, &posted)| RailCount {
            rail: crate::id::RemoteRail(rail as u16),
            posted,
            exact: !round.doubtful.contains(rail),
        });
        let notification = if outcome == Outcome::Again { None } else { transfer.notification.take() };
        // Of a failure the target tells its application whatever the counts say.
        transfer.carried = if outcome == Outcome::Done { notification.clone() } else { None };
        let close = Body::Close {
            transfer: transfer.id,
            slot: round.slot,
            outcome,
            rails: rails.collect(),
            notification,
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
                Phase::Confirming if !transfer.work.is_empty() => {
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

    /// The target answers a close, and grants the slot anew.
    pub(super) fn confirmed(&mut self, id: PeerId, transfer: TransferId, slot: Slot, verdict: Verdict) {
        let Some(peer) = self.peers.get_mut(id.slot, id.generation) else { return };
        peer.slots.push(slot);
        let unanswered = peer.unanswered.iter().position(|(of, _)| *of == transfer);
        if let Some((transfer, message)) = unanswered.map(|at| peer.unanswered.swap_remove(at))
            && verdict == Verdict::Lost
        {
            // It ended without this answer, and its peer was told nothing yet.
            peer.channel.push(Body::Notify { transfer, done: false, message }.encode());
            self.mark_dirty(id);
        }
        if let Some(token) = self.confirming.remove(&(transfer.0 & self.hazards.id_mask()))
            && let Some(transfer) = self.transfers.get_mut(token.slot, token.generation)
        {
            let carried = transfer.carried.take();
            if verdict == Verdict::Lost {
                transfer.notification = transfer.notification.take().or(carried);
            }
            if transfer.round.take().is_some() {
                match verdict {
                    Verdict::Overshoot => {
                        transfer.ending.get_or_insert(TransferError::Overshoot);
                    }
                    Verdict::Lost if transfer.ending.is_none() => transfer.repeat_done(),
                    _ => {}
                }
                if !transfer.work.is_empty() && transfer.ending.is_none() {
                    self.next_round(token);
                } else {
                    self.announce(token);
                }
            }
        }
        self.admit(id);
    }

    /// Goes on with what the round that was closed left over, in another one; what it moved is confirmed.
    fn next_round(&mut self, token: Token) {
        let Some(transfer) = self.transfers.get_mut(token.slot, token.generation) else { return };
        let id = transfer.plan.peer;
        let Some(peer) = self.peers.get_mut(id.slot, id.generation) else { return };
        for state in transfer.ops.0.iter_mut().filter(|state| state.is(OpPhase::Done)) {
            *state = transfer::OpState::new(OpPhase::Confirmed, state.route());
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
        let mut transfer = transfer;
        let result = match transfer.ending.take() {
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
            if let Some(message) = transfer.carried.filter(|_| !peer.is_lost()) {
                peer.unanswered.push((transfer.id, message));
            }
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
            Phase::Moving if transfer.work.iter().any(|w| peer.routes[usize::from(w.route)].is_up()) => {
                Awaited::Credit
            }
            Phase::Moving | Phase::Lingering => Awaited::Route,
        })
    }
}

/// Whether a route can carry a transfer's work: it is up, and what goes there proves something.
fn carries(transfer: &Transfer, routes: &Routes, route: u16) -> bool {
    let state = &routes[usize::from(route)];
    state.is_up() && transfer.trusts(state.route.remote)
}

/// Divides work among routes, however little it is: a rail that has to carry all of it would end long after the
/// others. Leaves it where it is if there are none.
fn spread(transfer: &mut Transfer, routes: &mut Routes, work: transfer::Work, among: &[u16]) {
    if among.is_empty() {
        return transfer.add_work(work.route, work.next, work.end);
    }
    let ops = work.end - work.next;
    let pieces = ops.min(among.len() as u32);
    let cut = |piece: u32| work.next + (u64::from(ops) * u64::from(piece) / u64::from(pieces)) as u32;
    for piece in 0..pieces {
        routes.rotate = routes.rotate.wrapping_add(1);
        let route = among[routes.rotate % among.len()];
        transfer.add_work(route, cut(piece), cut(piece + 1));
    }
}

/// Op logs kept for reuse, and the size above which one is not kept: at most 4 MiB in all.
const OP_LOGS_KEPT: usize = 64;
const OP_LOG_KEPT_OPS: usize = 32 << 10;
