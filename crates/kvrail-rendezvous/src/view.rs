//! One member's mirror of its run, and the waiting on it.
//!
//! The store's thread feeds changes in the store's order; the member's threads wait for what they need to appear, and
//! wake for what makes it impossible. The group is *sealed* when the seats of all ranks are held and each holder has
//! agreed to exactly this set of lives. What is left of an earlier run cannot agree to a set with a new life in
//! it, so it is never taken for a member; and from the seal on, a seat that changes hands or empties is a member lost.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use crate::error::{Loss, ServiceError};
use crate::key::Key;
use crate::limits::{RUN_BYTES_MAX, RUN_KEYS_MAX};
use crate::member::{Incarnation, Member, Parting, Record};

/// A change in the store, below the run's prefix.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Event {
    /// `owner` is whose lease or connection the key lives with.
    Put {
        key: String,
        value: Arc<[u8]>,
        owner: u64,
    },
    Delete {
        key: String,
    },
}

/// Who holds the seat of a rank.
#[derive(Clone, Debug)]
pub(crate) struct Seat {
    pub(crate) record: Record,
    pub(crate) owner: u64,
    /// Smaller than that of every seat that was taken later.
    pub(crate) arrival: u64,
}

pub(crate) struct View {
    me: Incarnation,
    world_size: u32,
    pub(crate) seats: BTreeMap<u32, Seat>,
    arrivals: u64,
    /// Seats whose records this version cannot read.
    pub(crate) foreign: BTreeSet<u32>,
    ready: HashMap<Incarnation, u64>,
    values: HashMap<Incarnation, BTreeMap<String, Arc<[u8]>>>,
    value_bytes: usize,
    keys: usize,
    answers: HashSet<Incarnation>,
    /// The group, once it is complete; by rank.
    pub(crate) sealed: Option<Arc<[Member]>>,
    partings: BTreeMap<u32, Parting>,
    /// The first member lost since the seal, and how.
    pub(crate) lost: Option<(u32, Loss)>,
    /// Why the store can no longer be trusted.
    pub(crate) failed: Option<ServiceError>,
    /// Whether what was in the store when this member came is known.
    pub(crate) current: bool,
}

impl View {
    fn new(me: Incarnation, world_size: u32) -> Self {
        Self {
            me,
            world_size,
            seats: BTreeMap::new(),
            arrivals: 0,
            foreign: BTreeSet::new(),
            ready: HashMap::new(),
            values: HashMap::new(),
            value_bytes: 0,
            keys: 0,
            answers: HashSet::new(),
            sealed: None,
            partings: BTreeMap::new(),
            lost: None,
            failed: None,
            current: false,
        }
    }

    /// The value that this life of a member published under `name`.
    pub(crate) fn value(&self, owner: Incarnation, name: &str) -> Option<&Arc<[u8]>> {
        self.values.get(&owner)?.get(name)
    }

    /// How a member went that said so.
    pub(crate) fn parting(&self, rank: u32) -> Option<&Parting> {
        self.partings.get(&rank)
    }

    /// Whether `holder` has answered this member's challenge.
    pub(crate) fn answered(&self, holder: Incarnation) -> bool {
        self.answers.contains(&holder)
    }

