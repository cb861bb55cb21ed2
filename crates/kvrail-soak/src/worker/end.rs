//! One end of a transfer: the memory that it uses, what must be there, and what is.

use kvrail::Memory;

use crate::layout::Layout;
use crate::pattern::Bytes;
use crate::talk::Find;
use crate::violation::{Checker, Violation};

/// Bytes that are looked at together.
const WINDOW: usize = 256 << 10;

/// Whether bytes leave from here or arrive here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Role {
    Source,
    Target,
}

/// One end.
#[derive(Debug)]
pub(super) struct End {
    id: u64,
    seed: u64,
    pub(super) role: Role,
    pub(super) region: usize,
    memory: Memory,
    offset: u64,
    bytes: u64,
    /// Offset in the extent, bytes, position in the transfer; by offset.
    spans: Vec<(u64, u64, u64)>,
    /// How often it was poisoned.
    occasion: u64,
    /// The memory is the application's again: nothing of the transfer may be seen here any more.
    retired: bool,
}

/// Which side of the layout an end is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Side {
    Initiator,
    Responder,
}

/// Where an end lies.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) region: usize,
    pub(super) memory: Memory,
    pub(super) offset: u64,
}

impl End {
    /// Takes the extent, and puts there what belongs there before the transfer.
    pub(super) fn prepare(
        seed: u64,
        id: u64,
        role: Role,
        side: Side,
        layout: &Layout,
        place: Place,
    ) -> Result<Self, String> {
        let of = |span: &crate::layout::Span| match side {
            Side::Initiator => (span.local, span.len, span.position),
            Side::Responder => (span.remote, span.len, span.position),
        };
        let mut spans: Vec<_> = layout.spans.iter().map(of).collect();
        spans.sort_unstable();
        let bytes = match side {
            Side::Initiator => layout.local_bytes,
            Side::Responder => layout.remote_bytes,
        };
        let Place { region, memory, offset } = place;
        if offset + bytes > memory.len() as u64 {
            return Err(format!("transfer {id}: {bytes} bytes at {offset} lie outside region {region}"));
        }
        let end = Self { id, seed, role, region, memory, offset, bytes, spans, occasion: 0, retired: false };
        end.put(0)?;
        Ok(end)
    }

    /// Writes pattern or poison.
    fn put(&self, occasion: u64) -> Result<(), String> {
        let mut window = vec![0; WINDOW.min(self.bytes as usize)];
        let source = self.role == Role::Source && occasion == 0;
        self.windows(&mut window, |at, window| {
            self.expect(at, window, source, occasion);
            self.memory.write((self.offset + at) as usize, window).map_err(|e| e.to_string())
        })
    }

    fn windows(
        &self,
        window: &mut [u8],
        mut each: impl FnMut(u64, &mut [u8]) -> Result<(), String>,
    ) -> Result<(), String> {
        let mut at = 0;
        while at < self.bytes {
            let len = (self.bytes - at).min(window.len() as u64);
            each(at, &mut window[..len as usize])?;
            at += len;
        }
        Ok(())
    }

    /// What should be in a window: poison, and the pattern in the slices when `moved`.
    fn expect(&self, at: u64, window: &mut [u8], moved: bool, occasion: u64) {
        Bytes::poison(self.seed, self.id, occasion).fill(at, window);
        if moved {
            let pattern = Bytes::of_transfer(self.seed, self.id);
            for (from, to, position) in self.slices(at, window.len() as u64) {
                pattern.fill(position, &mut window[(from - at) as usize..(to - at) as usize]);
            }
        }
    }

