//! The loop: post what can be posted, take in what happened, look at the clock, send what is owed.

use super::*;
use crate::id::RailSet;
use crate::transport::{Batch, PostError};

/// What part of a turn's ops a launch posts: enough to keep rails busy until the first turn.
const LAUNCH_SHARE: u32 = 8;
/// Times that one drive sends what is owed and takes in what that brought.
const FLUSHES_MAX: usize = 16;

impl<H: Hazards> Engine<H> {
    /// Makes progress. Returns true when something happened: call again before sleeping. `now` never goes back.
    pub fn drive(&mut self, now: Time, transport: &mut dyn Transport) -> bool {
        self.now = self.now.max(now);
        let mut worked = self.post_ready(now, transport, self.caps.turn_ops_max);
        worked |= self.take_in(now, transport);
        if self.has_unposted() {
            // What was refused may be taken now: the poll made room, or the fabric learned what it lacked, and no
            // event says so. Nobody else would try before the next event.
            worked |= self.post_ready(now, transport, self.caps.turn_ops_max);
        }
        if now >= self.timer {
            self.handle_timeout(now, transport);
        }
        // What a transport has only queued leaves with its next poll, and what that poll brings may owe more: an owner
        // that drives no more once its transfer has ended must not keep the notification.
        for _ in 0..FLUSHES_MAX {
            if self.dirty.is_empty() || !self.flush_control(now, transport) {
                break;
            }
            self.take_in(now, transport);
            worked = true;
        }
        worked
    }

    /// Posts a part of what one turn may take, and does nothing else: the beginning of a transfer that needs many turns,
    /// whose poster wants to return. [`Engine::drive`] goes on with it.
    pub fn launch(&mut self, now: Time, transport: &mut dyn Transport) {
        self.now = self.now.max(now);
        self.post_ready(now, transport, (self.caps.turn_ops_max / LAUNCH_SHARE).max(1));
    }

    /// Whether ops wait to be posted on a rail that may take them.
    #[must_use]
    pub fn has_unposted(&self) -> bool {
        self.rails.iter().any(|rail| !rail.ready.is_empty())
    }

    fn take_in(&mut self, now: Time, transport: &mut dyn Transport) -> bool {
        let mut events = core::mem::take(&mut self.events);
        transport.poll(now, &mut events);
        let worked = !events.is_empty() || transport.served();
        for event in events.drain(..) {
            self.handle_event(now, transport, event);
        }
        self.events = events;
        worked
    }

    /// Posts the transfers that have work, rail by rail, in turn within a rail.
    fn post_ready(&mut self, now: Time, transport: &mut dyn Transport, ops_max: u32) -> bool {
        let mut worked = false;
        let busy = self.rails.iter().filter(|rail| !rail.ready.is_empty()).count() as u32;
        let share = ops_max.div_ceil(busy.max(1));
        for rail in 0..self.rails.len() {
            let mut room = share;
            while room > 0
                && let Some(token) = self.rails[rail].ready.pop_front()
            {
                match self.post_some(now, transport, rail, token, room) {
                    Posted::Nothing => {}
                    Posted::More(some) => {
                        worked = true;
                        room -= some;
                        self.requeue(rail, token);
                    }
                    Posted::Full(some) => {
                        worked |= some;
                        self.requeue(rail, token);
                        break;
                    }
                }
            }
        }
        worked
    }

    fn requeue(&mut self, rail: usize, token: Token) {
        if let Some(transfer) = self.transfers.get_mut(token.slot, token.generation) {
            transfer.queued_on |= 1 << rail;
            self.rails[rail].ready.push_back(token);
        }
    }