    /// A number that stands for the set of lives that hold the seats; none while one is empty or another size.
    pub(crate) fn candidate(&self) -> Option<u64> {
        let held = |rank: &u32| {
            self.seats.get(rank).is_some_and(|seat| {
                seat.record.world_size == self.world_size && seat.record.parting.is_none()
            })
        };
        if !(0..self.world_size).all(|rank| held(&rank)) {
            return None;
        }
        // FNV-1a. The lives are random, so that no two sets share it by chance.
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for seat in self.seats.range(..self.world_size).map(|(_, seat)| seat) {
            for byte in seat.record.member.incarnation.0.to_le_bytes() {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
        Some(hash)
    }

    /// Whether the member of that rank has agreed to the present set.
    pub(crate) fn agrees(&self, rank: u32) -> bool {
        let Some(seat) = self.seats.get(&rank) else { return false };
        let said = self.ready.get(&seat.record.member.incarnation);
        said.is_some() && said.copied() == self.candidate()
    }

    fn apply(&mut self, event: Event) -> Option<Incarnation> {
        match event {
            Event::Put { key, value, owner } => match Key::parse(&key)? {
                Key::Member(rank) => self.seat(rank, &value, owner),
                Key::Ready(member) => {
                    let digest = std::str::from_utf8(&value).ok();
                    if let Some(digest) = digest.and_then(|text| u64::from_str_radix(text, 16).ok()) {
                        if self.ready.len() < RUN_KEYS_MAX {
                            self.ready.insert(member, digest);
                        }
                        self.seal();
                    }
                }
                Key::Challenge { holder, from } if holder == self.me => return Some(from),
                Key::Answer { holder, from } if from == self.me => {
                    if self.answers.len() < RUN_KEYS_MAX {
                        self.answers.insert(holder);
                    }
                }
                Key::Challenge { .. } | Key::Answer { .. } => {}
                Key::Value { owner, name } => self.put_value(owner, name, value),
            },
            Event::Delete { key } => match Key::parse(&key)? {
                Key::Member(rank) => self.unseat(rank),
                Key::Ready(member) => {
                    self.ready.remove(&member);
                }
                // What a member published before it left in order may still be read.
                Key::Value { owner, name } if !self.has_parted(owner) => self.delete_value(owner, name),
                Key::Value { .. } | Key::Challenge { .. } | Key::Answer { .. } => {}
            },
        }
        None
    }

    fn seat(&mut self, rank: u32, bytes: &[u8], owner: u64) {
        let Some(record) = Record::decode(rank, bytes) else {
            self.unseat(rank);
            self.foreign.insert(rank);
            return;
        };
        self.foreign.remove(&rank);
        if let Some(member) = self.sealed_member(rank) {
            if member.incarnation != record.member.incarnation {
                if !self.partings.contains_key(&rank) {
                    self.lose(rank, Loss::Replaced { by: Box::new(record.member.clone()) });
                }
            } else if let Some(parting) = &record.parting {
                self.partings.insert(rank, parting.clone());
                if let Parting::GaveUp(reason) = parting {
                    self.lose(rank, Loss::GaveUp { reason: reason.clone() });
                }
            }
        }
        let known =
            self.seats.get(&rank).filter(|seat| seat.record.member.incarnation == record.member.incarnation);
        let arrival = known.map_or(self.arrivals, |seat| seat.arrival);
        self.arrivals += 1;
        self.seats.insert(rank, Seat { record, owner, arrival });
        self.seal();
    }

    fn unseat(&mut self, rank: u32) {
        self.foreign.remove(&rank);
        let held = self.seats.remove(&rank).map(|seat| seat.record.member.incarnation);
        let sealed = self.sealed_member(rank).map(|member| member.incarnation);
        if sealed.is_some() && held == sealed && !self.partings.contains_key(&rank) {
            self.lose(rank, Loss::Vanished);
        }
    }

    fn seal(&mut self) {
        // An earlier run that was complete still agrees with itself.
        let mine =
            self.seats.range(..self.world_size).any(|(_, seat)| seat.record.member.incarnation == self.me);
        if mine && self.sealed.is_none() && (0..self.world_size).all(|rank| self.agrees(rank)) {
            let members = self.seats.range(..self.world_size).map(|(_, seat)| seat.record.member.clone());
            self.sealed = Some(members.collect());
        }
    }

    fn lose(&mut self, rank: u32, loss: Loss) {
        self.lost.get_or_insert((rank, loss));
    }

    fn sealed_member(&self, rank: u32) -> Option<&Member> {
        self.sealed.as_ref()?.get(rank as usize)
    }

    fn has_parted(&self, owner: Incarnation) -> bool {
        self.partings.keys().any(|&rank| self.sealed_member(rank).is_some_and(|m| m.incarnation == owner))
    }

    fn put_value(&mut self, owner: Incarnation, name: &str, value: Arc<[u8]>) {
        let len = value.len();
        match self.values.entry(owner).or_default().insert(name.into(), value) {
            Some(old) => self.value_bytes -= old.len(),
            None => self.keys += 1,
        }
        self.value_bytes += len;
        if self.value_bytes > RUN_BYTES_MAX || self.keys > RUN_KEYS_MAX {
            self.failed.get_or_insert(ServiceError::TooMuch { keys: self.keys, bytes: self.value_bytes });
        }
    }

    fn delete_value(&mut self, owner: Incarnation, name: &str) {
        let Some(values) = self.values.get_mut(&owner) else { return };
        if let Some(old) = values.remove(name) {
            self.value_bytes -= old.len();
            self.keys -= 1;
        }
        if values.is_empty() {
            self.values.remove(&owner);
        }
    }

    /// The keys that would be there if `present` were all that the store has, and are not.
    fn vanished(&self, present: &HashSet<&str>) -> Vec<String> {
        let seats = self.seats.keys().chain(&self.foreign).map(|&rank| Key::Member(rank).to_string());
        let ready = self.ready.keys().map(|&member| Key::Ready(member).to_string());
        let values = self.values.iter().flat_map(|(&owner, values)| {
            values.keys().map(move |name| Key::Value { owner, name }.to_string())
        });
        seats.chain(ready).chain(values).filter(|key| !present.contains(key.as_str())).collect()
    }
}

/// A view that threads share.
pub(crate) struct Shared {
    view: Mutex<View>,
    changed: Condvar,
}

impl Shared {
    pub(crate) fn new(me: Incarnation, world_size: u32) -> Arc<Self> {
        Arc::new(Self { view: Mutex::new(View::new(me, world_size)), changed: Condvar::new() })
    }

    /// Takes changes in; returns who asks whether this member is alive, for the caller to answer.
    pub(crate) fn apply(&self, events: impl IntoIterator<Item = Event>) -> Vec<Incarnation> {
        let mut view = self.view.lock();
        let askers = events.into_iter().filter_map(|event| view.apply(event)).collect();
        drop(view);
        self.changed.notify_all();
        askers
    }

    /// Takes the store's whole present state in, after changes may have been missed or for the first time.
    pub(crate) fn replace(&self, events: Vec<Event>) -> Vec<Incarnation> {
        let mut view = self.view.lock();
        let present = events.iter().map(|event| match event {
            Event::Put { key, .. } | Event::Delete { key } => key.as_str(),
        });
        let mut all: Vec<Event> =
            view.vanished(&present.collect()).into_iter().map(|key| Event::Delete { key }).collect();
        all.extend(events);
        let askers = all.into_iter().filter_map(|event| view.apply(event)).collect();
        view.current = true;
        drop(view);
        self.changed.notify_all();
        askers
    }

    /// The store is gone for this member. The first reason stays.
    pub(crate) fn fail(&self, error: ServiceError) {
        self.view.lock().failed.get_or_insert(error);
        self.changed.notify_all();
    }

    /// Waits until `look` finds what it looks for, or the time has come; then it looks a last time.
    pub(crate) fn wait<T>(
        &self,
        until: Instant,
        mut look: impl FnMut(&View) -> Option<T>,
    ) -> Result<T, parking_lot::MutexGuard<'_, View>> {
        let mut view = self.view.lock();
        loop {
            if let Some(found) = look(&view) {
                return Ok(found);
            }
            if Instant::now() >= until {
                return Err(view);
            }
            self.changed.wait_until(&mut view, until);
        }
    }

    /// Looks once.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&View) -> T) -> T {
        look(&self.view.lock())
    }
}

#[cfg(test)]
mod tests;
