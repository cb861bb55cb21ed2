//! Values with keys that are never valid for another value.

/// A table whose keys name one value for ever: a place, and which of its successive tenants.
pub(super) struct Slab<T> {
    places: Vec<Place<T>>,
    free: Vec<u32>,
}

struct Place<T> {
    generation: u32,
    value: Option<T>,
}

/// Keys have 48 bits: 24 of the place, 24 of its generation.
const INDEX_BITS: u32 = 24;
const MASK: u64 = (1 << INDEX_BITS) - 1;

/// Names a value of a [`Slab`]; less than 2^48.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(super) struct Key(pub(super) u64);

impl Key {
    fn split(self) -> (usize, u32) {
        ((self.0 & MASK) as usize, (self.0 >> INDEX_BITS) as u32)
    }
}

impl<T> Slab<T> {
    pub(super) fn new() -> Slab<T> {
        Slab { places: Vec::new(), free: Vec::new() }
    }

    pub(super) fn insert(&mut self, value: T) -> Key {
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place { generation: 0, value: None });
            self.places.len() as u32 - 1
        });
        let place = &mut self.places[index as usize];
        place.generation = (place.generation + 1) & MASK as u32;
        place.value = Some(value);
        Key(u64::from(place.generation) << INDEX_BITS | u64::from(index))
    }

    pub(super) fn get(&self, key: Key) -> Option<&T> {
        let (index, generation) = key.split();
        let place = self.places.get(index)?;
        if place.generation == generation { place.value.as_ref() } else { None }
    }

    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let (index, generation) = key.split();
        let place = self.places.get_mut(index)?;
        if place.generation == generation { place.value.as_mut() } else { None }
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<T> {
        let (index, generation) = key.split();
        let place = self.places.get_mut(index)?;
        if place.generation != generation {
            return None;
        }
        let value = place.value.take()?;
        self.free.push(index as u32);
        Some(value)
    }

    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        self.places.iter().enumerate().filter_map(|(index, place)| {
            let key = Key(u64::from(place.generation) << INDEX_BITS | index as u64);
            Some((key, place.value.as_ref()?))
        })
    }

    /// The keys of all values of which `wanted` is true.
    pub(super) fn keys_where(&self, mut wanted: impl FnMut(&T) -> bool) -> Vec<Key> {
        self.iter().filter(|(_, value)| wanted(value)).map(|(key, _)| key).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_never_names_the_next_tenant() {
        let mut slab = Slab::new();
        let first = slab.insert('a');
        assert_eq!(slab.remove(first), Some('a'));
        let second = slab.insert('b');
        assert_eq!((slab.get(first), slab.get(second)), (None, Some(&'b')));
        assert_eq!((slab.remove(first), slab.len()), (None, 1));
        assert!(second.0 < 1 << 48);
    }
}
