//! How rails come to know each other's endpoints of one-sided ops, and again after either was replaced: see [`super::word`].

use kvrail_core::id::PeerId;
use kvrail_core::time::Time;

use super::Ofi;
use super::peers::Link;
use super::rail::Which;
use super::word::{Introduction, Word};

impl Ofi {
    /// Asks a peer's rail to insert one of this side's, and to name its own endpoint: now, and again until it has.
    pub(super) fn ask(&mut self, now: Time, peer: PeerId, local: usize, remote: usize) {
        let Some(link) = self.link(peer, local, remote) else { return };
        link.ask(now);
        if !std::mem::replace(&mut link.listed, true) {
            self.introductions.push((peer, local, remote));
        }
        self.hurry(now);
    }

    /// A rail has a new endpoint of ops: whoever knew the one before, or will want to, is told.
    pub(super) fn tell(&mut self, now: Time, local: usize) {
        let known: Vec<(PeerId, Vec<usize>)> =
            self.peers.iter().map(|peer| (peer.id, peer.ever_linked(local))).collect();
        for (peer, remotes) in known {
            for remote in remotes {
                self.ask(now, peer, local, remote);
            }
        }
    }

    /// What a rail says of its endpoint of ops to one of a peer's; `None` while it has none.
    fn introduction(&mut self, peer: PeerId, local: usize, remote: usize) -> Option<Introduction> {
        // Inserted if the peer has said where its is.
        let inserted = self.reach(Which::Data, peer, local, remote).is_ok();
        let knows = self.peers.get(peer)?.endpoint(Which::Data, remote).map(|(_, epoch)| epoch);
        let data = &self.rails.get(local)?.data;
        let endpoint = data.get()?.bound.name.clone();
        Some(Introduction {
            rail: local as u16,
            epoch: data.epoch,
            endpoint,
            knows: knows.filter(|_| inserted),
        })
    }

    /// Introduces a rail to one of a peer's, once.
    pub(super) fn introduce(&mut self, now: Time, peer: PeerId, local: usize, remote: usize) {
        if let Some(said) = self.introduction(peer, local, remote) {
            self.say(now, peer, (local, remote), &Word::Introduce(said));
        }
    }

    /// A peer's rail says where its endpoint of ops is.
    pub(super) fn hear_introduction(
        &mut self,
        now: Time,
        id: PeerId,
        local: usize,
        said: Introduction,
        answer: bool,
    ) {
        let remote = usize::from(said.rail);
        let Some(peer) = self.peers.get_mut(id) else { return };
        peer.rail_alive(remote);
        if !peer.learn(remote, said.epoch, said.endpoint) {
            return;
        }
        let Some(mine) = self.introduction(id, local, remote) else { return };
        if said.knows == Some(mine.epoch)
            && let Some(link) = self.link(id, local, remote)
        {
            link.vouch(mine.epoch, said.epoch);
        }
        if answer {
            self.say(now, id, (local, remote), &Word::Introduced(mine));
        }
    }

    fn link(&mut self, peer: PeerId, local: usize, remote: usize) -> Option<&mut Link> {
        self.peers.get_mut(peer)?.link_mut(local, remote)
    }

    /// Asks again whoever has not vouched yet.
    pub(super) fn tick_introductions(&mut self, now: Time) {
        let mut soonest: Option<Time> = None;
        for (peer, local, remote) in std::mem::take(&mut self.introductions) {
            let Some(due) = self.link(peer, local, remote).map(|link| link.ask_due()) else { continue };
            if due.is_some_and(|due| due <= now) {
                self.introduce(now, peer, local, remote);
            }
            let Some(link) = self.link(peer, local, remote) else { continue };
            if due.is_some_and(|due| due <= now) {
                link.asked(now);
            }
            match link.ask_due() {
                Some(again) => {
                    soonest = Some(soonest.map_or(again, |soonest| soonest.min(again)));
                    self.introductions.push((peer, local, remote));
                }
                None => link.listed = false,
            }
        }
        if let Some(at) = soonest {
            self.hurry(at);
        }
    }
}