    /// Posts one batch of a transfer on a rail, of at most `room` ops.
    fn post_some(
        &mut self,
        now: Time,
        transport: &mut dyn Transport,
        rail: usize,
        token: Token,
        room: u32,
    ) -> Posted {
        let Some(transfer) = self.transfers.get_mut(token.slot, token.generation) else {
            return Posted::Nothing;
        };
        transfer.queued_on &= !(1 << rail);
        if transfer.phase != Phase::Moving {
            return Posted::Nothing;
        }
        let id = transfer.plan.peer;
        let Some(peer) = self.peers.get_mut(id.slot, id.generation) else { return Posted::Nothing };
        let mine = |w: &transfer::Work| {
            let route = &peer.routes[usize::from(w.route)];
            route.route.local.index() == rail && route.is_up() && transfer.trusts(route.route.remote)
        };
        let Some(at) = transfer.work.iter().position(mine) else { return Posted::Nothing };
        let work = transfer.work[at];
        let mut count = (work.end - work.next).min(self.caps.ops_in_flight_max - self.rails[rail].in_flight);
        count = count.min(room);
        let routes = transfer.work.len().min(peer.routes.first()) as u32;
        let route = &mut peer.routes[usize::from(work.route)];
        if transfer.round.is_some() {
            // The rails come in turn: what the first takes of the peer's credit, the last lacks.
            let share = (peer.credit.granted / routes.max(1)).max(1);
            count = count.min(peer.credit.left()).min(share.saturating_sub(route.in_flight));
            if peer.credit.left() == 0 {
                // Queued again when the peer returns credit; asked for in case its word was lost, and soon where part
                // of the credit is lost: the peer waits for half of it before it gives any back by itself.
                let doubts = transfer.round.as_ref().is_some_and(|round| round.failed > 0);
                let wait = if doubts { CREDIT_ASKED_SOON } else { CREDIT_ASKED_AFTER };
                peer.hello.due = peer.hello.due.min(now + wait);
                let since = *peer.starved_since.get_or_insert(now);
                self.timer = self.timer.min(peer.hello.due).min(since + self.credit_patience());
                self.conclude_if_quiet(now, token);
                return Posted::Nothing;
            }
        }
        if count == 0 {
            return Posted::Full(false);
        }
        let ops = &transfer.plan.ops[work.next as usize..(work.next + count) as usize];
        let batch = Batch {
            peer: id,
            route: route.route,
            direction: transfer.direction,
            token,
            first: work.next,
            ops,
            immediate: transfer.round.as_ref().map(|round| round.slot.immediate()),
        };
        let taken = match transport.post(now, &batch) {
            Ok(taken) => taken.min(ops.len()),
            Err(PostError::UnknownPeer) => {
                self.lose(now, transport, id, PeerLostCause::Gone);
                return Posted::Nothing;
            }
            Err(_) => {
                let index = usize::from(work.route);
                self.route_down(now, id, index, OpError::Unreachable);
                return Posted::Nothing;
            }
        };
        if taken == 0 {
            return Posted::Full(false);
        }
        if transfer.in_flight == 0 && transfer.unfinished == transfer.ops() && transfer.retried == 0 {
            transfer.first_op_at = now;
        }
        transfer.ops.posted(work.next, taken, work.route);
        transfer.in_flight += taken as u32;
        if let Some(round) = &mut transfer.round {
            round.posted[route.route.remote.index()] += taken as u32;
            peer.credit.posted += taken as u64;
        }
        if route.in_flight == 0 {
            route.progress_at = now;
            self.timer = self.timer.min(now + self.caps.stall_timeout);
        }
        route.in_flight += taken as u32;
        self.rails[rail].in_flight += taken as u32;
        let stats = &mut self.stats.rails[rail];
        stats.ops_posted += taken as u64;
        stats.bytes_posted += ops[..taken].iter().map(|op| u64::from(op.len)).sum::<u64>();
        transfer.work[at].next += taken as u32;
        if transfer.work[at].next == work.end {
            transfer.work.swap_remove(at);
        }
        if taken < ops.len() { Posted::Full(true) } else { Posted::More(count) }
    }

    /// Takes in one event of the transport.
    pub fn handle_event(&mut self, now: Time, transport: &mut dyn Transport, event: Event) {
        match event {
            Event::Completed { token, first, count } => {
                if self.resolve(now, token, first, count, OpPhase::Done) {
                    self.repeat_doubtful(token, first, count);
                }
                self.conclude_if_quiet(now, token);
            }
            Event::Failed { token, first, count, error } => {
                self.handle_failed(now, transport, token, first, count, error)
            }
            Event::Immediate { rail, value } => {
                if let Some(stats) = self.stats.rails.get_mut(rail.index()) {
                    stats.immediates += 1;
                }
                let (owner, settled) = self.evidence.count(rail, value);
                if let Some(owner) = owner {
                    self.consumed(owner, 1);
                }
                if let Some(settled) = settled {
                    self.settled(settled);
                }
            }
            Event::Message { rail, bytes } => {
                if let Some(stats) = self.stats.rails.get_mut(rail.index()) {
                    stats.messages += 1;
                }
                self.handle_message(now, transport, &bytes);
            }
            Event::SendFailed { peer, route, error } => {
                if let Some(known) = self.peers.get_mut(peer.slot, peer.generation) {
                    known.channel.route_failed(route);
                    if let Some(index) = known.routes.index_of(route)
                        && known.state == PeerState::Ready
                    {
                        self.route_down(now, peer, index, error);
                    }
                    self.mark_dirty(peer);
                }
            }
            Event::RailDown { rail } => self.each_route_on(rail, |engine, peer, index| {
                engine.route_down(now, peer, index, OpError::RailDown);
            }),
            Event::RailUp { rail } => {
                self.each_route_on(rail, |engine, peer, index| engine.probe_soon(now, peer, index));
            }
            Event::PeerGone { peer } => self.lose(now, transport, peer, PeerLostCause::Gone),
            Event::AddressChanged => self.moved(now, transport),
        }
    }

