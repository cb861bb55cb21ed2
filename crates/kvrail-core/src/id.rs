//! Names of things: one type per noun, so that a local index cannot stand where a remote one is meant (KR-10).

use core::fmt;

macro_rules! index {
    ($(#[$doc:meta])* $name:ident, $label:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub struct $name(pub u16);
        impl $name {
            /// The position in its inventory.
            #[must_use]
            pub const fn index(self) -> usize {
                self.0 as usize
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($label, " {}"), self.0)
            }
        }
    };
}

index!(
    /// A rail (NIC, connection, mapping) of this agent.
    LocalRail,
    "rail"
);
index!(
    /// A rail of a peer. Only a [`Route`] pairs it with a local one.
    RemoteRail,
    "remote rail"
);

/// A pairing of a local rail with a remote one, made once from both inventories (KR-10).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Route {
    /// The rail that posts.
    pub local: LocalRail,
    /// The peer's rail that is addressed.
    pub remote: RemoteRail,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "route {}-{}", self.local.0, self.remote.0)
    }
}

/// Registered memory of one agent: a slot in its region table.
///
/// A slot is reused after deregistration; [`Generation`] tells its tenants apart.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RegionId(pub u32);

impl RegionId {
    /// The slot's position in the region table.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for RegionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "region {}", self.0)
    }
}

/// Which tenant of a slot is meant. Never zero for a live one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Generation(pub u32);

impl Generation {
    /// The generation after this one; zero is skipped.
    #[must_use]
    pub const fn next(self) -> Self {
        match self.0.wrapping_add(1) {
            0 => Self(1),
            n => Self(n),
        }
    }
}

/// A remote agent's incarnation as this agent knows it: a slot and the slot's generation (KR-11).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PeerId {
    /// Position in the peer table.
    pub slot: u32,
    /// Tenant of that position.
    pub generation: Generation,
}

impl PeerId {
    /// The slot's position in the peer table.
    #[must_use]
    pub const fn index(self) -> usize {
        self.slot as usize
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "peer {}.{}", self.slot, self.generation.0)
    }
}

/// One life of an agent: chosen at random when it is created, so that a restarted process under the same name
/// is a different peer (KR-11).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Incarnation(pub u64);

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// One posting of a plan, unique within its initiator's incarnation; never reused, never wraps in practice (KR-3).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TransferId(pub u64);

impl fmt::Display for TransferId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "transfer {}", self.0)
    }
}

/// A transfer's slot in its initiator's slab, with the slot's generation: what a transport hands back with each
/// completion (KR-6).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Token {
    /// Position in the slab.
    pub slot: u32,
    /// Tenant of that position.
    pub generation: Generation,
}

/// A set of one agent's rails.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RailSet(u64);

impl RailSet {
    /// Every rail that there is.
    pub const ALL: Self = Self(u64::MAX);
    /// No rail.
    pub const NONE: Self = Self(0);

    /// The rails whose bits are set: bit `i` stands for the rail with index `i`.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Bit `i` is set if the rail with index `i` belongs to the set.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The same with one rail more; an index beyond [`crate::limits::RAILS_MAX`] changes nothing.
    #[must_use]
    pub const fn with(self, index: usize) -> Self {
        if index < crate::limits::RAILS_MAX { Self(self.0 | 1 << index) } else { self }
    }

    /// Whether the rail with that index belongs to the set.
    #[must_use]
    pub const fn contains(self, index: usize) -> bool {
        index < crate::limits::RAILS_MAX && self.0 >> index & 1 == 1
    }

    /// Rails of either set.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Rails of both sets.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The set as it is among `count` rails: [`RailSet::ALL`] if each of them belongs to it, else without those that do
    /// not exist.
    #[must_use]
    pub const fn among(self, count: usize) -> Self {
        let existing = if count >= crate::limits::RAILS_MAX { u64::MAX } else { (1 << count) - 1 };
        if self.0 & existing == existing { Self::ALL } else { Self(self.0 & existing) }
    }

    /// Indices of the set's rails below `count`, ascending.
    pub fn below(self, count: usize) -> impl Iterator<Item = usize> {
        (0..count).filter(move |&index| self.contains(index))
    }
}

const _: () = assert!(crate::limits::RAILS_MAX <= 64, "a rail set is one word");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_among_rails_names_all_of_them_or_only_those_that_exist() {
        assert_eq!(RailSet::ALL.among(3), RailSet::ALL);
        assert_eq!(RailSet::from_bits(0b111).among(3), RailSet::ALL);
        assert_eq!(RailSet::from_bits(0b1_0101).among(4), RailSet::from_bits(0b0101));
        assert_eq!(RailSet::from_bits(0b1_0000).among(4), RailSet::NONE);
        assert_eq!(RailSet::ALL.among(64), RailSet::ALL);
        assert_eq!(RailSet::NONE.among(64), RailSet::NONE);
    }
}
