//! Address handles: which peers a NIC knows.

use softefa_fabric::Gid;

use super::types::Limit;

/// The address handles of one NIC in one process. The same address has one number, and handles of it are counted.
#[derive(Default)]
pub(super) struct Handles {
    /// A handle's place is its number.
    known: Vec<Option<(Gid, u32)>>,
}

impl Handles {
    pub(super) fn add(&mut self, to: Gid, most: u32) -> Result<u16, Limit> {
        let mut free = None;
        for (number, entry) in self.known.iter_mut().enumerate() {
            match entry {
                Some((gid, count)) if *gid == to => {
                    *count += 1;
                    return Ok(number as u16);
                }
                Some(_) => {}
                None => free = free.or(Some(number)),
            }
        }
        let number = free.unwrap_or(self.known.len());
        if number >= most.min(u16::MAX.into()) as usize {
            return Err(Limit::Exhausted);
        }
        if number == self.known.len() {
            self.known.push(None);
        }
        self.known[number] = Some((to, 1));
        Ok(number as u16)
    }

    pub(super) fn remove(&mut self, to: Gid) {
        for entry in &mut self.known {
            if let Some((gid, count)) = entry
                && *gid == to
            {
                *count -= 1;
                if *count == 0 {
                    *entry = None;
                }
                return;
            }
        }
    }

    /// The number of this peer's handle. There are as many handles as a fabric has NICs, at most: looking through them is quick.
    pub(super) fn find(&self, gid: Gid) -> Option<u16> {
        self.known.iter().position(|entry| entry.is_some_and(|(it, _)| it == gid)).map(|number| number as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_address_has_one_number_until_its_last_handle_is_gone() {
        let mut handles = Handles::default();
        let (a, b, c) = (Gid::of(0, 0), Gid::of(0, 1), Gid::of(0, 2));
        assert_eq!((handles.add(a, 2), handles.add(b, 2), handles.add(a, 2)), (Ok(0), Ok(1), Ok(0)));
        assert_eq!(handles.add(c, 2), Err(Limit::Exhausted));
        handles.remove(a);
        assert_eq!(handles.find(a), Some(0));
        handles.remove(a);
        assert_eq!((handles.find(a), handles.find(b)), (None, Some(1)));
        assert_eq!(handles.add(c, 2), Ok(0));
    }
}