    fn each_route_on(&mut self, rail: crate::id::LocalRail, mut each: impl FnMut(&mut Self, PeerId, usize)) {
        for slot in 0..self.peers.slots() {
            let Some((generation, peer)) = self.peers.at(slot) else { continue };
            let on_rail = |(i, r): (usize, &routes::RouteState)| (r.route.local == rail).then_some(i);
            let routes: Vec<usize> = peer.routes.iter().enumerate().filter_map(on_rail).collect();
            for index in routes {
                each(self, PeerId { slot, generation }, index);
            }
        }
    }

    /// Pays the debts of ops that ended (KR-6). Whether some of them may prove nothing.
    fn resolve(&mut self, now: Time, token: Token, first: u32, count: u32, to: OpPhase) -> bool {
        let Some(transfer) = self.transfers.get_mut(token.slot, token.generation) else {
            self.stats.completions_unknown += u64::from(count);
            return false;
        };
        let id = transfer.plan.peer;
        let Some(peer) = self.peers.get_mut(id.slot, id.generation) else { return false };
        let done = to == OpPhase::Done;
        let done_at = match &mut transfer.round {
            Some(round) if done => round.done_at.as_mut_slice(),
            _ => &mut [],
        };
        let mut resolved = 0;
        transfer.ops.resolve(first, count, to, |_, route| {
            let route = &mut peer.routes[usize::from(route)];
            route.in_flight -= 1;
            route.progress_at = now;
            if let Some(at) = done_at.get_mut(route.route.remote.index()) {
                *at = now;
            }
            let rail = route.route.local.index();
            self.rails[rail].in_flight -= 1;
            let stats = &mut self.stats.rails[rail];
            if done {
                stats.ops_done += 1;
            } else {
                stats.ops_failed += 1;
            }
            resolved += 1;
        });
        transfer.in_flight -= resolved;
        self.stats.completions_unknown += u64::from(count.saturating_sub(resolved));
        if !done {
            return false;
        }
        peer.heard_at = now;
        transfer.unfinished -= resolved;
        let Some(round) = &transfer.round else { return false };
        transfer.visible_by = now + self.caps.linger;
        !round.doubtful.is_empty()
    }

    /// Ops that completed on a doubtful rail are posted again on others (see [`flow`]).
    fn repeat_doubtful(&mut self, token: Token, first: u32, count: u32) {
        let Some(transfer) = self.transfers.get_mut(token.slot, token.generation) else { return };
        let id = transfer.plan.peer;
        let Some(peer) = self.peers.get(id.slot, id.generation) else { return };
        let remote = |route: u16| peer.routes[usize::from(route)].route.remote;
        if transfer.ending.is_none() && transfer.repeat_doubtful(first, count, remote) {
            self.redistribute(token);
        }
    }

    fn handle_failed(
        &mut self,
        now: Time,
        transport: &mut dyn Transport,
        token: Token,
        first: u32,
        count: u32,
        error: OpError,
    ) {
        let in_flight = match self.transfers.get(token.slot, token.generation) {
            Some(transfer) => transfer.ops.in_flight(first, count),
            None => Vec::new(),
        };
        let resolved: u32 = in_flight.iter().map(|(first, end, _)| end - first).sum();
        self.stats.completions_unknown += u64::from(count.saturating_sub(resolved));
        for (first, end, route) in in_flight {
            self.handle_failed_run(now, transport, token, (first, end), route, error);
        }
    }