    /// The parts of slices in a window: from, to (in the extent), position.
    fn slices(&self, at: u64, len: u64) -> impl Iterator<Item = (u64, u64, u64)> + '_ {
        let first = self.spans.partition_point(|(offset, len, _)| offset + len <= at);
        let within = self.spans[first..].iter().take_while(move |(offset, ..)| *offset < at + len);
        within.map(move |(offset, span, position)| {
            let (from, to) = ((*offset).max(at), (offset + span).min(at + len));
            (from, to, position + (from - offset))
        })
    }

    /// Looks at every byte.
    fn look(&self, find: Find) -> Option<Violation> {
        let window_bytes = WINDOW.min(self.bytes as usize);
        let (mut seen, mut moved, mut poison) =
            (vec![0; window_bytes], vec![0; window_bytes], vec![0; window_bytes]);
        let mut wrong = None;
        let looked = self.windows(&mut seen, |at, seen| {
            if wrong.is_some() {
                return Ok(());
            }
            self.memory.read((self.offset + at) as usize, seen).map_err(|e| e.to_string())?;
            let (moved, poison) = (&mut moved[..seen.len()], &mut poison[..seen.len()]);
            self.expect(at, poison, false, self.occasion);
            let good = match find {
                Find::None => seen == poison,
                Find::All => {
                    self.expect(at, moved, true, self.occasion);
                    seen == moved
                }
                Find::Some => {
                    self.expect(at, moved, true, self.occasion);
                    seen.iter().zip(&*moved).zip(&*poison).all(|((s, m), p)| s == m || s == p)
                }
            };
            if !good {
                if find == Find::None {
                    moved.copy_from_slice(poison);
                }
                wrong = self.describe(at, seen, moved, poison, find);
            }
            Ok(())
        });
        match looked {
            Ok(()) => wrong,
            Err(why) => Some(Violation::new(Checker::Bytes, format!("transfer {}: {why}", self.id))),
        }
    }

    /// Says what is wrong in a window: the first byte and how many.
    fn describe(&self, at: u64, seen: &[u8], wanted: &[u8], poison: &[u8], find: Find) -> Option<Violation> {
        let bad = |i: usize| seen[i] != wanted[i] && !(find == Find::Some && seen[i] == poison[i]);
        let first = (0..seen.len()).find(|i| bad(*i))?;
        let count = (first..seen.len()).filter(|i| bad(*i)).count();
        let within = self.slices(at, seen.len() as u64).find(|(from, to, _)| {
            let here = at + first as u64;
            (*from..*to).contains(&here)
        });
        let (checker, place) = match within {
            Some((from, _, position)) => {
                (Checker::Bytes, format!("byte {} of the transfer", position + at + first as u64 - from))
            }
            None => (Checker::Surroundings, "beside its slices".to_owned()),
        };
        let is = if seen[first] == poison[first] { " (untouched)" } else { "" };
        Some(Violation::new(
            checker,
            format!(
                "transfer {} at its {}: {count} bytes are wrong in {}, first at offset {} of region {}, {place}: {:#04x}{is} \
                 instead of {:#04x}",
                self.id,
                if self.role == Role::Source { "source" } else { "target" },
                seen.len(),
                self.offset + at + first as u64,
                self.region,
                seen[first],
                wanted[first],
            ),
        ))
    }

    /// Looks whether what a transfer left is what it should be.
    pub(super) fn check(&self, find: Find) -> Option<Violation> {
        if self.retired {
            return self.check_quiet();
        }
        // What leaves stays as it was, however much of it left.
        self.look(if self.role == Role::Source { Find::All } else { find })
    }

    /// Looks whether anything moved although nothing may.
    pub(super) fn check_quiet(&self) -> Option<Violation> {
        let late = self.look(Find::None)?;
        Some(Violation::new(Checker::Quiet, format!("after its end, {}", late.what)))
    }

    /// Takes the memory back: from now on the poison must stay.
    pub(super) fn retire(&mut self) -> Result<(), String> {
        self.retired = true;
        self.occasion += 1;
        self.put(self.occasion)
    }

    pub(super) fn is_retired(&self) -> bool {
        self.retired
    }

    /// A defect: changes a byte of a slice, or one beside the slices.
    pub(super) fn spoil(&self, inside: bool) {
        let (offset, len, _) = self.spans[self.spans.len() / 2];
        let at = self.offset + if inside { offset + len / 2 } else { self.bytes - 1 };
        let mut byte = [0];
        let _ = self.memory.read(at as usize, &mut byte);
        let _ = self.memory.write(at as usize, &[!byte[0]]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Shape;

    fn end(role: Role) -> (End, Memory) {
        let memory = Memory::private(1 << 20).unwrap();
        let shape = Shape { seed: 3, count: 40, len_min: 1, len_max: 9000, gap_max: 70, shuffled: true };
        let place = Place { region: 0, memory: memory.clone(), offset: 100 };
        (End::prepare(1, 7, role, Side::Responder, &shape.layout(), place).unwrap(), memory)
    }

    fn arrive(end: &End, spans: usize) {
        let pattern = Bytes::of_transfer(1, 7);
        for (offset, len, position) in &end.spans[..spans] {
            let mut bytes = vec![0; *len as usize];
            pattern.fill(*position, &mut bytes);
            end.memory.write((end.offset + offset) as usize, &bytes).unwrap();
        }
    }

    #[test]
    fn what_arrived_whole_in_part_or_not_at_all_is_told_apart() {
        let (end, _) = end(Role::Target);
        assert_eq!(end.check(Find::None), None);
        arrive(&end, 20);
        assert_eq!(end.check(Find::Some), None);
        assert_eq!(end.check(Find::All).unwrap().checker, Checker::Bytes);
        assert_eq!(end.check(Find::None).unwrap().checker, Checker::Bytes);
        arrive(&end, 40);
        assert_eq!(end.check(Find::All), None);
    }

    #[test]
    fn a_wrong_byte_a_byte_beside_and_a_late_byte_are_found() {
        let (mut end, memory) = end(Role::Target);
        arrive(&end, 40);
        end.spoil(true);
        assert_eq!(end.check(Find::All).unwrap().checker, Checker::Bytes);
        end.spoil(true);
        end.spoil(false);
        assert_eq!(end.check(Find::All).unwrap().checker, Checker::Surroundings);
        end.retire().unwrap();
        assert_eq!(end.check_quiet(), None);
        memory.write(200, &[1, 2, 3]).unwrap();
        assert_eq!(end.check_quiet().unwrap().checker, Checker::Quiet);
    }
}
