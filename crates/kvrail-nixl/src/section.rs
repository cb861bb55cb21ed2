//! Sections: which addresses of an agent are registered, found by address.

use kvrail::RegionId;

use crate::backend::BackendSet;
use crate::list::{Desc, MemoryKind};

/// Memory that is registered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    pub(crate) desc: Desc,
    /// Its region; none for memory that only files know.
    pub(crate) region: Option<RegionId>,
    pub(crate) backends: BackendSet,
}

impl Entry {
    /// Whether `desc` lies inside.
    pub(crate) fn covers(&self, desc: &Desc) -> bool {
        let inside = desc.addr.checked_sub(self.desc.addr).and_then(|offset| offset.checked_add(desc.len));
        desc.device == self.desc.device && inside.is_some_and(|end| end <= self.desc.len)
    }
}

/// Registered memory of one kind, by device and address. Registrations may overlap.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    /// By device, then address; equal ones in the order of their coming.
    entries: Vec<Entry>,
    /// The highest end among an entry and those before it on its device: where a search backwards may stop.
    reach: Vec<u64>,
}

impl Table {
    pub(crate) fn new(mut entries: Vec<Entry>) -> Self {
        entries.sort_by_key(|entry| (entry.desc.device, entry.desc.addr));
        let mut reach = Vec::with_capacity(entries.len());
        for (index, entry) in entries.iter().enumerate() {
            let end = entry.desc.end().unwrap_or(u64::MAX);
            let before = index.checked_sub(1).filter(|&i| entries[i].desc.device == entry.desc.device);
            reach.push(before.map_or(end, |i| end.max(reach[i])));
        }
        Self { entries, reach }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The backends that know any of it.
    pub(crate) fn backends(&self) -> BackendSet {
        self.entries.iter().fold(BackendSet::NONE, |all, entry| all.or(entry.backends))
    }

    /// An entry that covers `desc` and that all of `backends` know; `near` is looked at first.
    #[inline]
    pub(crate) fn find(&self, desc: &Desc, backends: BackendSet, near: &mut usize) -> Option<&Entry> {
        let end = desc.end()?;
        let fits = |entry: &Entry| entry.covers(desc) && backends.without(entry.backends).is_empty();
        if let Some(entry) = self.entries.get(*near).filter(|entry| fits(entry)) {
            return Some(entry);
        }
        let mut index =
            self.entries.partition_point(|e| (e.desc.device, e.desc.addr) <= (desc.device, desc.addr));
        while index > 0 {
            index -= 1;
            let entry = &self.entries[index];
            if entry.desc.device != desc.device || self.reach[index] < end {
                return None;
            }
            if fits(entry) {
                *near = index;
                return Some(entry);
            }
        }
        None
    }
}

/// Registered memory of all kinds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Section {
    tables: [Table; MemoryKind::ALL.len()],
}

impl Section {
    pub(crate) fn new(entries: impl IntoIterator<Item = (MemoryKind, Entry)>) -> Self {
        let mut of_kind: [Vec<Entry>; MemoryKind::ALL.len()] = Default::default();
        for (kind, entry) in entries {
            of_kind[kind as usize].push(entry);
        }
        Self { tables: of_kind.map(Table::new) }
    }

    pub(crate) fn table(&self, kind: MemoryKind) -> &Table {
        &self.tables[kind as usize]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::backend::BackendKind;

    proptest! {
        #[test]
        fn a_search_finds_what_a_look_at_all_entries_finds(
            ranges in prop::collection::vec((0..3u64, 0..60u64, 0..30u64, 0..4u8), 0..20),
            (device, addr, len) in (0..3u64, 0..80u64, 0..20u64),
            wanted in 0..4u8,
            near in 0..20usize,
        ) {
            // The two network backends as bits 0 and 1.
            let set = |bits: u8| [BackendKind::Ucx, BackendKind::Libfabric]
                .into_iter().enumerate().filter(|(i, _)| bits & (1 << i) != 0).map(|(_, kind)| kind).collect::<BackendSet>();
            let entries: Vec<_> = ranges.iter().map(|&(device, addr, len, bits)| Entry {
                desc: Desc { addr, len, device }, region: None, backends: set(bits),
            }).collect();
            let desc = Desc { addr, len, device };
            let slow = entries.iter().any(|e| e.covers(&desc) && set(wanted).without(e.backends).is_empty());
            let table = Table::new(entries);
            let found = table.find(&desc, set(wanted), &mut near.clone());
            prop_assert_eq!(found.is_some(), slow);
            prop_assert!(found.is_none_or(|e| e.covers(&desc)));
        }

        #[test]
        fn no_numbers_overflow(numbers: [u64; 6]) {
            let [a, b, c, d, e, f] = numbers;
            let entry = Entry { desc: Desc { addr: a, len: b, device: c }, region: None, backends: BackendSet::NONE };
            let table = Table::new(vec![entry, entry]);
            let desc = Desc { addr: d, len: e, device: if f % 2 == 0 { c } else { f } };
            let found = table.find(&desc, BackendSet::NONE, &mut 7);
            prop_assert_eq!(found.is_some(), entry.covers(&desc) && desc.end().is_some());
        }
    }
}