    /// Ops of one route failed.
    fn handle_failed_run(
        &mut self,
        now: Time,
        transport: &mut dyn Transport,
        token: Token,
        (first, end): (u32, u32),
        route: u16,
        error: OpError,
    ) {
        let Some(transfer) = self.transfers.get(token.slot, token.generation) else { return };
        let id = transfer.plan.peer;
        let repeat = error.is_retryable() && transfer.ending.is_none();
        let to = if repeat { OpPhase::Unposted } else { OpPhase::Failed };
        self.resolve(now, token, first, end - first, to);
        let Some(peer) = self.peers.get(id.slot, id.generation) else { return };
        let remote = peer.routes[usize::from(route)].route.remote.index();
        let Some(transfer) = self.transfers.get_mut(token.slot, token.generation) else { return };
        if !error.never_landed() {
            transfer.linger_until = now + self.caps.linger;
        }
        if repeat {
            transfer.add_work(route, first, end);
            transfer.retried += end - first;
        }
        if let Some(round) = &mut transfer.round {
            round.failed += end - first;
            if !round.doubtful.contains(remote) {
                round.doubtful = round.doubtful.with(remote);
                if repeat {
                    self.repeat_doubtful(token, 0, u32::MAX);
                }
            }
        }
        match error {
            // The peer may be lost already; this transfer still has to conclude.
            OpError::PeerRestarted => self.lose(now, transport, id, PeerLostCause::Restarted),
            error if error.is_retryable() => {
                self.route_down(now, id, usize::from(route), error);
                self.redistribute(token);
            }
            error => {
                let plan = self.transfers.get(token.slot, token.generation).map(|t| t.plan.clone());
                if let Some(op) = plan.as_ref().and_then(|p| p.ops().get(first as usize)) {
                    let error = TransferError::Op {
                        op: first,
                        remote_region: op.remote_region,
                        remote_offset: op.remote_offset,
                        len: op.len,
                        error,
                    };
                    return self.end(now, token, error);
                }
            }
        }
        self.conclude_if_quiet(now, token);
    }

    /// Gives a route up: its work goes over the others, and it is probed from time to time.
    pub(super) fn route_down(&mut self, now: Time, id: PeerId, index: usize, error: OpError) {
        let Some(peer) = self.peers.get_mut(id.slot, id.generation).filter(|p| !p.is_lost()) else { return };
        let state = &mut peer.routes[index];
        if !state.is_up() {
            return;
        }
        let route = state.route;
        let backoff = peer.routes.patience(index, now, self.config.route_retry);
        peer.routes.set_down(index, now + backoff, backoff);
        self.timer = self.timer.min(now + backoff);
        peer.channel.route_failed(route);
        self.inbox.push_back(EngineEvent::RouteDown { peer: id, route, error });
        if !peer.routes.any_up() {
            peer.heard_at = now; // the peer's time to be heard of begins
            self.timer = self.timer.min(peer.routes.seek(now));
        }
        self.mark_dirty(id);
        self.each_transfer_of(id, |engine, token| {
            engine.redistribute(token);
            engine.conclude_if_quiet(now, token);
        });
    }

    pub(super) fn each_transfer_of(&mut self, id: PeerId, mut each: impl FnMut(&mut Self, Token)) {
        for slot in 0..self.transfers.slots() {
            if let Some((generation, transfer)) = self.transfers.at(slot)
                && transfer.plan.peer == id
            {
                each(self, Token { slot, generation });
            }
        }
    }

    fn probe_soon(&mut self, now: Time, id: PeerId, index: usize) {
        let Some(peer) = self.peers.get_mut(id.slot, id.generation) else { return };
        // The others follow when one of the first works.
        if index < peer.routes.first() {
            peer.routes.probe_soon(index, now, self.config.route_retry);
            self.timer = self.timer.min(now);
        }
    }

    /// A probe came back: the route works.
    pub(super) fn route_up(&mut self, now: Time, id: PeerId, index: usize) {
        let Some(peer) = self.peers.get_mut(id.slot, id.generation) else { return };
        peer.routes.set_up(index, now, self.config.route_retry);
        let route = peer.routes[index].route;
        self.inbox.push_back(EngineEvent::RouteUp { peer: id, route });
        self.mark_dirty(id);
        self.each_transfer_of(id, |engine, token| {
            engine.redistribute(token);
            engine.conclude_if_quiet(now, token);
        });
    }

    /// Has pairings tried for work that finds no way, one seeker in turn; ends the search when all have found one.
    fn explore(&mut self, now: Time, id: PeerId) {
        let Some(peer) = self.peers.get(id.slot, id.generation) else { return };
        let mut seekers = Vec::new();
        if peer.routes.any_up() {
            for (_, transfer) in (0..self.transfers.slots()).filter_map(|slot| self.transfers.at(slot)) {
                let work: &[transfer::Work] = if transfer.plan.peer == id { &transfer.work } else { &[] };
                for part in work.iter().map(|w| transfer.plan.part_of(w.next)) {
                    let sets = (part.local, part.remote);
                    if !seekers.contains(&sets) && !peer.routes.any_between(sets) {
                        seekers.push(sets);
                    }
                }
            }
        } else {
            seekers.push((RailSet::ALL, RailSet::ALL));
        }
        let Some(peer) = self.peers.get_mut(id.slot, id.generation) else { return };
        if seekers.is_empty() {
            return peer.routes.explored();
        }
        let sets = seekers[peer.routes.explore_step() % seekers.len()];
        peer.routes.explore(now, self.rails.len(), sets, self.config.route_retry);
        self.mark_dirty(id);
    }

    /// Looks at every deadline, and notes when to look again.
    pub(super) fn handle_timeout(&mut self, now: Time, transport: &mut dyn Transport) {
        self.timer = Time::NEVER;
        while let Some(settled) = self.evidence.lost(now) {
            self.settled(settled);
        }
        self.timer = self.timer.min(self.evidence.lost_at());
        for slot in 0..self.transfers.slots() {
            let Some((generation, transfer)) = self.transfers.at(slot) else { continue };
            let token = Token { slot, generation };
            let (phase, deadline) = (transfer.phase, transfer.deadline);
            let expired = now >= deadline && (transfer.ending.is_none() || phase == Phase::Announcing);
            if phase == Phase::Lingering {
                self.conclude_if_quiet(now, token);
            }
            if expired {
                self.expire(now, token);
            } else if now < deadline {
                self.timer = self.timer.min(deadline);
            } else if phase == Phase::Confirming
                && let Some(error) = self.transfers.get(slot, generation).and_then(|t| t.ending.clone())
            {
                self.unconfirmed(now, token, error);
            }
            self.take_back(now, transport, token);
        }
        for slot in 0..self.peers.slots() {
            if let Some((generation, _)) = self.peers.at(slot) {
                self.handle_peer_timeout(now, transport, PeerId { slot, generation });
            }
        }
    }

    /// Resets the routes on which a transfer that is to end badly still has ops after the stall timeout, whether
    /// or not those routes make progress for others: its end has a bound (KR-4), and it ends quiet (KR-7).
    fn take_back(&mut self, now: Time, transport: &mut dyn Transport, token: Token) {
        let Some(transfer) = self.transfers.get_mut(token.slot, token.generation) else { return };
        if transfer.ending.is_none() || transfer.in_flight == 0 {
            return;
        }
        if now >= transfer.drain_by {
            transfer.drain_by = now + self.caps.stall_timeout;
            let id = transfer.plan.peer;
            let in_flight = |s: &&transfer::OpState| s.is(OpPhase::InFlight);
            let mut routes: Vec<u16> = transfer.ops.0.iter().filter(in_flight).map(|s| s.route()).collect();
            routes.sort_unstable();
            routes.dedup();
            for index in routes.into_iter().map(usize::from) {
                let route = self.peers.get(id.slot, id.generation).map(|p| p.routes[index].route);
                if let Some(route) = route {
                    transport.reset(now, id, route);
                    self.route_down(now, id, index, OpError::Unresponsive);
                }
            }
        }
        if let Some(transfer) = self.transfers.get(token.slot, token.generation) {
            self.timer = self.timer.min(transfer.drain_by);
        }
    }

    fn expire(&mut self, now: Time, token: Token) {
        let Some(awaited) = self.awaited(token) else { return };
        let Some(transfer) = self.transfers.get_mut(token.slot, token.generation) else { return };
        let ops = transfer.ops();
        let error = TransferError::DeadlineExceeded { awaited, ops_done: ops - transfer.unfinished, ops };
        match transfer.phase {
            // Every rail is quiet; only the peer's word is missing.
            Phase::Confirming => self.unconfirmed(now, token, error),
            Phase::Announcing => {
                transfer.ending.get_or_insert(error);
                self.finish(now, token);
            }
            _ => self.end(now, token, error),
        }
    }

    fn handle_peer_timeout(&mut self, now: Time, transport: &mut dyn Transport, id: PeerId) {
        let seeks = |peer: &Peer| peer.state == PeerState::Ready && peer.routes.explore_due() <= now;
        if self.peers.get(id.slot, id.generation).is_some_and(seeks) {
            self.explore(now, id);
        }
        let patience = self.credit_patience();
        let Some(peer) = self.peers.get_mut(id.slot, id.generation) else { return };
        let mut next = peer.channel.handle_timeout(now);
        let mut dirty = peer.channel.next_unsent().is_some();
        let is_ready = peer.state == PeerState::Ready;
        let told = peer.moved.as_ref().filter(|_| is_ready).map_or(Time::NEVER, |moved| moved.due);
        for due in [peer.hello.due, peer.ack_due, told] {
            dirty |= due <= now;
            next = next.min(if due <= now { Time::NEVER } else { due });
        }
        if is_ready {
            next = next.min(peer.routes.explore_due());
        }
        let parched_at = peer.starved_since.map_or(Time::NEVER, |since| since + patience);
        next = next.min(if parched_at <= now { Time::NEVER } else { parched_at });
        let mut stalled = Vec::new();
        let is_lost = peer.is_lost();
        for (index, route) in peer.routes.iter_mut().enumerate() {
            if let Health::Down { probe_at, .. } = route.health
                && !is_lost
            {
                dirty |= probe_at <= now;
                next = next.min(if probe_at <= now { Time::NEVER } else { probe_at });
            }
            if route.in_flight > 0 {
                let stalls_at = route.progress_at + self.caps.stall_timeout;
                if stalls_at <= now {
                    route.progress_at = now;
                    stalled.push((index, route.route));
                    next = next.min(now + self.caps.stall_timeout);
                } else {
                    next = next.min(stalls_at);
                }
            }
        }
        if is_ready && !peer.routes.any_up() {
            let silent_at = peer.heard_at + self.config.peer_timeout;
            if silent_at <= now {
                self.timer = self.timer.min(next);
                return self.lose(now, transport, id, PeerLostCause::Silent);
            }
            next = next.min(silent_at);
        }
        self.timer = self.timer.min(next);
        if dirty {
            self.mark_dirty(id);
        }
        if parched_at <= now {
            self.each_transfer_of(id, |engine, token| engine.conclude_if_quiet(now, token));
        }
        for (index, route) in stalled {
            if self.hazards.skip_fence() {
                self.write_off(id, index);
            } else {
                transport.reset(now, id, route);
            }
            self.route_down(now, id, index, OpError::Unresponsive);
        }
    }

    /// The planted defect: ops of a stalled route are repeated elsewhere while the fabric still has them.
    fn write_off(&mut self, id: PeerId, index: usize) {
        self.each_transfer_of(id, |engine, token| {
            let Some(transfer) = engine.transfers.get_mut(token.slot, token.generation) else { return };
            let on_route = |s: transfer::OpState| s.is(OpPhase::InFlight) && usize::from(s.route()) == index;
            for (first, end) in transfer.ops.runs(on_route) {
                engine.resolve(Time::ZERO, token, first, end - first, OpPhase::Unposted);
                if let Some(transfer) = engine.transfers.get_mut(token.slot, token.generation) {
                    transfer.add_work(index as u16, first, end);
                }
            }
        });
    }
}

/// How long a transfer without credit waits before the peer is greeted again, so that it repeats what it consumed.
const CREDIT_ASKED_AFTER: Duration = Duration::from_millis(50);
/// How long no credit may come back before the rounds that hold it are closed.
pub(super) const CREDIT_MISSED_AFTER: Duration = Duration::from_millis(200);
/// The same as [`CREDIT_ASKED_AFTER`] where writes failed: about what a greeting and its answer take.
const CREDIT_ASKED_SOON: Duration = Duration::from_millis(1);

enum Posted {
    /// No work for this rail (any more).
    Nothing,
    /// So many were taken; there may be more work for this rail.
    More(u32),
    /// The rail, or the peer's credit, takes no more now; whether it took some.
    Full(bool),
}
